from dataclasses import replace

import pytest

from atoll.reproduce.calibration import fit, predict, recovery
from atoll.reproduce.calibration.api import Calibration, HostCosts, Reduced
from atoll.reproduce.calibration.calibrate import TUNED, calibration_of
from tests.reproduce.calibration import synthetic

MIB = 1 << 20


@pytest.fixture(scope="module")
def costs() -> HostCosts:
    return fit.host_costs(synthetic.measured(), "f", "d")


def test_a_vote_costs_what_its_messages_do(costs: HostCosts) -> None:
    """Two peers vote at once on two cores; the master hears one after the other and tells both."""
    peer = costs.turn_s + 2 * costs.message_s + costs.vote_s
    master = costs.master_turn_s + 4 * costs.master_s
    assert predict.barrier_seconds(costs) == pytest.approx(peer + master, rel=0.2)


def test_what_no_core_explains_is_waking_and_dialling(costs: HostCosts) -> None:
    control = replace(synthetic.measured().control, vote_s=500e-6, form_s=5e-3)
    found = predict.with_latencies(costs, control)
    assert found.wake_s > 0
    assert found.dial_s > 0
    assert predict.barrier_seconds(found) == pytest.approx(500e-6, rel=0.02)
    assert predict.forming_seconds(found) == pytest.approx(5e-3, rel=0.1)


def test_a_vote_faster_than_its_messages_needs_no_waking(costs: HostCosts) -> None:
    control = replace(synthetic.measured().control, vote_s=1e-6, form_s=1e-6)
    assert predict.with_latencies(costs, control).wake_s == 0


def test_large_all_reduces_cost_what_their_bytes_do(costs: HostCosts) -> None:
    """Of two peers with a core each, half the bytes are reduced and half are read; memory lets 1.6 cores through."""
    nbytes = 64 * MIB
    per_byte = (
        costs.per_byte_s("reduce", nbytes) + costs.per_byte_s("read", nbytes) + costs.per_byte_s("divide", nbytes)
    )
    expected_s = nbytes / 2 * per_byte * 2 / costs.memory
    assert predict.all_reduce_seconds(costs, 2, nbytes) == pytest.approx(expected_s, rel=0.05)


def test_four_peers_share_two_cores(costs: HostCosts) -> None:
    one_each = replace(costs, cores=4, memory=4.0)
    shared = replace(costs, cores=2, memory=2.0)
    ratio = predict.all_reduce_seconds(shared, 4, 16 * MIB) / predict.all_reduce_seconds(one_each, 4, 16 * MIB)
    assert ratio == pytest.approx(2.0, rel=0.1)


def test_the_same_costs_give_the_same_time(costs: HostCosts) -> None:
    assert predict.all_reduce_seconds(costs, 4, MIB) == predict.all_reduce_seconds(costs, 4, MIB)


def test_two_scales_are_found_again(costs: HostCosts) -> None:
    truth = predict.scaled(costs, 1.5, 0.8)
    seen = [
        Reduced(2, direct, n, predict.predicted(truth, Reduced(2, direct, n, 1.0)))
        for direct in (True, False)
        for n in (64 << 10, MIB, 8 * MIB)
    ]
    _, messages, by_bytes = predict.tuned(costs, seen)
    assert messages == pytest.approx(1.5, rel=0.03)
    assert by_bytes == pytest.approx(0.8, rel=0.03)


def test_recovery_waits_for_the_memory_of_who_was_killed(costs: HostCosts) -> None:
    little, much = (recovery.predicted(costs, n, nbytes=4 * MIB) for n in (0, 500_000_000))
    assert much - little == pytest.approx(500_000_000 * costs.exit_byte_s, rel=0.15)


def test_a_calibration_comes_back_from_its_file_and_answers() -> None:
    found = calibration_of(synthetic.measured(sizes=tuple(64 << 10 << i for i in range(4))), "2026-01-01")
    again = Calibration.from_json(found.to_json())
    assert again == found
    assert {point.fitted for point in again.points if point.what.endswith(TUNED)} == {True, False}
    rows = fit.table(again)
    assert {row.kind for row in rows} == {"real", "simulated"}
    assert all(0 <= row.median <= row.p90 <= row.worst for row in rows)
