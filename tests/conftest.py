"""Settings for all tests."""

import gc
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
BESIDE: Final = (
    "cli/test_history.py",
    "cli/test_live.py",
    "cli/test_model.py",
    "cli/test_one_byte.py",
    "cli/test_serve.py",
    "cli/test_sim.py",
    "cli/test_workload.py",
    "codec",
    "deploy/test_commands.py",
    "deploy/test_kubernetes.py",
    "deploy/test_systemd.py",
    "endpoint",
    "fuzzers",
    "group/test_both_worlds.py",
    "group/test_choice.py",
    "group/test_codecs_and_schedules.py",
    "group/test_collectives.py",
    "group/test_concurrency.py",
    "group/test_encoded_once.py",
    "group/test_fault_schedules.py",
    "group/test_links_fuzz.py",
    "group/test_measuring.py",
    "group/test_messages.py",
    "group/test_odd_votes.py",
    "group/test_recovery.py",
    "group/test_rings.py",
    "group/test_roster.py",
    "group/test_schedules.py",
    "group/test_sized.py",
    "group/test_state.py",
    "group/test_subgroups.py",
    "group/test_topology.py",
    "group/test_virtual.py",
    "group/test_walls.py",
    "group/test_wrong_use.py",
    "model",
    "net/test_arena.py",
    "net/test_bucket.py",
    "net/test_certificates.py",
    "net/test_channel.py",
    "net/test_doors.py",
    "net/test_guarded.py",
    "net/test_handshake.py",
    "net/test_neighbour.py",
    "net/test_preamble.py",
    "net/test_tls.py",
    "reproduce/calibration",
    "reproduce/scenario",
    "reproduce/test_burstgpt.py",
    "reproduce/test_simulator.py",
    "reproduce/test_streaming_diloco.py",
    "reproduce/test_systems.py",
    "runtime/test_conformance.py",
    "serve",
    "sim",
    "test_config.py",
    "test_cost.py",
    "test_docs.py",
    "test_fabric.py",
    "test_plot.py",
    "test_record.py",
    "test_rng.py",
    "test_structure.py",
    "train",
    "workload",
)
"""What hangs on no time and starts no group of processes: `make test` runs it on all cores. The rest has the machine to
itself."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each its mark."""
    beside = [HERE / place for place in BESIDE]
    for item in items:
        if any(place == item.path or place in item.path.parents for place in beside):
            item.add_marker(pytest.mark.beside)


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_collected() -> None:
    """What stands before a module (tests, torch, hypothesis) stays to the end: no collection need look at it again."""
    gc.collect()
    gc.freeze()
