"""Policy: who can be a member at all, by what he says of himself."""

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from atoll.group.membership.roster import Member
from atoll.group.messages import Hello, Return

MOST_LETTERS: Final = 128
MOST_LABELS: Final = 16
MOST_MEMBERS: Final = 1024
MOST_TEXT: Final = 1024
"""Bytes of all that one says of itself: all members together must fit into a status."""
FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 300.0
MOST_STATES: Final = 1024
"""Shared states, one per name of a subgroup, whose last agreement is remembered."""
_MOST_KEPT: Final = 2048
_MOST_NUMBER: Final = 1 << 60


class Patience:
    """Who was dropped since there was no way to it is let in again later, each time twice as much: to find out once
    more takes everybody's time. By host and name."""

    def __init__(self) -> None:
        self._dropped: dict[tuple[str, str], tuple[float, float]] = {}
        """When, and how long it is to wait since."""

    def dropped(self, origin: tuple[str, str], now: float) -> None:
        """There was no way to one of this origin."""
        when, wait_s = self._dropped.pop(origin, (now, FIRST_WAIT_S / 2))
        forgotten = now - when > 10 * wait_s
        self._dropped[origin] = now, FIRST_WAIT_S if forgotten else min(2 * wait_s, LONGEST_WAIT_S)
        if len(self._dropped) > MOST_MEMBERS:
            del self._dropped[next(iter(self._dropped))]

    def waits(self, origin: tuple[str, str], now: float) -> bool:
        """Is it too early for one of this origin?"""
        when, wait_s = self._dropped.get(origin, (now, 0.0))
        return now < when + wait_s


@lru_cache(MOST_MEMBERS)
def _is_local(host: str) -> bool:
    """Can it only be dialled on its own machine?"""
    return ipaddress.ip_address(host).is_loopback


def unfit(event: Hello | Return, members: Mapping[int, Member]) -> str:
    """Why this peer can't be a member beside these; empty: it can."""
    hello, known_as = (event, 0) if isinstance(event, Hello) else (event.hello, event.id)
    try:
        address = ipaddress.ip_address(hello.host)
    except ValueError:
        address = ipaddress.ip_address("0.0.0.0")
    if address.is_unspecified or not 0 < hello.port < 1 << 16:
        return f"{hello.host!r}, port {hello.port}, is not an address others could dial"
    words = [hello.name, hello.machine, hello.door, *hello.labels, *hello.labels.values()]
    if not all(map(str.isprintable, words)):
        return "a name or label may only have letters that can be printed"
    if max(map(len, words)) > MOST_LETTERS or len(hello.labels) > MOST_LABELS:
        return f"a name or label may have {MOST_LETTERS} letters, and there may be {MOST_LABELS} labels"
    if len("".join(words).encode()) > MOST_TEXT:
        return f"name and labels together may have {MOST_TEXT} bytes"
    if len(members) >= MOST_MEMBERS and known_as not in members:
        return f"the group is full: it has {len(members)} members"
    local = _is_local(hello.host)
    for member in members.values():
        if member.id != known_as and _is_local(member.seat.host) != local:
            here, there = (hello.host, member.seat.host) if local else (member.seat.host, hello.host)
            return (
                f"one peer can only be dialled on its own machine ({here}), another from the network ({there}): "
                "let all of them join by the master's network address"
            )
    return ""


def plausible(event: Return) -> bool:
    """Can a member have said that of itself? Its numbers are carried on."""
    view = event.view
    numbers = [event.id, event.attempt, event.last_id, event.seq, view.epoch, *view.ring]
    return (
        event.id > 0
        and all(0 <= number < _MOST_NUMBER for number in numbers)
        and event.kept <= _MOST_KEPT
        and len(event.agreements) <= MOST_STATES
        and len(event.links) <= MOST_MEMBERS
        and event.id in view.ring
    )
