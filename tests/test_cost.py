"""A fit finds the law behind the measurements, never a negative price, and refuses what it can't know."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atoll.cost import CostModel, Op, Sample
from atoll.errors import InvalidConfig, InvalidData

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
    model = CostModel.fit("send", ("1", "bytes"), sent(1e-4, 1e-9), fingerprint="2 cores")
    text = model.to_json()
    assert CostModel.from_json(text) == model
    assert set(json.loads(text)) == {"kind", "coefficients", "units", "fingerprint", "fitted_range", "residuals"}


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


@pytest.mark.parametrize("name", ["flops", "bytes", "tokens"])
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
