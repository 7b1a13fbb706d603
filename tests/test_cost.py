"""A fit finds the law behind the measurements, never a negative price, and refuses what it can't know."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from atoll.cost import CostCurve, CostModel, Op, Sample, StepCost, from_json, hold_out
from atoll.errors import InvalidConfig, InvalidData
from atoll.rng import stream

SIZES = [1e3, 1e4, 1e5, 1e6, 1e7]


def sent(alpha: float, beta: float) -> list[Sample]:
    return [Sample(Op("send", bytes=n), alpha + beta * n) for n in SIZES]


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.floats(1e-12, 1e-6))
def test_an_exact_law_is_found(alpha: float, beta: float) -> None:
    model = CostModel.fit("send", ("1", "bytes"), sent(alpha, beta))
    assert model.residuals.worst < 1e-9
    assert model.seconds(Op("send", bytes=3e5)) == pytest.approx(alpha + beta * 3e5)
    assert model.units == {"1": "s", "bytes": "s/byte"}


def test_a_law_of_all_features_is_found() -> None:
    rng = np.random.default_rng(0)
    law = np.array([1e-4, 1e-12, 1e-10, 1e-5])
    amounts = np.column_stack([np.ones(30), *10 ** rng.uniform([6, 4, 0], [12, 9, 4], (30, 3)).T])
    samples = [Sample(Op("step", *row[1:]), float(row @ law)) for row in amounts]
    model = CostModel.fit("step", ("1", "flops", "bytes", "tokens"), samples)
    assert list(model.coefficients.values()) == pytest.approx(law.tolist(), rel=1e-6)


def test_a_price_that_would_be_negative_is_zero() -> None:
    # The straight line through these has a negative start.
    samples = [Sample(Op("send", bytes=n), s) for n, s in [(1, 1), (2, 3), (3, 5)]]
    model = CostModel.fit("send", ("1", "bytes"), samples)
    assert model.coefficients["1"] == 0
    # Least squares of relative errors through the origin, by hand: sum(n/s) / sum((n/s)**2).
    ratios = [1, 2 / 3, 3 / 5]
    assert model.coefficients["bytes"] == pytest.approx(sum(ratios) / sum(r * r for r in ratios))


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(1, 1000)] * 4), min_size=4, max_size=12, unique=True))
def test_no_other_prices_fit_better(rows: list[tuple[int, int, int, int]]) -> None:
    samples = [Sample(Op("step", flops=a, bytes=b, tokens=c), s) for a, b, c, s in rows]
    features = ("flops", "bytes", "tokens")
    relative = np.array([row[:3] for row in rows]) / np.array([row[3] for row in rows])[:, None]
    assume(np.linalg.cond(relative) < 1e6)
    x = np.array(list(CostModel.fit("step", features, samples).coefficients.values()))
    # Karush-Kuhn-Tucker: no slope where the price is above 0, none downhill where it is 0.
    slope = relative.T @ (relative @ x - 1)
    tolerance = 1e-6 * np.abs(relative).sum(axis=0)
    assert (x >= 0).all()
    assert (slope >= -tolerance).all()
    assert (np.abs(slope[x > 0]) <= tolerance[x > 0]).all()


def test_small_and_large_operations_weigh_alike() -> None:
    # Absolute errors would follow the large sample and make the small one wrong a thousandfold.
    model = CostModel.fit("send", ("bytes",), [Sample(Op("send", bytes=1), 1.0), Sample(Op("send", bytes=1e6), 1.2e6)])
    assert model.coefficients["bytes"] == pytest.approx((1 + 1 / 1.2) / (1 + 1 / 1.2**2))


def test_residuals_are_the_relative_errors_of_the_fit() -> None:
    samples = [Sample(Op("send", bytes=n), s) for n, s in [(1, 1), (2, 2), (3, 3), (4, 8)]]
    model = CostModel.fit("send", ("bytes",), samples)
    errors = sorted(abs(model.seconds(s.op) - s.seconds) / s.seconds for s in samples)
    assert model.residuals.worst == pytest.approx(errors[-1])
    assert model.residuals.median == pytest.approx((errors[1] + errors[2]) / 2)
    assert model.residuals.worst > 0.1


def test_what_was_not_measured_is_out_of_range() -> None:
    model = CostModel.fit("send", ("1", "bytes"), sent(1e-4, 1e-9))
    assert [model.within_range(Op("send", bytes=n)) for n in (999, 1e3, 5e4, 1e7, 1.1e7)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert model.within_range(Op("send", bytes=1e3, flops=1e15))  # not a feature of this model


def test_a_model_survives_json() -> None:
    model = CostModel.fit("send", ("1", "bytes"), sent(1e-4, 1e-9), fingerprint="2 cores", fitted_on="2026-11-27")
    text = model.to_json()
    assert CostModel.from_json(text) == from_json(text) == model
    said = "kind coefficients units fingerprint fitted_on fitted_range residuals"
    assert set(json.loads(text)) == set(said.split())


@pytest.mark.parametrize(
    "change",
    [
        {"coefficients": {"1": -1, "bytes": 1}},
        {"coefficients": {"1": None, "bytes": 1}},
        {"coefficients": {"1": 1, "bites": 1}},
        {"coefficients": {"1": 1}},
        {"units": {"1": "s", "bytes": "ms/byte"}},
        {"fitted_range": {}},
        {"fitted_range": {"bytes": [1]}},
        {"residuals": {"median": 0}},
        {"kind": 3},
    ],
)
def test_a_file_that_is_no_model_is_refused(change: dict[str, object]) -> None:
    good = json.loads(CostModel.fit("send", ("1", "bytes"), sent(1e-4, 1e-9)).to_json())
    with pytest.raises(InvalidData, match="not a cost model"):
        CostModel.from_json(json.dumps(good | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", b"\xff"])
def test_a_text_that_is_no_json_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidData, match="not a cost model"):
        CostModel.from_json(text)


@pytest.mark.parametrize("name", ["flops", "bytes", "tokens", "prefill_tokens", "batch", "context_tokens"])
@pytest.mark.parametrize("bad", [-1, math.nan, math.inf])
def test_impossible_work_is_refused(name: str, bad: float) -> None:
    with pytest.raises(InvalidData, match=name):
        Op("send", **{name: bad})


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_impossible_times_are_refused(bad: float) -> None:
    with pytest.raises(InvalidData, match="seconds"):
        Sample(Op("send"), bad)


@pytest.mark.parametrize("features", [(), ("bytes", "bytes"), ("bites",)])
def test_features_there_are_not_are_refused(features: tuple[str, ...]) -> None:
    with pytest.raises(InvalidConfig, match="among 1, flops, bytes, tokens"):
        CostModel.fit("send", features, sent(1, 1))


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [Sample(Op("send", bytes=1), 1)],
        [Sample(Op("send", bytes=5), 1), Sample(Op("send", bytes=5), 1.1)],
        [Sample(Op("send"), 1), Sample(Op("send"), 2)],
    ],
)
def test_samples_that_can_not_tell_features_apart_are_refused(samples: list[Sample]) -> None:
    with pytest.raises(InvalidData, match="apart"):
        CostModel.fit("send", ("1", "bytes"), samples)


def test_another_kind_of_work_is_refused() -> None:
    with pytest.raises(InvalidData, match=r"matmul.*send"):
        CostModel.fit("send", ("1",), [Sample(Op("matmul"), 1)])
    with pytest.raises(InvalidData, match=r"matmul.*send"):
        CostModel.fit("send", ("1",), [Sample(Op("send"), 1)]).seconds(Op("matmul"))


def step_samples(large: int = 1000) -> list[Sample]:
    """Steps of a machine that takes other times for prompts, and for more answers than `large`."""
    rng = stream(0, "steps")
    samples = []
    for prefill, batch, context in rng.integers(1, [2048, 128, 2000], (60, 3)).tolist():
        answers = Op("engine_step", batch=batch, context_tokens=batch * context)
        fixed_s, each_s = (1e-3, 2e-4) if batch > large else (5e-3, 1e-4)
        samples.append(Sample(answers, fixed_s + each_s * batch + 3e-8 * answers.context_tokens))
        both = replace(answers, prefill_tokens=prefill, prefill_pairs=prefill**2 // 2)
        each = 2e-5 * prefill + 1e-9 * both.prefill_pairs + 3e-5 * batch + 3e-8 * both.context_tokens
        samples.append(Sample(both, 4e-3 + each))
    return samples


def test_the_law_of_a_serving_step_is_found() -> None:
    cost = StepCost.fit(step_samples(large=70), fitted_on="today")
    assert 60 <= cost.split <= 80
    assert cost.few.coefficients == pytest.approx({"1": 5e-3, "batch": 1e-4, "context_tokens": 3e-8}, rel=1e-6)
    assert cost.many.coefficients == pytest.approx({"1": 1e-3, "batch": 2e-4, "context_tokens": 3e-8}, rel=1e-6)
    assert cost.prompts.coefficients["prefill_pairs"] == pytest.approx(1e-9, rel=1e-6)
    assert cost.residuals.held_out
    assert cost.residuals.worst < 1e-6
    assert StepCost.from_json(cost.to_json()) == cost


def test_the_errors_of_a_serving_step_are_of_steps_it_was_not_fitted_to() -> None:
    samples = step_samples()
    _, judges = hold_out(samples)
    wrong = [replace(s, seconds=1.5 * s.seconds) if s in judges else s for s in samples]
    assert StepCost.fit(wrong).residuals.median == pytest.approx(1 / 3, rel=1e-6)
    assert StepCost.fit(samples).residuals.points == len(judges)


def test_points_held_out_are_other_sizes_with_all_their_repetitions_in_any_order() -> None:
    samples = [Sample(Op("send", bytes=n), s) for n in range(1, 14) for s in (1.0, 2.0)]
    fitted, judges = hold_out(samples)
    assert {s.op.bytes for s in judges} == {4, 8, 12}
    assert len(judges) == 6
    assert {s.op for s in fitted}.isdisjoint(s.op for s in judges)
    assert sorted(map(repr, fitted + judges)) == sorted(map(repr, samples))
    backwards = hold_out(samples[::-1])
    assert [sorted(map(repr, part)) for part in backwards] == [sorted(map(repr, part)) for part in (fitted, judges)]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=7, max_size=30, unique=True))
def test_no_point_held_out_lies_outside_the_range_fitted(rows: list[tuple[int, int]]) -> None:
    fitted, judges = hold_out([Sample(Op("step", batch=a, context_tokens=b), 1) for a, b in rows], every=2)
    assert judges
    for name in ("batch", "context_tokens"):
        amounts = [getattr(sample.op, name) for sample in fitted]
        assert all(min(amounts) <= getattr(sample.op, name) <= max(amounts) for sample in judges)


def test_nothing_can_be_held_out_of_two_sizes() -> None:
    with pytest.raises(InvalidData, match="between the ends"):
        hold_out([Sample(Op("send", bytes=n), 1) for n in (1, 2, 1, 2)])
    with pytest.raises(InvalidConfig, match="every=1"):
        hold_out(sent(1, 1), every=1)


def test_residuals_are_those_on_points_held_out() -> None:
    judges = [Sample(Op("send", bytes=2e6), (1e-4 + 2e-3) * factor) for factor in (0.5, 1, 1.25)]
    residuals = CostModel.fit("send", ("1", "bytes"), sent(1e-4, 1e-9), held_out=judges).residuals
    assert (residuals.points, residuals.held_out) == (3, True)
    assert residuals.worst == pytest.approx(1)  # predicted twice what was measured
    assert residuals.median == pytest.approx(0.2)
    # Percentiles are straight lines between the ordered errors 0, 0.2 and 1.
    assert residuals.p90 == pytest.approx(0.2 + 0.8 * 0.8)
    assert residuals.p99 == pytest.approx(0.2 + 0.98 * 0.8)
    assert residuals.log_mean == pytest.approx(math.log(0.5 * 1 * 1.25) / 3)
    assert residuals.log_sigma == pytest.approx(np.std(np.log([0.5, 1, 1.25])))
    assert not CostModel.fit("send", ("1", "bytes"), sent(1e-4, 1e-9)).residuals.held_out


def test_an_extrapolation_warns() -> None:
    model = CostModel.fit("send", ("1", "bytes"), sent(1e-4, 1e-9))
    assert model.estimate(Op("send", bytes=1e6)).warning is None
    far = model.estimate(Op("send", bytes=1e9))
    assert far.seconds == pytest.approx(1e-4 + 1)
    assert far.warning == "the cost of 'send' is extrapolated: bytes=1e+09 is outside 1000..1e+07; measure there"


def test_noise_is_spread_as_the_measurements_were() -> None:
    rng = stream(1, "noise")
    laws = [(n, 1e-9 * n * math.exp(0.2 * rng.standard_normal())) for n in np.geomspace(1e3, 1e9, 2000)]
    model = CostModel.fit("send", ("bytes",), [Sample(Op("send", bytes=n), s) for n, s in laws])
    draws = np.log([model.draw(Op("send", bytes=1e6), rng) for _ in range(20_000)])
    assert draws.mean() == pytest.approx(math.log(1e-3), abs=0.02)
    assert draws.std() == pytest.approx(0.2, rel=0.05)
    again = [model.draw(Op("send", bytes=1e6), stream(2, "noise")) for _ in range(2)]
    assert again[0] == again[1]


def curve(points: list[tuple[float, float]]) -> CostCurve:
    return CostCurve.fit("send", "bytes", [Sample(Op("send", bytes=x), y) for x, y in points], fitted_on="today")


@given(st.floats(-6, -3), st.floats(0, 2), st.lists(st.integers(1, 10**9), min_size=2, max_size=9, unique=True))
def test_a_curve_finds_a_power_law(log_scale: float, power: float, sizes: list[int]) -> None:
    assume(max(sizes) > 2 * min(sizes))  # else rounding decides the power
    law = [(n, 10**log_scale * float(n) ** power) for n in sizes]
    model = curve(law)
    assert model.residuals.worst < 1e-9
    for x in (min(sizes), math.sqrt(min(sizes) * max(sizes)), 3 * max(sizes)):
        assert model.seconds(Op("send", bytes=x)) == pytest.approx(10**log_scale * x**power, rel=1e-6)


AMOUNTS = st.floats(1e-3, 1e12)
POINTS = st.lists(st.tuples(AMOUNTS, st.floats(1e-9, 1e6)), min_size=2, max_size=20, unique_by=lambda point: point[0])


@given(POINTS, st.lists(st.floats(0, 1e13), min_size=2, max_size=30))
@example([(math.nextafter(2, 1), 1e-9), (2, 1e6)], [1.0, 1e13])  # as alike as two sizes can be
def test_a_curve_never_falls(points: list[tuple[float, float]], amounts: list[float]) -> None:
    model = curve(points)
    seconds = [model.seconds(Op("send", bytes=x)) for x in sorted([*amounts, *(x for x, _ in points)])]
    assert seconds == sorted(seconds)


@given(POINTS)
def test_a_curve_is_the_nearest_that_rises(points: list[tuple[float, float]]) -> None:
    # Optimality of isotonic regression: a pool is the mean of its logs, and no prefix of a pool lies below that mean.
    model = curve(points)
    logs = {x: math.log(y) for x, y in points}
    levels: dict[float, list[float]] = {}
    for x, y in model.points:
        levels.setdefault(y, []).append(logs[x])
    for y, pool in levels.items():
        assert math.log(y) == pytest.approx(sum(pool) / len(pool), abs=1e-6)
        for n in range(1, len(pool)):
            assert sum(pool[:n]) / n >= math.log(y) - 1e-6


def test_repeated_measurements_make_one_point() -> None:
    model = curve([(1, 1), (1, 4), (8, 16)])
    assert [y for _, y in model.points] == pytest.approx([2, 16])
    assert model.seconds(Op("send", bytes=2)) == pytest.approx(4)


def test_a_curve_is_flat_below_its_range_and_says_when_it_leaves_it() -> None:
    model = curve([(10, 1), (100, 2), (1000, 8)])
    assert model.seconds(Op("send")) == model.seconds(Op("send", bytes=10)) == pytest.approx(1)
    assert model.seconds(Op("send", bytes=10_000)) == pytest.approx(32)
    # Two noisy neighbours at the end don't decide what comes after it, nor does anything grow faster than the square.
    assert curve([(10, 1), (100, 10), (101, 20)]).seconds(Op("send", bytes=1010)) == pytest.approx(20**2, rel=0.1)
    assert curve([(1, 1), (2, 100)]).seconds(Op("send", bytes=20)) == pytest.approx(100 * 10**2)
    assert [model.within_range(Op("send", bytes=n)) for n in (9, 10, 1000, 1001)] == [False, True, True, False]
    assert model.estimate(Op("send", bytes=9)).warning


@given(POINTS)
def test_a_curve_survives_json(points: list[tuple[float, float]]) -> None:
    model = curve(points)
    assert CostCurve.from_json(model.to_json()) == from_json(model.to_json()) == model


@pytest.mark.parametrize(
    "change",
    [
        {"points": [[1, 1]]},
        {"points": [[1, 2], [2, 1]]},
        {"points": [[1, 1], [1, 2]]},
        {"points": [[0, 1], [2, 2]]},
        {"feature": "bites"},
        {"units": {"bytes": "bit", "seconds": "s"}},
        {"fitted_range": {"bytes": [0, 2]}},
    ],
)
def test_a_file_that_is_no_curve_is_refused(change: dict[str, object]) -> None:
    good = json.loads(curve([(1, 1), (2, 2)]).to_json())
    with pytest.raises(InvalidData, match="not a cost model"):
        from_json(json.dumps(good | change))


def test_a_curve_can_not_be_drawn_through_what_it_is_not_about() -> None:
    with pytest.raises(InvalidData, match="2 or more amounts"):
        curve([(1, 1), (1, 2)])
    with pytest.raises(InvalidData, match="above 0"):
        curve([(0, 1), (1, 2)])
    with pytest.raises(InvalidConfig, match="bites"):
        CostCurve.fit("send", "bites", sent(1, 1))
    with pytest.raises(InvalidData, match=r"matmul.*send"):
        CostCurve.fit("send", "bytes", [Sample(Op("matmul", bytes=1), 1)])
    with pytest.raises(InvalidData, match="not a cost model"):
        from_json("[]")
