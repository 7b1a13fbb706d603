"""One direction of a connection: exact times, and first in first out whatever luck does."""

import random
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InvalidData
from atoll.fabric import Fabric, star, wan
from atoll.sim.connection import Connection
from atoll.sim.loop import Loop
from atoll.sim.net import IDEAL, SMALL_BYTES, Network, Tcp

MIB = 1 << 20


class Line:
    """A stream from `host0` to `host1`, and when what was sent over it arrived."""

    def __init__(self, fabric: Fabric, tcp: Tcp = IDEAL, tie_break: int | None = None, **options: object) -> None:
        self.loop = Loop(tie_break)
        self.network = Network(self.loop, fabric, tcp=tcp)
        self.stream = Connection(self.network, "host0", "host1", **options)  # type: ignore[arg-type]
        self.seen: list[tuple[int, float]] = []

    def send(self, *sizes: int) -> None:
        for i, nbytes in enumerate(sizes, len(self.seen)):
            self.stream.carry(nbytes, lambda i: self.seen.append((i, self.loop.now_s)), i)

    def arrivals(self, *sizes: int) -> list[tuple[int, float]]:
        """(number, seconds) of messages sent at once."""
        self.send(*sizes)
        self.loop.run()
        return self.seen


def pair(bytes_per_s: float, latency_s: float = 0.0) -> Fabric:
    return star(2, bytes_per_s, latency_s / 2)


@pytest.mark.parametrize("nbytes", [0, 500, SMALL_BYTES - 1, SMALL_BYTES, MIB])
def test_a_message_takes_latency_plus_bytes_over_rate(nbytes: int) -> None:
    assert Line(pair(1000, 0.25)).arrivals(nbytes) == [(0, 0.25 + nbytes / 1000)]


@pytest.mark.parametrize("size", [1000, MIB])
def test_messages_leave_one_after_the_other_and_overlap_in_latency(size: int) -> None:
    """The second is sent when the first has left, not when it has arrived."""
    s = size / 1000
    expected = [(0, 5 + s), (1, 5 + 2 * s), (2, 5 + 2.5 * s)]
    assert Line(pair(1000, 5.0)).arrivals(size, size, size // 2) == expected


def test_small_and_large_ones_wait_for_each_other() -> None:
    seen = Line(pair(1e6)).arrivals(10_000, 1_000_000, 10_000, 10_000, 1_000_000)
    assert seen == [(0, 0.01), (1, 1.01), (2, 1.02), (3, 1.03), (4, 2.03)]


def test_a_stream_that_was_idle_owes_nothing() -> None:
    line = Line(pair(1000))
    assert line.arrivals(1000) == [(0, 1.0)]
    line.loop.post(4_000_000_000, line.send, 1000)
    line.loop.run()
    assert line.seen == [(0, 1.0), (1, 6.0)]


def test_to_oneself_nothing_takes_any_time_and_order_holds() -> None:
    loop = Loop(5)
    stream = Connection(Network(loop, pair(1.0)), "host0", "host0")
    seen: list[int] = []
    for i, nbytes in enumerate((MIB, 0, 10, MIB)):
        stream.carry(nbytes, seen.append, i)
    loop.run()
    assert seen == [0, 1, 2, 3]
    assert loop.now_s < 1e-6


def test_streams_share_their_links() -> None:
    line = Line(star(3, 1e6))
    other = Connection(line.network, "host0", "host2", streams=3)
    line.stream.carry(1_000_000, line.seen.append, (0, 0.0))
    other.carry(3_000_000, lambda: line.seen.append((1, line.loop.now_s)))
    line.loop.run()
    assert line.seen == [(0, 0.0), (1, 4.0)]


def test_ready_is_called_when_all_that_is_large_has_left() -> None:
    calls: list[float] = []
    line = Line(pair(1e6, 10.0), ready=lambda: calls.append(line.loop.now_s))
    line.send(10, 20)
    assert not line.stream.busy
    line.send(1_000_000, 1_000_000)
    assert line.stream.busy
    line.loop.run()
    assert calls == [pytest.approx(2.00003)]


def test_what_has_left_is_known_to_the_byte() -> None:
    line = Line(pair(1e6))
    line.send(10_000, 1_000_000, 500_000)
    assert line.stream.left() == 10_000
    line.loop.run(510_000_000)
    line.loop.post(510_000_000 - line.loop.now_ns, lambda: None)
    line.loop.run(510_000_000)
    assert line.stream.left() == 510_000
    line.loop.run()
    assert line.stream.left() == 1_510_000
    for link in ("host0->switch", "switch->host1"):
        assert line.network.usage(line.network.fabric.links[link]).work == 1_510_000


@pytest.mark.parametrize("when", [0.0, 0.005, 0.5, 1.5])
def test_what_has_not_left_may_be_forgotten_and_what_comes_after_arrives(when: float) -> None:
    line = Line(pair(1e6, 10.0))
    line.send(10_000, 1_000_000, 1_000_000)

    def abort() -> None:
        line.stream.abort()
        line.stream.carry(0, line.seen.append, (9, 0.0))

    line.loop.post(round(when * 1e9), abort)
    line.loop.run()
    assert [i for i, _ in line.seen] == ([0, 9] if when < 1 else [0, 1, 9])
    assert line.network.flows() == []
    assert line.loop.pending() == 0


@pytest.mark.parametrize("nbytes", [0, 10, MIB])
def test_what_is_sent_while_a_link_is_down_arrives_when_it_is_up_again(nbytes: int) -> None:
    line = Line(pair(1e6, 1.0))
    link = line.network.fabric.links["host0->switch"]
    line.network.set_link(link, 0)
    assert not line.network.up("host0", "host1")
    line.send(nbytes, nbytes)
    line.loop.run()
    assert line.seen == []
    line.loop.post(5_000_000_000, line.network.set_link, link, link.bytes_per_s)
    line.loop.run()
    first = 6 + nbytes / 1e6
    assert line.seen == [(0, pytest.approx(first, abs=2e-6)), (1, pytest.approx(first + nbytes / 1e6, abs=3e-6))]


def test_a_connection_learns_how_fast_it_may_be_once() -> None:
    """Ten segments in the first round trip, twenty in the second...; messages don't begin anew."""
    fabric = wan([[0, 1e6], [1e6, 0]], [[0, 0.1], [0.1, 0]])
    tcp = Tcp(window_bytes=inf, segment_bytes=1000, efficiency=1.0, slow_start=True)
    whole = Line(fabric, tcp).arrivals(650_000)[-1][1]
    parts = Line(fabric, tcp).arrivals(*[25_000] * 26)
    assert whole == pytest.approx(0.05 + 0.4 + 0.5, rel=1e-6)
    assert parts[-1][1] == pytest.approx(whole, rel=1e-3)


def test_jitter_counts_in_latencies() -> None:
    assert Line(pair(1e9, 0.1), jitter=lambda: 2.0).arrivals(0) == [(0, 0.3)]


@given(
    st.lists(st.integers(0, 5) | st.sampled_from([SMALL_BYTES, MIB]), min_size=2, max_size=40),
    st.integers(0, 2**32),
    st.floats(0, 10),
    st.sampled_from([0.0, 2e-9, 1e-3]),
)
def test_no_jitter_and_no_tie_break_reorders_a_stream(
    sizes: list[int], seed: int, jitter: float, latency_s: float
) -> None:
    luck = random.Random(seed)
    seen = Line(pair(1e9, latency_s), tie_break=seed, jitter=lambda: jitter * luck.random()).arrivals(*sizes)
    assert [i for i, _ in seen] == list(range(len(sizes)))
    assert all(a < b for (_, a), (_, b) in pairwise(seen))


def test_less_than_nothing_is_refused() -> None:
    with pytest.raises(InvalidData, match="-1 bytes from 'host0'"):
        Line(pair(1.0)).stream.carry(-1, print)
