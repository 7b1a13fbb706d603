"""Interface: the group as its parts see each other. Read this first.

    program thread   Group --Ticket--> Port.submit ... Port.wait --Outcome--> Group adopts the view, returns or raises
    wire / loop      Peer.handle(event) -> [action]   Station carries actions out   Master.handle(who, event, now) ->
    [...]

A ticket is answered exactly once, by a `Finish`. An epoch ends at the first loss; all that is undecided in it has
failed, and the next `View` is the verdict.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, runtime_checkable

from atoll.errors import AtollError
from atoll.group.messages import Seat, ToMaster, ToPeer, View

MOST_OPERATIONS: Final = 16
"""Operations that may be under way at once, each under its own tag."""

EAGER_BYTES: Final = 64 << 10
"""Operations up to this size don't wait for the votes before their data leaves."""
_EAGER: Final = 1 << 63


def eager_seq(tag: int, nth: int) -> int:
    """Number of the `nth` operation (from 1) with this tag in an epoch; never one of the master's."""
    return _EAGER | tag << 40 | nth


def eager_parts(seq: int) -> tuple[int, int] | None:
    """The reverse; None: not eager."""
    return (seq >> 40 & 0xFFFF, seq & (1 << 40) - 1) if seq & _EAGER else None


Kind = Literal["join", "topology", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "gather_bytes", "sync"]


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
    """Opaque to policies: a flat array, or for `sync` the state's tensors."""
    op: str = "sum"
    codec: str | None = None
    root: int = 0
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
        return self.kind != "gather_bytes"

    @property
    def eager(self) -> bool:
        """Is it so small that its data leaves with the vote? Follows from what all agree on (`what`)."""
        return self.moves_data and self.kind != "sync" and self.tensor is not None and self.tensor.nbytes <= EAGER_BYTES


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a ticket. The facade adopts `view` and `pending` before it returns or raises."""

    pending: bool = False
    view: View | None = None
    error: AtollError | None = None
    payloads: tuple[bytes, ...] = ()
    value: Any = None
    """The data phase's result; None where there was none."""
    sent: int = 0
    received: int = 0


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


@dataclass(frozen=True, slots=True)
class LinkUp:
    """Our successor has acknowledged the link."""

    epoch: int
    id: int


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link of this epoch broke, or could not be made."""

    epoch: int
    id: int
    why: str


@dataclass(frozen=True, slots=True)
class DataDone:
    """The data phase `seq` is over here. `fault`: what was wrong with the data; the links are good."""

    seq: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class MasterGone:
    """The connection to the master broke. `refused`: for it is another version."""

    why: str
    refused: bool = False


PeerEvent = Ticket | ToPeer | LinkUp | LinkDown | DataDone | MasterGone


# -- actions of the peer policy ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tell:
    """Say this to the master."""

    message: ToMaster


@dataclass(frozen=True, slots=True)
class Relink:
    """Drop every execution and link of older epochs, then dial `successor` (None: nobody to dial)."""

    epoch: int
    successor: Seat | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Run the data phase."""

    seq: int
    ticket: Ticket
    ring: tuple[int, ...]
    rank: int
    plan: bytes = b""


@dataclass(frozen=True, slots=True)
class Finish:
    """Wake the program. `seq`: whose execution holds the result; 0: none."""

    ticket: Ticket
    outcome: Outcome
    seq: int = 0


PeerAction = Tell | Relink | Start | Finish


# -- actions of the master policy ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Say:
    """Send this to the connection `to`."""

    to: int
    message: ToPeer | Any


@dataclass(frozen=True, slots=True)
class Close:
    """Close that connection once what was said has left."""

    who: int


MasterAction = Say | Close
