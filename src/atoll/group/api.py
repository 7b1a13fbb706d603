"""Interface: the group as its parts see each other. Read this first.

    program thread   Group --Ticket--> Port.submit ... Port.wait --Outcome--> Group adopts the view, returns or raises
    wire / loop      Peer.handle(event) -> [action]   Station carries actions out   Master.handle(who, event, now) ->
    [...]

A ticket is answered exactly once, by a `Finish`. An epoch ends at the first loss; all that is undecided in it has
failed, and the next `View` is the verdict.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

import msgspec

from atoll.errors import AtollError
from atoll.group.messages import Pace, Seat, ToMaster, ToPeer, View

MOST_OPERATIONS: Final = 16
"""Operations that may be under way at once, each under its own tag."""
MOST_VOTES: Final = 16 * MOST_OPERATIONS
"""Operations one member may have under way, of all its subgroups together."""

IN_VOTE_BYTES: Final = 4 << 10
IN_VERDICT_BYTES: Final = 32 << 10
"""Operations up to this size travel in the votes and, of all peers together, in the verdict."""
EAGER_BYTES: Final = 256 << 10
EAGER_BYTES_SENT: Final = 1 << 20
"""What larger operations may not have: data that leaves before the votes are in, of which each peer sends so much at
most."""

BLOCK: Final = 1 << 20
"""Bytes that travel as one frame: smaller ones cost a turn each, larger ones leave links idle."""
LARGEST_FRAME: Final = 2 * BLOCK + BLOCK // 2
"""A block, and what a codec adds to few elements."""

LOCAL_PACE: Final = Pace(100e-6, 100e-6, 1e9, 1e9)
"""Between processes of one machine, about."""

_UNVOTED: Final = 1 << 63
_WAY_AT, _SCOPE_AT, _TAG_AT = 61, 46, 30
MOST_SCOPES: Final = 1 << _WAY_AT - _SCOPE_AT
MOST_TAGS: Final = 1 << _SCOPE_AT - _TAG_AT
MOST_IN_SERIES: Final = 1 << _TAG_AT


class Series(NamedTuple):
    """What is launched in one series has the same order on all concerned. So data phases can be numbered without a
    word."""

    scope: int
    tag: int
    way: int = 0
    """0: a collective. Between two members: 1 from the lower id to the higher, 2 the other way."""
    other: int = 0
    """Between two: the other one's id. Not part of the number: the link says who."""


def unvoted_seq(series: Series, nth: int) -> int:
    """Number of the `nth` data phase (from 1) of a series in an epoch; never one of the master's."""
    return _UNVOTED | series.way << _WAY_AT | series.scope << _SCOPE_AT | series.tag << _TAG_AT | nth


def unvoted_parts(seq: int, source: int) -> tuple[Series, int] | None:
    """The reverse, for a frame of member `source`; None: a number of the master's."""
    if not seq & _UNVOTED:
        return None
    way = seq >> _WAY_AT & 3
    series = Series(seq >> _SCOPE_AT & MOST_SCOPES - 1, seq >> _TAG_AT & MOST_TAGS - 1, way, source if way else 0)
    return series, seq & (1 << _TAG_AT) - 1


RunKey = tuple[int, int]
"""By which a peer knows its data phases: number, and for those between two members the other one (else 0)."""

Kind = Literal[
    "join", "topology", "gather_bytes", "sync",
    "all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "send", "recv",
]  # fmt: skip
Algorithm = Literal["votes", "eager", "direct", "halving", "ring"]
"""How data goes round: within the votes; all to all, while the votes travel; or once they agree: chunk by chunk to its
owner and back, by halves, or around the ring."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One request of the program on its way; `outcome` is set exactly once."""

    kind: Kind
    epoch: int
    """The epoch the *program* lives in; the group may be ahead."""
    tag: int = 0
    what: str = ""
    payload: bytes = b""
    tensor: Any = None
    """Opaque to policies: a flat array, or for `sync` the state's tensors. None: nothing moves but votes."""
    out: Any = None
    """Where the result may be written as it comes; undefined until the end. None: nowhere yet."""
    op: str = "sum"
    codec: str | None = None
    down: str | None = None
    """How what all have combined goes back; None: as it came, by `codec`."""
    seed: int | None = None
    """By which the codecs round at random; None: to the nearest."""
    lost: Any = None
    """A flat array of zeros for what the codec takes from the tensor; undefined until the end. None: nobody asks."""
    algorithm: Algorithm = "ring"
    block: int = BLOCK
    """Bytes that travel as one frame, about."""
    root: int = 0
    """Rank that gives; for `send` and `recv` the other one."""
    scope: int = 0
    members: tuple[int, ...] = ()
    """Of a subgroup, in rank order; empty: the whole group."""
    revision: int = 0
    min_world: int = 1
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    outcome: "Outcome | None" = None
    woken: Any = None
    """The port's own business."""

    @property
    def moves_data(self) -> bool:
        """Does the operation have a data phase?"""
        return self.tensor is not None

    @property
    def between_two(self) -> bool:
        """No vote: over with the data, or with the epoch."""
        return self.kind in ("send", "recv")

    @property
    def eager(self) -> bool:
        """Does its data leave before the votes are in?"""
        return self.between_two or (self.algorithm == "eager" and self.moves_data)


class Outcome(msgspec.Struct, frozen=True):
    """What became of a ticket. The facade adopts `view` and `pending` before it returns or raises."""

    pending: bool | None = False
    """Does somebody wait to be let in? None: nothing new of that."""
    view: View | None = None
    error: AtollError | None = None
    payloads: tuple[bytes, ...] = ()
    value: Any = None
    """The data phase's result; None where there was none."""
    sent: int = 0
    received: int = 0

    def check(self) -> None:
        """Raise the error, if it came to one. A copy: the raised one holds all frames it passes, and we live longer."""
        if self.error is not None:
            raise copy.copy(self.error)


class Port(Protocol):
    """How a program reaches its peer policy: through a wire thread, or the virtual loop."""

    @property
    def id(self) -> int:
        """Our member id, 0 before the welcome."""

    def submit(self, ticket: Ticket) -> None: ...
    def wait(self, ticket: Ticket, timeout_s: float | None) -> bool:
        """Until the ticket has its outcome. False: timed out, nothing has changed."""

    def now(self) -> float: ...
    def close(self) -> None: ...


@runtime_checkable
class HasPorts(Protocol):
    """A node that opens its own ports: a process in virtual time."""

    def open_port(self, address: str) -> Port: ...


# -- events of the peer policy, besides tickets and the master's messages ----------------------------------------------


class LinkUp(msgspec.Struct, frozen=True):
    """Our successor has acknowledged the link."""

    epoch: int
    id: int
    round_trip_s: float = 0.0
    lane: str = ""


class LinkDown(msgspec.Struct, frozen=True):
    """A link of this epoch broke; or it was never `made`."""

    epoch: int
    source: int
    target: int
    why: str
    made: bool = True


class DataOverdue(msgspec.Struct, frozen=True):
    """All links of this epoch stand, but nothing has come for too long."""

    epoch: int
    why: str
    awaited: tuple[int, ...]
    """Members whose data is overdue."""
    received: int
    """Bytes of the operations under way that are here."""


class DataDone(msgspec.Struct, frozen=True):
    """A data phase is over here. `fault`: what was wrong with the data; the links are good."""

    run: RunKey
    fault: str = ""


class MasterAway(msgspec.Struct, frozen=True):
    """The connection to the master broke; a new one is looked for, to it or to its successor."""


class MasterBack(msgspec.Struct, frozen=True):
    """There is one again."""


class MasterGone(msgspec.Struct, frozen=True):
    """There is no master, and none will be looked for. `refused`: for it is another version, or not of our group."""

    why: str
    refused: bool = False


class Measured(msgspec.Struct, frozen=True):
    """What a `Measure` of this epoch found; rate 0: no way there."""

    epoch: int
    id: int
    bytes_per_s: float
    round_trip_s: float


PeerEvent = (
    Ticket | ToPeer | LinkUp | LinkDown | DataOverdue | Measured | DataDone | MasterAway | MasterBack | MasterGone
)


# -- actions of the peer policy ----------------------------------------------------------------------------------------


class Tell(msgspec.Struct, frozen=True):
    """Say this to the master. `patient`: another message will follow soon, and both may leave together."""

    message: ToMaster
    patient: bool = False


class Relink(msgspec.Struct, frozen=True):
    """Drop every execution and link of older epochs, then dial `successor` (None: nobody to dial), who must answer;
    others of the `ring` when there is something for them."""

    epoch: int
    ring: tuple[Seat, ...] = ()
    successor: Seat | None = None
    key: bytes = b""
    """By which members of this epoch know each other."""


class Measure(msgspec.Struct, frozen=True):
    """Find out how fast data gets to that member; a `Measured` follows."""

    id: int


class Start(msgspec.Struct, frozen=True):
    """Run the data phase."""

    run: RunKey
    ticket: Ticket
    ring: tuple[int, ...]
    """Who takes part, in rank order."""
    rank: int
    plan: bytes = b""


class Finish(msgspec.Struct, frozen=True):
    """Wake the program. `run`: whose execution holds the result; None: none."""

    ticket: Ticket
    outcome: Outcome
    run: RunKey | None = None


PeerAction = Tell | Relink | Measure | Start | Finish


# -- actions of the master policy ----------------------------------------------------------------------------------


class Say(msgspec.Struct, frozen=True):
    """Send this to the connection `to`."""

    to: int
    message: ToPeer | Any


class Close(msgspec.Struct, frozen=True):
    """Close that connection once what was said has left."""

    who: int


class Know(msgspec.Struct, frozen=True):
    """From now on, what connection `who` says is from the member `id`, and what is said to that goes there."""

    who: int
    id: int


MasterAction = Say | Close | Know
