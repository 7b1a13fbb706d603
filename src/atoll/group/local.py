"""Policy: a group of one without a master, for tests and for running a distributed script alone."""

import msgspec

from atoll.group.api import Outcome, Ticket
from atoll.group.facade import Group
from atoll.group.membership.election import Plan
from atoll.group.messages import View


class LocalPort:
    """Answers every ticket at once."""

    id = 1

    def submit(self, ticket: Ticket) -> None:
        opens = ticket.kind in ("join", "topology")
        view = View(1, (self.id,), opened=True) if opens else None
        if ticket.kind == "sync":
            ticket.outcome = Outcome(payloads=(_own_plan(ticket),))
        else:
            ticket.outcome = Outcome(view=view, payloads=(ticket.payload,))

    def wait(self, ticket: Ticket, timeout_s: float | None) -> bool:
        return True

    def now(self) -> float:
        return 0.0

    def close(self) -> None:
        """Nothing to close."""


def _own_plan(ticket: Ticket) -> bytes:
    return msgspec.msgpack.encode(Plan(ticket.revision))


def LocalGroup() -> Group:
    """A `Group` with world 1."""
    return Group.enter(LocalPort())
