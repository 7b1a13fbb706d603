"""Settings for all tests."""

import gc
import os
import random
from collections import defaultdict
from pathlib import Path
from typing import Final

import hypothesis
import pytest

HERE: Final = Path(__file__).parent
BESIDE: Final = (
    "cli/test_asynchronous.py",
    "cli/test_chat.py",
    "cli/test_history.py",
    "cli/test_live.py",
    "cli/test_model.py",
    "cli/test_one_byte.py",
    "cli/test_serve.py",
    "cli/test_sim.py",
    "cli/test_strategies.py",
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
    "group/test_station.py",
    "group/test_subgroup_limits.py",
    "group/test_subgroup_losses.py",
    "group/test_subgroups.py",
    "group/test_topology.py",
    "group/test_virtual.py",
    "group/test_walls.py",
    "group/test_wrong_use.py",
    "model",
    "net/test_address.py",
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
    "reproduce/test_co2.py",
    "reproduce/test_demonstrations.py",
    "reproduce/test_routers.py",
    "reproduce/test_simulator.py",
    "reproduce/test_streaming_diloco.py",
    "reproduce/test_systems.py",
    "route",
    "runtime/test_conformance.py",
    "runtime/test_connections.py",
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
itself: `--alone` collects only that."""


SEED: Final = "ATOLL_TEST_SEED"


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make test` uses."""
    which = parser.getgroup("atoll").addoption
    which("--beside", dest="which", action="store_const", const="beside", help="only what may run beside others")
    which("--alone", dest="which", action="store_const", const="alone", help="only what needs the machine to itself")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import nothing that is not asked for."""
    if config.option.which is None or collection_path.is_dir():
        return None
    may_run_beside = any(HERE / place in (collection_path, *collection_path.parents) for place in BESIDE)
    return True if may_run_beside != (config.option.which == "beside") else None


def pytest_configure() -> None:
    """Draw a seed, which xdist's workers find in their environment. No example fails for the time it took."""
    hypothesis.settings.register_profile("atoll", deadline=None)
    hypothesis.settings.load_profile("atoll")
    os.environ.setdefault(SEED, str(random.SystemRandom().randrange(1_000_000)))


def pytest_report_header() -> str:
    """Say how to draw the same cases again."""
    return f"cases of tests marked `sampled` are drawn by {SEED}={os.environ[SEED]}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)` all cases but n drawn ones are slow."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sampled"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for name, all_of_it in cases.items():
        (count,) = all_of_it[0].get_closest_marker("sampled").args  # type: ignore[union-attr]
        drawn = random.Random(f"{os.environ[SEED]} {name}").sample(all_of_it, min(count, len(all_of_it)))
        for item in all_of_it:
            if item not in drawn:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_collected() -> None:
    """What stands before a module (tests, torch, hypothesis) stays to the end: no collection need look at it again."""
    gc.collect()
    gc.freeze()
