"""Interface: what a room above needs of a model: its tokens, the text of a chat, and what was loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from atoll.model.packed import Packed

Message = Mapping[str, Any]
"""Of a chat, as OpenAI's clients send it: at least a `role` and a `content`."""


class Pieces(Protocol):
    """Text from tokens that come one by one."""

    def push(self, token: int) -> str:
        """What can be said now: whole characters, maybe none. ValueError for no token."""

    def end(self) -> str:
        """What is left; a character that stays incomplete is U+FFFD."""


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest token."""

    @property
    def prefix(self) -> tuple[int, ...]:
        """What the model wants before a plain text; `encode` leaves it out. A chat's text has it in itself."""

    @property
    def ends(self) -> frozenset[int]:
        """Tokens after which the model has nothing more to say."""

    def encode(self, text: str) -> list[int]:
        """The tokens of `text`. Special tokens written out in it count as what they are."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text, without special tokens; bytes that are no UTF-8 become U+FFFD. ValueError for no token."""

    def spelling(self, token: int) -> bytes:
        """What it stands for: a part of a character, maybe; nothing for a special token. ValueError for no token."""

    def pieces(self) -> Pieces:
        """A new stream, which goes on with a text: its pieces together are what `decode` gives, but for a space that
        some models have before the first word of a text, and that is none of it."""

    def to_json(self) -> str:
        """As a `tokenizer.json`, for a model that is saved."""


class Chat(Protocol):
    """How a model is used to reading a conversation."""

    def text(self, messages: Sequence[Message], *, tools: Sequence[Message] = (), now: datetime | None = None) -> str:
        """The conversation as one text, up to where the model's answer begins.

        `now`: for models that are told the date. InvalidData where the template refuses it, fails or takes too much.
        """


@dataclass(frozen=True)
class Loaded:
    """A model with all that belongs to it. `chat` is None for one that has learnt no conversations."""

    name: str
    weights: Packed
    tokenizer: Tokenizer
    chat: Chat | None
