"""Policy: a text as one vector: the mean of a decoder's last hidden states over its tokens, of length 1.

Mean pooling as in Sentence-BERT (Reimers and Gurevych, 2019, arXiv 1908.10084), but of a model that was never trained
for it: it tells texts apart as far as predicting their next tokens needs that, and no further.
"""

import numpy as np
from numpy.typing import NDArray

from atoll.model.paged import States


class Mean:
    """Takes the states of a text's tokens in order, in parts."""

    def __init__(self) -> None:
        self._sum: NDArray[np.float64] | None = None

    def take(self, first: int, states: States) -> None:
        """Those of the tokens from `first` on; from 0 they begin anew."""
        part = states.sum(axis=0, dtype=np.float64)
        self._sum = part if not first or self._sum is None else self._sum + part

    def vector(self) -> tuple[float, ...]:
        """When all are there. As many numbers as the model is wide."""
        assert self._sum is not None, "no state was taken"
        length = np.linalg.norm(self._sum)
        unit: list[float] = (self._sum / length if length else self._sum).astype(np.float32).tolist()
        return tuple(unit)
