"""Any bytes on a link give frames, messages or an error of the protocol, for memory that is bounded; and a group whose
links are fed them goes on with right results."""

import os
import random
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ProtocolError, Refused
from atoll.group import messages
from atoll.group.api import LARGEST_FRAME, Series, unvoted_seq
from atoll.group.messages import Filled, Filler, LinkAck, LinkHello, Returned
from atoll.group.wiring import wire as wire_module
from atoll.net.arena import Arena, Tenant, available
from atoll.net.channel import CONTROL, HEADER, LARGEST_CONTROL, LENT, WHERE, Channel, Frame, Lender
from atoll.net.neighbour import Neighbour, Remote, address_of
from atoll.net.preamble import Greeting
from tests.fuzzers.mutation import mutated
from tests.group.company import KNOCK, PORT, Caller, Company, HungUp
from tests.group.test_hostile import FIRST, said

HONEST = (ProtocolError, Refused, ConnectionError)
GREETING = Greeting("test")
SLOT = 8192
ODD = (0, 1, 2, 3, SLOT, SLOT + 1, LARGEST_FRAME, LARGEST_FRAME + 1, LARGEST_CONTROL, LARGEST_CONTROL + 1, LENT - 1)
MEMORY = np.arange(1 << 16, dtype=np.uint8)
"""What a neighbour lends."""


def a_frame(rng: random.Random) -> bytes:
    """Well formed, though perhaps of no good size or place; the body is there unless it would be long."""
    sequence = rng.choice([CONTROL, 1, 7, unvoted_seq(Series(0, 0), 1), 2**63 - 1, 2**64 - 1, rng.getrandbits(64)])
    word = rng.choice([0, 1, 1 << 20, rng.getrandbits(32)])
    if rng.random() < 0.4:
        nbytes = rng.choice([*ODD, rng.getrandbits(10)])
        where = rng.choice([0, 1, 2, 2**64 - 1, address_of(memoryview(MEMORY)), rng.getrandbits(64)])
        return HEADER.pack(sequence, LENT | nbytes, word) + WHERE.pack(where)
    if rng.random() < 0.3:
        return HEADER.pack(sequence, rng.choice([*ODD, rng.getrandbits(32)]), word)
    body = rng.randbytes(rng.choice([0, 1, 10, 300, 5000]))
    return HEADER.pack(sequence, len(body), word) + body


# -- frames ------------------------------------------------------------------------------------------------------------


class Fed:
    """A channel that gets bytes in pieces; with all that came of them."""

    def __init__(self, lender: Lender | None, rng: random.Random) -> None:
        self._other, sock = socket.socketpair()
        self._other.setblocking(False)
        self.channel = Channel(sock, GREETING, self._place)
        self.channel.lender = lender
        self._rng = rng
        self.frames = 0

    def _place(self, sequence: int, word: int, nbytes: int) -> memoryview | None:
        """As a station does."""
        if nbytes > LARGEST_FRAME:
            raise ProtocolError("too large")
        return memoryview(bytearray(nbytes)) if self._rng.random() < 0.9 else None

    def feed(self, data: bytes) -> None:
        at = 0
        for _ in range(10_000):
            if at == len(data) or (self.channel.held and self._rng.random() < 0.1):
                break
            try:
                at += self._other.send(data[at : at + self._rng.choice([1, 7, 100, 1 << 16])])
            except BlockingIOError:
                pass
            for frame in self.channel.read():
                self._take(frame)
        self._other.close()
        for _ in range(10):  # it holds still, or sees the end
            for frame in self.channel.read():
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        self.frames += 1
        if isinstance(frame.data, Remote):
            assert frame.lent >= 0
            if len(frame.data) <= 1 << 16:
                frame.data.read(0, memoryview(bytearray(len(frame.data))))
        elif frame.lent >= 0:
            assert frame.sequence != CONTROL
            assert frame.data.readonly
            assert len(bytes(frame.data)) <= SLOT
        else:
            assert len(frame.here) <= max(LARGEST_CONTROL, LARGEST_FRAME)

    def close(self) -> None:
        self._other.close()
        self.channel.close()


@pytest.fixture(scope="module")
def lenders() -> Iterator[dict[str, Callable[[], Lender | None]]]:
    arena = Arena(3, SLOT) if available() else None
    yield {
        "nobody": lambda: None,
        "an arena": lambda: Tenant(os.dup(arena.fd), SLOT) if arena else None,
        "a neighbour": lambda: Neighbour(os.getpid()),
    }
    if arena:
        arena.close()


@pytest.mark.parametrize("lender", ["nobody", "an arena", "a neighbour"])
def test_any_stream_gives_frames_or_an_honest_error_and_takes_little_memory(
    lenders: dict[str, Callable[[], Lender | None]], lender: str
) -> None:
    frames = errors = 0
    tracemalloc.start()
    try:
        for seed in range(400):
            rng = random.Random(seed)
            stream = FIRST + mutated(b"".join(a_frame(rng) for _ in range(rng.randrange(1, 8))), rng)
            fed = Fed(lenders[lender](), rng)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                fed.feed(stream)
            except HONEST:
                errors += 1
            except BaseException as error:
                error.add_note(f"seed {seed}")
                raise
            finally:
                fed.close()
            frames += fed.frames
            peak = tracemalloc.get_traced_memory()[1] - before
            assert peak < LARGEST_CONTROL + (1 << 20), f"seed {seed} took {peak} bytes"
    finally:
        tracemalloc.stop()
    assert frames > 150, "nothing was understood"
    assert errors > 100, "nothing was refused"


@settings(max_examples=200, deadline=None)
@given(said=st.binary(max_size=300), greeted=st.booleans(), lending=st.booleans(), seed=st.integers(0, 99))
def test_any_bytes_give_frames_or_an_honest_error(said: bytes, greeted: bool, lending: bool, seed: int) -> None:
    fed = Fed(Neighbour(os.getpid()) if lending else None, random.Random(seed))
    with suppress(*HONEST):
        fed.feed(FIRST * greeted + said)
    fed.close()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_a_lent_frame_is_in_a_slot_or_refused(sequence: int, nbytes: int, word: int, where: int) -> None:
    arena = Arena(3, SLOT)
    fed = Fed(Tenant(os.dup(arena.fd), SLOT), random.Random(0))
    try:
        fed.feed(FIRST + HEADER.pack(sequence, LENT | nbytes, word) + WHERE.pack(where))
    except HONEST:
        pass
    finally:
        fed.close()
        arena.close()
    assert fed.frames == (sequence != CONTROL and nbytes <= SLOT and where * SLOT + nbytes <= 3 * SLOT)


@pytest.mark.parametrize("where", [0, 1, 2, 3])
@pytest.mark.parametrize("nbytes", [0, 1, SLOT, SLOT + 1])
def test_slots_end_where_they_end(where: int, nbytes: int) -> None:
    arena = Arena(3, SLOT)
    fed = Fed(Tenant(os.dup(arena.fd), SLOT), random.Random(0))
    with pytest.raises(HONEST):  # refused, or the end of the stream
        fed.feed(FIRST + HEADER.pack(5, LENT | nbytes, 0) + WHERE.pack(where))
    assert fed.frames == (nbytes <= SLOT and where * SLOT + nbytes <= 3 * SLOT)
    fed.close()
    arena.close()


# -- messages ----------------------------------------------------------------------------------------------------------

SIZES = st.integers(-(2**63), 2**64 - 1)
ON_LINK = st.one_of(
    st.builds(LinkHello, SIZES, SIZES, st.binary(max_size=40), SIZES, st.binary(max_size=40)),
    st.builds(LinkAck, SIZES, st.booleans()),
    st.builds(Returned, st.lists(SIZES, max_size=20).map(tuple)),
    st.builds(Filler, st.binary(max_size=40)),
    st.just(Filled()),
)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | SIZES | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
KINDS = (LinkHello, LinkAck, Returned, Filler, Filled)


def understood(data: bytes) -> Any:
    try:
        message = messages.decode_on_link(data)
    except ProtocolError:
        return None
    assert isinstance(message, KINDS)
    return message


@settings(max_examples=200, deadline=None)
@given(ON_LINK)
def test_what_is_said_on_a_link_is_what_is_heard(message: messages.OnLink) -> None:
    assert understood(messages.encode(message)) == message


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_an_error_of_the_protocol(data: bytes) -> None:
    understood(data)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([40, 41, 42, 43, 44, 45, 1, 0, -1]), st.lists(ANY_VALUE, max_size=6))
def test_a_message_of_any_contents_is_taken_as_its_kind_or_refused(kind: int, contents: list[Any]) -> None:
    message = understood(msgspec.msgpack.encode([kind, *contents]))
    if message is not None:
        assert type(message).__struct_config__.tag == kind
        assert len(contents) <= len(type(message).__struct_fields__), "what is not known is not let pass"


@settings(max_examples=300, deadline=None)
@given(ON_LINK, st.randoms(use_true_random=False))
def test_a_damaged_message_is_another_one_or_an_error_of_the_protocol(
    message: messages.OnLink, rng: random.Random
) -> None:
    understood(mutated(messages.encode(message), rng))


LARGEST = LARGEST_CONTROL - 10
LARGE: dict[str, Callable[[], bytes]] = {
    "as many slots as fit": lambda: b"\x92\x2a\xdd" + LARGEST.to_bytes(4, "big") + b"\x00" * LARGEST,
    "more slots than came": lambda: b"\x92\x2a\xdd\xff\xff\xff\xff\x00",
    "more bytes than came": lambda: b"\x92\x2b\xc6\xff\xff\xff\xffx",
    "a deep nest": lambda: b"\x92\x2a" + b"\x91" * LARGEST,
    "a map of maps": lambda: b"\x92\x2a" + b"\x81\xa0" * (LARGEST // 2),
    "a long text": lambda: b"\x92\x2a\xdb" + LARGEST.to_bytes(4, "big") + b"\xff" * LARGEST,
    "a long array": lambda: b"\xdd" + LARGEST.to_bytes(4, "big") + b"\x2a" * LARGEST,
    "a long key": lambda: messages.encode(LinkHello(1, 1, bytes(LARGEST - 100))),
}


@pytest.mark.parametrize("what", LARGE)
def test_the_largest_message_takes_no_more_than_some_times_its_size(what: str) -> None:
    data = LARGE[what]()
    tracemalloc.start()
    try:
        understood(data)
        assert tracemalloc.get_traced_memory()[1] < 20 * LARGEST_CONTROL
    finally:
        tracemalloc.stop()


# -- a group -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def company() -> Iterator[Company]:
    if not available():
        pytest.skip("no shared memory here")
    made = Company("direct reads")
    yield made
    made.end()


def a_word(rng: random.Random) -> bytes:
    """A frame for any operation, but for no piece that there is: who knows the key could put wrong numbers there."""
    if rng.random() < 0.4:
        message = rng.choice([LinkHello(1, 1, b"k"), LinkAck(1), Returned((0, 1)), Filler(b"x" * 100), Filled()])
        return mutated(said(message), rng)
    seq = rng.choice([rng.randrange(1, 500), unvoted_seq(Series(0, 0), rng.randrange(1, 9)), rng.getrandbits(64)])
    word = 1 << 30 | rng.getrandbits(30)
    nbytes = rng.choice([0, 10, 800, 66_672, 133_336, LARGEST_FRAME, LARGEST_FRAME + 1])
    if rng.random() < 0.5:
        where = rng.choice([0, 8, 31, 2**64 - 1, rng.getrandbits(64)])
        return HEADER.pack(seq, LENT | nbytes, word) + WHERE.pack(where)
    body = bytes(nbytes if nbytes < 1000 else 100)
    return HEADER.pack(seq, nbytes, word) + body


@pytest.mark.parametrize(
    ("at", "proof"), [(PORT, b""), (KNOCK, b""), (KNOCK, b"this can be read")], ids=["port", "slots", "direct reads"]
)
def test_a_group_fed_with_anything_goes_on(
    company: Company, at: str, proof: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "STALL_S", 0.5)
    monkeypatch.setattr(wire_module, "_CHECK_S", 0.1)
    entered = 0
    for seed in range(40):
        rng = random.Random(f"{at} {proof!r} {seed}")
        with suppress(HungUp, OSError), Caller(company, at, rng.randrange(3)) as insider:
            insider.enter(company.groups[(insider.which + 1) % 3].id, proof=proof)
            entered += 1
            insider.settimeout(0.2)  # it may be held
            for _ in range(rng.randrange(1, 12)):
                insider.sendall(a_word(rng))
        company.go_on(1)
    assert entered > 20
    company.renew()
    company.go_on()
    assert company.members() == company.ids
    with company.inside(0):
        assert company.wire(0)._station._early_bytes == 0, "an epoch takes all that waited in it along"
