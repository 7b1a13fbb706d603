"""Policy: who is here. No votes: the master builds on it, and so may any registry.

A member is lost when it leaves, its connection breaks, its helper reports its process gone, or stopped for `STOPPED_S`,
or the helper itself is silent for `SILENT_S`. One that runs but makes no progress is `slow`, never dropped for it.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from atoll.group.messages import Beat, Bye, Hello, Loss, Return, Seat

STOPPED_S: Final = 3.0
SILENT_S: Final = 2.5
FIRST_BEAT_S: Final = 15.0
SLOW_S: Final = 5.0
AWAY_S: Final = 1.0


@dataclass
class Member:
    """What is known of one."""

    seat: Seat
    name: str
    labels: dict[str, str]
    min_world: int
    secret: bytes
    seen: float
    """When its helper last spoke (until the first beat: when it joined)."""
    beats: bool = False
    stopped_since: float | None = None
    progress: bytes = b""
    progress_at: float = 0.0
    revision: int = 0
    origin: tuple[str, str] = ("", "")
    """Host and name as it said them: by this it is known when it comes again."""

    @property
    def id(self) -> int:
        """Never given twice."""
        return self.seat.id

    def state(self, now: float) -> str:
        """running, slow or stopped."""
        if self.stopped_since is not None:
            return "stopped"
        return "slow" if now - self.progress_at >= SLOW_S else "running"


@dataclass(frozen=True)
class Tick:
    """Event: time has passed."""


@dataclass(frozen=True)
class Gone:
    """Event: a connection broke."""

    reason: str = "connection lost"


@dataclass(frozen=True)
class Joined:
    """Change: a new member."""

    member: Member


Change = Joined | Loss


@dataclass
class Roster:
    """`handle` takes one event and returns what it changed. `secret` makes the proof a helper needs."""

    secret: Callable[[], bytes]
    members: dict[int, Member] = field(default_factory=dict)
    _ticked: float | None = None

    def handle(self, who: int, event: Hello | Beat | Bye | Gone | Tick, now: float) -> list[Change]:
        match event:
            case Hello():
                if who in self.members:
                    return self.drop(who, "said hello twice")
                return [Joined(self._add(who, event, self.secret(), now))]
            case Bye():
                return self.drop(who, "left")
            case Gone():
                return self.drop(who, event.reason)
            case Beat():
                return self._beat(event, now)
            case Tick():
                return self._tick(now)

    def restore(self, event: Return, now: float) -> None:
        """A member of another roster, with the id and secret it has from there."""
        self._add(event.id, event.hello, event.secret, now)

    def _add(self, who: int, hello: Hello, secret: bytes, now: float) -> Member:
        seat = Seat(who, hello.host, hello.port, hello.machine, hello.door)
        member = self.members[who] = Member(
            seat, hello.name or f"peer-{who}", hello.labels, hello.min_world, secret, now, progress_at=now,
            origin=(hello.host, hello.name),
        )  # fmt: skip
        return member

    def drop(self, who: int, reason: str) -> list[Change]:
        """Forget a member."""
        member = self.members.pop(who, None)
        return [Loss(who, member.name, reason)] if member else []

    def _beat(self, beat: Beat, now: float) -> list[Change]:
        member = self.members.get(beat.id)
        if member is None or not hmac.compare_digest(member.secret, beat.secret):
            return []
        member.seen, member.beats = now, True
        if beat.progress != member.progress:
            member.progress, member.progress_at = beat.progress, now
        if beat.state == "gone":
            return self.drop(beat.id, "its process ended")
        if beat.state != "stopped":
            member.stopped_since = None
        elif member.stopped_since is None:
            member.stopped_since = now
        return []

    def _tick(self, now: float) -> list[Change]:
        """All losses of one moment together. Silence while *we* were away is forgiven."""
        away = now - self._ticked if self._ticked is not None else 0.0
        self._ticked = now
        if away > AWAY_S:
            for member in self.members.values():
                member.seen = max(member.seen, now)
                if member.stopped_since is not None:
                    member.stopped_since = max(member.stopped_since, now)
        lost: list[Change] = []
        for member in list(self.members.values()):
            if member.stopped_since is not None and now - member.stopped_since >= STOPPED_S:
                lost += self.drop(member.id, f"stopped for {STOPPED_S:g} s")
            elif now - member.seen >= (SILENT_S if member.beats else FIRST_BEAT_S):
                lost += self.drop(member.id, "silent: neither it nor its helper answers")
        return lost
