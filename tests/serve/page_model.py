"""A model whose next token is a function of all tokens before it, as they are read back from the pages."""

import zlib
from collections.abc import Sequence

import numpy as np

from atoll.model.paged import PAGE_TOKENS, Saved, Slice, check
from atoll.model.transformer import TransformerConfig

VOCAB = 256


def follows(context: Sequence[int], wide: int = 20) -> int:
    """The likeliest token after `context`: one of `wide`, so that guesses are sometimes right."""
    recent = context[-2:] if len(context) % 5 else context
    return 32 + zlib.crc32(bytes(recent)) % wide


def answer(prompt: Sequence[int], n: int, ends: frozenset[int] = frozenset()) -> list[int]:
    """What it says to `prompt`, alone."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(follows(tokens))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


class PageModel:
    """A `PagedModel` that reads what it once wrote, wherever the pages are."""

    batch_invariant = True

    def __init__(self, pages: int, context: int = 4096) -> None:
        self.config = TransformerConfig(vocab_size=VOCAB, width=8, layers=1, heads=1, context=context)
        self.pages = pages
        self._slots = np.full((pages, PAGE_TOKENS), -1)
        self.largest = 0

    def forward(self, slices: Sequence[Slice]) -> np.ndarray:
        check(slices, self.config, self.pages)
        self.largest = max(self.largest, sum(len(s.tokens) for s in slices))
        for s in slices:
            for at, token in enumerate(s.tokens, s.start):
                self._slots[s.pages[at // PAGE_TOKENS], at % PAGE_TOKENS] = token
        rows = []
        for s in slices:
            held = self._slots[list(s.pages)].reshape(-1)[: s.start + len(s.tokens)].tolist()
            assert min(held) >= 0, "read what was never written"
            for end in range(len(held) - s.wanted + 1, len(held) + 1):
                row = np.zeros(VOCAB, np.float32)
                row[follows(held[:end])] = 9
                rows.append(row)
        return np.array(rows, np.float32).reshape(-1, VOCAB)

    def states(self, slices: Sequence[Slice]) -> np.ndarray:
        """The first numbers of the logits."""
        return self.forward(slices)[:, : self.config.width] + 1

    def save(self, pages: Sequence[int]) -> Saved:
        held = self._slots[list(pages)].copy()
        return Saved(held, held)

    def restore(self, pages: Sequence[int], saved: Saved) -> None:
        self._slots[list(pages)] = saved.keys
