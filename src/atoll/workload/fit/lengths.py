"""Policy: laws for the lengths of prompts and answers, each with its distance from what was measured."""

import math
from typing import Final

import numpy as np

from atoll.errors import InvalidData
from atoll.workload.fit.columns import Column
from atoll.workload.fit.stats import quantiles
from atoll.workload.generate.lengths import LONGEST, Empirical, Geometric, Joint, LogNormal, Zipf

QUANTILES: Final = 1000
"""Kept of a measured distribution: the law is within 1 / 1000 of it, whatever the trace's size."""
BINS_PER_OCTAVE: Final = 4
LEAST_IN_BIN: Final = 50
IN_BIN: Final = 200
LEAST_A: Final = 1.001


def fit_empirical(lengths: Column) -> Empirical:
    """The measured lengths, or a thousand quantiles of them."""
    return Empirical(quantiles(_some(lengths), QUANTILES))


def fit_log_normal(lengths: Column) -> LogNormal:
    """By likelihood; within the lengths seen."""
    logs = np.log(_short(lengths))
    low, high = int(lengths.min()), int(lengths.max())
    return LogNormal(min(max(float(np.exp(logs.mean())), low), high), float(logs.std()), low, high)


def fit_zipf(lengths: Column) -> Zipf:
    """By likelihood, up to the longest seen; Zipf's law needs a > 1, which flatter lengths than that get too."""
    high = int(_short(lengths).max())
    logs = np.log(np.arange(1, high + 1))
    target = float(np.log(lengths).mean())

    def mean_log(a: float) -> float:
        weights = np.exp(-a * logs)
        return float((weights * logs).sum() / weights.sum())

    low, up = LEAST_A, 50.0
    for _ in range(60):
        middle = (low + up) / 2
        low, up = (middle, up) if mean_log(middle) > target else (low, middle)
    return Zipf(low, high)


def fit_geometric(counts: Column) -> Geometric:
    """With the mean of the counts, not cut: the longest session seen is no law."""
    return Geometric(float(_some(counts).mean()))


def fit_joint(prompts: Column, outputs: Column) -> Joint:
    """Answers by bins of prompts, four to an octave, each with enough answers to be a distribution."""
    _some(prompts)
    order = np.argsort(prompts, kind="stable")
    prompts, outputs = prompts[order], outputs[order]
    steps = np.arange(1, BINS_PER_OCTAVE * math.ceil(math.log2(LONGEST)) + 1) / BINS_PER_OCTAVE
    edges = np.unique(np.round(2**steps).astype(int))
    starts, answers, begin = [1], [], 0
    for edge in edges:
        end = int(np.searchsorted(prompts, edge))
        left = len(prompts) - end
        if end - begin >= LEAST_IN_BIN and left >= LEAST_IN_BIN:
            answers.append(Empirical(quantiles(outputs[begin:end], IN_BIN)))
            starts.append(int(edge))
            begin = end
    answers.append(Empirical(quantiles(outputs[begin:], IN_BIN)))
    return Joint(tuple(starts), tuple(answers))


def _short(lengths: Column) -> Column:
    """For laws that reach up to the longest."""
    if _some(lengths).max() > LONGEST:
        raise InvalidData(f"a length of {lengths.max()} is beyond what laws are for, {LONGEST}; cap the trace first")
    return lengths


def _some(lengths: Column) -> Column:
    if not len(lengths) or lengths.min() < 1:
        raise InvalidData("lengths to fit must be there, and at least 1; leave out what has failed")
    return lengths
