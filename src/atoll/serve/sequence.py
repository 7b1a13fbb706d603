"""Policy: one answer in the making: its tokens, where its keys and values lie, and when it is over."""

from dataclasses import dataclass, field
from typing import Any

from atoll.endpoint.api import Sampling
from atoll.serve.pool import Beginning


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens`: the prompt's, and after them the answer's. Keys and values of the first `computed` lie in `pages`.

    `order`: lower goes first (priority, then arrival). `ends`: tokens that end it. `limit`: the most it may have.
    """

    id: str
    prompt: tuple[int, ...]
    order: tuple[int, int]
    sampling: Sampling
    limit: int
    ends: frozenset[int] = frozenset()
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    kept: Beginning = field(default_factory=Beginning)
    cached: int | None = None
    """Tokens of the prompt that were there already when it first ran."""
    draft: list[int] = field(default_factory=list)
    """Guesses at the next tokens, to be tried together with the last one."""
    saved: Any = None
    """What was in its pages, while it has none."""
    wants_prompt: bool = False
    """Is something asked for of each of the prompt's own tokens?"""

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.prompt)

    @property
    def missing(self) -> int:
        """Tokens that are known and have to be passed before the next can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def over(self) -> bool:
        """Does its last token end it?"""
        return self.answered >= self.limit or (self.answered > 0 and self.tokens[-1] in self.ends)
