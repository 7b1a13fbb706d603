"""Policy: how many turns conversations have, how long their users think, how much each turn adds.

What a session adds is its prompt less all that was said before, so it can be told only of traces whose prompts hold
their history; `grows` is the share of later turns that do.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from atoll.errors import InvalidData
from atoll.rng import stream
from atoll.workload.fit.columns import Column, Columns
from atoll.workload.fit.lengths import fit_empirical, fit_geometric, fit_zipf
from atoll.workload.fit.stats import cv_of, ks_distance
from atoll.workload.generate.conversations import AnyTime, GammaTime, LogNormalTime, Talk
from atoll.workload.generate.lengths import LONGEST, AnyAnswers, AnyLengths, Geometric, Zipf

SHORTEST_THINK_S: Final = 1e-3
SAMPLE: Final = 10_000


@dataclass(frozen=True)
class Sessions:
    """What is measured of sessions. `think_s` is from the end of an answer where the source tells it, else from the
    question before. `added`: what later turns add, of those that grow."""

    starts_s: Column
    turns: Column
    think_s: Column
    first: Column
    added: Column
    grows: float


def sessions_of(columns: Columns) -> Sessions:
    """Raises `InvalidData` where there are no sessions."""
    columns = columns.where(columns.session >= 0)
    if not len(columns):
        raise InvalidData("the trace has no sessions")
    by_session = columns.where(np.argsort(columns.session, kind="stable"))
    again = np.diff(by_session.session) == 0
    heads = np.concatenate([[True], ~again])
    took_s = np.nan_to_num(by_session.elapsed_s, nan=0.0)
    think_s = (np.diff(by_session.at_s) - took_s[:-1])[again]
    added = (np.diff(by_session.prompt) - by_session.output[:-1])[again]
    grown = added[added > 0]
    return Sessions(
        starts_s=np.sort(by_session.at_s[heads]),
        turns=np.diff(np.concatenate([np.flatnonzero(heads), [len(by_session)]])),
        think_s=np.maximum(think_s, SHORTEST_THINK_S),
        first=by_session.prompt[heads],
        added=grown,
        grows=len(grown) / len(added) if len(added) else math.nan,
    )


def fit_turns(turns: Column) -> Geometric | Zipf:
    """The likelier of the two laws."""
    geometric, zipf = fit_geometric(turns), fit_zipf(turns)
    k = np.arange(1, int(turns.max()) + 1)
    weights = k**-zipf.a
    zipf_logs = float(np.log(weights / weights.sum())[turns - 1].sum())
    stop = 1 / geometric.mean
    if stop == 1:  # nobody ever came again
        return geometric
    geometric_logs = float(((turns - 1) * math.log1p(-stop) + math.log(stop)).sum())
    return geometric if geometric_logs >= zipf_logs else zipf


def fit_think(think_s: Column, seed: int = 0) -> AnyTime:
    """The nearer of log-normal and Gamma, by Kolmogorov's distance."""
    if not len(think_s):
        raise InvalidData("nobody thinks: no session has a second turn")
    logs = np.log(think_s)
    log_normal = LogNormalTime(float(np.exp(logs.mean())), min(float(logs.std()), 20.0))
    cv = cv_of(think_s)
    gamma = GammaTime(float(think_s.mean()), min(max(cv if math.isfinite(cv) else 1.0, 1e-3), 100.0))
    laws: list[AnyTime] = [log_normal, gamma]
    return min(laws, key=lambda law: think_distance(law, think_s, seed))


def think_distance(law: AnyTime, think_s: Column, seed: int = 0) -> float:
    """Kolmogorov's distance between the law and what was measured."""
    rng = stream(seed, "think")
    return ks_distance([law.draw(rng) for _ in range(SAMPLE)], think_s)


def fit_talk(columns: Columns, output: AnyAnswers) -> Talk:
    """All of it: lengths as of those that were answered, turns and times of all that were asked. Prompts that don't
    hold their history are taken for what a turn adds."""
    asked, answered = sessions_of(columns), sessions_of(columns.where(~columns.failed))
    cumulative = answered.grows >= 0.5
    more: AnyLengths = fit_empirical(answered.added if cumulative else answered.first)
    return Talk(fit_turns(asked.turns), fit_think(asked.think_s), fit_empirical(answered.first), more, output, LONGEST)
