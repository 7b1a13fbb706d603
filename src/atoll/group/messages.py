"""Interface: what peers, helpers and the master say to each other. Frozen, so that both worlds may share the objects.

On the wire: msgpack arrays that begin with the number of the kind. A number is never used for something else again;
`docs/compatibility.md` lists them, `tests/group/test_messages.py` holds golden bytes of each.
"""

from typing import Annotated, Any, Final

import msgspec

from atoll.errors import ProtocolError

LARGEST_PAYLOAD: Final = 4096
"""Bytes a peer may add to its vote (`gather_bytes`)."""

LARGEST_TEXT: Final = 4096
"""Letters of what one says and the master passes on to all: together it must fit into a message."""

Text = Annotated[str, msgspec.Meta(max_length=LARGEST_TEXT)]
Host = Annotated[str, msgspec.Meta(max_length=128)]
"""An address may bear the name of an interface."""


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all."""


class Seat(msgspec.Struct, frozen=True, array_like=True):
    """A member and where others dial it: from the network, or from the same `machine` at its `door`."""

    id: int
    host: str
    port: int
    machine: str = ""
    door: str = ""


class Pace(msgspec.Struct, frozen=True, array_like=True):
    """How quick the slowest link of the ring is, and the slowest between any two. 0: not measured."""

    ring_trip_s: float = 0.0
    """There and back."""
    any_trip_s: float = 0.0
    ring_bytes_per_s: float = 0.0
    any_bytes_per_s: float = 0.0
    mesh: bool = True
    """Can those reach each other, too, that are no neighbours?"""


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """Who went, and why."""

    id: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


# -- peer -> master ---------------------------------------------------------------------------------------------------


class Hello(Message, frozen=True, tag=1):
    """I want to be a member; others dial me at `host`, `port`, those of my machine at my door; I need a ring of at
    least `min_world`."""

    host: Host
    port: int
    name: str = ""
    labels: dict[str, str] = {}
    min_world: int = 1
    machine: str = ""
    door: str = ""
    masters: int = 1
    """At how many addresses I may look for a master. More than one: only a majority may go on without the others."""


class Linked(Message, frozen=True, tag=2):
    """My link to my successor stands in the attempt `epoch`."""

    epoch: int
    round_trip_s: float = 0.0
    lane: Text = ""
    """What the link is made of, for people."""


class Topology(Message, frozen=True, tag=3):
    """Vote: let the newcomers in."""


class Initiate(Message, frozen=True, tag=4):
    """Vote: begin this operation."""

    epoch: int
    tag: int
    what: Text
    """Equal on all: kind, reduction, dtype, count, codec."""
    payload: bytes = b""
    """May differ from peer to peer: gathered bytes, the note on a state."""
    moves_data: bool = True
    seq: int = 0
    """Not 0: the operation is eager, its data is already on the way under this number."""
    revision: int = 0
    """Of the state this peer holds; for status only."""
    scope: int = 0
    """0: of the whole group; else the number of the subgroup of these `members`, in rank order."""
    members: tuple[int, ...] = ()


class Complete(Message, frozen=True, tag=5):
    """My data phase is over. `fault`: what was wrong with the data."""

    seq: int
    fault: Text = ""


class Probed(Message, frozen=True, tag=10):
    """How fast data gets from me to that member; 0: not at all."""

    epoch: int
    to: int
    bytes_per_s: float
    round_trip_s: float


class Bye(Message, frozen=True, tag=6):
    """I leave."""


# -- helper -> master -------------------------------------------------------------------------------------------------


class Beat(Message, frozen=True, tag=7):
    """What the helper of member `id` sees of its parent: running, stopped or gone. `progress` is a little-endian
    u64."""

    id: int
    secret: bytes
    state: str
    progress: bytes


# -- anyone -> master -------------------------------------------------------------------------------------------------


class AskStatus(Message, frozen=True, tag=8):
    """Tell me how the group stands."""


class Agreed(msgspec.Struct, frozen=True, array_like=True):
    """The last agreement on a shared state, as a member knows it."""

    what: Text
    """What was voted for: it names the state."""
    epoch: int
    scope: int
    nth: int
    """Of its series, in that epoch."""
    members: tuple[int, ...]
    revision: int


class Return(Message, frozen=True, tag=11):
    """My master is gone, its successor may know from me how the group stands. `kept` messages of that kind follow."""

    id: int
    secret: bytes
    hello: Hello
    view: "View"
    """The newest I was told."""
    attempt: int = 0
    """The newest epoch I have heard of."""
    attempted: tuple[Seat, ...] = ()
    """Who was to be in it."""
    last_id: int = 0
    """The largest of a member I have heard of."""
    seq: int = 0
    """The newest number of a data phase."""
    opening: bool = False
    """I wait in `update_topology`."""
    agreements: tuple[Agreed, ...] = ()
    kept: int = 0
    links: tuple[tuple[int, float, float], ...] = ()
    """As I have measured them: member, bytes per second, round trip in seconds."""


class Broken(Message, frozen=True, tag=9):
    """A link of this epoch broke; or it was never `made`: the target could not be reached."""

    epoch: int
    source: int
    target: int
    why: Text
    made: bool = True


class Stalled(Message, frozen=True, tag=13):
    """All links stand, but no data has come for too long."""

    epoch: int
    why: Text
    awaited: tuple[int, ...]
    """Members whose data I wait for."""
    received: int
    """Bytes that have come of the operations under way."""


# -- master -> peer ---------------------------------------------------------------------------------------------------


class Welcome(Message, frozen=True, tag=20):
    """You are known as `id`; your helper proves itself by `secret`."""

    id: int
    secret: bytes


class Establish(Message, frozen=True, tag=21):
    """Stop everything older, dial your successor. Members know each other by the key."""

    epoch: int
    ring: tuple[Seat, ...]
    key: bytes = b""


class View(Message, frozen=True, tag=22):
    """The epoch stands. Everything undecided in an older one has failed."""

    epoch: int
    ring: tuple[int, ...]
    """Ids in rank order."""
    opened: bool
    """True: answers `join` and `update_topology`. False: follows a loss or a broken link."""
    pending: bool = False
    lost: tuple[Loss, ...] = ()
    reason: str = ""
    """Why the links were made anew where nobody was lost."""
    pace: Pace = Pace()


class Commence(Message, frozen=True, tag=23):
    """All have voted: move the data. `plan` comes from an election, else it is empty."""

    tag: int
    seq: int
    plan: bytes = b""
    scope: int = 0


class Verdict(Message, frozen=True, tag=24):
    """This operation is over for all: done, or in error for all who voted."""

    tag: int
    pending: bool
    payloads: tuple[bytes, ...] = ()
    error: str = ""
    scope: int = 0


class Kept(Message, frozen=True, tag=12):
    """What a member remembers for a new master: the verdict on the `nth` operation of its series in that epoch."""

    epoch: int
    members: tuple[int, ...]
    """Of the subgroup; empty: the whole group."""
    nth: int
    verdict: Verdict


class Retold(Message, frozen=True, tag=31):
    """A verdict of the master before, which others have heard and you perhaps not."""

    kept: Kept


class Crossed(Message, frozen=True, tag=25):
    """Some wait in `update_topology`, the others in operations: nobody could go on, all of these fail. To each its
    own."""

    operations: tuple[tuple[int, int, tuple[int, ...]], ...]
    """(scope, tag, members)."""
    pending: bool
    error: str


class Probe(Message, frozen=True, tag=29):
    """Find out how fast data gets from you to this member."""

    epoch: int
    to: int


class Expel(Message, frozen=True, tag=26):
    """The group goes on without you. `unfit`: because of your state; to come back with it won't help."""

    reason: str
    unfit: bool = False


class Refuse(Message, frozen=True, tag=27):
    """You can't be a member."""

    reason: str


class Over(Message, frozen=True, tag=30):
    """The master was closed, for good: there is nothing to wait for."""

    reason: str


class MemberStatus(msgspec.Struct, frozen=True, array_like=True):
    """One line of `atoll status`."""

    id: int
    name: str
    host: str
    port: int
    rank: int
    """-1: not in the ring yet."""
    state: str
    """running, slow, stopped or joining."""
    silent_s: float
    """Since its last sign of progress."""
    revision: int
    labels: dict[str, str]
    lane: str = ""
    """What its link to the next in the ring is made of."""


class LinkStatus(msgspec.Struct, frozen=True, array_like=True):
    """A link between two members as it was measured."""

    source: int
    target: int
    bytes_per_s: float
    """0: no way."""
    round_trip_s: float


class PastLoss(msgspec.Struct, frozen=True, array_like=True):
    """A loss and how long ago it was."""

    ago_s: float
    loss: Loss


class Status(Message, frozen=True, tag=28):
    """How the group stands."""

    epoch: int
    forming: bool
    revision: int
    operations: int
    """Commenced so far."""
    members: tuple[MemberStatus, ...]
    """In rank order, then those who wait."""
    losses: tuple[PastLoss, ...]
    """The newest first."""
    links: tuple[LinkStatus, ...] = ()
    ring_why: str = ""
    """Why the ring has this order."""
    note: str = ""
    """What the master itself waits for, if it does."""


# -- peer -> peer -----------------------------------------------------------------------------------------------------


class LinkHello(Message, frozen=True, tag=40):
    """First words on a connection: who dials, in which epoch. A link may have several.

    To a process of the same machine also where in our memory `proof` lies, for it to see whether it can read there.
    """

    epoch: int
    id: int
    key: bytes = b""
    address: int = 0
    proof: bytes = b""


class LinkAck(Message, frozen=True, tag=41):
    """The link is good. `reads`: data may stay where it is, we read it there."""

    epoch: int
    reads: bool = False


class Returned(Message, frozen=True, tag=42):
    """We have read what lay in these slots of your shared memory."""

    slots: tuple[int, ...]


class Filler(Message, frozen=True, tag=43):
    """Nothing but bytes, to see how fast they come; answered when it is here."""

    data: bytes


class Filled(Message, frozen=True, tag=44):
    """Filler has come."""


FromPeer = Hello | Linked | Probed | Topology | Initiate | Complete | Broken | Stalled | Bye | Return | Kept
ToMaster = FromPeer | Beat | AskStatus
ToPeer = Welcome | Establish | Probe | View | Commence | Verdict | Crossed | Retold | Expel | Refuse | Over
OnLink = LinkHello | LinkAck | Returned | Filler | Filled

_encoder = msgspec.msgpack.Encoder()
_to_master: Any = msgspec.msgpack.Decoder(ToMaster)
_to_peer: Any = msgspec.msgpack.Decoder(ToPeer | Status)
_on_link: Any = msgspec.msgpack.Decoder(OnLink)
encode = _encoder.encode


def _decode(decoder: Any, data: bytes | memoryview) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable message: {error}") from None


def decode_to_master(data: bytes | memoryview) -> ToMaster:
    """What a peer, a helper or a visitor says to the master. ProtocolError where it is none of that."""
    return _decode(_to_master, data)  # type: ignore[no-any-return]


def decode_to_peer(data: bytes | memoryview) -> ToPeer | Status:
    """What the master says."""
    return _decode(_to_peer, data)  # type: ignore[no-any-return]


def decode_on_link(data: bytes | memoryview) -> OnLink:
    """What one peer says to the next."""
    return _decode(_on_link, data)  # type: ignore[no-any-return]
