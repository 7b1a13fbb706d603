"""Fits find the parameters of traces that were made with known ones."""

import math
from itertools import islice, takewhile

import numpy as np
import pytest

from atoll.errors import InvalidConfig, InvalidData
from atoll.rng import stream
from atoll.workload.api import Arrival, Demand
from atoll.workload.fit.arrivals import cv_percentiles, fit_windows, hour_of_week, window_for, windows_of
from atoll.workload.fit.columns import Columns, columns, jittered, tick_s
from atoll.workload.fit.conversations import fit_talk, fit_think, fit_turns, sessions_of
from atoll.workload.fit.failures import fit_failures
from atoll.workload.fit.lengths import fit_empirical, fit_geometric, fit_joint, fit_log_normal, fit_zipf
from atoll.workload.fit.stats import ks_distance, spearman
from atoll.workload.generate.conversations import AnswerTime, Conversations, GammaTime, LogNormalTime, Talk
from atoll.workload.generate.lengths import Empirical, Geometric, LogNormal, Zipf
from atoll.workload.generate.loops import unrolled
from atoll.workload.generate.processes import AnyProcess, Gamma, Poisson, Seasonal, Windows


def times_of(process: AnyProcess, span_s: float, seed: int = 0) -> np.ndarray:
    return np.array(list(takewhile(lambda t: t < span_s, process.times(stream(seed, "times")))))


def a_column(**given: np.ndarray) -> Columns:
    n = len(next(iter(given.values())))
    usual = {"at_s": np.arange(float(n)), "prompt": np.full(n, 5), "output": np.full(n, 5)}
    flags = {"failed": np.zeros(n, bool), "conversation": np.zeros(n, bool), "session": np.full(n, -1)}
    return Columns(**{**usual, **flags, "elapsed_s": np.full(n, math.nan), **given})


def test_two_hundred_thousand_arrivals_in_twenty_windows() -> None:
    alphas = np.linspace(0.5, 2.0, 20)
    rates = np.linspace(120.0, 80.0, 20)
    process = Windows(100.0, tuple(rates), tuple(1 / np.sqrt(alphas)))
    at_s = times_of(process, 2000.0)
    assert len(at_s) == pytest.approx(200_000, rel=0.01)
    found = windows_of(at_s, 100.0, "likelihood")
    assert [w.rate_per_s for w in found] == pytest.approx(rates.tolist(), rel=0.05)
    assert [1 / w.cv**2 for w in found] == pytest.approx(alphas.tolist(), rel=0.05)
    by_moments = windows_of(at_s, 100.0)
    assert [w.cv for w in by_moments] == pytest.approx((1 / np.sqrt(alphas)).tolist(), rel=0.06)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_the_cv_of_a_stream_is_the_one_asked_for(cv: float) -> None:
    gaps = np.diff(times_of(Gamma(10.0, cv), 20_000.0))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_a_fit_of_what_a_fit_made_is_that_fit() -> None:
    process = Windows(60.0, (40.0, 5.0, 0.0, 90.0), (1.0, 2.0, 1.0, 3.0))
    again = fit_windows(times_of(process, 240.0), 60.0)
    assert again.window_s == 60.0
    assert again.rates_per_s == pytest.approx(process.rates_per_s, rel=0.2)
    assert again.cvs[0] == pytest.approx(1.0, rel=0.1)
    assert again.cvs[3] == pytest.approx(3.0, rel=0.3)
    assert again.cvs[2] == pytest.approx(float(np.median([again.cvs[i] for i in (0, 1, 3)])))  # it has none of its own


def test_the_last_piece_of_a_window_is_a_whole_one_or_none() -> None:
    at_s = times_of(Poisson(20.0), 185.0)
    assert len(fit_windows(at_s, 60.0).rates_per_s) == 3
    at_s = times_of(Poisson(20.0), 220.0)
    assert fit_windows(at_s, 60.0).rates_per_s[3] == pytest.approx(20.0, rel=0.2)


def test_times_rounded_to_seconds_are_spread_before_they_are_called_bursts() -> None:
    exact = times_of(Poisson(5.0), 2000.0)
    rounded = np.floor(exact)
    assert tick_s(exact) == 0.0
    assert tick_s(rounded) == 1.0
    assert cv_percentiles(rounded, 60.0)[1] > 1.9
    assert cv_percentiles(jittered(rounded), 60.0)[1] == pytest.approx(1.0, abs=0.05)
    assert jittered(exact) is exact
    assert (jittered(rounded, 1) == jittered(rounded, 1)).all()


def test_hours_of_the_week_are_found() -> None:
    weights = tuple(3.0 if 8 <= hour % 24 < 18 and hour < 120 else 0.5 for hour in range(168))
    begins_s = 30 * 3600.0 + 1800
    process = Seasonal(Poisson(0.1), weights, begins_s=begins_s)
    found = hour_of_week(times_of(process, 3 * 168 * 3600.0), begins_s)
    mean = sum(weights) / 168
    assert np.mean(found) == pytest.approx(1.0)
    busy = [i for i, w in enumerate(weights) if w == 3.0]
    assert np.mean([found[i] for i in busy]) == pytest.approx(3.0 / mean, rel=0.03)
    assert max(found[i] for i in range(168) if i not in busy) < min(found[i] for i in busy)
    with pytest.raises(InvalidData, match="two days"):
        hour_of_week(np.arange(3600.0), 0.0)


def test_hours_never_seen_are_as_usual() -> None:
    found = hour_of_week(np.arange(0, 2.5 * 86400, 60.0), 0.0)
    assert found == pytest.approx([1.0] * 168, rel=0.02)


def test_windows_are_long_for_long_traces() -> None:
    assert window_for(3600.0) == 60.0
    assert window_for(30 * 86400.0) == 1200.0
    for window_s in (0.0, -1.0, math.nan, 1e-9):
        with pytest.raises(InvalidConfig, match="windows of"):
            windows_of(np.arange(100.0), window_s)


def draws(law: object, n: int = 30_000) -> np.ndarray:
    rng = stream(0, "draws")
    return np.array([law.draw(rng) for _ in range(n)])  # type: ignore[attr-defined]


def test_laws_of_lengths_are_found() -> None:
    assert fit_zipf(draws(Zipf(1.3, 5000))).a == pytest.approx(1.3, rel=0.01)
    assert fit_geometric(draws(Geometric(3.0))).mean == pytest.approx(3.0, rel=0.02)
    law = fit_log_normal(draws(LogNormal(400, 0.7)))
    assert (law.median, law.sigma) == (pytest.approx(400, rel=0.02), pytest.approx(0.7, rel=0.02))
    assert fit_zipf(draws(LogNormal(400, 0.7))).a == pytest.approx(1.001)  # flatter than any law of Zipf
    with pytest.raises(InvalidData):
        fit_empirical(np.array([0, 5]))
    for fit in (fit_zipf, fit_log_normal):
        with pytest.raises(InvalidData, match="cap the trace"):
            fit(np.array([5, 1 << 30]))


def test_a_thousand_quantiles_are_the_distribution() -> None:
    source = draws(LogNormal(300, 1.2))
    law = fit_empirical(source)
    assert len(law.values) == 1000
    assert ks_distance(law.values, source) < 0.002


def test_a_joint_law_keeps_what_answers_have_to_do_with_prompts() -> None:
    rng = stream(0, "joint")
    prompts = draws(LogNormal(300, 1.0))
    for slope in (0.6, -0.6, 0.0):
        outputs = np.maximum(1, np.round(100 * (prompts / 300) ** slope * rng.lognormal(0, 0.6, len(prompts)))).astype(
            int
        )
        law = fit_joint(prompts, outputs)
        got = np.array([law.given(int(prompt)).draw(rng) for prompt in prompts])
        assert spearman(prompts, got) == pytest.approx(spearman(prompts, outputs), abs=0.02)
        assert ks_distance(got, outputs) < 0.01


def test_few_prompts_are_one_bin() -> None:
    law = fit_joint(np.array([5, 700, 9]), np.array([1, 2, 3]))
    assert law.starts == (1,)
    assert law.answers[0].values == (1, 2, 3)


TALK = Talk(Geometric(3.0), LogNormalTime(20.0, 1.2), LogNormal(300, 1.0), LogNormal(60, 0.8), LogNormal(200, 0.8))


def test_conversations_are_found_again() -> None:
    answer = AnswerTime(100.0, 0.2)
    demands = islice(unrolled(Conversations(Poisson(1.0), TALK, 0), answer), 6_000)
    timed = [Demand(d.arrival, d.output_tokens, elapsed_s=answer(d)) for d in demands]
    found = columns(timed)
    sessions = sessions_of(found)
    assert sessions.grows == 1.0
    talk = fit_talk(found, Empirical([1]))
    assert isinstance(talk.turns, Geometric)
    assert talk.turns.mean == pytest.approx(3.0, rel=0.08)  # those at the end are cut short
    assert isinstance(talk.think, LogNormalTime)
    assert talk.think.median_s == pytest.approx(20.0, rel=0.08)
    assert talk.think.sigma == pytest.approx(1.2, rel=0.05)
    assert np.median(talk.first.values) == pytest.approx(300, rel=0.08)  # type: ignore[union-attr]
    assert np.median(talk.more.values) == pytest.approx(60, rel=0.08)  # type: ignore[union-attr]


def test_prompts_that_hold_no_history_are_taken_for_what_is_new() -> None:
    demands = [Demand(Arrival(i, i * 9.0, 50, str(i % 5), (), i // 5, "conversation"), 20) for i in range(50)]
    talk = fit_talk(columns(demands), Empirical([1]))
    assert talk.more == Empirical((50,) * 5)


def test_the_likelier_law_of_turns_and_of_times_is_taken() -> None:
    zipf = fit_turns(draws(Zipf(2.0, 100)))
    assert isinstance(zipf, Zipf)
    assert zipf.a == pytest.approx(2.0, rel=0.02)
    assert fit_turns(np.ones(50, int)) == Geometric(1.0)
    gamma = fit_think(draws(GammaTime(30.0, 2.0)))
    assert isinstance(gamma, GammaTime)
    assert (gamma.mean_s, gamma.cv) == (pytest.approx(30, rel=0.05), pytest.approx(2.0, rel=0.05))
    with pytest.raises(InvalidData, match="second turn"):
        fit_think(np.array([]))


def test_failures_and_how_they_rise_are_found() -> None:
    at_s = times_of(Windows(60.0, (5.0, 5.0, 5.0, 45.0), (1.0,) * 4), 60.0 * 160)
    mean = len(at_s) / at_s[-1]
    load = np.bincount((at_s // 60).astype(int))[(at_s // 60).astype(int)] / 60 / mean
    failed = stream(0, "failed").random(len(at_s)) < 0.02 + 0.05 * np.maximum(0, load - 1)
    law = fit_failures(a_column(at_s=at_s, failed=failed), 60.0)
    assert law.base == pytest.approx(0.02, abs=0.006)
    assert law.burst == pytest.approx(0.05, abs=0.008)
    assert law.mean_rate_per_s == pytest.approx(15.0, rel=0.05)
    assert fit_failures(a_column(at_s=np.arange(9.0)), 60.0).base == 0.0


def test_a_trace_without_requests_is_refused() -> None:
    with pytest.raises(InvalidData, match="no requests"):
        columns([])
    with pytest.raises(InvalidData, match="no sessions"):
        sessions_of(a_column(at_s=np.arange(3.0)))
