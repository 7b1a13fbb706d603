"""Policy: which way an operation goes, by what it would take: rounds by round trips, bytes by rates, messages by hand.

All members choose alike, since all that counts is agreed on: kind and size in the vote, the pace of the links in the
View. Costs after Thakur, Rabenseifner and Gropp (2005), with the vote of all members added.
"""

import functools
from typing import Final

from atoll.group.api import (
    BLOCK,
    EAGER_BYTES,
    EAGER_BYTES_SENT,
    IN_VERDICT_BYTES,
    IN_VOTE_BYTES,
    LOCAL_PACE,
    Algorithm,
    Kind,
)
from atoll.group.messages import Pace

_MESSAGE_S: Final = 30e-6
"""What a frame costs its sender and its receiver, however small."""
_FAR_S: Final = 5e-3
_FAR_BLOCK: Final = 128 << 10
_NEAR_S: Final = 1e-3
_FAR_BYTES_PER_S: Final = 2.5e6
"""Assumed of a link longer than `_NEAR_S` whose rate nobody has measured: 20 Mbit/s, a home's way out."""


def block_bytes(pace: Pace, codec: str | None) -> int:
    """What travels as one frame. On a long way, smaller ones: the second half of an all-reduce begins sooner, while its
    connections still learn how fast they may be. A codec sees the same blocks on every way, so that it gives the same
    bits; as it sends them they are small."""
    return _FAR_BLOCK if codec is None and max(pace.ring_trip_s, pace.any_trip_s) > _FAR_S else BLOCK


@functools.lru_cache(1 << 10)
def choose(kind: Kind, nbytes: int, world: int, pace: Pace, hops: bool = True) -> Algorithm:
    """`nbytes`: what each member gives. `hops`: may a piece be encoded anew at each hop?"""
    if nbytes <= IN_VOTE_BYTES and nbytes * world <= IN_VERDICT_BYTES:
        return "votes"
    if hops and not pace.mesh:
        return "ring"
    ways: dict[Algorithm, float] = {}
    if nbytes <= EAGER_BYTES and nbytes * (world - 1) <= EAGER_BYTES_SENT:
        ways["eager"] = seconds("eager", kind, nbytes, world, pace)
    ways["direct"] = seconds("direct", kind, nbytes, world, pace)
    if hops:
        ways["ring"] = seconds("ring", kind, nbytes, world, pace)
        if kind == "all_reduce":
            ways["halving"] = seconds("halving", kind, nbytes, world, pace)
    return min(ways, key=lambda way: ways[way])


def seconds(way: Algorithm, kind: Kind, nbytes: int, world: int, pace: Pace) -> float:
    """What it would take."""
    trip, any_trip, rate, any_rate = assumed(pace)
    others = world - 1
    phases = 2 if kind == "all_reduce" else 1
    chunk = nbytes if kind in ("all_gather", "broadcast") else nbytes / world
    doublings = others.bit_length()
    vote = any_trip
    match way:
        case "eager":
            sent = others * nbytes
            return any_trip / 2 + max(sent / rate, nbytes / any_rate) + others * _MESSAGE_S
        case "direct":
            one = any_trip / 2 + max(others * chunk / rate, chunk / any_rate) + others * _MESSAGE_S
            return vote + phases * one
        case "halving":
            one = doublings * (any_trip / 2 + _MESSAGE_S) + max(others * chunk / rate, nbytes / 2 / any_rate)
            extra = 0.0 if world & others == 0 else any_trip + 2 * nbytes / any_rate
            return vote + phases * one + extra
        case _:
            hops = others * (trip / 2 + _MESSAGE_S)
            return vote + phases * hops + phases * others * chunk / rate


def assumed(pace: Pace) -> tuple[float, float, float, float]:
    """Round trip of the ring and between any two, rate of the ring and between any two; with guesses for what nobody
    has measured."""
    trip = pace.ring_trip_s
    any_trip = max(trip, pace.any_trip_s)
    guess = LOCAL_PACE.ring_bytes_per_s if any_trip < _NEAR_S else _FAR_BYTES_PER_S
    rate = pace.ring_bytes_per_s or guess
    return trip, any_trip, rate, min(rate, pace.any_bytes_per_s or guess)
