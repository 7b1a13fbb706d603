"""Program: the blocking `Group` a training script holds. The same class in both worlds; a `Port` is all it touches."""

from collections.abc import Mapping
from operator import index
from types import TracebackType
from typing import Self

import msgspec

from atoll.errors import Busy, DeadlineExceeded, Mismatch
from atoll.group.api import MOST_SCOPES, Port, Ticket
from atoll.group.operations import Collectives
from atoll.group.work import Membership

_LONGEST_KEY = 128


class _Place(msgspec.Struct, array_like=True):
    """What a member says of the subgroup it wants to be in."""

    key: str
    order: int
    scopes: int


class Group(Collectives):
    """Many computers acting as one. Made by `atoll.join`; a context manager that leaves at its end.

    One thread uses it at a time. Errors: `PeerLost` (retry), `Mismatch`, `Expelled`, `MasterLost`, `Busy`; see
    `docs/guide/errors.md`.
    """

    @classmethod
    def enter(
        cls,
        port: Port,
        *,
        min_world: int = 1,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = 30.0,
    ) -> Self:
        """Join through `port`, which is closed if that fails."""
        membership = Membership(port)
        group = cls(membership)
        membership.opening = Ticket("join", 0, min_world=min_world, name=name, labels=labels or {})
        port.submit(membership.opening)
        try:
            group._opened(timeout_s)
        except BaseException:
            port.close()
            raise
        return group

    # -- who is in ----------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Our number for as long as we are in; never given twice."""
        return self._membership.port.id

    @property
    def epoch(self) -> int:
        """Number of the ring we live in; grows with every change, not always by one."""
        return self._membership.view.epoch

    def peers_pending(self) -> bool:
        """Does somebody wait to be let in? Local and free; all members read the same value after the same outcome of
        the whole group. Those of a subgroup don't change it."""
        return self._membership.pending

    def update_topology(self, timeout_s: float | None = None) -> None:
        """Let newcomers in. All members must call it, on the whole group. Absorbs losses. Busy: a `Work` has not been
        awaited."""
        if self._scope:
            raise ValueError("update_topology is for the whole group, not for a subgroup")
        self._idle("update_topology")
        membership = self._membership
        if membership.opening is None:  # else an earlier call gave up waiting: its vote still stands
            membership.opening = Ticket("topology", self.epoch)
            membership.port.submit(membership.opening)
        self._opened(timeout_s)

    def _opened(self, timeout_s: float | None) -> None:
        membership = self._membership
        ticket = membership.opening
        assert ticket is not None
        if not membership.port.wait(ticket, timeout_s):
            raise DeadlineExceeded(
                f"no ring within {timeout_s} s: peers are missing (min_world), or the others compute"
            )
        membership.opening = None
        outcome = ticket.outcome
        assert outcome is not None
        membership.adopt(outcome)
        outcome.check()

    def subgroup(self, key: str | int, order: int = 0, *, tag: int = 0) -> "Group":
        """A `Group` of those who say the same `key`, ranked by `order`, then by rank here. All members must call it.

        It has ranks and votes of its own; master, links and epoch are shared, so `update_topology` is for the whole
        group only, and who is lost is lost in all. Survivors keep using it: those left are its members. Newcomers are
        not in it until all call `subgroup` again. A shared state is remembered under the key: use different keys for
        different purposes ("row 0", "column 0").
        """
        text = str(key)
        if len(text) > _LONGEST_KEY:
            raise ValueError(f"the key of a subgroup may have {_LONGEST_KEY} letters, not {len(text)}")
        place = _Place(text, index(order), self._membership.scopes)
        ticket = self._ticket("gather_bytes", tag, "subgroup", msgspec.msgpack.encode(place))
        votes = self._submit(ticket, lambda outcome: outcome.payloads).wait().value
        try:
            places = [msgspec.msgpack.decode(vote, type=_Place) for vote in votes]
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Mismatch(f"subgroup: somebody's vote can't be read: {error}") from None
        ring = self._ring
        ours = sorted((p.order, rank) for rank, p in enumerate(places) if p.key == text)
        scope = 1 + max(places[rank].scopes for _, rank in ours)  # new to all of them
        if scope >= MOST_SCOPES:
            raise Busy(f"{MOST_SCOPES} subgroups have been made: make them once per epoch and keep them")
        self._membership.scopes = scope
        name = f"{self._name}/{text}" if self._scope else text
        return Group(self._membership, scope, tuple(ring[rank] for _, rank in ours), name)

    def close(self) -> None:
        """Leave. To the others this is a loss with the reason `left`; finish with a `barrier`. May be called again. Of
        a subgroup: nothing."""
        if not self._scope:
            self._membership.port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Group(id {self.id}, epoch {self.epoch}, ring {list(self._ring)})"
