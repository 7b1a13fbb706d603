"""Policy: who can be a member at all, by what he says of himself."""

import ipaddress
from collections.abc import Mapping
from typing import Final

from atoll.group.membership.roster import Member
from atoll.group.messages import Hello, Return

MOST_LETTERS: Final = 128
MOST_LABELS: Final = 16
MOST_STATES: Final = 1024
"""Shared states, one per name of a subgroup, whose last agreement is remembered."""
_MOST_KEPT: Final = 2048
_MOST_NUMBER: Final = 1 << 60


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
    if max(map(len, words)) > MOST_LETTERS or len(hello.labels) > MOST_LABELS:
        return f"a name or label may have {MOST_LETTERS} letters, and there may be {MOST_LABELS} labels"
    local = address.is_loopback
    for member in members.values():
        if member.id != known_as and ipaddress.ip_address(member.seat.host).is_loopback != local:
            here, there = (hello.host, member.seat.host) if local else (member.seat.host, hello.host)
            return (
                f"one peer can only be dialled on its own machine ({here}), another from the network ({there}): "
                "let all of them join by the master's network address"
            )
    return ""


def plausible(event: Return) -> bool:
    """Can a member have said that of itself? Its numbers are carried on."""
    view = event.view
    numbers = [event.id, event.attempt, event.seq, view.epoch, *view.ring]
    return (
        event.id > 0
        and all(0 <= number < _MOST_NUMBER for number in numbers)
        and event.kept <= _MOST_KEPT
        and len(event.agreements) <= MOST_STATES
        and event.id in view.ring
    )
