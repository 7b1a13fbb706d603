"""Program: a collective on its way, and what it came to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from atoll.errors import DeadlineExceeded
from atoll.group.api import Outcome, Port, Ticket
from atoll.group.messages import View


@dataclass(frozen=True, slots=True)
class Result:
    """What a collective came to."""

    world: int
    """Peers that took part."""
    bytes_sent: int
    bytes_received: int
    seconds: float
    """From launch to the end of `wait`."""
    value: Any = None
    """The tensor that came out; for `gather_bytes` the list of payloads."""
    notes: tuple[bytes, ...] = ()
    """By rank: what each wrote on its vote."""


@dataclass
class Membership:
    """Where a group and its subgroups live, all in the same epoch: whoever learns of a new one, all have."""

    port: Port
    view: View = field(default_factory=lambda: View(0, (), opened=True))
    pending: bool = False
    unawaited: "dict[Key, Work]" = field(default_factory=dict)
    opening: Ticket | None = None
    """A join or update_topology whose answer is awaited."""
    scopes: int = 0
    """The largest number of a subgroup so far."""

    def adopt(self, outcome: Outcome) -> None:
        """What an awaited outcome says of the group."""
        if outcome.pending is not None:
            self.pending = outcome.pending
        if outcome.view is not None and outcome.view.epoch > self.view.epoch:
            self.view = outcome.view
            self.pending = outcome.view.pending


Key = tuple[int, str, int]
"""What can be under way only once: scope, whom it is with (empty: all), tag."""


@dataclass(eq=False)
class Work:
    """A collective on its way."""

    ticket: Ticket
    _key: Key
    _membership: Membership
    _world: int
    _deliver: Callable[[Outcome], Any]
    _launched_s: float
    _note: int = 0
    """How many bytes, at the end of each vote's payload, are a note."""
    _result: Result | None = field(default=None, init=False)

    def done(self) -> bool:
        """Would `wait` return at once?"""
        return self.ticket.outcome is not None

    def wait(self, timeout_s: float | None = None) -> Result:
        """Block until the group has decided, then take the effects: the result, or the error raised here.

        DeadlineExceeded: not within `timeout_s`; nothing has changed and the call may be repeated. Waiting once more
        gives the same again, without effects.
        """
        if self._result is not None:
            return self._result
        ticket, membership = self.ticket, self._membership
        if not membership.port.wait(ticket, timeout_s):
            raise DeadlineExceeded(
                f"{ticket.kind} with tag {ticket.tag}: no verdict within {timeout_s} s; it is still under way: await "
                "its work again, or, where you have none, leave the group"
            )
        outcome = ticket.outcome
        assert outcome is not None
        if membership.unawaited.get(self._key) is self:
            del membership.unawaited[self._key]
            membership.adopt(outcome)
        outcome.check()
        value = self._deliver(outcome)
        sent, received = outcome.sent, outcome.received
        if ticket.tensor is None and self._world > 1:  # all that travelled was in the votes
            sent, received = len(ticket.payload), sum(map(len, outcome.payloads)) - len(ticket.payload)
        notes = tuple(payload[-self._note :] for payload in outcome.payloads) if self._note else ()
        self._result = Result(self._world, sent, received, membership.port.now() - self._launched_s, value, notes)
        return self._result


def wait_all(works: Iterable[Work], timeout_s: float | None = None) -> list[Result]:
    """Await all, whatever becomes of each, then raise the first error or return all results, in order."""
    results: list[Result] = []
    first: Exception | None = None
    for work in works:
        try:
            results.append(work.wait(timeout_s))
        except Exception as error:
            first = first or error
    if first is not None:
        raise first
    return results
