"""A trace is cut, sped up, capped and shrunk, and what an edit changes is counted."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.workload.api import Arrival, Demand
from atoll.workload.generate.conversations import Conversations, GammaTime, Talk
from atoll.workload.generate.lengths import Empirical
from atoll.workload.generate.loops import Together
from atoll.workload.generate.processes import Poisson
from atoll.workload.trace.edits import Shrunk, capped, faster, selected, smaller, work


def a_trace() -> list[Demand]:
    return [
        Demand(Arrival(0, 0.0, 2000, "a", (1, 2, 3, 4), 0, "conversation", "x"), 100),
        Demand(Arrival(1, 5.0, 10, "b", (), 0, "api", "y"), 0, failed=True),
        Demand(Arrival(2, 6.0, 10, "c", (), 0, "api", "x"), 3000),
        Demand(Arrival(3, 9.0, 16, "d", (), 0, "api", "y"), 1),
    ]


def test_a_slice_begins_at_zero_and_is_numbered_through() -> None:
    got = list(selected(a_trace(), start_s=5.0, end_s=9.0))
    assert [(d.arrival.number, d.arrival.at_s, d.arrival.session) for d in got] == [(0, 0.0, "b"), (1, 1.0, "c")]
    assert [d.arrival.session for d in selected(a_trace(), model="x")] == ["a", "c"]
    assert [d.arrival.session for d in selected(a_trace(), service="api", model="y")] == ["b", "d"]
    assert [d.arrival.number for d in selected(a_trace(), service="api")] == [0, 1, 2]
    with pytest.raises(InvalidConfig, match="'chat'"):
        list(selected(a_trace(), service="chat"))


def test_a_slice_of_a_trace_without_end_ends() -> None:
    endless = (Demand(Arrival(t, float(t), 1, str(t)), 1) for t in iter(int, 1) for t in range(10**9))
    assert len(list(selected(endless, end_s=50.0))) == 50


@settings(deadline=None)
@given(scale=st.floats(1e-3, 1e3))
def test_faster_keeps_the_shape(scale: float) -> None:
    demands = a_trace()
    quick = list(faster(demands, scale))
    gaps = [b.arrival.at_s - a.arrival.at_s for a, b in pairwise(demands)]
    quick_gaps = [b.arrival.at_s - a.arrival.at_s for a, b in pairwise(quick)]
    assert [gap * scale for gap in quick_gaps] == pytest.approx(gaps)
    assert [(d.arrival.prompt_tokens, d.output_tokens) for d in quick] == [
        (d.arrival.prompt_tokens, d.output_tokens) for d in demands
    ]


def test_what_failed_is_no_work_and_is_counted() -> None:
    counts: Counter[str] = Counter()
    assert [(d.arrival.number, d.arrival.session) for d in work(a_trace(), counts)] == [(0, "a"), (1, "c"), (2, "d")]
    assert counts == {"failed at the source, left out": 1}


def test_lengths_are_capped_and_counted() -> None:
    counts: Counter[str] = Counter()
    got = list(capped(a_trace(), counts))
    assert [(d.arrival.prompt_tokens, d.output_tokens) for d in got] == [(1024, 100), (10, 0), (10, 1024), (16, 1)]
    assert got[0].arrival.hash_ids == (1, 2)
    assert counts == {"capped": 2}


def test_lengths_shrink_in_proportion_and_never_to_nothing() -> None:
    got = list(smaller(a_trace(), 16))
    assert [(d.arrival.prompt_tokens, d.output_tokens) for d in got] == [(125, 6), (1, 0), (1, 188), (1, 1)]
    assert (got[0].arrival.hash_ids, got[0].arrival.block_tokens) == ((1, 2, 3, 4), 32)
    assert next(capped(got, Counter(), prompt_tokens=70)).arrival.hash_ids == (1, 2, 3)


def test_who_comes_because_of_an_answer_is_shrunk_too() -> None:
    talk = Talk(Empirical([2]), GammaTime(1.0, 1.0), Empirical([1600]), Empirical([800]), Empirical([160]))
    workload = Shrunk(Together([Conversations(Poisson(1.0), talk, seed=0)]), 16)
    first = next(workload.start())
    (second,) = workload.handle(first.arrival, 9.0)
    assert [(d.arrival.prompt_tokens, d.output_tokens) for d in (first, second)] == [(100, 10), (160, 10)]
    assert second.arrival.hash_ids[:3] == first.arrival.hash_ids[:3]


def test_impossible_edits_are_refused() -> None:
    for wrong in (lambda: faster([], 0), lambda: smaller([], -1), lambda: capped([], Counter(), prompt_tokens=0)):
        with pytest.raises(InvalidConfig):
            list(wrong())
