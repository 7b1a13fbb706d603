"""Driver: traces made with known parameters, found again; conversations that grow. (BurstGPT, "Done when" 1, 4.)"""

from collections.abc import Iterator
from itertools import islice, takewhile

import numpy as np

from atoll.reproduce.api import Line, Say, judged
from atoll.rng import stream
from atoll.workload.api import Demand
from atoll.workload.fit.arrivals import windows_of
from atoll.workload.fit.columns import Column
from atoll.workload.fit.stats import cv_of
from atoll.workload.generate.conversations import Conversations, LogNormalTime, Talk
from atoll.workload.generate.lengths import Geometric, LogNormal
from atoll.workload.generate.processes import AnyProcess, Gamma, Poisson, Windows
from atoll.workload.generate.transcripts import Transcripts

WINDOWS, WINDOW_S = 20, 100.0
SESSIONS = 1000
TALK = Talk(
    turns=Geometric(3.0),
    think=LogNormalTime(30.0, 1.0),
    first=LogNormal(300, 1.0),
    more=LogNormal(60, 1.0),
    output=LogNormal(200, 0.8),
)


def recovery(seed: int, say: Say) -> Iterator[Line]:
    """Shapes and rates of windows; the cv of a stream."""
    say("200,000 arrivals in 20 windows")
    alphas, rates = np.linspace(0.5, 2.0, WINDOWS), np.linspace(120.0, 80.0, WINDOWS)
    at_s = _times(Windows(WINDOW_S, tuple(rates), tuple(alphas**-0.5)), WINDOWS * WINDOW_S, seed)
    found, moments = windows_of(at_s, WINDOW_S, "likelihood"), windows_of(at_s, WINDOW_S)
    worst_alpha = _worst([window.cv**-2 for window in found], alphas)
    worst_rate = _worst([window.rate_per_s for window in found], rates)
    by_moments = _worst([window.cv**-2 for window in moments], alphas)
    yield Line(
        "1a",
        f"{len(at_s):,} arrivals in {WINDOWS} windows, alpha 0.5 to 2: alpha and rate found again, worst window",
        "within 5 %",
        f"alpha {worst_alpha:.1%}, rate {worst_rate:.1%} (by moments, which are noisier: alpha {by_moments:.1%})",
        judged(max(worst_alpha, worst_rate) <= 0.05),
    )
    cvs = np.array([0.5, 1.0, 2.0, 3.0])
    got = [cv_of(np.diff(_times(Gamma(20.0, cv), 10_000.0, seed))) for cv in cvs.tolist()]
    worst = _worst(got, cvs)
    named = ", ".join(f"{cv:g}: {value:.3f}" for cv, value in zip(cvs, got, strict=True))
    yield Line("1b", "streams of a given cv, 200,000 arrivals each", "within 3 %", named, judged(worst <= 0.03))


def conversations(seed: int, say: Say) -> Iterator[Line]:
    """Prompts with answers that are as long as they please, token by token."""
    say(f"{SESSIONS:,} conversations")
    world, words = Conversations(Poisson(1.0), TALK, seed), Transcripts(32_000, seed)
    rng = stream(seed, "answers")
    turns = exact = repeated = tokens = 0
    for first in list(islice(world.start(), SESSIONS)):
        said: Column = np.empty(0, np.int64)
        demands: list[Demand] = [first]
        while demands:
            (demand,) = demands
            prompt = words.prompt(demand.arrival)
            exact += bool((prompt[: len(said)] == said).all()) and len(prompt) == demand.arrival.prompt_tokens
            turns, repeated, tokens = turns + 1, repeated + len(said), tokens + len(prompt)
            answer = rng.integers(32_000, size=rng.integers(1, demand.output_tokens + 1))
            words.answered(demand.arrival, answer)
            said = np.concatenate([prompt, answer])
            demands = list(world.handle(demand.arrival, demand.arrival.at_s + 1.0))
        words.forget(first.arrival.session)
    yield Line(
        "4a",
        f"{SESSIONS:,} sessions: each prompt begins with the prompt and the answer before it, token by token",
        "all",
        f"{exact:,} of {turns:,} turns; {repeated / tokens:.2f} of all prompt tokens were said before",
        judged(exact == turns),
    )


def _times(process: AnyProcess, span_s: float, seed: int) -> Column:
    times = process.times(stream(seed, "reproduce"))
    return np.array(list(takewhile(lambda at_s: at_s < span_s, times)))


def _worst(found: list[float], true: Column) -> float:
    return float(np.abs(np.array(found) / true - 1).max())
