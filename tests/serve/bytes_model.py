"""A small model over bytes, and its tokeniser, for tests of what serves one."""

from codecs import getincrementaldecoder
from collections.abc import Sequence

from atoll.model.transformer import Transformer, TransformerConfig

END = 0


class Bytes:
    """A token is a byte; 0 ends an answer."""

    vocab_size = 256
    prefix: tuple[int, ...] = ()
    ends = frozenset({END})

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token != END).decode(errors="replace")

    def spelling(self, token: int) -> bytes:
        return bytes([token]) if token != END else b""

    def pieces(self) -> "Pieces":
        return Pieces()


class Pieces:
    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token]) if token != END else b"")

    def end(self) -> str:
        return self._decoder.decode(b"", final=True)


def model(seed: int = 3, **changed: int) -> Transformer:
    """Random weights, larger than in training, so that its likeliest tokens differ from place to place."""
    shape = {
        "vocab_size": 256,
        "width": 64,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "hidden": 96,
        "context": 256,
    } | changed
    made = Transformer(TransformerConfig(**shape))
    made.initialise(seed)
    for name, weight in made.named_parameters():
        if weight.ndim == 2:
            weight.data *= 6.0 if "embed" not in name else 20.0
    return made.requires_grad_(False)
