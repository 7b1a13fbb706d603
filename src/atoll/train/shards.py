"""Policy: which windows of the text each member of a group takes, so that none is used twice in a pass over it.

All that members share is a cursor. They may come and go: only who stands where at this step counts.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from atoll.errors import InvalidData
from atoll.rng import stream


def count_windows(tokens: NDArray[np.uint8], context: int) -> int:
    """Windows of `context + 1` tokens in a text, each starting at the last token of the one before.

    InvalidData where there is none.
    """
    n = (len(tokens) - 1) // context
    if n < 1:
        raise InvalidData(f"the text has {len(tokens)} tokens, too few for a window of {context + 1}; give more text")
    return n


class Shards:
    """An endless sequence of windows: one random permutation of all after another, the same for every member."""

    def __init__(self, n_windows: int, seed: int) -> None:
        self._n_windows = n_windows
        self._seed = seed
        self._permuted = -1
        self._permutation = np.empty(0, np.int64)

    def indices(self, cursor: int, rank: int, world: int, count: int) -> NDArray[np.int64]:
        """The `count` windows of `rank` while the group's cursor stands at `cursor`.

        The group then moves it on by `world * count`.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of a world of {world}")
        start = cursor + rank * count
        passes, places = np.divmod(np.arange(start, start + count), self._n_windows)
        windows = np.empty(count, np.int64)
        for number in np.unique(passes):
            within = passes == number
            windows[within] = self._order(int(number))[places[within]]
        return windows

    def _order(self, number: int) -> NDArray[np.int64]:
        if number != self._permuted:
            self._permutation = stream(self._seed, "shards", number).permutation(self._n_windows)
            self._permuted = number
        return self._permutation


def batch(tokens: NDArray[np.uint8], indices: NDArray[np.int64], context: int) -> torch.Tensor:
    """The windows as a LongTensor [len(indices), context + 1]."""
    windows = sliding_window_view(tokens, context + 1)[indices * context]
    return torch.from_numpy(windows.astype(np.int64))
