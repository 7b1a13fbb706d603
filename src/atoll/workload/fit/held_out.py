"""Policy: are requests made from a fit like ones it has not seen? Every second window is fitted, the others are kept to
compare with: the Kolmogorov distance of gaps and lengths, and how the windows' cv spread.

The same distance between the two halves of the source says how much is chance and drift: no model can do better.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np

from atoll.errors import InvalidData
from atoll.rng import stream
from atoll.workload.fit.arrivals import Method, cv_percentiles, fit_windows
from atoll.workload.fit.columns import Column, Columns, jittered
from atoll.workload.fit.lengths import fit_empirical, fit_joint, fit_log_normal, fit_zipf
from atoll.workload.fit.stats import cv_of, gamma_by_likelihood, ks_distance, spearman
from atoll.workload.generate.lengths import AnyAnswers, AnyLengths, Joint
from atoll.workload.generate.processes import AnyProcess, Gamma, Poisson

ROUNDS: Final = 4
"""As many traces are made from a fit as that, so that one draw decides nothing."""
SAMPLE: Final = 10_000


@dataclass(frozen=True, slots=True)
class ArrivalsRow:
    """One law of arrivals against windows it has not seen. `count_cv`: of the arrivals in a window."""

    law: str
    gap_ks: float
    window_cv: tuple[float, float, float]
    count_cv: float


@dataclass(frozen=True, slots=True)
class LengthsRow:
    """One law of lengths against requests it has not seen."""

    law: str
    prompt_ks: float
    output_ks: float
    spearman: float


def halves(at_s: Column, window_s: float) -> tuple[Column, Column]:
    """Masks: those in the first, third, fifth window, and so on; and the others. Raises `InvalidData` for too few."""
    odd = (at_s // window_s).astype(int) % 2 == 1
    if odd.sum() < 100 or (~odd).sum() < 100:
        raise InvalidData(f"{len(at_s)} requests in {at_s[-1] / window_s:.0f} windows are too few to keep any back")
    return ~odd, odd


def arrivals_held_out(at_s: Column, window_s: float, seed: int = 0) -> list[ArrivalsRow]:
    """The held-out windows themselves first, then those fitted, then the laws."""
    spread = jittered(at_s, seed)
    seen, unseen = (_closed_up(spread[mask], window_s) for mask in halves(spread, window_s))
    span_s = (int(unseen[-1] // window_s) + 1) * window_s
    gaps = _gaps(unseen, window_s)
    rows = [
        _arrivals_row("source, held out", unseen, gaps, window_s),
        _arrivals_row("source, seen", seen, gaps, window_s),
    ]
    for law, process in laws_of_arrivals(seen, window_s):
        made = [_made(process, span_s, seed, law, i) for i in range(ROUNDS)]
        shifted = np.concatenate([times + i * span_s for i, times in enumerate(made)])
        rows.append(_arrivals_row(law, shifted, gaps, window_s))
    return rows


def laws_of_arrivals(at_s: Column, window_s: float) -> Iterator[tuple[str, AnyProcess]]:
    """What the sheet compares: one law for all, and one for each window, by likelihood and by moments."""
    rate = len(at_s) / ((int(at_s[-1] // window_s) + 1) * window_s)
    gaps = _gaps(at_s, window_s)
    yield "poisson", Poisson(rate)
    yield "one gamma, likelihood", Gamma(rate, gamma_by_likelihood(gaps)[0] ** -0.5)
    methods: tuple[Method, ...] = ("likelihood", "moments")
    for method in methods:
        yield f"gamma per window, {method}", fit_windows(at_s, window_s, method)


def lengths_held_out(columns: Columns, window_s: float, seed: int = 0) -> list[LengthsRow]:
    """The requests held out first, then those fitted, then the laws."""
    answered = columns.where(~columns.failed)
    seen, unseen = (answered.where(mask) for mask in halves(answered.at_s, window_s))
    empirical = fit_empirical(seen.prompt)
    laws: list[tuple[str, AnyLengths, AnyAnswers]] = [
        ("joint", empirical, fit_joint(seen.prompt, seen.output)),
        ("empirical", empirical, fit_empirical(seen.output)),
        ("log-normal", fit_log_normal(seen.prompt), fit_log_normal(seen.output)),
        ("zipf", fit_zipf(seen.prompt), fit_zipf(seen.output)),
    ]

    def compare(law: str, prompt: Column, output: Column) -> LengthsRow:
        distances = ks_distance(prompt, unseen.prompt), ks_distance(output, unseen.output)
        return LengthsRow(law, *distances, spearman(prompt, output))

    rows = [
        compare("source, held out", unseen.prompt, unseen.output),
        compare("source, seen", seen.prompt, seen.output),
    ]
    return rows + [compare(law, *sampled(prompt, output, SAMPLE, seed)) for law, prompt, output in laws]


def sampled(prompt: AnyLengths, output: AnyAnswers, n: int, seed: int) -> tuple[Column, Column]:
    """So many prompts and their answers."""
    prompts, outputs = (stream(seed, "sample", what) for what in ("prompts", "outputs"))
    pairs: list[Sequence[int]] = []
    for _ in range(n):
        tokens = prompt.draw(prompts)
        pairs.append((tokens, (output.given(tokens) if isinstance(output, Joint) else output).draw(outputs)))
    table = np.array(pairs)
    return table[:, 0], table[:, 1]


def _closed_up(at_s: Column, window_s: float) -> Column:
    """Every second window, moved up to the one before it."""
    window = at_s // window_s
    return at_s - (window + window % 2) / 2 * window_s


def _gaps(at_s: Column, window_s: float) -> Column:
    """Those within windows."""
    within: Column = np.diff(at_s)[np.diff(at_s // window_s) == 0]
    return within


def _made(process: AnyProcess, span_s: float, seed: int, law: str, i: int) -> Column:
    times = process.times(stream(seed, "held out", law, i))
    return np.array(list(takewhile(lambda at_s: at_s < span_s, times)))


def _arrivals_row(law: str, at_s: Column, unseen_gaps: Column, window_s: float) -> ArrivalsRow:
    counts = np.bincount((at_s // window_s).astype(int)).astype(float)
    return ArrivalsRow(
        law, ks_distance(_gaps(at_s, window_s), unseen_gaps), cv_percentiles(at_s, window_s), cv_of(counts)
    )
