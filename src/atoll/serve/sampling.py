"""Policy: a token from logits. One number drawn for each place in an answer decides, whatever else is in the batch.

Nucleus sampling (`top_p`): Holtzman et al., 2020, arXiv 1904.09751; `min_p`: Nguyen et al., 2024, arXiv 2407.01082.
"""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from atoll.endpoint.api import Sampling
from atoll.rng import stream

Row = NDArray[np.float32]

_COLDEST = 1e-5
"""A temperature below it is none: the quotients would leave float32."""
_FIRST_LOOK = 1024
"""Likeliest tokens among which `top_p` is tried before all are sorted."""


def draw(logits: Row, sampling: Sampling, place: int, said: Sequence[int], banned: Collection[int] = ()) -> int:
    """The token at `place` (0 is the first of the answer), after those that were `said` in it. What is `banned` comes
    only where nothing else can. `logits` stay as they are. Of equal ones the lowest number is the likeliest."""
    logits = _shifted(logits, sampling, said, banned)
    if sampling.temperature < _COLDEST:
        return int(np.argmax(logits))
    scaled = (logits - logits.max()) / np.float32(sampling.temperature)
    candidates, weights = _candidates(scaled, sampling)
    cumulated = np.cumsum(weights, dtype=np.float64)
    at = stream(sampling.seed, "sample", place).random() * cumulated[-1]
    return int(candidates[min(int(np.searchsorted(cumulated, at, side="right")), len(candidates) - 1)])


def log_probabilities(logits: Row) -> Row:
    """Of each token, in the model's own distribution."""
    peak = logits.max()
    found: Row = logits - (peak + np.log(np.exp(logits - peak).sum(dtype=np.float64))).astype(np.float32)
    return found


def likeliest(values: Row, n: int) -> list[int]:
    """The `n` tokens with the largest values, the largest first; of equal ones the lowest number."""
    if n <= 0:
        return []
    n = min(n, len(values))
    least = np.partition(values, len(values) - n)[len(values) - n]
    found = np.flatnonzero(values >= least)
    best = found[np.argsort(-values[found], kind="stable")][:n]
    return [int(token) for token in best]


def _shifted(logits: Row, sampling: Sampling, said: Sequence[int], banned: Collection[int]) -> Row:
    """With bias and penalties, and without what is banned."""
    if not (sampling.bias or banned or (said and (sampling.presence_penalty or sampling.frequency_penalty))):
        return logits
    logits = logits.copy()
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, times in Counter(said).items():
            logits[token] -= np.float32(sampling.presence_penalty + times * sampling.frequency_penalty)
    for token, bias in sampling.bias.items():
        logits[token] += np.float32(bias)
    if banned:
        others = logits.copy()
        others[list(banned)] = -np.inf
        logits = others if others.max() > -np.inf else logits
    return logits


def _candidates(scaled: Row, sampling: Sampling) -> tuple[NDArray[np.int64], Row]:
    """Tokens that may be drawn and their weights. The likeliest has the weight 1."""
    weights = np.exp(scaled)
    if sampling.min_p:
        weights[weights < sampling.min_p] = 0
    if not sampling.top_k and sampling.top_p >= 1:
        return np.arange(len(weights)), weights
    total = float(weights.sum(dtype=np.float64))
    for most in (_FIRST_LOOK, len(weights)):
        tokens = np.array(likeliest(weights, min(most, sampling.top_k or most)))
        if sampling.top_k:
            total = float(weights[tokens].sum(dtype=np.float64))
        reached = np.cumsum(weights[tokens], dtype=np.float64)
        if (sampling.top_k and len(tokens) == min(sampling.top_k, len(weights))) or reached[
            -1
        ] >= sampling.top_p * total:
            break
    enough = int(np.searchsorted(reached, sampling.top_p * total)) + 1
    return tokens[:enough], weights[tokens[:enough]]
