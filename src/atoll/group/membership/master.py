"""Policy: the master. Roster plus votes; it knows no tensor.

One rule carries the whole: *an epoch ends at the first loss, and everything undecided in it has failed.* A later
View is the verdict on all of it, so votes of a dead epoch need no answer and no bookkeeping. After PCCL (Keiblinger
et al. 2025, arXiv 2505.14065), whose per-operation abort votes this rule replaces.
"""

import hmac
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from atoll.group.api import Close, Know, MasterAction, Say
from atoll.group.membership.admission import MOST_LETTERS, MOST_MEMBERS, Patience, plausible, unfit
from atoll.group.membership.forming import FORMING_S, Forming
from atoll.group.membership.recovery import Recovery, Remembered, majority
from atoll.group.membership.roster import Change, Gone, Joined, Roster, Tick
from atoll.group.membership.stalls import Stalls
from atoll.group.membership.topology import LinkMap
from atoll.group.membership.votes import Begun, Consequence, Liars, Misfits, Settled, Spoilt, Votes
from atoll.group.messages import (
    AskStatus,
    Beat,
    Broken,
    Bye,
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
    Stalled,
    Status,
    ToMaster,
    ToPeer,
    Topology,
    Verdict,
    View,
    Welcome,
)

LOSSES_KEPT: Final = 20


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
        self.votes = Votes(known.seq)
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
        self._mesh = True
        """Could all members reach each other, when the last view was said?"""
        self._stalls = Stalls()
        self._patience = Patience()
        self._now = 0.0
        self._out: list[MasterAction] = []

    def handle(self, who: int, event: ToMaster | Tick | Gone, now: float) -> list[MasterAction]:
        """One event in, actions out."""
        self._out, self._now = [], now
        match event:
            case AskStatus():
                self._say([who], self.status())
            case Hello() | Return() if who in self.roster.members:
                self._kick(who, "said hello twice")
            case Hello():
                self._on_hello(who, event)
            case Return():
                self._on_return(who, event)
            case Bye() | Gone():
                if isinstance(event, Bye) and who in self.ring:
                    self._left.add(who)
                if self.recovery:
                    self.recovery.lose(who)
                self._changed(self.roster.handle(who, event, now))
            case Beat():
                self._changed(self.roster.handle(who, event, now))
            case Tick():
                self._changed(self.roster.handle(who, event, now))
                self._hurry()
                self.links.tick(now)
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
                self._follow(self.votes.complete(who, event))
            case Broken():
                self._on_broken(who, event)
            case Stalled():
                self._on_stalled(who, event)
        self._evaluate()
        return self._out

    # -- who is in ----------------------------------------------------------------------------------------------------

    @property
    def _inside(self) -> tuple[int, ...]:
        return self.forming.ring if self.forming else self.ring

    def _admissible(self) -> list[int]:
        """Those outside who would be content with the world they would find."""
        inside = set(self._inside)
        outside = [m for i, m in self.roster.members.items() if i not in inside]
        content = [m for m in outside if not self._patience.waits(m.origin, self._now)]
        content.sort(key=lambda m: m.min_world)
        while content and content[-1].min_world > len(inside) + len(content):
            content.pop()
        return [m.id for m in content]

    def _pending(self) -> bool:
        """Is there a reason to open the group: somebody who waits, a better ring, links to try again?"""
        again = not self._mesh and self.links.mesh(self.ring)
        return bool(self._admissible()) or again or self.links.better(self.ring)

    def _on_one_machine(self, one: int, other: int) -> bool:
        machine = self.roster.members[one].seat.machine
        return bool(machine) and machine == self.roster.members[other].seat.machine

    def _on_hello(self, who: int, event: Hello) -> None:
        if why := unfit(event, self.roster.members):
            self._refuse(who, why)
        elif self.recovery is None:
            self._last_id += 1
            self._out.append(Know(who, self._last_id))
            self._guarded = self._guarded or event.masters > 1
            self._changed(self.roster.handle(self._last_id, event, self._now))
        elif who in self.recovery.newcomers:
            self._refuse(who, "it said hello twice")
        elif len(self.recovery.newcomers) >= MOST_MEMBERS:
            self._refuse(who, "too many wait")
        else:
            self.recovery.newcomers[who] = event  # its number must not be that of one who comes back

    def _refuse(self, who: int, why: str) -> None:
        """Hang up on one who is no member."""
        if self.recovery:
            self.recovery.lose(who)
        self._out += [Say(who, Refuse(why)), Close(who)]

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
        self.votes.forget(gone)
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
        names = {i: member.name for i, member in self.roster.members.items() if i in self.ring}
        return Remembered(self.ring, *self._viewed, self.epoch, self.votes.seq, self._last_id, self._guarded, names)

    def _on_return(self, who: int, event: Return) -> None:
        known = self.roster.members.get(event.id)
        new = self.recovery is not None and who in self.recovery.newcomers
        if why := unfit(event, self.roster.members):
            self._refuse(who, why)
            return
        if new or not plausible(event):
            self._refuse(who, "what it says of itself can't be")
            return
        another = known is not None and not hmac.compare_digest(known.secret, event.secret)
        left_behind = another or self.remembered.left_behind(event)
        if self.recovery is None and not self._inside and not left_behind:
            self._recover("the group of before comes back: join again")
        if self.recovery is None or left_behind:
            if not another:
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
        self.votes.clear()
        self._stalls.clear()
        self._unsaid.clear()
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
        self.votes.agreements = recovery.agreements()
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
        for source, target, bytes_per_s, round_trip_s in recovery.links():
            self.links.note(source, target, bytes_per_s, round_trip_s, self._now)
        names = recovery.remembered.names
        missing = [i for i in view.ring if i not in recovery.returned]
        self._on_lost([Loss(i, names.get(i, f"peer-{i}"), "didn't come back to the new master") for i in missing])
        if not missing:
            self._form(view.ring, opened=False)

    def _begin(self, recovery: Recovery) -> None:
        self.recovery = None
        self.epoch, self.votes.seq, self._last_id = recovery.epoch, recovery.seq, recovery.last_id
        for who, hello in recovery.newcomers.items():
            self._on_hello(who, hello)

    def farewell(self, reason: str) -> list[MasterAction]:
        """The master ends, and no other will come."""
        everybody = [*self.roster.members, *(self.recovery.newcomers if self.recovery else ())]
        return [Say(i, Over(reason)) for i in everybody]

    # -- forming a ring --------------------------------------------------------------------------------------------

    def _form(self, ids: Iterable[int], opened: bool) -> None:
        """Begin (again) to establish. Whatever was undecided has thereby failed."""
        self.votes.clear()
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
        forming.link(who, event, event.lane[:MOST_LETTERS])

    def _on_broken(self, who: int, event: Broken) -> None:
        """A link of this epoch is gone."""
        forming = self.forming
        if event.epoch != (forming.epoch if forming else self.epoch):
            return
        ends, ring = {event.source, event.target}, self._inside
        if who not in ends or not ends <= set(ring) or len(ends) < 2:
            self._kick(who, "spoke of a link that is none of its own")
            return
        self.links.broke(event.source, event.target, event.made, self._now)
        if forming is None:
            names = " to ".join(self.roster.members[i].name for i in (event.source, event.target))
            self._reason = f"link from {names}: {event.why}"
        self._relink()

    def _relink(self) -> None:
        """Make the links anew, another way where one can't be made; or without somebody, where there is no other."""
        forming, ring = self.forming, self._inside
        culprit = self.links.culprit(ring)
        if culprit is None:
            self._form(ring, opened=bool(forming and forming.opened))
        elif forming and not forming.unreachable(self._now):
            forming.suspect(self._now)
        else:
            self._cut_off(culprit)

    def _cut_off(self, who: int) -> None:
        """Go on without one that links can't be made to, and don't try again at once."""
        self._patience.dropped(self.roster.members[who].origin, self._now)
        self._kick(who, self._unreachable(who))

    def _unreachable(self, who: int) -> str:
        """Why it must go, in words."""
        into, out = (", ".join(self.roster.members[i].name for i in ids) for ids in self.links.breaks.of(who))
        return "; ".join([*([f"{into} can't reach it"] if into else []), *([f"it can't reach {out}"] if out else [])])

    def _measuring(self, forming: Forming) -> bool:
        """Are links being measured?"""
        for source, target in forming.measure(self.links, self._now) if self._measure else []:
            self._say([source], Probe(forming.epoch, target))
        return bool(forming.probed)

    def _on_probed(self, who: int, event: Probed) -> None:
        forming = self.forming
        if forming is not None and (who, event.to) in forming.probed and event.epoch == forming.epoch:
            forming.probed.remove((who, event.to))
            self.links.note(who, event.to, event.bytes_per_s, event.round_trip_s, self._now)

    def _hurry(self) -> None:
        """Nobody may hold an attempt, or an operation, up for ever."""
        if self._stalls.due(self._now):
            self._blame()
        if forming := self.forming:
            for source, target in forming.unanswered(self._now):
                self.links.broke(source, target, made=False, now=self._now)
            self._drop(dict.fromkeys(forming.late(self._now), f"made no links for {FORMING_S:g} s"))
        if self.forming and self.forming.unreachable(self._now):
            self._relink()

    def _evaluate(self) -> None:
        """After *every* event: a loss may have been the last vote that was missing."""
        if self.recovery:
            self._gather(self.recovery)
        if self.recovery:
            return
        forming = self.forming
        if forming and forming.complete and not self._measuring(forming):
            if forming.opened and self.links.order(forming.ring) != forming.ring:
                self._form(forming.ring, opened=True)
            else:
                self._establish(forming)
        inside = self._inside
        if not inside:
            if outside := self._admissible():
                self._form(outside, opened=True)
        elif self.openers >= set(inside) and not (self.forming and self.forming.opened):
            self._form([*inside, *self._admissible()], opened=True)
        elif self.openers and not self.forming:
            self._uncross()

    def _establish(self, forming: Forming) -> None:
        self.ring, self.lanes, self.forming = forming.ring, forming.lanes, None
        self._viewed = forming.epoch, forming.ring
        self._left.clear()
        if forming.opened:
            self.openers.clear()
        pace = self.links.pace(self.ring, forming.round_trip_s)
        self._mesh = pace.mesh
        pending = self._pending() and not forming.opened
        view = View(forming.epoch, self.ring, forming.opened, pending, tuple(self._unsaid), self._reason, pace)
        self._say(self.ring, view)
        self._unsaid, self._reason = [], ""

    def _uncross(self) -> None:
        """Some wait in update_topology, the others in operations that can't begin: nobody could go on, so tell all."""
        crossed = self.votes.crossed(self.openers, self.ring)
        if not crossed:
            return
        names = ", ".join(f"tag {op.tag}: {ballot.what}" for op, ballot in crossed.items())
        error = f"peers called different things: some update_topology, others {names}"
        pending = self._pending()
        for i in self.ring:
            mine = tuple((op.scope, op.tag, op.members) for op, ballot in crossed.items() if i in ballot.ring)
            self._say([i], Crossed(mine, pending, error))
        self.openers.clear()

    # -- operations ------------------------------------------------------------------------------------------------

    def _on_initiate(self, who: int, event: Initiate) -> None:
        if self.forming or event.epoch != self.epoch:
            return  # its epoch is dead: the View on its way is the answer
        if wrong := self.votes.wrong_with(who, event, self.ring):
            self._kick(who, wrong)
            return
        self.roster.members[who].revision = event.revision
        self._follow(self.votes.initiate(who, event, self.ring, self.links.even))

    def _follow(self, consequence: Consequence) -> None:
        """What the votes have come to."""
        match consequence:
            case Begun(ring, message):
                self._say(ring, message)
            case Settled(ring, op, payloads, error, moved):
                if moved:
                    self.links.breaks.data_moved()
                self._say(ring, Verdict(op.tag, self._pending(), payloads, error, op.scope))
            case Misfits(reasons):
                self._out += [Say(i, Expel(why, unfit=True)) for i, why in reasons.items()]
                self._drop(reasons)
            case Liars(reasons):
                self._drop(reasons)
            case Spoilt(reason):
                self._reason = reason
                self._form(self.ring, opened=False)

    def _drop(self, reasons: Mapping[int, str]) -> None:
        self._changed([c for i, why in reasons.items() for c in self.roster.drop(i, why)])

    def _on_stalled(self, who: int, event: Stalled) -> None:
        if self.forming or event.epoch != self.epoch:
            return
        owed = self.votes.owed_to(who)  # who hasn't voted yet owes nothing
        if awaited := tuple(i for i in event.awaited if i in owed):
            self._stalls.note(who, Stalled(event.epoch, event.why, awaited, event.received), self._now)

    def _blame(self) -> None:
        """Data stands still, and all who wait for some have said so."""
        accusers, why = self._stalls.accusers, self._stalls.why
        concerned = {*accusers}.union(*map(self.votes.owed_to, accusers))
        ring = [i for i in self.ring if i in concerned]
        to_blame = self._stalls.to_blame(ring, self.votes.done(ring))
        self._stalls.clear()
        if to_blame is None:
            return
        self._reason = self._reason or why
        if to_blame:
            self._drop(to_blame)
        else:
            self._form(self.ring, opened=False)

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
        revision = max([self.votes.revision, *(m.revision for m in members)])
        names = {m.id: m.name for m in members}
        return Status(
            self.epoch, self.forming is not None, revision, self.votes.seq, lines, losses,
            self.links.links(list(ranks)), self.links.why(self._inside, lambda i: names[i]),
            self.recovery.note if self.recovery else "",
        )  # fmt: skip
