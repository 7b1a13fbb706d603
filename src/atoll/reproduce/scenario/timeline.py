"""Policy: what became of every host's time: each is in exactly one state at each moment, so all of it adds up."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

State = Literal["joining", "computing", "waiting", "down", "done"]
Span = Callable[[str, State, int, int], None]
"""A host, its state, from when to when, in ns."""


def _nobody(host: str, state: State, start_ns: int, end_ns: int) -> None: ...


class Timeline:
    """Of all hosts, from 0 on. `span` is told each state a host has been in."""

    def __init__(self, hosts: list[str], span: Span = _nobody) -> None:
        self.spent: dict[str, Counter[str]] = {host: Counter() for host in hosts}
        """ns by state; computing counts as `computing` until it is settled: `kept` or `lost`."""
        self._state: dict[str, tuple[State, int]] = dict.fromkeys(hosts, ("joining", 0))
        self._span = span
        self.boundaries: list[tuple[int, int]] = []
        """When the group had come to which step first."""
        self.members: list[tuple[int, int]] = []
        """How many took part, from when on."""

    def becomes(self, host: str, state: State, now_ns: int) -> None:
        """From now on."""
        before, since = self._state[host]
        if before == state:
            return
        self.spent[host][before] += now_ns - since
        self._state[host] = state, now_ns
        if now_ns > since:
            self._span(host, before, since, now_ns)
        if _takes_part(before) != _takes_part(state):
            count = sum(_takes_part(s) for s, _ in self._state.values())
            if self.members and self.members[-1][0] == now_ns:
                self.members.pop()
            self.members.append((now_ns, count))

    def state(self, host: str) -> State:
        """Now."""
        return self._state[host][0]

    def shared(self, host: str, step: int, now_ns: int) -> None:
        """What the host has computed is in the state that all share, which has come to `step`."""
        self._settle(host, "kept")
        if not self.boundaries or step > self.boundaries[-1][1]:
            self.boundaries.append((now_ns, step))

    def ended(self, host: str, state: State, now_ns: int) -> None:
        """Its process has: what nobody else has seen is lost."""
        self.becomes(host, state, now_ns)
        self._settle(host, "lost")

    def close(self, now_ns: int) -> None:
        """No more time passes. Nothing has befallen what is not shared yet."""
        for host, (state, since) in self._state.items():
            if now_ns > since:
                self._span(host, state, since, now_ns)
            self.spent[host][state] += now_ns - since
            self._state[host] = state, now_ns
            self._settle(host, "kept")

    def total(self) -> Counter[str]:
        """ns of all hosts by what became of them."""
        return sum(self.spent.values(), Counter())

    def worst_gap_ns(self, until_ns: int) -> int:
        """The longest time without progress of the group, that before its first among them."""
        return max(b - a for a, b in pairwise([0, *(at for at, _ in self.boundaries), until_ns]))

    def _settle(self, host: str, fate: str) -> None:
        spent = self.spent[host]
        spent[fate] += spent.pop("computing", 0)


def _takes_part(state: State) -> bool:
    return state in ("computing", "waiting")
