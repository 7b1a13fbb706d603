"""Policy: the operations of one epoch: who has voted for what, what has commenced, what is decided.

One ballot per tag, of the whole group and of each subgroup. Votes that differ end it with the same error for all;
votes that agree commence it, or decide it at once where no data moves. Which epoch it is and who is in the ring is the
master's business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from atoll.group.membership.election import MOST_GIVERS, Election, Plan, StateNote, elect
from atoll.group.messages import Initiate

SYNC = "sync"


class Operation(NamedTuple):
    """What a ballot is about. `members`: of a subgroup, in rank order; empty: the whole group."""

    scope: int
    members: tuple[int, ...]
    tag: int


@dataclass
class Agreement:
    """The last one on a shared state, of the whole group or of a subgroup."""

    incumbents: set[int] = field(default_factory=set)
    """Who took part."""
    revision: int = 0


@dataclass
class Ballot:
    """One operation under way. `ring`: whose it is, in rank order."""

    ring: tuple[int, ...]
    votes: dict[int, Initiate] = field(default_factory=dict)
    seq: int = 0
    """Of the data phase: the master's number, or that of an eager operation."""
    commenced: bool = False
    """All have voted, and for the same thing."""
    plan: bytes = b""
    complete: set[int] = field(default_factory=set)
    fault: str = ""
    """What somebody found wrong with the data."""
    faulty: dict[int, str] = field(default_factory=dict)
    """Who found that a shared state is not the elected one."""

    @property
    def payloads(self) -> tuple[bytes, ...]:
        """What goes with the verdict: the elected plan, or what everybody added to the vote, in rank order."""
        return (self.plan,) if self.plan else tuple(self.votes[i].payload for i in self.ring)

    @property
    def what(self) -> str:
        """As the first vote has it."""
        return next(iter(self.votes.values())).what

    @property
    def over(self) -> bool:
        """An eager operation may be complete, or at fault, before its last vote is here."""
        return self.commenced and (bool(self.fault) or self.complete >= set(self.ring))


@dataclass(frozen=True)
class Decided:
    """The ballot is over."""

    payloads: tuple[bytes, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Commenced:
    """Data may move now."""

    plan: bytes = b""


Step = Decided | Commenced | dict[int, str]
"""A dict: members to expel, with reasons."""


def is_sync(what: str) -> bool:
    """Is it an agreement on shared state? What follows the word names the subgroup whose state it is."""
    return what.split(" ", 1)[0] == SYNC


def step(tag: int, ballot: Ballot, incumbents: set[int], most_givers: int = MOST_GIVERS) -> Step:
    """What follows, once all have voted. `most_givers`: of a shared state; 1: along the ring only."""
    ring = ballot.ring
    votes = [ballot.votes[i] for i in ring]
    if len({(v.what, v.seq) for v in votes}) > 1:
        said = "; ".join(f"rank {r}: {v.what}" for r, v in enumerate(votes))
        return Decided(error=f"peers disagree on tag {tag}: {said}")
    if is_sync(votes[0].what):
        return _elected(ballot, votes, incumbents, most_givers)
    if votes[0].moves_data and len(ring) > 1:
        sizes = [v.payload for v in votes]
        return Commenced(msgspec.msgpack.encode(sizes) if any(sizes) else b"")
    return Decided(ballot.payloads)


def _elected(ballot: Ballot, votes: Sequence[Initiate], incumbents: set[int], most_givers: int) -> Step:
    ring = ballot.ring
    notes: list[StateNote] = []
    for member, vote in zip(ring, votes, strict=True):
        try:
            notes.append(msgspec.msgpack.decode(vote.payload, type=StateNote))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return {member: "sent an unreadable note on its state"}
    election: Election = elect(notes, {r for r, i in enumerate(ring) if i in incumbents}, most_givers)
    if election.plan is None:
        return {ring[r]: why for r, why in election.expelled.items()}
    ballot.plan = msgspec.msgpack.encode(election.plan)
    return Commenced(ballot.plan) if election.plan.dirty else Decided(ballot.payloads)


def revision_of(plan: bytes) -> int:
    """The revision that an elected plan brings."""
    return msgspec.msgpack.decode(plan, type=Plan).revision


def chains_of(plan: bytes) -> tuple[tuple[int, ...], ...]:
    """Who gives it to whom."""
    return msgspec.msgpack.decode(plan, type=Plan).chains
