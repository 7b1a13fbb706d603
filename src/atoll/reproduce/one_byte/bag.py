"""Driver: a tiny classifier of texts by the letters they are made of, pretrained on one pair of topics, for another.

The texts are docstrings of Python's own library (`train/tasks.py`).
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from atoll.rng import normal, stream
from atoll.train.tasks import docstrings

BUCKETS: Final = 1024
WIDTH: Final = 16
FIRST: Final = ("network", "parallel")
SECOND: Final = ("text", "number")
PRETRAINING_STEPS: Final = 150


@dataclass(frozen=True)
class Texts:
    """Counts of hashed letter triples [texts, buckets], each of length 1, and labels; some held out."""

    features: Tensor
    labels: Tensor
    held_features: Tensor
    held_labels: Tensor


@cache
def texts(topics: tuple[str, str], seed: int) -> Texts:
    """As many of one topic as of the other."""
    found = sorted(set(docstrings(*topics)))
    rng = stream(seed, "texts", *topics)
    of = [[i for i, (topic, _) in enumerate(found) if topic == wanted] for wanted in topics]
    fewest = min(map(len, of))
    chosen = rng.permutation(np.concatenate([rng.permutation(each)[:fewest] for each in of]))
    features = torch.from_numpy(np.stack([_features(found[i][1]) for i in chosen]))
    labels = torch.tensor([topics.index(found[i][0]) for i in chosen])
    held = len(chosen) // 4
    return Texts(features[held:], labels[held:], features[:held], labels[:held])


def _features(text: str) -> NDArray[np.float32]:
    counts = np.zeros(BUCKETS, np.float32)
    letters = text.lower().encode()
    for at in range(len(letters) - 2):
        counts[xxhash.xxh3_64_intdigest(letters[at : at + 3]) % BUCKETS] += 1
    rooted = np.sqrt(counts)
    rooted /= np.float32(max(1.0, float(np.linalg.norm(rooted))))
    return rooted


class Bag(nn.Module):
    """Two layers over the counts."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.from_numpy(normal((seed, "bag", "inner"), (BUCKETS, WIDTH))))
        self.outer = nn.Parameter(torch.from_numpy(normal((seed, "bag", "outer"), (WIDTH, 2)) / np.float32(WIDTH)))

    def forward(self, features: Tensor) -> Tensor:
        """Scores [texts, 2]."""
        scores: Tensor = torch.tanh(features @ self.inner) @ self.outer
        return scores

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share that is right."""
        with torch.no_grad():
            return float((self(features).argmax(1) == labels).float().mean())


def pretrained(seed: int) -> Bag:
    """On the first pair of topics, by gradients."""
    given, bag = texts(FIRST, seed), Bag(seed)
    optimiser = torch.optim.Adam(bag.parameters(), lr=0.02)
    for _ in range(PRETRAINING_STEPS):
        optimiser.zero_grad()
        F.cross_entropy(bag(given.features), given.labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return bag
