"""Policy: who has which pages of keys and values, and which hold a beginning that another sequence may share.

Pages as in PagedAttention (Kwon et al., 2023, arXiv 2309.06180); whole pages are found again by their tokens and all
before them, compared token by token, so that nobody can be given another's text by a collision of hashes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ROOT = 0


class Beginning(NamedTuple):
    """How many whole pages of a sequence others can find, and by which node those that follow are found."""

    pages: int = 0
    node: int = ROOT


@dataclass(slots=True)
class _Page:
    users: int = 0
    node: int = ROOT
    """Which beginning it ends, ROOT for none that is known."""
    key: tuple[int, tuple[int, ...]] = (ROOT, ())


class KvPool:
    """`pages` of `page_tokens` each. What nobody uses stays findable until its page is needed, the oldest first."""

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._pages = [_Page() for _ in range(pages)]
        self._free = list(range(pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Unused, but findable; the longest unused first."""
        self._found: dict[tuple[int, tuple[int, ...]], int] = {}
        """A beginning and the tokens after it: the page of those tokens."""
        self._nodes = ROOT

    @property
    def pages(self) -> int:
        return len(self._pages)

    @property
    def free(self) -> int:
        """How many can be taken."""
        return len(self._free) + len(self._idle)

    def match(self, tokens: Sequence[int]) -> tuple[list[int], Beginning]:
        """The pages that hold a beginning of `tokens`, as many whole ones as there are. They are used from now on."""
        pages, node = list[int](), ROOT
        for at in range(0, len(tokens) - self.page_tokens + 1, self.page_tokens):
            page = self._found.get((node, tuple(tokens[at : at + self.page_tokens])))
            if page is None:
                break
            pages.append(page)
            node = self._pages[page].node
        for page in pages:
            self._idle.pop(page, None)
            self._pages[page].users += 1
        return pages, Beginning(len(pages), node)

    def take(self, n: int) -> list[int] | None:
        """`n` pages for new tokens, or None where there are fewer."""
        if n > self.free:
            return None
        if not n:
            return []
        fresh = min(n, len(self._free))
        taken = self._free[len(self._free) - fresh :][::-1]
        del self._free[len(self._free) - fresh :]
        taken += [self._evicted() for _ in range(n - fresh)]
        for page in taken:
            self._pages[page].users = 1
        return taken

    def release(self, pages: Sequence[int]) -> None:
        """Somebody needs these no longer, in the order of their tokens. What is furthest from the start goes first."""
        for page in reversed(pages):
            held = self._pages[page]
            held.users -= 1
            if not held.users:
                if held.node:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def keep(self, pages: Sequence[int], tokens: Sequence[int], kept: Beginning) -> Beginning:
        """Let others find those of `pages` that `tokens` fill, beyond those they can find already."""
        node, size = kept.node, self.page_tokens
        whole = min(len(pages), len(tokens) // size)
        for i in range(kept.pages, whole):
            key = (node, tuple(tokens[i * size : (i + 1) * size]))
            held = self._pages[self._found.setdefault(key, pages[i])]
            if not held.node:
                self._nodes += 1
                held.node, held.key = self._nodes, key
            node = held.node
        return Beginning(whole, node)

    def _evicted(self) -> int:
        page, _ = self._idle.popitem(last=False)
        held = self._pages[page]
        del self._found[held.key]
        held.node = ROOT
        return page
