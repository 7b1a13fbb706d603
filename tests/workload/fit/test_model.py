"""A trace becomes a model, the model a trace like it: each service with its own bursts, lengths and failures."""

import json
import math
from functools import cache
from itertools import islice, pairwise, takewhile
from pathlib import Path

import numpy as np
import pytest

from atoll.errors import InvalidData
from atoll.rng import stream
from atoll.workload.api import Arrival, Demand, Service
from atoll.workload.fit.columns import Columns, columns
from atoll.workload.fit.describe import describe
from atoll.workload.fit.held_out import arrivals_held_out, halves, lengths_held_out
from atoll.workload.fit.model import Model, Stream, decode, encode, fit_model
from atoll.workload.fit.stats import ks_distance, spearman
from atoll.workload.generate.failures import Failures
from atoll.workload.generate.lengths import Empirical, LogNormal, Zipf
from atoll.workload.generate.processes import Gamma, Poisson, Seasonal, Windows
from atoll.workload.trace.files import TraceFile

SLICE = Path(__file__).parents[2] / "data" / "azure-llm-2023-code-head.csv"
HAND_WRITTEN = b"""{"format": "atoll-workload", "version": 1, "streams": [
  {"service": "api", "arrivals": {"kind": "windows", "window_s": 30, "rates_per_s": [9, 1], "cvs": [3, 1]},
   "prompt": {"kind": "log-normal", "median": 400, "sigma": 0.9},
   "output": {"kind": "joint", "starts": [1, 500],
              "answers": [{"kind": "empirical", "values": [9, 90]}, {"kind": "empirical", "values": [300, 400]}]},
   "failures": {"base": 0.1}},
  {"service": "conversation", "arrivals": {"kind": "diurnal", "mean_rate_per_s": 0.5, "swing": 0.9, "period_s": 600},
   "prompt": {"kind": "empirical", "values": [1]}, "output": {"kind": "empirical", "values": [1]},
   "talk": {"turns": {"kind": "geometric", "mean": 3}, "think": {"kind": "gamma", "mean_s": 20, "cv": 2},
            "first": {"kind": "zipf", "a": 1.1, "high": 900}, "more": {"kind": "log-normal", "median": 60, "sigma": 1},
            "output": {"kind": "log-normal", "median": 150, "sigma": 1}, "most_tokens": 4096}}]}"""


@cache
def made() -> list[Demand]:
    """An hour of it."""
    return list(takewhile(lambda d: d.arrival.at_s < 3600, decode(HAND_WRITTEN).trace(seed=1)))


@pytest.fixture(scope="module")
def source() -> Columns:
    return columns(made())


def test_a_model_is_a_file_a_person_can_write() -> None:
    model = decode(HAND_WRITTEN)
    assert decode(encode(model)) == model
    assert len(encode(model).splitlines()) > 20


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "version"),
        ({"format": "x"}, "format"),
        ({"streams": [{"service": "api"}]}, r"arrivals.*streams\[0\]"),
        ({"streams": {}}, "array"),
    ],
)
def test_what_is_no_model_is_refused_by_its_place(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidData, match=complaint):
        decode(json.dumps({**json.loads(HAND_WRITTEN), **change}).encode())
    bad = HAND_WRITTEN.replace(b'"a": 1.1', b'"a": 0.9')
    with pytest.raises(InvalidData, match="a > 1"):
        decode(bad)
    with pytest.raises(InvalidData, match="no model"):
        decode(b"{" * 9000)


def test_its_trace_is_in_order_numbered_and_of_both_services() -> None:
    demands = made()
    assert [d.arrival.number for d in demands] == list(range(len(demands)))
    assert all(a.arrival.at_s <= b.arrival.at_s for a, b in pairwise(demands))
    assert {d.arrival.service for d in demands} == {"api", "conversation"}
    api = [d for d in demands if d.arrival.service == "api"]
    assert len(api) == pytest.approx(5 * 3600, rel=0.1)
    assert sum(d.failed for d in api) / len(api) == pytest.approx(0.1, abs=0.02)
    assert not any(d.failed for d in demands if d.arrival.service == "conversation")
    assert max(d.arrival.prompt_tokens for d in demands if d.arrival.service == "conversation") <= 4096


def test_scaled_it_has_as_many_times_the_requests() -> None:
    model = decode(HAND_WRITTEN)
    plain, tripled = (
        sum(1 for _ in takewhile(lambda d: d.arrival.at_s < 600, model.trace(1, scale))) for scale in (1.0, 3.0)
    )
    assert tripled == pytest.approx(3 * plain, rel=0.15)
    failed = [d.failed for d in takewhile(lambda d: d.arrival.at_s < 600, model.trace(1, 3.0))]
    assert np.mean(failed) == pytest.approx(0.08, abs=0.02)  # a scaled load is no burst


def test_the_workload_goes_on_when_answered() -> None:
    workload = decode(HAND_WRITTEN).workload(seed=0)
    talks = [d for d in islice(workload.start(), 3000) if d.arrival.service == "conversation"]
    followers = [f for d in talks for f in workload.handle(d.arrival, d.arrival.at_s + 1)]
    assert len(followers) == pytest.approx(len(talks) * 2 / 3, rel=0.2)
    assert all(f.arrival.turn == 1 for f in followers)


def test_a_fitted_model_makes_a_trace_like_its_source(source: Columns) -> None:
    span_s = float(source.at_s[-1])
    model = fit_model(source, window_s=30.0)
    again = columns(takewhile(lambda d: d.arrival.at_s < span_s, decode(encode(model)).trace(2)))
    for service in (False, True):
        ours, theirs = (c.where((c.conversation == service) & ~c.failed) for c in (again, source))
        assert len(ours) == pytest.approx(len(theirs), rel=0.1)
        assert ks_distance(ours.prompt, theirs.prompt) < 0.06
        assert ks_distance(ours.output, theirs.output) < 0.04
        assert spearman(ours.prompt, ours.output) == pytest.approx(spearman(theirs.prompt, theirs.output), abs=0.06)
    (api, talk, _), (api_again, talk_again, _) = describe(source, 30.0), describe(again, 30.0)
    assert api.arrivals
    assert api_again.arrivals
    assert api_again.arrivals.window_cv[1] == pytest.approx(api.arrivals.window_cv[1], rel=0.2)
    assert api_again.failed_share == pytest.approx(0.1, abs=0.02)
    assert talk.talks
    assert talk_again.talks
    assert talk_again.talks.turns_mean == pytest.approx(talk.talks.turns_mean, rel=0.1)
    assert (talk.talks.grows, talk_again.talks.grows) == (1.0, 1.0)


def test_every_law_can_be_asked_for(source: Columns) -> None:
    api = source.where(~source.conversation)
    model = fit_model(api, arrivals="poisson", lengths="zipf").streams[0]
    assert isinstance(model.arrivals, Poisson)
    assert model.arrivals.rate_per_s == pytest.approx(5.0, rel=0.1)
    assert isinstance(model.prompt, Zipf)
    assert isinstance(model.output, Zipf)
    model = fit_model(api, arrivals="gamma", lengths="log-normal").streams[0]
    assert isinstance(model.arrivals, Gamma)
    assert isinstance(model.prompt, LogNormal)
    assert isinstance(fit_model(api, method="likelihood", lengths="empirical").streams[0].arrivals, Windows)
    with pytest.raises(InvalidData, match="two days"):
        fit_model(api, arrivals="week")
    slow = columns(Demand(Arrival(i, i * 60.0, 5, str(i)), 5) for i in range(5000))
    assert isinstance(fit_model(slow, arrivals="week", begins_s=60.0).streams[0].arrivals, Seasonal)


def made_for(model: Model, span_s: float, seed: int = 3) -> Columns:
    return columns(takewhile(lambda d: d.arrival.at_s < span_s, model.trace(seed)))


def every(gap_s: float, n: int, start_s: float = 0.0, service: Service = "api") -> list[Demand]:
    return [Demand(Arrival(i, start_s + i * gap_s, 50, f"{service}{i}", service=service), 20) for i in range(n)]


@pytest.mark.parametrize("start_s", [0.0, 300.0, 590.0, 594.5])
def test_a_service_has_its_rate_over_all_of_the_trace_whenever_it_is_used(start_s: float) -> None:
    both = sorted(every(1.0, 601) + every(0.2, 6, start_s, "conversation"), key=lambda d: d.arrival.at_s)
    windows, poisson = (fit_model(columns(both), arrivals=law).streams[1].arrivals for law in ("windows", "poisson"))
    assert isinstance(windows, Windows)
    assert isinstance(poisson, Poisson)
    assert windows.mean_rate_per_s == pytest.approx(6 / 600)
    assert poisson.rate_per_s == pytest.approx(6 / 600)


def test_what_comes_in_the_last_moments_alone_makes_a_model() -> None:
    both = every(1.0, 601) + every(0.2, 6, 601.0, "conversation")
    arrivals = fit_model(columns(both)).streams[1].arrivals
    assert isinstance(arrivals, Windows)
    assert arrivals.mean_rate_per_s == pytest.approx(6 / 660)


def test_a_trace_shorter_than_a_window_keeps_its_rate() -> None:
    arrivals = fit_model(columns(every(0.1, 101))).streams[0].arrivals
    assert isinstance(arrivals, Windows)
    assert arrivals.mean_rate_per_s == pytest.approx(10, rel=0.02)


def test_a_share_that_fails_in_bursts_is_as_large_in_the_trace_that_is_made() -> None:
    arrivals = Windows(1200.0, (0.01, 0.01, 0.01, 0.05), (1.0,) * 4)  # some ten in a window: more or fewer by chance
    failures = Failures(0.02, 0.2, arrivals.mean_rate_per_s, 1200.0)
    lengths = Empirical([50])
    source = made_for(Model(streams=(Stream("api", arrivals, lengths, lengths, failures),)), 4 * 86400)
    again = made_for(fit_model(source, window_s=1200.0), 4 * 86400)
    assert again.failed.mean() == pytest.approx(source.failed.mean(), abs=0.03)


def test_a_question_that_failed_is_a_turn_of_its_session() -> None:
    demands = []  # nobody is answered twice, but all come again
    for i in range(200):
        for turn, at_s in enumerate((10.0 * i, 10.0 * i + 3)):
            arrival = Arrival(len(demands), at_s, 50, f"s{i}", (), turn, "conversation")
            demands.append(Demand(arrival, 20 * turn, failed=not turn))
    talk = fit_model(columns(demands)).streams[0].talk
    assert talk
    assert talk.think.draw(stream(0, "think")) == pytest.approx(3.0, rel=0.01)
    assert talk.first == Empirical([50] * 200)


def test_traces_too_small_to_fit_are_refused() -> None:
    with pytest.raises(InvalidData, match="one moment"):
        fit_model(columns([Demand(Arrival(0, 0.0, 5, "0"), 5)]))
    with pytest.raises(InvalidData, match="none of the 2"):
        fit_model(columns([Demand(Arrival(i, float(i), 5, str(i)), 0, True) for i in range(2)]))
    with pytest.raises(InvalidData, match="too few"):
        halves(np.arange(50.0), 10.0)


def test_the_real_slice_is_described() -> None:
    (found,) = describe(columns(TraceFile(SLICE)))
    assert found.arrivals
    assert (found.service, found.requests, found.failed_share, found.talks) == ("api", 200, 0.0, None)
    assert found.prompt
    assert found.prompt.max <= 7437
    assert json.loads(json.dumps(found.requests)) == 200


def test_one_request_and_none_answered_are_described_too() -> None:
    (one,) = describe(columns([Demand(Arrival(0, 0.0, 0, "0"), 0, True)]))
    assert (one.arrivals, one.prompt, one.output) == (None, None, None)
    assert math.isnan(one.spearman)


def test_held_out_windows_tell_the_right_law_from_wrong_ones() -> None:
    process = Windows(60.0, (20.0, 20.0, 2.0, 2.0), (1.5, 1.5, 0.7, 0.7))  # neighbours are alike
    at_s = np.array(list(takewhile(lambda t: t < 60 * 48, process.times(stream(0, "held")))))
    rows = {row.law: row for row in arrivals_held_out(at_s, 60.0)}
    assert rows["source, held out"].gap_ks == 0
    assert rows["source, seen"].gap_ks < 0.02
    for method in ("likelihood", "moments"):
        assert rows[f"gamma per window, {method}"].gap_ks < 0.03
    assert rows["poisson"].gap_ks > 0.15
    assert rows["gamma per window, moments"].count_cv == pytest.approx(rows["source, held out"].count_cv, rel=0.1)
    assert rows["poisson"].count_cv < 0.3 * rows["source, held out"].count_cv


def test_held_out_requests_tell_which_law_of_lengths_is_right(source: Columns) -> None:
    rows = {row.law: row for row in lengths_held_out(source.where(~source.conversation), 60.0)}
    assert max(rows["joint"].prompt_ks, rows["joint"].output_ks, rows["empirical"].output_ks) < 0.04
    assert rows["joint"].spearman == pytest.approx(rows["source, held out"].spearman, abs=0.05)
    assert rows["empirical"].spearman == pytest.approx(0.0, abs=0.03)
    assert rows["log-normal"].prompt_ks < 0.03  # which it was drawn from
    assert rows["zipf"].prompt_ks > 0.3


def test_a_model_of_nothing_has_no_requests() -> None:
    assert list(Model(streams=()).trace(0)) == []
