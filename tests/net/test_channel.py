"""Frames over a socket: what arrives doesn't depend on how the bytes were cut, and nothing hostile is believed."""

import socket
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ProtocolError, Refused
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER, LARGEST_CONTROL, Channel, Place
from atoll.net.preamble import Greeting

GREETING = Greeting("test")
FIRST = preamble.encode(Greeting("other", ("x",)))
Frames = list[tuple[int, bytes]]


def anywhere(sequence: int, word: int, nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


def framed(*frames: tuple[int, bytes]) -> bytes:
    return b"".join(HEADER.pack(sequence, len(data), 0) + data for sequence, data in frames)


class Pair:
    """A channel, and the naked socket at its other end."""

    def __init__(self, place: Place | None = None) -> None:
        self.other, sock = socket.socketpair()
        self.other.settimeout(5.0)
        self.channel = Channel(sock, GREETING, place) if place else Channel(sock, GREETING)

    def read(self, data: bytes = b"") -> Frames:
        """Send `data` from the other side; all the frames that come of it."""
        frames: Frames = []
        at = 0
        while at < len(data):
            at += self.other.send(data[at : at + (1 << 16)])
            frames += self._all()
        return frames + self._all()

    def _all(self) -> Frames:
        frames: Frames = []
        while more := [(frame.sequence, bytes(frame.here)) for frame in self.channel.read()]:
            frames += more
        return frames

    def close(self) -> None:
        self.other.close()
        self.channel.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair(anywhere)
    yield made
    made.close()


@pytest.fixture
def control() -> Iterator[Pair]:
    """Only messages are allowed."""
    made = Pair()
    yield made
    made.close()


# -- framing -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    frames=st.lists(
        st.tuples(st.sampled_from([CONTROL, 1, 2**63 + 5]), st.binary(max_size=40) | st.just(b"\xab" * 9000)),
        max_size=30,
    ),
    cuts=st.lists(st.integers(0, 20_000), max_size=20),
)
def test_any_split_of_the_bytes_gives_the_same_frames(frames: Frames, cuts: list[int]) -> None:
    data = FIRST + framed(*frames)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pair = Pair(anywhere)
    got = [frame for start, end in pairwise(edges) for frame in pair.read(data[start:end])]
    pair.close()
    assert got == frames
    assert pair.channel.greeting == Greeting("other", ("x",))


def test_bytes_that_come_one_by_one_give_the_same_frames(pair: Pair) -> None:
    frames = [(CONTROL, b"ab"), (7, b""), (8, b"xyz")]
    assert [f for byte in FIRST + framed(*frames) for f in pair.read(bytes([byte]))] == frames


def test_many_small_frames_in_one_read_all_arrive_in_order(pair: Pair) -> None:
    frames = [(i + 1, bytes([i % 256])) for i in range(3000)]
    assert pair.read(FIRST + framed(*frames)) == frames


def test_one_read_is_bounded_so_that_a_flood_starves_nobody(pair: Pair) -> None:
    pair.other.sendall(FIRST + framed(*[(1, b"x")] * 5000))
    assert len(list(pair.channel.read())) < 500
    assert 0 < len(pair.read()) < 5000


def test_a_frame_larger_than_all_buffers_arrives_whole(pair: Pair) -> None:
    large = bytes(range(256)) * (1 << 12)  # 1 MiB
    assert pair.read(FIRST + framed((CONTROL, large), (5, large), (6, b"end"))) == [
        (CONTROL, large),
        (5, large),
        (6, b"end"),
    ]


def test_zero_length_frames_arrive(pair: Pair) -> None:
    frames = [(CONTROL, b""), (3, b""), (3, b""), (4, b"x"), (5, b"")]
    assert pair.read(FIRST + framed(*frames)) == frames


def test_a_data_frame_goes_to_the_memory_that_place_names() -> None:
    target = bytearray(20)
    asked: list[tuple[int, int]] = []

    def place(sequence: int, word: int, nbytes: int) -> memoryview:
        asked.append((sequence, nbytes))
        return memoryview(target)[4:10]

    pair = Pair(place)
    pair.read(FIRST + framed((9, b"abcdef")))
    assert asked == [(9, 6)]
    assert target == bytes(4) + b"abcdef" + bytes(10)
    pair.close()


# -- holding -----------------------------------------------------------------------------------------------------------


def test_a_frame_without_a_place_holds_the_channel_until_it_has_one() -> None:
    opened: set[int] = set()
    pair = Pair(lambda sequence, word, nbytes: anywhere(sequence, word, nbytes) if sequence in opened else None)
    frames = [(CONTROL, b"first"), (1, b"one"), (CONTROL, b"between"), (2, b"x" * 10_000), (CONTROL, b"last")]
    assert pair.read(FIRST + framed(*frames)) == frames[:1]
    assert pair.channel.held
    assert pair.read() == []  # asking again changes nothing
    assert pair.channel.held
    opened.add(1)
    assert pair.read() == frames[1:3]
    assert pair.channel.held
    opened.add(2)
    assert pair.read() == frames[3:]
    assert not pair.channel.held
    pair.close()


def test_a_held_channel_leaves_the_rest_to_the_sender() -> None:
    pair = Pair(lambda sequence, word, nbytes: None)
    pair.read(FIRST + framed((1, b"")))
    pair.other.setblocking(False)

    def flood() -> None:
        while True:
            pair.other.send(bytes(1 << 16))
            assert list(pair.channel.read()) == []

    with pytest.raises(BlockingIOError):
        flood()
    pair.close()


# -- refusing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [LARGEST_CONTROL + 1, 2**32 - 1])
def test_a_huge_message_is_refused_before_memory_is_taken(pair: Pair, length: int) -> None:
    pair.read(FIRST)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match=f"a message of {length} bytes"):
            pair.read(HEADER.pack(CONTROL, length, 0))
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


def test_the_largest_message_is_taken(pair: Pair) -> None:
    [(sequence, body)] = pair.read(FIRST + framed((CONTROL, b"m" * LARGEST_CONTROL)))
    assert (sequence, len(body)) == (CONTROL, LARGEST_CONTROL)


@pytest.mark.parametrize("sequence", [1, 2**60, 2**64 - 1])
def test_a_data_frame_where_only_messages_are_allowed_is_refused(control: Pair, sequence: int) -> None:
    with pytest.raises(ProtocolError, match=f"sequence {sequence}, 3 bytes"):
        control.read(FIRST + framed((sequence, b"abc")))


@pytest.mark.parametrize("size", [2, 4])
def test_a_place_of_another_size_is_refused(size: int) -> None:
    pair = Pair(lambda sequence, word, nbytes: memoryview(bytearray(size)))
    with pytest.raises(ProtocolError, match=f"a frame of 3 bytes where {size} belong"):
        pair.read(FIRST + framed((1, b"abc")))
    pair.close()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00" * 64])
def test_what_is_not_atoll_is_refused_from_its_first_bytes(pair: Pair, said: bytes) -> None:
    with pytest.raises(ProtocolError, match="not atoll"):
        pair.read(said)
    assert pair.channel.greeting is None


def test_two_wire_versions_refuse_each_other_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    old = Channel(ours, GREETING)
    new = Channel(theirs, GREETING)
    new.outgoing[0] = memoryview(preamble.encode(GREETING, wire_version=99))
    old.flush(), new.flush()
    with pytest.raises(Refused, match=f"wire version 99, this one {preamble.WIRE_VERSION}") as refusal:
        list(old.read())
    assert "\n" not in str(refusal.value)
    ours_says = f"wire version {preamble.WIRE_VERSION}, this one 99"
    monkeypatch.setattr(preamble, "WIRE_VERSION", 99)
    with pytest.raises(Refused, match=ours_says) as refusal:
        list(new.read())
    assert "\n" not in str(refusal.value)
    old.close(), new.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (preamble.HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 0xFFFF), "a greeting of 65535 bytes"),
        (preamble.HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 3) + b"\xc1\xc1\xc1", "unreadable greeting"),
        (preamble.HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 0), "unreadable greeting"),
    ],
)
def test_a_bad_greeting_is_refused(pair: Pair, said: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        pair.read(said)


@pytest.mark.parametrize("cut", [0, 3, len(FIRST) - 1, len(FIRST), len(FIRST) + 5, len(FIRST) + HEADER.size + 2])
def test_the_end_of_the_stream_is_an_error_wherever_it_comes(pair: Pair, cut: int) -> None:
    pair.other.sendall((FIRST + framed((1, b"abcdef")))[:cut])
    pair.other.close()
    with pytest.raises(ConnectionError, match="closed by the other side"):
        assert pair.read() + pair.read() == []


def test_what_was_said_before_the_end_is_heard(pair: Pair) -> None:
    pair.other.sendall(FIRST + framed((CONTROL, b"bye")))
    pair.other.close()
    assert [bytes(frame.here) for frame in pair.channel.read()] == [b"bye"]
    with pytest.raises(ConnectionError):
        list(pair.channel.read())


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_any_bytes_give_frames_or_an_error_of_the_protocol(said: bytes, greeted: bool) -> None:
    pair = Pair()
    try:
        pair.read(FIRST * greeted + said)
    except (ProtocolError, Refused):
        pass
    finally:
        pair.close()


# -- out ---------------------------------------------------------------------------------------------------------------


def received(sock: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        data += sock.recv(nbytes - len(data))
    return data


def test_frames_leave_in_order_behind_the_greeting(control: Pair) -> None:
    frames = [(CONTROL, b"hello"), (4, b""), *[(i, bytes([i])) for i in range(1, 60)]]
    expected = preamble.encode(GREETING) + framed(*frames)
    for frame in frames:
        control.channel.put(*frame)
    assert control.channel.backlog == len(expected)
    control.channel.flush()
    assert received(control.other, len(expected)) == expected
    assert control.channel.backlog == 0
    assert not control.channel.outgoing


def test_what_a_slow_reader_leaves_waits_and_is_counted(control: Pair) -> None:
    body = bytes(range(256)) * (1 << 13)  # 2 MiB
    expected = preamble.encode(GREETING) + framed((1, body), (2, b"tail"))
    control.channel.put(1, memoryview(body))
    control.channel.put(2, b"tail")
    data = b""
    while len(data) < len(expected):
        control.channel.flush()
        got = control.other.recv(100_003)
        data += got
        if control.channel.outgoing:
            assert control.channel.backlog == sum(len(part) for part in control.channel.outgoing)
    assert data == expected
    assert control.channel.backlog == 0
