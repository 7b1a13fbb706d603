"""Interface: a decoder whose keys and values lie in pages of a pool, so that sequences can share, leave and return.

After PagedAttention (Kwon et al., 2023, arXiv 2309.06180). `kernel.py` has the fast one, `torch_pages.py` the plain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidConfig, InvalidTensor
from atoll.model.transformer import TransformerConfig

Logits = NDArray[np.float32]
States = NDArray[np.float32]

PAGE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Slice:
    """Some consecutive tokens of a sequence, the first at position `start`; those before it were passed earlier.

    `pages` hold its keys and values in order, those of the new tokens too. Of its last `wanted` tokens the logits, or
    hidden states, are asked for.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    wanted: int = 1


@dataclass(frozen=True, slots=True)
class Saved:
    """What was in some pages: [layers, pages, key heads, PAGE_TOKENS, head width], keys and values."""

    keys: NDArray[np.float32]
    values: NDArray[np.float32]


class PagedModel(Protocol):
    """A model and its pool of pages."""

    config: TransformerConfig
    pages: int
    """In the pool, PAGE_TOKENS each."""
    batch_invariant: bool
    """Do a token's logits not depend, to the bit, on what else is in the batch, nor on how its text was sliced?"""

    def forward(self, slices: Sequence[Slice]) -> Logits:
        """The logits asked for, [wanted tokens, vocab], slice by slice. InvalidTensor where a slice makes no sense."""

    def states(self, slices: Sequence[Slice]) -> States:
        """The same pass, but what logits are made of: the last hidden states, normed, [wanted tokens, width]."""

    def save(self, pages: Sequence[int]) -> Saved:
        """A copy of what is in these pages."""

    def restore(self, pages: Sequence[int], saved: Saved) -> None:
        """Put it into these."""


def page_bytes(config: TransformerConfig) -> int:
    """Bytes of a page: keys and values of its tokens in all layers, in float32."""
    return 2 * 4 * config.layers * config.key_heads * config.head_width * PAGE_TOKENS


def pages_in(nbytes: int, config: TransformerConfig, sequences: int) -> int:
    """The pages that fit into so much memory, or all that so many sequences can use. InvalidConfig where none fits."""
    size = page_bytes(config)
    if nbytes < size:
        raise InvalidConfig(
            f"--kv-memory: {nbytes} bytes hold no page of this model's keys and values, which takes {size}"
        )
    return min(nbytes // size, sequences * -(-config.context // PAGE_TOKENS))


def check(slices: Sequence[Slice], config: TransformerConfig, pages: int) -> None:
    """InvalidTensor for what would read or write where it may not."""
    for s in slices:
        end = s.start + len(s.tokens)
        if not s.tokens or s.start < 0 or end > config.context:
            raise InvalidTensor(f"tokens {s.start} to {end} don't lie in the model's context of {config.context}")
        if not 0 <= s.wanted <= len(s.tokens):
            raise InvalidTensor(f"the logits of {s.wanted} tokens can't be had from {len(s.tokens)}")
        if len(s.pages) * PAGE_TOKENS < end:
            raise InvalidTensor(f"{len(s.pages)} pages of {PAGE_TOKENS} tokens don't hold {end}")
        if min(s.tokens) < 0 or max(s.tokens) >= config.vocab_size:
            raise InvalidTensor(f"a token is outside 0 to {config.vocab_size - 1}")
        if min(s.pages) < 0 or max(s.pages) >= pages:
            raise InvalidTensor(f"a page is outside 0 to {pages - 1}")
