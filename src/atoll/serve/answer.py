"""Policy: the text of an answer from its tokens: whole characters, and nothing that may turn out to be a stop text."""

from collections import deque
from collections.abc import Sequence

from atoll.endpoint.api import Chosen, Finish
from atoll.model.api import Tokenizer


class Answer:
    """Takes tokens, gives text that can't be taken back, and what is told of the tokens that it came from."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), silent: frozenset[int] = frozenset()) -> None:
        """`silent`: tokens whose text isn't said: those that end the answer."""
        self._pieces = tokenizer.pieces()
        self._stop = tuple(stop)
        self._silent = silent
        self._held = ""
        self._untold: deque[Chosen] = deque()
        self._credit = 0
        """Bytes of text said beyond those of the tokens told of."""
        self.finish: Finish | None = None

    def push(self, token: int, chosen: Chosen | None = None) -> str:
        """What can be said now. `finish` is "stop" after the token that completes a stop text."""
        if token in self._silent:
            return ""
        if chosen is not None:
            self._untold.append(chosen)
        self._held += self._pieces.push(token)
        return self._said()

    def end(self, finish: Finish) -> str:
        """No token comes any more: what is left of the text."""
        if self.finish is not None:
            return ""
        self._held += self._pieces.end()
        said = self._said()
        if self.finish is None:
            self.finish = finish
            said += self._held
            self._credit += len(self._held.encode())
            self._held = ""
        return said

    def told(self) -> tuple[Chosen, ...]:
        """The tokens whose text has been said, if it wasn't told before."""
        told = list[Chosen]()
        while self._untold and self._credit >= len(self._untold[0].nbytes):
            told.append(self._untold.popleft())
            self._credit -= len(told[-1].nbytes)
        return tuple(told)

    def _said(self) -> str:
        end = len(self._held)
        if self._stop:
            end = self._safe()
        said, self._held = self._held[:end], self._held[end:]
        self._credit += len(said.encode())
        return said

    def _safe(self) -> int:
        """Up to where the text held is no stop text, nor the beginning of one."""
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.finish = "stop"
            return min(found)
        most = min(len(self._held), max(map(len, self._stop)) - 1)
        held = (n for n in range(most, 0, -1) if any(stop.startswith(self._held[-n:]) for stop in self._stop))
        return len(self._held) - next(held, 0)
