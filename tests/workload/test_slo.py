"""Everyone who asked counts: refused, timed out, aborted and forgotten requests have missed their targets."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InvalidConfig, InvalidData
from atoll.workload.api import Arrival, End, Outcome, Targets
from atoll.workload.slo import Account, account


def arrivals(n: int) -> list[Arrival]:
    return [Arrival(i, float(i), 1, str(i)) for i in range(n)]


def answered(number: int, ttft_s: float = 0.5, tpot_s: float = 0.1, tokens: int = 11, late_s: float = 0.0) -> Outcome:
    due = float(number)
    last = due + ttft_s + tpot_s * (tokens - 1)
    return Outcome(number, due, due + late_s, "answered", due + ttft_s, last, tokens)


def failed(number: int, end: End) -> Outcome:
    return Outcome(number, float(number), float(number), end)


TARGETS = Targets(ttft_s=1.0, tpot_s=0.2)


def test_attainment_is_over_all_who_asked() -> None:
    outcomes = [
        answered(0),
        answered(1, ttft_s=2.0),
        answered(2, tpot_s=0.3),
        answered(3, ttft_s=2.0, tpot_s=0.3),
        failed(4, "refused"),
        failed(5, "timed out"),
        failed(6, "timed out"),
        failed(7, "aborted"),
    ]
    report = account(arrivals(10), outcomes, TARGETS, span_s=20.0)
    assert (report.offered, report.answered, report.unanswered) == (10, 4, 2)
    assert report.failed == {"aborted": 1, "refused": 1, "timed out": 2}
    assert report.attainment == 0.1
    assert report.attainments == {"ttft": 0.2, "tpot": 0.2}
    assert report.goodput_per_s == 1 / 20
    assert report.failure_rate == 0.6
    assert report.tokens_per_s == 44 / 20


def test_serving_fewer_does_not_look_better() -> None:
    everyone = account(arrivals(100), [answered(i, ttft_s=0.01 * i) for i in range(100)], Targets(0.5), 100.0)
    few = account(arrivals(100), [answered(i, ttft_s=0.01) for i in range(10)], Targets(0.5), 100.0)
    assert everyone.attainment == 0.51
    assert few.attainment == 0.1
    assert few.ttft_s.p99 < everyone.ttft_s.p99  # which is why the share of answers stands beside it


def test_without_targets_an_answer_is_enough() -> None:
    report = account(arrivals(4), [answered(0), failed(1, "refused")], Targets(), 10.0)
    assert (report.attainment, report.attainments) == (0.25, {})


def test_a_target_just_met_is_met_and_one_token_has_no_pace() -> None:
    report = account(arrivals(1), [answered(0, ttft_s=1.0, tokens=1)], Targets(1.0, 1e-9, 1.0), 1.0)
    assert report.attainment == 1.0
    assert math.isnan(report.tpot_s.mean)


def test_times_are_counted_from_when_the_user_meant_to_ask() -> None:
    report = account(arrivals(1), [answered(0, ttft_s=3.0, late_s=2.5)], Targets(1.0), 10.0)
    assert report.ttft_s.mean == 3.0
    assert report.lateness_s.mean == 2.5
    assert report.attainment == 0.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 2), st.integers(1, 50)), min_size=1, max_size=30))
def test_spreads_are_those_of_the_answers(answers: list[tuple[float, float, int]]) -> None:
    outcomes = [answered(i, *values) for i, values in enumerate(answers)]
    report = account(arrivals(len(answers) + 3), outcomes, TARGETS, 60.0)
    ttft = [outcome.ttft_s for outcome in outcomes]
    assert report.ttft_s.mean == pytest.approx(np.mean(ttft))
    assert report.latency_s.p90 == pytest.approx(np.percentile([o.latency_s for o in outcomes], 90))
    met = [o.ttft_s <= 1.0 and o.tpot_s <= 0.2 for o in outcomes]
    assert report.attainment == pytest.approx(sum(met) / (len(answers) + 3))
    assert report.attainment <= min(report.attainments.values())


def test_a_steady_service_is_told_from_an_unstable_one() -> None:
    steady = [Outcome(i, i * 6.0, i * 6.0, "answered", i * 6.0, i * 6.0 + 1, 100) for i in range(100)]
    bursty = [Outcome(i, i // 50 * 300.0, 0.0, "answered", 500.0, 500.0, 100) for i in range(100)]
    asked = arrivals(100)
    calm, wild = (account(asked, outcomes, Targets(), 600.0) for outcomes in (steady, bursty))
    assert calm.throughput_cv < 0.01
    assert wild.throughput_cv == pytest.approx(3.0)  # all in one minute of ten
    assert wild.ttft_cv == pytest.approx((500 - 200) / 700)


def test_a_report_may_be_asked_for_on_the_way() -> None:
    book = Account(TARGETS)
    empty = book.report(1.0)
    assert empty.offered == 0
    assert math.isnan(empty.attainment)
    assert math.isnan(empty.ttft_s.p99)
    for arrival in arrivals(3):
        book.offer(arrival)
    book.handle(answered(2))
    assert (book.report(10.0).answered, book.report(10.0).unanswered) == (1, 2)
    book.handle(answered(0))
    assert book.report(10.0).answered == 2


def test_what_can_not_be_is_refused() -> None:
    book = Account()
    book.offer(arrivals(1)[0])
    with pytest.raises(InvalidData, match="twice"):
        book.offer(arrivals(1)[0])
    with pytest.raises(InvalidData, match="request 5 ended"):
        book.handle(answered(5))
    with pytest.raises(InvalidData, match="needs 0 <= due_s"):
        book.handle(Outcome(0, 0.0, 0.0, "answered"))
    book.handle(answered(0))
    with pytest.raises(InvalidData, match="request 0 ended"):
        book.handle(answered(0))
    for span_s in (0.0, math.nan, math.inf):
        with pytest.raises(InvalidData, match="says nothing"):
            book.report(span_s)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidConfig, match="target"):
            Targets(tpot_s=wrong)
