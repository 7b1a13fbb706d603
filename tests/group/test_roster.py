"""Who counts as here: what a helper says, how long it may be silent, and what is forgiven."""

import itertools

import pytest

from atoll.group.membership.roster import Gone, Joined, Roster, Tick
from atoll.group.messages import Beat, Bye, Hello, Loss

SECRET = b"secret of the test"


class Here:
    """A roster with member 1, "anna", and a clock in seconds."""

    def __init__(self) -> None:
        self.roster = Roster(lambda: SECRET)
        self.now = 0.0
        (joined,) = self.roster.handle(1, Hello("127.0.0.1", 1, "anna"), self.now)
        assert isinstance(joined, Joined)
        self.tick()
        self.progress = itertools.count(1)

    def tick(self) -> list[str]:
        """Why members were lost."""
        return [str(change) for change in self.roster.handle(0, Tick(), self.now)]

    def beat(self, state: str = "running", secret: bytes = SECRET, progress: bool = True) -> list[str]:
        counter = next(self.progress).to_bytes(8, "little") if progress else b"still"
        return [str(change) for change in self.roster.handle(99, Beat(1, secret, state, counter), self.now)]

    def until(self, end: float, beat: str | None = None) -> list[str]:
        """Tick (and beat) every half second up to `end`, or to the first loss."""
        while self.now < end:
            self.now += 0.5
            lost = (self.beat(beat) if beat else []) + self.tick()
            if lost:
                return lost
        return []


@pytest.fixture
def here() -> Here:
    return Here()


def test_one_that_beats_stays(here: Here) -> None:
    assert here.until(100.0, "running") == []
    assert 1 in here.roster.members


def test_stopped_for_three_seconds_is_lost(here: Here) -> None:
    here.until(5.0, "running")
    assert here.until(8.0, "stopped") == []  # the first of these beats came at 5.5
    assert here.until(9.0, "stopped") == ["anna (stopped for 3 s)"]
    assert here.now == 8.5
    assert here.roster.members == {}


def test_short_stops_are_forgiven_and_do_not_add_up(here: Here) -> None:
    for end in range(3, 30, 3):
        assert here.until(end - 0.5, "stopped") == []
        assert here.until(end, "running") == []


def test_a_helper_silent_for_two_and_a_half_seconds_is_a_loss(here: Here) -> None:
    here.until(5.0, "running")
    assert here.until(7.0) == []
    assert here.until(20.0) == ["anna (silent: neither it nor its helper answers)"]
    assert here.now == 7.5


def test_the_first_beat_may_take_fifteen_seconds(here: Here) -> None:
    assert here.until(14.5) == []
    assert here.until(20.0) == ["anna (silent: neither it nor its helper answers)"]
    assert here.now == 15.0


def test_after_the_first_beat_two_and_a_half_seconds_count_at_once(here: Here) -> None:
    here.until(10.0)
    here.beat()
    assert here.until(20.0) != []
    assert here.now == 12.5


def test_a_process_that_ended_is_lost_at_once(here: Here) -> None:
    assert here.beat("gone") == ["anna (its process ended)"]


@pytest.mark.parametrize("secret", [b"", SECRET[:-1], SECRET[:-1] + b"?", SECRET + b"\0"])
def test_a_wrong_secret_is_ignored(here: Here, secret: bytes) -> None:
    here.until(5.0, "running")
    for state in ("gone", "stopped", "running"):
        assert here.beat(state, secret) == []
    assert here.roster.members[1].stopped_since is None


def test_a_false_beat_is_no_sign_of_life(here: Here) -> None:
    here.until(5.0, "running")
    for _ in range(4):
        here.now += 0.5
        here.beat("running", b"wrong")
        assert here.tick() == []
    here.now += 0.5
    assert here.tick() == ["anna (silent: neither it nor its helper answers)"]


def test_a_beat_for_nobody_is_ignored(here: Here) -> None:
    assert here.roster.handle(99, Beat(7, SECRET, "gone", b""), 0.0) == []
    assert list(here.roster.members) == [1]


def test_a_master_that_was_away_forgives_the_silence(here: Here) -> None:
    here.until(5.0, "running")
    here.now += 60.0
    assert here.tick() == []
    here.now += 0.5
    assert here.tick() == []
    assert here.until(100.0) != []
    assert here.now == 67.5  # two and a half seconds from its return


def test_a_master_that_was_away_forgives_a_stop(here: Here) -> None:
    here.until(5.0, "running")
    here.beat("stopped")
    here.now += 10.0
    assert here.tick() == []
    assert here.until(17.5, "stopped") == []
    assert here.until(18.0, "stopped") == ["anna (stopped for 3 s)"]


def test_a_short_delay_of_the_master_forgives_nothing(here: Here) -> None:
    here.until(5.0, "running")
    for _ in range(2):
        here.now += 1.0
        assert here.tick() == []
    here.now += 1.0
    assert here.tick() != []


def test_losses_of_one_moment_are_told_together() -> None:
    here = Here()
    here.roster.handle(2, Hello("127.0.0.1", 2), 0.0)
    assert here.until(20.0) == [f"{name} (silent: neither it nor its helper answers)" for name in ("anna", "peer-2")]


def test_one_that_runs_without_progress_is_slow_and_stays(here: Here) -> None:
    here.beat(progress=False)
    for _ in range(60):
        here.now += 0.5
        assert here.beat(progress=False) == []
        assert here.tick() == []
    assert here.roster.members[1].state(here.now) == "slow"
    here.beat()
    assert here.roster.members[1].state(here.now) == "running"
    here.beat("stopped")
    assert here.roster.members[1].state(here.now) == "stopped"


def test_leaving_a_broken_connection_and_a_second_hello_are_losses_with_their_reason() -> None:
    for event, reason in [
        (Bye(), "left"),
        (Gone("connection lost: reset"), "connection lost: reset"),
        (Hello("127.0.0.1", 1), "said hello twice"),
    ]:
        here = Here()
        assert here.roster.handle(1, event, 1.0) == [Loss(1, "anna", reason)]
        assert here.roster.handle(1, Bye(), 1.0) == []  # once
