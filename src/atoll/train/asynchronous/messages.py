"""Interface: what a worker and the server say to each other. msgpack arrays that begin with the number of the kind; a
number is never used for something else again.

The data of a `Push` is the codec's bytes, that of an `Assign` the parameters, little-endian float32.
"""

from typing import Annotated, Any, Final

import msgspec

from atoll.errors import ProtocolError

PROTOCOL: Final = "asynchronous diloco 1"
LARGEST_TEXT: Final = 1 << 16
Text = Annotated[str, msgspec.Meta(max_length=LARGEST_TEXT)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class Said(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all."""


class Enter(Said, frozen=True, tag=1):
    """I want to work. `trains`: what, as JSON; it must be what the server trains. Don't begin with fewer than
    `min_world`. `used` and `epoch`: the highest I have heard of, from a server before. `holds`: what I did for that one
    comes next."""

    name: Annotated[str, msgspec.Meta(max_length=256)]
    trains: Text
    min_world: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    used: Count = 0
    epoch: Count = 0
    holds: bool = False


class Beat(Said, frozen=True, tag=2):
    """I am here. Both sides say so."""


class Push(Said, frozen=True, tag=3):
    """How far I came from `version` in so many steps and seconds; `data` is empty where that was no number."""

    version: Count
    steps: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    seconds: Annotated[float, msgspec.Meta(ge=0.0)]
    loss: float
    """Mean over the steps."""


class Leave(Said, frozen=True, tag=4):
    """I won't push what I am at."""


class Assign(Said, frozen=True, tag=20):
    """Take `steps` steps from these parameters, with the windows from number `first` on."""

    version: Count
    steps: Count
    first: Count
    position: Count
    """Steps the run has taken, as each worker's share."""
    rank: Count
    world: Count
    epoch: Count


class Refuse(Said, frozen=True, tag=21):
    """You can't work here."""

    reason: str


class Over(Said, frozen=True, tag=22):
    """All steps are taken."""


FromWorker = Enter | Beat | Push | Leave
FromServer = Beat | Assign | Refuse | Over

encode = msgspec.msgpack.Encoder().encode
_decoders: Final[dict[str, Any]] = {
    "worker": msgspec.msgpack.Decoder(FromWorker), "server": msgspec.msgpack.Decoder(FromServer)
}  # fmt: skip


def from_worker(head: bytes) -> FromWorker:
    """What a worker says. ProtocolError: nothing a worker would."""
    return _decode("worker", head)  # type: ignore[no-any-return]


def from_server(head: bytes) -> FromServer:
    """What the server says. ProtocolError: nothing a server would."""
    return _decode("server", head)  # type: ignore[no-any-return]


def _decode(who: str, head: bytes) -> Any:
    try:
        return _decoders[who].decode(head)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable message: {error}") from None
