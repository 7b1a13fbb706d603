"""A new master puts together what the members of the old one know; and members are blamed for what they do."""

from typing import Any

import msgspec
import pytest

from atoll.group.api import Close, Know, Say
from atoll.group.membership.ballots import SYNC
from atoll.group.membership.breaks import AVOIDED_S
from atoll.group.membership.election import StateNote, TensorNote
from atoll.group.membership.forming import SUSPECTED_S
from atoll.group.membership.master import Master
from atoll.group.membership.recovery import GATHER_S, PATIENCE_S, Remembered, majority
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import (
    Agreed,
    Beat,
    Broken,
    Establish,
    Expel,
    Hello,
    Initiate,
    Kept,
    Linked,
    Message,
    Refuse,
    Retold,
    Return,
    Seat,
    Topology,
    Verdict,
    View,
    Welcome,
)

VIEW = View(5, (1, 2, 3), opened=True)


class Office:
    """A master, and what it has said to whom."""

    def __init__(self, **options: Any) -> None:
        self.master = Master(lambda: b"secret", measure=False, **options)
        self.now = 0.0
        self.said: dict[int, list[Any]] = {}
        self.closed: list[int] = []
        self._known: dict[int, int] = {}
        """Connections, and as whose."""

    def hear(self, who: int, event: Any) -> None:
        for action in self.master.handle(self._known.get(who, who), event, self.now):
            match action:
                case Say(to, message):
                    self.said.setdefault(to, []).append(message)
                case Close(whom):
                    self.closed.append(whom)
                case Know(connection, member):
                    assert connection not in self.closed
                    self._known[connection] = member

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.now += 0.25
            for member in list(self.master.roster.members):
                self.hear(99, Beat(member, b"secret", "running", b""))
            self.hear(0, Tick())

    def heard_by(self, who: int, kind: type[Message]) -> list[Any]:
        return [message for message in self.said.get(who, []) if isinstance(message, kind)]

    def stand(self, size: int) -> None:
        """A group of so many."""
        for i in range(1, size + 1):
            self.hear(-i, Hello("127.0.0.1", i, min_world=size))
        for i in range(1, size + 1):
            self.hear(i, Linked(self.master.epoch))
        assert self.master.ring == tuple(range(1, size + 1))

    def link(self) -> None:
        """All that form a ring do."""
        assert self.master.forming
        for i in self.master.forming.ring:
            self.hear(i, Linked(self.master.epoch))


def back(who: int, view: View = VIEW, **more: Any) -> Return:
    masters = more.pop("masters", 1)
    return Return(who, b"secret", Hello("127.0.0.1", who, masters=masters), view, **more)


def reasons(messages: list[Any]) -> list[str]:
    return [message.reason for message in messages]


def test_when_all_are_back_the_group_goes_on_at_once() -> None:
    office = Office()
    for i in (3, 1, 2):
        office.hear(-i, back(i))
    assert [m.epoch for m in office.heard_by(1, Establish)] == [6]
    office.link()
    (view,) = office.heard_by(2, View)
    assert (view.epoch, view.ring, view.opened, view.lost, view.reason) == (6, (1, 2, 3), False, (), "a new master")


def test_who_does_not_come_back_in_time_is_lost() -> None:
    office = Office()
    office.hear(-1, back(1))
    office.hear(-2, back(2))
    assert not office.heard_by(1, Establish)
    office.pass_time(GATHER_S)
    office.link()
    assert [str(loss) for loss in office.heard_by(1, View)[0].lost] == ["peer-3 (didn't come back to the new master)"]
    office.hear(-3, back(3))
    assert reasons(office.heard_by(-3, Expel)) == ["its connection to the master broke"]


def test_a_verdict_that_some_have_heard_is_told_to_the_others() -> None:
    office = Office()
    verdict = Kept(5, (), 3, Verdict(0, False, (b"a", b"b", b"c")))
    office.hear(-1, back(1, kept=1))
    office.hear(1, verdict)
    office.hear(-2, back(2))
    office.hear(-3, back(3))
    assert office.heard_by(2, Retold) == office.heard_by(3, Retold) == [Retold(verdict)]
    assert not office.heard_by(1, Retold)


def test_a_view_that_some_have_seen_is_told_to_the_others_first() -> None:
    office = Office()
    older = View(4, (1, 2), opened=True)
    office.hear(-1, back(1))
    office.hear(-3, back(3))
    office.hear(-2, back(2, older))
    kinds = [type(message) for message in office.said[2]]
    assert kinds == [View, Establish]
    assert office.said[2][0] == VIEW
    assert not office.heard_by(1, View)


def test_a_newcomer_waits_until_the_members_are_back_and_gets_a_number_of_its_own() -> None:
    office = Office(remembered=Remembered((1, 2, 3), 5, (1, 2, 3), 5, 0, 7))
    office.hear(-1, Hello("127.0.0.1", 9))
    for i in (1, 2, 3):
        office.hear(-1 - i, back(i))
    assert [message.id for message in office.heard_by(8, Welcome)] == [8]
    office.link()
    assert office.heard_by(1, View)[0].pending


def test_where_nobody_comes_back_a_new_group_begins() -> None:
    office = Office(remembered=Remembered((1, 2), 5, (1, 2), 5, 0, 2))
    office.hear(-1, Hello("127.0.0.1", 9))
    office.pass_time(PATIENCE_S - 0.5)
    assert not office.said
    office.pass_time(1.0)
    assert [m.epoch for m in office.heard_by(3, Establish)] == [6]


def test_the_last_agreement_on_a_state_outlives_the_master() -> None:
    """Else a newcomer with some other, newer state would win the next election."""
    office = Office()
    for i in (1, 2):
        office.hear(-i, back(i, View(5, (1, 2), True), agreements=(Agreed(SYNC, 5, 0, 2, (1, 2), 40),)))
    office.hear(-3, Hello("127.0.0.1", 3))
    office.link()
    office.hear(1, Topology())
    office.hear(2, Topology())
    office.link()
    assert office.master.ring == (1, 2, 3)
    for i, revision in ((1, 40), (2, 40), (3, 99)):
        note = StateNote(revision, "popular", (TensorNote("w", "float32", (1,), bytes([i == 3])),))
        office.hear(i, Initiate(office.master.epoch, 0, SYNC, msgspec.msgpack.encode(note)))
    assert office.heard_by(3, Expel)[0].reason == "its state is at revision 99, ahead of the group's 40"


def test_a_member_of_a_group_that_went_on_without_it_does_not_bring_the_old_one_back() -> None:
    office = Office(remembered=Remembered((), 6, (1, 2), 6, 0, 3))
    office.hear(-3, back(3))
    assert office.heard_by(-3, Expel)
    office.hear(-1, back(1))
    assert not office.heard_by(-1, Expel)


def test_what_cannot_be_is_refused() -> None:
    office = Office()
    for odd in (
        back(9),
        back(1, seq=1 << 62),
        back(1, kept=1 << 30),
        Return(-1, b"", Hello("127.0.0.1", 1), View(5, (-1,), True)),
        Return(1, b"", Hello("nowhere", 1), View(5, (1,), True)),
    ):
        office.hear(-5, odd)
        assert office.heard_by(-5, Refuse)
        assert not office.master.roster.members
        office.said.clear()


def test_a_stranger_that_claims_to_be_a_member_does_it_no_harm() -> None:
    """It may be one of a group before this one, in which it had that number: then it may join again."""
    office = Office()
    office.stand(2)
    office.hear(-9, Return(1, b"guessed", Hello("127.0.0.1", 1), View(1, (1, 2), True)))
    assert office.heard_by(-9, Expel)
    assert office.closed == [-9]
    assert set(office.master.roster.members) == {1, 2}


def test_a_standby_takes_over_with_a_majority_only() -> None:
    office = Office(standby=True)
    office.hear(-9, Hello("127.0.0.1", 9, masters=2))
    office.hear(-3, back(3, masters=2))
    office.pass_time(2 * GATHER_S)
    assert not office.heard_by(3, Establish)
    assert office.closed == [3], "it may look for more of them at the other master"
    office.hear(-4, back(3, masters=2))
    office.hear(-5, back(2, masters=2))
    office.pass_time(GATHER_S)
    office.link()
    assert office.heard_by(2, View)[0].ring == (2, 3)


def test_half_of_a_group_goes_on_where_the_lowest_is() -> None:
    assert majority({1, 2}, (1, 2, 3, 4))
    assert not majority({3, 4}, (1, 2, 3, 4))
    assert majority({2, 3, 4}, (1, 2, 3, 4))
    assert not majority((), ())


def test_a_master_that_loses_most_at_once_stands_back_where_another_may_have_them() -> None:
    office = Office()
    for i in (1, 2, 3):
        office.hear(-i, Hello("127.0.0.1", i, min_world=3, masters=2))
    office.link()
    office.hear(3, Gone())
    office.link()
    assert office.heard_by(1, View)[-1].ring == (1, 2), "a majority goes on"
    office.said.clear()
    office.hear(1, Gone())
    assert not office.heard_by(2, Establish)
    assert office.closed[-1] == 2
    assert office.master.recovery


def test_who_comes_back_to_a_master_that_stood_back_is_not_called_lost() -> None:
    office = Office()
    for i in (1, 2):
        office.hear(-i, Hello("127.0.0.1", i, min_world=2, masters=2))
    office.link()
    view = office.heard_by(1, View)[-1]
    office.hear(1, Gone())
    for i in (1, 2):
        office.hear(-2 - i, back(i, view, masters=2))
    office.link()
    assert (office.heard_by(2, View)[-1].ring, office.heard_by(2, View)[-1].lost) == ((1, 2), ())


def test_a_newcomer_that_waited_is_let_in_only_beside_members_that_can_reach_it() -> None:
    office = Office(remembered=Remembered(ring=(1, 2, 3), view=5, viewed=(1, 2, 3), epoch=5, last_id=3))
    office.hear(-9, Hello("10.0.0.9", 9))
    for i in (1, 2, 3):
        office.hear(-i, back(i))
    office.link()
    assert "can only be dialled on its own machine" in office.heard_by(-9, Refuse)[0].reason
    office.hear(-10, Hello("127.0.0.1", 10))
    assert office.heard_by(4, Welcome)


TWICE: dict[str, tuple[Any, Any]] = {
    "two hellos": (Hello("127.0.0.1", 9), Hello("127.0.0.1", 9)),
    "a hello that is none": (Hello("127.0.0.1", 9), Hello("nowhere", 9)),
    "a newcomer that was in": (Hello("127.0.0.1", 9), back(2)),
    "a newcomer that was nowhere": (Hello("127.0.0.1", 9), back(7)),
    "a member that comes back twice": (back(2), back(2)),
    "a member that is two": (back(2), back(3)),
    "a member that was never in": (back(2), Hello("127.0.0.1", 9)),
}


@pytest.mark.parametrize("what", TWICE)
def test_one_who_says_twice_who_it_is_goes_and_nobody_else(what: str) -> None:
    office = Office(remembered=Remembered(ring=(1, 2, 3), view=5, viewed=(1, 2, 3), epoch=5, last_id=3))
    for said in TWICE[what]:
        office.hear(-9, said)
    assert not office.master.roster.members
    for i in (1, 2, 3):
        office.hear(-i, back(i))
    office.link()
    assert office.heard_by(1, View)[-1].ring == (1, 2, 3)
    assert set(office.master.roster.members) == {1, 2, 3}
    assert not office.heard_by(4, Welcome), "its connection is closed"


def test_a_link_that_is_known_to_be_gone_is_not_called_made() -> None:
    office = Office()
    office.stand(2)
    for _ in range(9):  # as often as makes it hopeless
        office.hear(1, Broken(office.master.epoch, 1, 2, "reset"))
    said = len(office.heard_by(1, View))
    office.link()
    assert len(office.heard_by(1, View)) == said
    office.pass_time(0.5)
    office.link()
    assert office.heard_by(1, View)[-1].ring == (1,)


def test_where_a_link_may_be_tried_again_meanwhile_nobody_has_to_go() -> None:
    office = Office()
    office.stand(3)

    def link(broken: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
        """All do, but one."""
        assert office.master.forming
        ring, epoch = office.master.forming.ring, office.master.epoch
        for who, to in zip(ring, ring[1:] + ring[:1], strict=True):
            office.hear(who, Broken(epoch, who, to, "refused", False) if (who, to) == broken else Linked(epoch))
        return ring

    office.hear(2, Broken(office.master.epoch, 2, 3, "refused", False))
    assert link() == (1, 3, 2)
    office.pass_time(AVOIDED_S - 0.25)
    office.hear(1, Broken(office.master.epoch, 1, 3, "reset"))
    link(broken=(1, 3))
    office.pass_time(SUSPECTED_S + 0.5)
    assert link() == (1, 2, 3)
    assert office.heard_by(1, View)[-1].ring == (1, 2, 3)
    assert not office.closed


def test_a_number_is_not_given_twice_even_where_nobody_remembers_its_owner_but_by_hearsay() -> None:
    office = Office(standby=True)
    office.hear(-9, Hello("127.0.0.1", 9))
    office.hear(-1, back(1, View(7, (1,), opened=True), last_id=5))
    assert office.heard_by(6, Welcome)


def seats(*ids: int) -> tuple[Seat, ...]:
    return tuple(Seat(i, "127.0.0.1", i) for i in ids)


@pytest.mark.parametrize("newcomers", [(), (3,), (7,)])
def test_what_was_attempted_may_be_under_way_elsewhere_unless_most_of_it_is_here(newcomers: tuple[int, ...]) -> None:
    """The view of three may have been said to the two others, who then go on with another master."""
    office = Office(standby=True)
    for i in newcomers:
        office.hear(-i, Hello("127.0.0.1", i, masters=2))
    office.hear(-1, back(1, View(5, (1,), opened=True), attempt=6, attempted=seats(1, 2, 3), masters=2))
    office.pass_time(GATHER_S)
    assert bool(office.heard_by(1, Establish)) is (newcomers == (3,))
