import pytest

from atoll.cost import Op
from atoll.reproduce.calibration import fit
from atoll.reproduce.calibration.api import BYTE_WORK, Control
from tests.reproduce.calibration import synthetic
from tests.reproduce.calibration.synthetic import measured, poisoned

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_known_costs_come_back_through_noise(seed: int) -> None:
    noisy = measured(noise=0.03, seed=seed)
    costs = fit.host_costs(noisy, "f", "2026-01-01")
    assert costs.launch_s == pytest.approx(synthetic.LAUNCH_S)
    assert costs.vote_s == pytest.approx(synthetic.VOTE_S)
    assert costs.message_s == pytest.approx(synthetic.MESSAGE_S)
    assert costs.frame_s == pytest.approx(synthetic.FRAME_S)
    assert costs.turn_s == pytest.approx(synthetic.TURN_S)
    assert costs.master_turn_s == pytest.approx(synthetic.MASTER * synthetic.TURN_S)
    assert costs.master_s == pytest.approx(synthetic.MASTER * synthetic.MESSAGE_S)
    assert costs.exit_s == pytest.approx(synthetic.EXIT_S, rel=0.15)
    assert costs.exit_byte_s == pytest.approx(synthetic.EXIT_BYTE_S, rel=0.15)
    assert costs.memory == pytest.approx(2 / 1.25)
    for work in BYTE_WORK:
        for nbytes in synthetic.SIZES:
            assert costs.per_byte_s(work, nbytes) == pytest.approx(1e-9 * synthetic.NS_PER_BYTE[work], rel=0.15)
    models = fit.models(noisy, "f", "2026-01-01")
    assert models["matmul"].coefficients["flops"] == pytest.approx(synthetic.FLOP_S, rel=0.1)
    assert models["disk"].coefficients["bytes"] == pytest.approx(synthetic.DISK_BYTE_S, rel=0.1)


def test_what_is_held_out_never_reaches_a_coefficient() -> None:
    clean = measured(noise=0.05)
    sizes = fit.held_out_sizes(synthetic.SIZES)
    assert len(sizes) == 4
    assert not {min(synthetic.SIZES), max(synthetic.SIZES)} & sizes
    spoilt = poisoned(clean, sizes)
    assert fit.host_costs(spoilt, "f", "d").bytes.keys() == set(BYTE_WORK)
    for work in BYTE_WORK:
        a, b = (fit.host_costs(m, "f", "d").bytes[work] for m in (clean, spoilt))
        assert a.points == b.points
        assert b.residuals.held_out
        assert b.residuals.worst > 0.9
    a, b = (fit.models(m, "f", "d")["disk"] for m in (clean, spoilt))
    assert a.coefficients == b.coefficients
    for name, curve in fit.curves(clean, "f", "d").items():
        if "N=4" not in name:
            assert curve.points == fit.curves(spoilt, "f", "d")[name].points
    assert fit.seen(clean.reduced) == fit.seen(spoilt.reduced)


def test_of_whole_all_reduces_a_fit_sees_two_peers_only() -> None:
    seen = fit.seen(measured().reduced)
    assert {point.world for point in seen} == {2}
    assert {point.direct for point in seen} == {True, False}
    assert {point.nbytes for point in seen} == set(synthetic.SIZES) - fit.held_out_sizes(synthetic.SIZES)


def test_two_sizes_leave_none_to_judge_by() -> None:
    assert fit.held_out_sizes([1, 2]) == set()
    few = fit.curve("disk", [(1, 1.0), (2, 2.0)], "f", "d")
    assert not few.residuals.held_out
    assert few.seconds(Op("disk", bytes=2)) == pytest.approx(2.0)


def test_noise_leaves_no_cost_below_zero() -> None:
    odd = Control(1e-4, 1e-6, 1e-6, 1e-6, 0.0, 5e-6, 5e-6, 1e-3)
    assert all(cost > 0 for cost in fit.control_costs(odd).values())
