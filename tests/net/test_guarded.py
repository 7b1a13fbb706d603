"""A door with a token, on real sockets: before the proof nothing is read, nothing queued leaves, and nobody stays long
or is many."""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import AtollError
from atoll.net import doors, preamble
from atoll.net import loop as loop_module
from atoll.net.arena import Arena, available
from atoll.net.channel import CONTROL, HEADER, LARGEST_CONTROL, Channel, Frame
from atoll.net.guard import OPEN, Guard
from atoll.net.handshake import PROOF_BYTES, Handshake
from atoll.net.loop import Address, SocketLoop
from atoll.net.preamble import HEAD, Greeting
from tests.net.test_loop import Dialled, Ends, assert_sleeps, is_closed, message, receive, serve, turn_until

GREETING = Greeting("test")
GUARD, OTHER = Guard("the token of this group"), Guard("the token of another group")


@pytest.fixture
def loop() -> Iterator[SocketLoop]:
    made = SocketLoop(GREETING, GUARD)
    yield made
    made.close()


class Member(socket.socket):
    """Somebody on a naked socket who does by hand what a dialler with that token does."""

    def __init__(self, loop: SocketLoop, address: Address, guard: Guard = GUARD) -> None:
        super().__init__(socket.AF_INET)
        self.settimeout(5.0)
        self.connect(address)
        self.greeting = preamble.encode(Greeting("member", (), bytes(range(32))))
        self.handshake = Handshake(guard.key, True, self.greeting)
        loop.turn(0.5)
        head = receive(self, HEAD.size)
        self.theirs = head + receive(self, preamble.body_size(head))

    def proof(self) -> bytes:
        said = self.handshake.greeted(self.theirs, True)
        assert said is not None
        return framed(said)


def framed(body: bytes, sequence: int = CONTROL) -> bytes:
    return HEADER.pack(sequence, len(body), 0) + body


def dial(loop: SocketLoop, address: Address, guard: Guard) -> tuple[SocketLoop, Channel, Ends]:
    """Another loop with one channel to that address."""
    other, ends, dialled = SocketLoop(GREETING, guard), Ends(), Dialled()
    dialled.dial(other, address)
    turn_until(other, lambda: dialled.connected)
    channel = dialled.connected[0]
    other.add(channel, ends.frame, ends.lost)
    return other, channel, ends


def both_until(one: SocketLoop, other: SocketLoop, wanted: object) -> None:
    end = time.monotonic() + 5.0
    while not wanted():  # type: ignore[operator]
        assert time.monotonic() < end, "didn't happen"
        one.turn(0.01)
        other.turn(0.01)


# -- members -----------------------------------------------------------------------------------------------------------


def test_two_with_the_token_talk_and_what_was_queued_early_comes_in_order(loop: SocketLoop) -> None:
    address, served = serve(loop)
    other, channel, ends = dial(loop, address, GUARD)
    for word in (b"one", b"two"):
        other.send(channel, CONTROL, word)
    assert not channel.admitted
    both_until(loop, other, lambda: len(served.frames) == 2)
    other.send(channel, CONTROL, b"three")
    loop.send(served.channels[0], CONTROL, b"an answer")
    both_until(loop, other, lambda: len(served.frames) == 3 and ends.frames)
    assert [data for _, data in served.frames] == [b"one", b"two", b"three"]
    assert ends.frames == [(CONTROL, b"an answer")]
    assert channel.backlog == served.channels[0].backlog == 0
    assert_sleeps(loop)
    other.close()


def test_a_member_on_a_naked_socket_hears_the_right_proof(loop: SocketLoop) -> None:
    address, served = serve(loop)
    with Member(loop, address) as member:
        member.sendall(member.greeting + member.proof() + message(b"hello"))
        turn_until(loop, lambda: served.frames and not served.channels[0].outgoing)
        answer = receive(member, HEADER.size + PROOF_BYTES)
        member.handshake.hear(answer[HEADER.size :])
        assert member.handshake.admitted


def test_every_connection_has_a_challenge_of_its_own(loop: SocketLoop) -> None:
    address, _ = serve(loop)
    seen = set()
    for _ in range(20):
        with Member(loop, address) as member:
            seen.add(preamble.decode(member.theirs[HEAD.size :]).challenge)
    assert len(seen) == 20


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "there", "here"),
    [
        (OTHER, "the other side has another token", "the other side has another token"),
        (OPEN, "the other side wants a token", "the other side has no token"),
    ],
    ids=["another token", "no token"],
)
def test_who_has_it_not_is_told_so_and_so_are_we(
    loop: SocketLoop, caplog: pytest.LogCaptureFixture, theirs: Guard, there: str, here: str
) -> None:
    caplog.set_level(logging.INFO, "atoll.net")
    address, served = serve(loop)
    other, channel, ends = dial(loop, address, theirs)
    other.send(channel, CONTROL, b"let me in")
    both_until(loop, other, lambda: ends.broken and served.broken)
    assert ends.broken[0].startswith(there)
    assert served.broken[0].startswith(here)
    assert channel.refused
    assert served.frames == []
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning.getMessage().startswith("127.0.0.1:")
    assert here in warning.getMessage()
    other.close()


def test_who_has_a_token_enters_no_group_without_one() -> None:
    loop = SocketLoop(GREETING)
    address, served = serve(loop)
    other, channel, ends = dial(loop, address, GUARD)
    other.send(channel, CONTROL, b"a secret")
    both_until(loop, other, lambda: ends.broken and served.broken)
    assert ends.broken[0].startswith("the other side has no token")
    assert served.broken[0].startswith("the other side wants a token")
    assert served.frames == []
    loop.close(), other.close()


def test_a_listener_that_does_not_know_the_token_hears_nothing_of_what_was_queued() -> None:
    """It has said yes to a proof it cannot check, and makes one up."""
    loop, ends, dialled = SocketLoop(GREETING, GUARD), Ends(), Dialled()
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialled.dial(loop, server.getsockname())
        turn_until(loop, lambda: dialled.connected)
        false, _ = server.accept()
    loop.add(dialled.connected[0], ends.frame, ends.lost)
    loop.send(dialled.connected[0], CONTROL, b"a secret")
    false.settimeout(5.0)
    false.sendall(preamble.encode(Greeting("false", (), bytes(32))))
    loop.turn(1.0)
    loop.turn(0.05)
    heard = false.recv(1 << 16)
    assert len(heard) == HEAD.size + preamble.body_size(heard[: HEAD.size]) + HEADER.size + PROOF_BYTES
    false.sendall(framed(heard[-PROOF_BYTES:]))  # its own proof sent back
    turn_until(loop, lambda: ends.broken)
    assert "another token" in ends.broken[0]
    assert b"a secret" not in heard
    assert is_closed(false)
    false.close()
    loop.close()


def test_recorded_bytes_of_a_member_are_worth_nothing(loop: SocketLoop) -> None:
    address, served = serve(loop)
    with Member(loop, address) as member:
        recorded = member.greeting + member.proof() + message(b"hello")
        member.sendall(recorded)
        turn_until(loop, lambda: served.frames)
    with Member(loop, address) as thief:
        thief.sendall(recorded)
        turn_until(loop, lambda: is_closed(thief))
    assert len(served.frames) == 1


def test_a_proof_made_for_another_door_is_worth_nothing(loop: SocketLoop) -> None:
    address, served = serve(loop)
    with Member(loop, address) as one, Member(loop, address) as other:
        one.sendall(other.greeting + other.proof())
        turn_until(loop, lambda: is_closed(one))
    assert served.frames == []


EARLY = {
    "a message": framed(b"hello"),
    "data": framed(bytes(32), 1),
    "lent data": HEADER.pack(1, (1 << 31) | 32, 0) + bytes(8),
    "a proof that is too long": framed(bytes(PROOF_BYTES + 1)),
    "the largest message": HEADER.pack(CONTROL, LARGEST_CONTROL, 0),
    "the longest": HEADER.pack(2**64 - 1, 2**32 - 1, 2**32 - 1),
    "nothing": framed(b""),
    "zeros": framed(bytes(PROOF_BYTES)),
}


@pytest.mark.parametrize("early", EARLY)
def test_whatever_else_comes_before_the_proof_ends_the_connection(loop: SocketLoop, early: str) -> None:
    address, served = serve(loop)
    with Member(loop, address) as member:
        member.sendall(member.greeting + EARLY[early])
        turn_until(loop, lambda: is_closed(member))
    assert served.frames == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_bytes_admit_who_does_not_know_the_token(data: st.DataObject) -> None:
    """Any order, repetition and cut of what members say, and bytes at random."""
    ours, other = socket.socketpair()
    channel = Channel(ours, GREETING, guard=GUARD)
    greeting = preamble.encode(Greeting("member", (), bytes(range(32))))
    proof = Handshake(OTHER.key, True, greeting).greeted(channel.outgoing[0].tobytes(), True) or b""
    parts = [greeting, framed(proof), framed(b""), framed(b"hello"), channel.outgoing[0].tobytes(), bytes(16)]
    said = b"".join(data.draw(st.lists(st.sampled_from(parts) | st.binary(max_size=40), max_size=6)))
    said = said[: data.draw(st.integers(0, len(said)))]
    other.sendall(said)
    other.shutdown(socket.SHUT_WR)
    frames: list[Frame] = []
    with contextlib.suppress(ConnectionError, AtollError):
        for _ in range(3):
            frames += channel.read()
    assert frames == []
    assert not channel.admitted
    channel.close(), other.close()


# -- many, and slow ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["nothing", "half a greeting", "a greeting", "half a proof"])
def test_who_does_not_prove_it_in_time_is_cut(loop: SocketLoop, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(loop_module, "_GREETING_S", 0.3)
    address, served = serve(loop)
    with Member(loop, address) as member:
        member.sendall(
            {
                "nothing": b"",
                "half a greeting": member.greeting[:20],
                "a greeting": member.greeting,
                "half a proof": member.greeting + member.proof()[:20],
            }[said]
        )
        turn_until(loop, lambda: served.broken)
        assert "within 0.3 s" in served.broken[0]
        assert ("greeting" in served.broken[0]) == ("proof" not in said and said != "a greeting")
        assert is_closed(member)


def test_one_byte_at_a_time_buys_no_time(loop: SocketLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_GREETING_S", 0.5)
    address, served = serve(loop)
    began = time.monotonic()
    with Member(loop, address) as slow:
        said = iter(slow.greeting + slow.proof())
        while not served.broken:
            slow.sendall(bytes([next(said)]))
            end = time.monotonic() + 0.02
            while (left := end - time.monotonic()) > 0:
                loop.turn(left)
        assert 0.45 < time.monotonic() - began < 3.0
        assert served.frames == []


def test_those_who_have_not_proven_it_are_few_and_the_first_of_them_go(
    loop: SocketLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_MOST_STRANGERS", 8)
    address, served = serve(loop)
    with Member(loop, address) as member:
        member.sendall(member.greeting + member.proof())
        turn_until(loop, lambda: served.channels[0].admitted)
        strangers = []
        for _ in range(30):
            strangers.append(socket.create_connection(address))
            loop.turn(0.5)
            assert len(loop.channels) <= 9
        assert [is_closed(stranger) for stranger in strangers] == [True] * 22 + [False] * 8
        member.sendall(message(b"still in"))
        turn_until(loop, lambda: served.frames)
        with Member(loop, address) as late:  # and though the place is full, there is room for one more
            late.sendall(late.greeting + late.proof() + message(b"in, too"))
            turn_until(loop, lambda: len(served.frames) == 2)
        for stranger in strangers:
            stranger.close()
        turn_until(loop, lambda: len(loop.channels) == 1)
        assert not loop._strangers
        assert not [door for door in loop._strangers.values() if door]


# -- doors -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not available(), reason="no shared memory here")
@pytest.mark.parametrize("theirs", [GUARD, OTHER, OPEN], ids=["the token", "another", "none"])
def test_a_door_of_this_machine_asks_for_the_token_too(loop: SocketLoop, theirs: Guard) -> None:
    served, dialled, ends = Ends(), Dialled(), Ends()

    def accepted(channel: Channel) -> None:
        served.channels.append(channel)
        loop.add(channel, served.frame, served.lost)

    name = doors.open_door(loop, 8192, accepted)
    other, arena = SocketLoop(GREETING, theirs), Arena(1, 8192)
    doors.knock(other, name, arena, dialled.connected.append, dialled.failed.append)
    turn_until(other, lambda: dialled.connected)
    other.add(dialled.connected[0], ends.frame, ends.lost)
    other.send(dialled.connected[0], CONTROL, b"knock, knock")
    both_until(loop, other, lambda: served.frames or served.broken)
    assert bool(served.frames) == (theirs is GUARD)
    other.close(), arena.close()
