"""Policy: all votes of an epoch, and what has been agreed on of shared states. Says what follows; the master says it to
members, and sees to it that votes are of this epoch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from atoll.group.api import MOST_OPERATIONS, MOST_SCOPES, MOST_VOTES
from atoll.group.membership.admission import MOST_STATES
from atoll.group.membership.ballots import (
    Agreement,
    Ballot,
    Commenced,
    Decided,
    Operation,
    chains_of,
    is_sync,
    revision_of,
    step,
)
from atoll.group.membership.election import MOST_GIVERS
from atoll.group.messages import LARGEST_PAYLOAD, Commence, Complete, Initiate

LARGEST_NOTE: Final = 1 << 20
MOST_NOTED: Final = 4 << 20
"""Bytes that one member may have added to all its votes that are undecided."""


@dataclass(frozen=True)
class Begun:
    """All have voted, and alike: those of the ring are to hear that data may move."""

    ring: tuple[int, ...]
    message: Commence


@dataclass(frozen=True)
class Settled:
    """Those of the ring are to hear the verdict."""

    ring: tuple[int, ...]
    operation: Operation
    payloads: tuple[bytes, ...] = ()
    error: str = ""
    moved: bool = False
    """Data has moved for it."""


@dataclass(frozen=True)
class Misfits:
    """Their states can't be the group's: they go, and needn't come back with them."""

    reasons: Mapping[int, str]


@dataclass(frozen=True)
class Liars:
    """They broke their word: they go."""

    reasons: Mapping[int, str]


@dataclass(frozen=True)
class Spoilt:
    """Nobody knows by whom; all is to be done again."""

    reason: str


Consequence = Begun | Settled | Misfits | Liars | Spoilt | None
"""None: votes, or data, are still missing."""


class Votes:
    """`seq`: the last number that a data phase got."""

    def __init__(self, seq: int = 0) -> None:
        self.seq = seq
        self.ballots: dict[Operation, Ballot] = {}
        self.agreements: dict[str, Agreement] = {}
        """By what was voted for: each subgroup has a state of its own."""
        self._one_giver: set[str] = set()
        """Shared states that came out wrong where several gave them."""

    @property
    def revision(self) -> int:
        """The newest of any shared state that has been agreed on."""
        return max((agreement.revision for agreement in self.agreements.values()), default=0)

    def clear(self) -> None:
        """Another epoch: whatever was undecided has failed."""
        self.ballots.clear()

    def forget(self, gone: Iterable[int]) -> None:
        """These are no incumbents any more."""
        for agreement in self.agreements.values():
            agreement.incumbents.difference_update(gone)

    def wrong_with(self, who: int, vote: Initiate, ring: Sequence[int]) -> str:
        """What no peer of ours would vote for; empty: it is well."""
        if len(vote.payload) > (LARGEST_NOTE if is_sync(vote.what) or vote.moves_data else LARGEST_PAYLOAD):
            return f"added {len(vote.payload)} bytes to a vote"
        members = vote.members
        if bool(members) != bool(vote.scope) or not 0 <= vote.scope < MOST_SCOPES:
            return f"voted in subgroup {vote.scope} of {len(members)} members"
        if members and not (who in members and set(members) <= set(ring) and len(set(members)) == len(members)):
            return "voted in a subgroup that it, or somebody else in it, is not part of"
        op = Operation(vote.scope, members, vote.tag)
        if op in self.ballots and who in self.ballots[op].votes:
            return f"tag {vote.tag} is in use"
        mine = [other for other, ballot in self.ballots.items() if who in ballot.votes]
        if sum(other[:2] == op[:2] for other in mine) >= MOST_OPERATIONS or len(mine) >= MOST_VOTES:
            return "too many operations at once"
        noted = sum(len(self.ballots[other].votes[who].payload) for other in mine)
        return f"added {noted} bytes to its votes" if noted + len(vote.payload) > MOST_NOTED else ""

    def initiate(
        self, who: int, vote: Initiate, ring: tuple[int, ...], even: Callable[[Sequence[int]], bool]
    ) -> Consequence:
        """One more vote. `even`: are the links between these about equally fast?"""
        op = Operation(vote.scope, vote.members, vote.tag)
        ballot = self.ballots.setdefault(op, Ballot(vote.members or ring))
        ballot.votes[who] = vote
        ballot.seq = vote.seq
        if len(ballot.votes) < len(ballot.ring):
            return None
        agreement = self.agreements.get(vote.what)
        one = vote.what in self._one_giver or (is_sync(vote.what) and not even(ballot.ring))
        match step(op.tag, ballot, agreement.incumbents if agreement else set(), 1 if one else MOST_GIVERS):
            case Decided(payloads, error):
                return self._settle(op, payloads, error)
            case Commenced(plan):
                self.seq += 1
                ballot.commenced = True
                if ballot.seq:
                    return self._settle_if_over(op, ballot)
                ballot.seq = self.seq
                return Begun(ballot.ring, Commence(op.tag, ballot.seq, plan, op.scope))
            case dict() as misfits:
                return Misfits(misfits)

    def owed_to(self, who: int) -> set[int]:
        """Members whose data this one may be waiting for: those of operations that all have voted for."""
        return {i for ballot in self._moving() if who in ballot.ring for i in ballot.ring} - {who}

    def done(self, ring: Iterable[int]) -> set[int]:
        """Members who have said that all their data has come."""
        return set(ring) - {i for ballot in self._moving() for i in ballot.ring if i not in ballot.complete}

    def _moving(self) -> list[Ballot]:
        return [ballot for ballot in self.ballots.values() if ballot.commenced]

    def complete(self, who: int, said: Complete) -> Consequence:
        """A member's data phase is over."""
        op = next((op for op, b in self.ballots.items() if b.seq == said.seq and who in b.votes), None)
        if op is None or not said.seq:
            return None  # decided already
        ballot = self.ballots[op]
        ballot.complete.add(who)
        if said.fault and is_sync(ballot.what):
            ballot.faulty[who] = said.fault
        elif said.fault:
            ballot.fault = ballot.fault or f"rank {ballot.ring.index(who)}: {said.fault}"
        return self._settle_if_over(op, ballot)

    def crossed(self, openers: Iterable[int], ring: Sequence[int]) -> dict[Operation, Ballot]:
        """Operations that can't begin, as those who are missing wait in `update_topology`; once nobody of the ring can
        go on. They are over with this."""
        waiting = {op: ballot for op, ballot in sorted(self.ballots.items()) if not ballot.commenced}
        stuck = set(openers)  # and who waits for one of them; the members of another subgroup go on
        while more := {i for b in waiting.values() if stuck & (set(b.ring) - set(b.votes)) for i in b.votes} - stuck:
            stuck |= more
        if not waiting or not stuck >= set(ring):
            return {}
        for op in waiting:
            del self.ballots[op]
        return waiting

    def _settle_if_over(self, op: Operation, ballot: Ballot) -> Consequence:
        if not ballot.over:
            return None
        if ballot.faulty:
            return self._wrong_state(ballot)
        return self._settle(op, () if ballot.fault else ballot.payloads, ballot.fault)

    def _wrong_state(self, ballot: Ballot) -> Consequence:
        """Somebody gave another state than it had voted for. Where several gave, one will next time: then it shows."""
        chains = chains_of(ballot.plan)
        if len(chains) > 1:
            self._one_giver.add(ballot.what)
            return Spoilt("a shared state came out wrong")
        ids = [ballot.ring[rank] for rank in chains[0]]
        first = min((ids.index(i) for i in ballot.faulty if i in ids), default=0)
        return Liars({ids[max(0, first - 1)]: "gave another state than it had voted for"})

    def _settle(self, op: Operation, payloads: tuple[bytes, ...] = (), error: str = "") -> Settled:
        ballot = self.ballots.pop(op)
        if ballot.plan and not error and (ballot.what in self.agreements or len(self.agreements) < MOST_STATES):
            self.agreements[ballot.what] = Agreement(set(ballot.ring), revision_of(ballot.plan))
        return Settled(ballot.ring, op, payloads, error, moved=ballot.commenced and not error)
