"""Policy: the tokens of prompts, so that each turn of a session begins with exactly what was said before in it, with
the answers as they really were."""

import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidConfig
from atoll.rng import stream
from atoll.workload.api import Arrival

Tokens = NDArray[np.int64]


class Transcripts:
    """Prompts of random tokens below `vocabulary`: always as long as their arrival says, and the same for the same seed
    and answers. Call `forget` when a session has ended: until then all it said is kept."""

    def __init__(self, vocabulary: int, seed: int) -> None:
        if vocabulary < 1:
            raise InvalidConfig(f"vocabulary={vocabulary} must be at least 1")
        self._vocabulary, self._seed = vocabulary, seed
        self._said: dict[str, Tokens] = {}

    def prompt(self, arrival: Arrival) -> Tokens:
        """All that was said in the session so far, and new tokens."""
        before = self._said.get(arrival.session, np.empty(0, np.int64))
        rng = stream(self._seed, "text", arrival.session, arrival.turn)
        new = rng.integers(self._vocabulary, size=max(0, arrival.prompt_tokens - len(before)))
        self._said[arrival.session] = np.concatenate([before, new])[: arrival.prompt_tokens]
        return self._said[arrival.session]

    def answered(self, arrival: Arrival, tokens: Tokens) -> None:
        """What the model said to the last prompt of the session."""
        self._said[arrival.session] = np.concatenate([self._said[arrival.session], tokens])

    def forget(self, session: str) -> None:
        """The session has ended."""
        self._said.pop(session, None)
