"""Policy: the master. Roster plus votes; it knows no tensor.

One rule carries the whole: *an epoch ends at the first loss, and everything undecided in it has failed.* A later
View is the verdict on all of it, so votes of a dead epoch need no answer and no bookkeeping. After PCCL (Keiblinger
et al. 2025, arXiv 2505.14065), whose per-operation abort votes this rule replaces.
"""

import hmac
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from atoll.group.api import MOST_OPERATIONS, MOST_SCOPES, MOST_VOTES, Close, Know, MasterAction, Say
from atoll.group.membership.admission import MOST_LETTERS, MOST_STATES, plausible, unfit
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
from atoll.group.membership.recovery import Recovery, Remembered, majority
from atoll.group.membership.rings import Pair
from atoll.group.membership.roster import Change, Gone, Joined, Roster, Tick
from atoll.group.membership.stalls import Stalls
from atoll.group.membership.topology import LinkMap
from atoll.group.messages import (
    LARGEST_PAYLOAD,
    AskStatus,
    Beat,
    Broken,
    Bye,
    Commence,
    Complete,
    Crossed,
    Establish,
    Expel,
    Hello,
    Initiate,
    Kept,
    Linked,
    Loss,
    MemberStatus,
    Over,
    PastLoss,
    Probe,
    Probed,
    Refuse,
    Retold,
    Return,
    Status,
    ToMaster,
    ToPeer,
    Topology,
    Verdict,
    View,
    Welcome,
)

MOST_DIALS: Final = 3
PROBING_S: Final = 8.0
"""A link on which nothing has come for so long while it was measured is none."""
MEASURING_S: Final = 20.0
"""Spent on it in one attempt; the rest is measured when the group opens again."""
FORMING_S: Final = 15.0
LOSSES_KEPT: Final = 20
LARGEST_NOTE: Final = 1 << 20


@dataclass
class Forming:
    """An attempt to establish a ring."""

    epoch: int
    ring: tuple[int, ...]
    opened: bool
    since: float
    linked: set[int] = field(default_factory=set)
    round_trip_s: float = 0.0
    """The longest to a successor."""
    lanes: dict[int, str] = field(default_factory=dict)
    began: float = 0.0
    """When the first link was measured in it."""
    rounds: list[list[Pair]] | None = None
    """What is still to be measured; None: nobody has looked yet."""
    awaited: set[Pair] = field(default_factory=set)


class Master:
    """`handle` takes what connection `who` said, or what became of it, and returns what to say to whom. A connection
    has a number below zero until it is known as a member's; then it has that one's.

    `remembered`: what the master before this one wrote down. `standby`: take over a group, never begin one.
    """

    def __init__(
        self,
        secret: Callable[[], bytes],
        measure: bool = True,
        *,
        remembered: Remembered | None = None,
        standby: bool = False,
        now: float = 0.0,
    ) -> None:
        self._secret, self._measure, self._standby = secret, measure, standby
        known = remembered or Remembered()
        self.recovery = Recovery(now, known, standby) if known.ring or standby else None
        """While members of a master that is gone are awaited."""
        self.roster = Roster(secret)
        self.epoch = known.epoch
        """The last number used, by a view or an attempt."""
        self.ring: tuple[int, ...] = ()
        self.lanes: dict[int, str] = {}
        """What each member's link to its successor is made of."""
        self.forming: Forming | None = None
        self.openers: set[int] = set()
        """Who waits in `update_topology`."""
        self.ballots: dict[Operation, Ballot] = {}
        self.seq = known.seq
        self.agreements: dict[str, Agreement] = {}
        """By what was voted for: each subgroup has a state of its own."""
        self.losses: deque[tuple[float, Loss]] = deque(maxlen=LOSSES_KEPT)
        self.links = LinkMap(self._on_one_machine)
        self._last_id = known.last_id
        self._viewed = known.view, known.viewed
        self._guarded = known.guarded
        """Members know of another master: the group may go on there, without us."""
        self._left: set[int] = set()
        """Members of the last view that have left of their own accord: they are nowhere else."""
        self._unsaid: list[Loss] = []
        self._reason = ""
        self._dials: dict[int, int] = {}
        self._stalls = Stalls()
        self._one_giver: set[str] = set()
        """Shared states that came out wrong where several gave them."""
        self._now = 0.0
        self._out: list[MasterAction] = []

    def handle(self, who: int, event: ToMaster | Tick | Gone, now: float) -> list[MasterAction]:
        """One event in, actions out."""
        self._out, self._now = [], now
        match event:
            case AskStatus():
                self._say([who], self.status())
            case Hello() | Return() if who not in self.roster.members and (why := unfit(event, self.roster.members)):
                self._out += [Say(who, Refuse(why)), Close(who)]
            case Hello():
                self._on_hello(who, event)
            case Return():
                self._on_return(who, event)
            case Bye() | Gone():
                self._left |= {who} if isinstance(event, Bye) else set()
                if self.recovery:
                    self.recovery.lose(who)
                self._changed(self.roster.handle(who, event, now))
            case Beat():
                self._changed(self.roster.handle(who, event, now))
            case Tick():
                self._changed(self.roster.handle(who, event, now))
                self._hurry()
                self.links.improve()
            case _ if who not in self.roster.members:
                pass  # dropped a moment ago: its words no longer count
            case Kept():
                if self.recovery:
                    self.recovery.keep(who, event)
            case Topology() if self.recovery:
                self.recovery.returned[who].opening = True
            case _ if self.recovery:
                self._kick(who, f"said {type(event).__name__} before the group stood again")
            case Linked():
                self._on_linked(who, event)
            case Probed():
                self._on_probed(who, event)
            case _ if who not in self._inside:
                self._kick(who, f"said {type(event).__name__} before it was let in")
            case Topology():
                self.openers.add(who)
            case Initiate():
                self._on_initiate(who, event)
            case Complete():
                self._on_complete(event, who)
            case Broken():
                self._on_broken(event, who)
        self._evaluate()
        return self._out

    # -- who is in ----------------------------------------------------------------------------------------------------

    @property
    def _inside(self) -> tuple[int, ...]:
        return self.forming.ring if self.forming else self.ring

    def _admissible(self) -> list[int]:
        """Those outside who would be content with the world they would find."""
        inside = self._inside
        outside = [m for i, m in self.roster.members.items() if i not in inside]
        while outside and max(m.min_world for m in outside) > len(inside) + len(outside):
            outside.remove(max(outside, key=lambda m: m.min_world))
        return [m.id for m in outside]

    def _pending(self) -> bool:
        """Is there a reason to open the group: somebody who waits, or a better ring?"""
        return bool(self._admissible()) or self.links.better(self.ring)

    def _on_one_machine(self, one: int, other: int) -> bool:
        machine = self.roster.members[one].seat.machine
        return bool(machine) and machine == self.roster.members[other].seat.machine

    def _on_hello(self, who: int, event: Hello) -> None:
        if who in self.roster.members:
            self._kick(who, "said hello twice")
        elif self.recovery:
            self.recovery.newcomers[who] = event  # its number must not be that of one who comes back
        else:
            self._last_id += 1
            self._out.append(Know(who, self._last_id))
            self._guarded = self._guarded or event.masters > 1
            self._changed(self.roster.handle(self._last_id, event, self._now))

    def _say(self, ids: Iterable[int], *messages: ToPeer | Status) -> None:
        self._out += [Say(i, message) for message in messages for i in ids]

    def _changed(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, Joined):
                self._say([change.member.id], Welcome(change.member.id, change.member.secret))
        if lost := [c for c in changes if isinstance(c, Loss)]:
            self._on_lost(lost)

    def _kick(self, who: int, reason: str) -> None:
        self._changed(self.roster.drop(who, reason))

    def _on_lost(self, lost: list[Loss]) -> None:
        """All that one event cost, together: a new epoch must not name a peer lost in the same breath."""
        gone = {loss.id for loss in lost}
        for loss in lost:
            if self.recovery:
                self.recovery.lose(loss.id)
            self._out += [Say(loss.id, Expel(loss.reason)), Close(loss.id)]
            self.losses.appendleft((self._now, loss))
        self.openers -= gone
        for agreement in self.agreements.values():
            agreement.incumbents -= gone
        self._dials = {i: n for i, n in self._dials.items() if i not in gone}
        self.links.forget(gone)
        self._unsaid += [loss for loss in lost if loss.id in self.ring]
        stake = [i for i in self.ring if i not in self._left]
        if self._guarded and gone & set(stake) and not majority(self.roster.members, stake):
            self._recover()  # the others may be at another master by now
        elif gone & set(self._inside):
            self._form([i for i in self._inside if i not in gone], opened=bool(self.forming and self.forming.opened))

    # -- after another master --------------------------------------------------------------------------------------

    @property
    def remembered(self) -> Remembered:
        """To be written down for the next one."""
        if self.recovery:
            return self.recovery.remembered
        return Remembered(self.ring, *self._viewed, self.epoch, self.seq, self._last_id, self._guarded)

    def _on_return(self, who: int, event: Return) -> None:
        known = self.roster.members.get(event.id)
        if not plausible(event) or (known and not hmac.compare_digest(known.secret, event.secret)):
            self._out += [Say(who, Refuse("what it says of itself can't be")), Close(who)]
            return
        left_behind = self.remembered.left_behind(event)
        if self.recovery is None and not self._inside and not left_behind:
            self._recover("the group of before comes back: join again")
        if self.recovery is None or left_behind:
            self._kick(event.id, "its connection broke")
            self._out += [Say(who, Expel("its connection to the master broke")), Close(who)]
            return
        if known:  # a second time, over a new connection
            self._dismiss(event.id)
        self._out.append(Know(who, event.id))
        self._guarded = self._guarded or event.hello.masters > 1
        self.roster.restore(event, self._now)
        self.recovery.take(event, self._now)

    def _recover(self, reason: str = "") -> None:
        """Forget all, and let the members tell. With a reason: nobody was in yet."""
        remembered = self.remembered
        for i in list(self.roster.members):
            if reason:
                self._say([i], Expel(reason))
            self._dismiss(i)
        self.openers.clear()
        self.ballots.clear()
        self.forming, self.ring = None, ()
        self.recovery = Recovery(self._now, remembered, self._standby)

    def _dismiss(self, who: int) -> None:
        """Hang up; it may come again."""
        if self.recovery:
            self.recovery.lose(who)
        self.roster.members.pop(who, None)
        self._out.append(Close(who))

    def _gather(self, recovery: Recovery) -> None:
        """Have enough come back?"""
        if recovery.complete(self._now):
            self._resume(recovery)
        elif recovery.hopeless(self._now):
            for i in list(recovery.returned):  # perhaps there are more of them at another master
                self._dismiss(i)
        elif recovery.forsaken(self._now):
            self._begin(recovery)

    def _resume(self, recovery: Recovery) -> None:
        """Go on where the old master ended: what it has told some is told to the others, then links are made anew."""
        for i in [i for i, one in recovery.returned.items() if not one.whole]:
            self._dismiss(i)  # what it knows could change all
        view = recovery.view
        self.agreements = recovery.agreements()
        self._begin(recovery)
        if view is None:
            return
        self.ring, self._reason = view.ring, "a new master"
        for i, one in recovery.returned.items():
            behind = one.epoch < view.epoch
            if i in view.ring:
                self._say([i], *map(Retold, recovery.lacked(i)), *([view] if behind else []))
                if one.opening and not (behind and view.opened):
                    self.openers.add(i)
            else:
                self._kick(i, "the group had gone on without it")
        missing = [i for i in view.ring if i not in recovery.returned]
        self._on_lost([Loss(i, f"peer-{i}", "didn't come back to the new master") for i in missing])
        if not missing:
            self._form(view.ring, opened=False)

    def _begin(self, recovery: Recovery) -> None:
        self.recovery = None
        self.epoch, self.seq, self._last_id = recovery.epoch, recovery.seq, recovery.last_id
        for who, hello in recovery.newcomers.items():
            self._on_hello(who, hello)

    def farewell(self, reason: str) -> list[MasterAction]:
        """The master ends, and no other will come."""
        everybody = [*self.roster.members, *(self.recovery.newcomers if self.recovery else ())]
        return [Say(i, Over(reason)) for i in everybody]

    # -- forming a ring --------------------------------------------------------------------------------------------

    def _form(self, ids: Iterable[int], opened: bool) -> None:
        """Begin (again) to establish. Whatever was undecided has thereby failed."""
        self.ballots.clear()
        self._stalls.clear()
        self.epoch += 1
        ring = self.links.order(ids)
        if not ring:
            self.forming, self.ring = None, ()
            self._unsaid.clear()
            self.openers.clear()
            return
        self.forming = Forming(self.epoch, ring, opened, self._now)
        seats = tuple(self.roster.members[i].seat for i in ring)
        self._say(ring, Establish(self.epoch, seats, self._secret()))

    def _on_linked(self, who: int, event: Linked) -> None:
        forming = self.forming
        if forming is None or event.epoch != forming.epoch:
            return  # of an attempt already given up
        if not event.failed:
            forming.linked.add(who)
            forming.round_trip_s = max(forming.round_trip_s, event.round_trip_s)
            forming.lanes[who] = event.lane[:MOST_LETTERS]
            return
        failed = [other for other in event.failed if other in forming.ring]
        if not failed:
            return  # of somebody who is no part of this attempt
        for other in failed:
            self.links.note(who, other, 0.0, 0.0)  # the next ring goes another way, if there is one
            self._dials[other] = self._dials.get(other, 0) + 1
            if self._dials[other] >= MOST_DIALS:
                self._kick(other, "its neighbour can't reach it")
                return
        self._form(forming.ring, forming.opened)

    def _measuring(self, forming: Forming) -> bool:
        """Programs wait while a group opens, and links are idle: measure those that nobody knows, round by round."""
        if forming.awaited or not forming.opened or not self._measure:
            return bool(forming.awaited)
        if forming.rounds is None:
            forming.rounds, forming.began = self.links.to_measure(forming.ring), self._now
        if not forming.rounds or self._now - forming.began > MEASURING_S:
            return False
        forming.awaited, forming.since = set(forming.rounds.pop(0)), self._now
        for source, target in sorted(forming.awaited):
            self._say([source], Probe(forming.epoch, target))
        return True

    def _on_probed(self, who: int, event: Probed) -> None:
        forming = self.forming
        if forming is not None and (who, event.to) in forming.awaited and event.epoch == forming.epoch:
            forming.awaited.remove((who, event.to))
            self.links.note(who, event.to, event.bytes_per_s, event.round_trip_s)

    def _hurry(self) -> None:
        """Nobody may hold an attempt up for ever."""
        forming = self.forming
        if self._stalls.due(self._now):
            self._blame()
        if forming and forming.awaited:
            if self._now - forming.since >= PROBING_S:
                for source, target in forming.awaited:
                    self.links.note(source, target, 0.0, 0.0)
                forming.awaited.clear()
        elif forming and self._now - forming.since >= FORMING_S:
            late = [i for i in forming.ring if i not in forming.linked]
            self._changed([c for i in late for c in self.roster.drop(i, f"made no links for {FORMING_S:g} s")])

    def _evaluate(self) -> None:
        """After *every* event: a loss may have been the last vote that was missing."""
        if self.recovery:
            self._gather(self.recovery)
        if self.recovery:
            return
        forming = self.forming
        if forming and forming.linked >= set(forming.ring) and not self._measuring(forming):
            if forming.opened and self.links.order(forming.ring) != forming.ring:
                self._form(forming.ring, opened=True)
            else:
                self._establish(forming)
        inside, outside = self._inside, self._admissible()
        if not inside:
            if outside:
                self._form(outside, opened=True)
        elif self.openers >= set(inside) and not (self.forming and self.forming.opened):
            self._form([*inside, *outside], opened=True)
        elif self.openers and not self.forming:
            self._uncross()

    def _establish(self, forming: Forming) -> None:
        self.ring, self.lanes, self.forming = forming.ring, forming.lanes, None
        self._viewed = forming.epoch, forming.ring
        self._left.clear()
        self._dials.clear()
        if forming.opened:
            self.openers.clear()
        pending = self._pending() and not forming.opened
        pace = self.links.pace(self.ring, forming.round_trip_s)
        view = View(forming.epoch, self.ring, forming.opened, pending, tuple(self._unsaid), self._reason, pace)
        self._say(self.ring, view)
        self._unsaid, self._reason = [], ""

    def _uncross(self) -> None:
        """Some wait in update_topology, the others in operations that can't begin: nobody could go on, so tell all."""
        waiting = {op: ballot for op, ballot in self.ballots.items() if not ballot.commenced}
        stuck = set(self.openers)  # and who waits for one of them; the members of another subgroup go on
        while more := {i for b in waiting.values() if stuck & (set(b.ring) - set(b.votes)) for i in b.votes} - stuck:
            stuck |= more
        if not waiting or not stuck >= set(self.ring):
            return
        names = ", ".join(f"tag {op.tag}: {waiting[op].what}" for op in sorted(waiting))
        error = f"peers called different things: some update_topology, others {names}"
        pending = self._pending()
        for i in self.ring:
            crossed = tuple((op.scope, op.tag) for op in sorted(waiting) if i in waiting[op].ring)
            self._say([i], Crossed(crossed, pending, error))
        for op in waiting:
            del self.ballots[op]
        self.openers.clear()

    # -- operations ------------------------------------------------------------------------------------------------

    def _on_initiate(self, who: int, event: Initiate) -> None:
        if self.forming or event.epoch != self.epoch:
            return  # its epoch is dead: the View on its way is the answer
        if wrong := self._wrong_with(who, event):
            self._kick(who, wrong)
            return
        op = Operation(event.scope, event.members, event.tag)
        ballot = self.ballots.setdefault(op, Ballot(event.members or self.ring))
        ballot.votes[who] = event
        ballot.seq = event.seq
        self.roster.members[who].revision = event.revision
        agreement = self.agreements.get(event.what)
        one = event.what in self._one_giver or (is_sync(event.what) and not self.links.even(ballot.ring))
        match step(op.tag, ballot, agreement.incumbents if agreement else set(), 1 if one else MOST_GIVERS):
            case Decided(payloads, error):
                self._decide(op, payloads, error)
            case Commenced(plan):
                self.seq += 1
                ballot.commenced = True
                if not ballot.seq:
                    ballot.seq = self.seq
                    self._say(ballot.ring, Commence(op.tag, ballot.seq, plan, op.scope))
                self._decide_if_over(op, ballot)
            case dict() as expelled:
                self._out += [Say(i, Expel(why, unfit=True)) for i, why in expelled.items()]
                self._changed([c for i, why in expelled.items() for c in self.roster.drop(i, why)])

    def _wrong_with(self, who: int, event: Initiate) -> str:
        """What no peer of ours would vote for; empty: it is well."""
        if len(event.payload) > (LARGEST_NOTE if is_sync(event.what) or event.moves_data else LARGEST_PAYLOAD):
            return f"added {len(event.payload)} bytes to a vote"
        members = event.members
        if bool(members) != bool(event.scope) or not 0 <= event.scope < MOST_SCOPES:
            return f"voted in subgroup {event.scope} of {len(members)} members"
        if members and not (who in members and set(members) <= set(self.ring) and len(set(members)) == len(members)):
            return "voted in a subgroup that it, or somebody else in it, is not part of"
        op = Operation(event.scope, members, event.tag)
        if op in self.ballots and who in self.ballots[op].votes:
            return f"tag {event.tag} is in use"
        mine = [other for other, ballot in self.ballots.items() if who in ballot.votes]
        if sum(other[:2] == op[:2] for other in mine) >= MOST_OPERATIONS or len(mine) >= MOST_VOTES:
            return "too many operations at once"
        return ""

    def _on_complete(self, event: Complete, who: int) -> None:
        op = next((op for op, b in self.ballots.items() if b.seq == event.seq and who in b.votes), None)
        if op is None or not event.seq:
            return  # decided already
        ballot = self.ballots[op]
        ballot.complete.add(who)
        if event.fault and is_sync(ballot.what):
            ballot.faulty[who] = event.fault
        elif event.fault:
            ballot.fault = ballot.fault or f"rank {ballot.ring.index(who)}: {event.fault}"
        self._decide_if_over(op, ballot)

    def _on_broken(self, event: Broken, who: int) -> None:
        if self.forming or event.epoch != self.epoch:
            return
        self._reason = self._reason or f"{self.roster.members[who].name}: {event.why}"
        if event.awaited:
            self._stalls.note(who, event, self._now)
        else:
            self._form(self.ring, opened=False)

    def _blame(self) -> None:
        """Data stands still, and all who wait for some have said so."""
        if to_blame := self._stalls.to_blame(self.ring):
            self._changed([c for i, why in to_blame.items() for c in self.roster.drop(i, why)])
        else:
            self._form(self.ring, opened=False)

    def _decide_if_over(self, op: Operation, ballot: Ballot) -> None:
        if ballot.over and ballot.faulty:
            self._on_wrong_state(ballot)
        elif ballot.over:
            self._decide(op, () if ballot.fault else ballot.payloads, ballot.fault)

    def _on_wrong_state(self, ballot: Ballot) -> None:
        """Somebody gave another state than it had voted for. Where several gave, one will next time: then it shows."""
        chains = chains_of(ballot.plan)
        if len(chains) > 1:
            self._one_giver.add(ballot.what)
            self._reason = "a shared state came out wrong"
            self._form(self.ring, opened=False)
            return
        ids = [ballot.ring[rank] for rank in chains[0]]
        first = min((ids.index(i) for i in ballot.faulty if i in ids), default=0)
        self._kick(ids[max(0, first - 1)], "gave another state than it had voted for")

    def _decide(self, op: Operation, payloads: tuple[bytes, ...] = (), error: str = "") -> None:
        ballot = self.ballots.pop(op)
        if ballot.plan and not error and (ballot.what in self.agreements or len(self.agreements) < MOST_STATES):
            self.agreements[ballot.what] = Agreement(set(ballot.ring), revision_of(ballot.plan))
        self._say(ballot.ring, Verdict(op.tag, self._pending(), payloads, error, op.scope))

    # -- for people ------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """How the group stands now."""
        ranks = {i: r for r, i in enumerate(self._inside)}
        members = sorted(self.roster.members.values(), key=lambda m: (ranks.get(m.id, len(ranks)), m.id))
        lines = tuple(
            MemberStatus(
                m.id, m.name, m.seat.host, m.seat.port, ranks.get(m.id, -1),
                m.state(self._now) if m.id in ranks else "joining",
                self._now - m.progress_at, m.revision, m.labels, self.lanes.get(m.id, ""),
            )
            for m in members
        )  # fmt: skip
        losses = tuple(PastLoss(self._now - at, loss) for at, loss in self.losses)
        revision = max(
            [*(a.revision for a in self.agreements.values()), *(m.revision for m in self.roster.members.values()), 0]
        )
        names = {m.id: m.name for m in members}
        return Status(
            self.epoch, self.forming is not None, revision, self.seq, lines, losses,
            self.links.links(list(ranks)), self.links.why(self._inside, lambda i: names[i]),
            self.recovery.note if self.recovery else "",
        )  # fmt: skip
