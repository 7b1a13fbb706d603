"""One direction of a link: exact times, first in first out whatever luck does."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.sim.links import Link, Outlet
from atoll.sim.loop import Loop


def arrivals(loop: Loop, link: Link, *sizes: int) -> list[tuple[int, int]]:
    """(number, time in ns) of messages sent at once."""
    seen: list[tuple[int, int]] = []
    for i, nbytes in enumerate(sizes):
        link.carry(nbytes, lambda i: seen.append((i, loop.now_ns)), i)
    loop.run()
    return seen


def test_a_message_takes_latency_plus_bytes_over_rate() -> None:
    loop = Loop()
    assert arrivals(loop, Link(loop, 0.25, Outlet(1000)), 500) == [(0, 750_000_000)]


def test_an_empty_message_takes_the_latency_only() -> None:
    loop = Loop()
    assert arrivals(loop, Link(loop, 0.25, Outlet(1000)), 0) == [(0, 250_000_000)]


def test_messages_share_the_rate_and_overlap_in_latency() -> None:
    loop = Loop()
    assert arrivals(loop, Link(loop, 1.0, Outlet(1000)), 1000, 1000, 500) == [
        (0, 2_000_000_000),
        (1, 3_000_000_000),
        (2, 3_500_000_000),
    ]


def test_links_of_one_computer_share_its_way_out() -> None:
    loop, outlet = Loop(), Outlet(1000)
    seen: list[int] = []
    for link in (Link(loop, 1.0, outlet), Link(loop, 1.0, outlet)):
        link.carry(1000, lambda: seen.append(loop.now_ns))
    loop.run()
    assert seen == [2_000_000_000, 3_000_000_000]


def test_a_link_that_was_idle_owes_nothing() -> None:
    loop = Loop()
    link = Link(loop, 0.0, Outlet(1000))
    assert arrivals(loop, link, 1000) == [(0, 1_000_000_000)]
    loop.post(4_000_000_000, lambda: None)
    loop.run()
    assert arrivals(loop, link, 1000) == [(0, 6_000_000_000)]


def test_jitter_counts_in_latencies() -> None:
    loop = Loop()
    assert arrivals(loop, Link(loop, 0.1, Outlet(1e9), jitter=lambda: 2.0), 0) == [(0, 300_000_000)]


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=40),
    st.integers(0, 2**32),
    st.floats(0, 10),
    st.sampled_from([0.0, 1e-9, 1e-3]),
)
def test_no_jitter_and_no_tie_break_reorders_a_stream(
    sizes: list[int], seed: int, jitter: float, latency_s: float
) -> None:
    loop, luck = Loop(seed), random.Random(seed)
    seen = arrivals(loop, Link(loop, latency_s, Outlet(1e9), lambda: jitter * luck.random()), *sizes)
    assert [i for i, _ in seen] == list(range(len(sizes)))
    times = [t for _, t in seen]
    assert all(a < b for a, b in pairwise(times))


@pytest.mark.parametrize(("latency_s", "rate"), [(-1e-9, 1.0), (0.0, 0.0), (0.0, -5.0)])
def test_an_impossible_link_is_refused(latency_s: float, rate: float) -> None:
    with pytest.raises(ValueError, match=r"latency >= 0|rate > 0"):
        Link(Loop(), latency_s, Outlet(rate))
