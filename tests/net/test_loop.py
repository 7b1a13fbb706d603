"""One selector for all: it sleeps unless something happens, and nobody who connects can hold up the others."""

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from atoll.net import loop as loop_module
from atoll.net import preamble, tcp
from atoll.net.bucket import TokenBucket
from atoll.net.channel import CONTROL, HEADER, Channel, Frame
from atoll.net.loop import SocketLoop, local_host
from atoll.net.preamble import Greeting

GREETING = Greeting("test")
FIRST = preamble.encode(GREETING)


class Ends:
    """What a loop reported of its channels."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.frames: list[tuple[int, bytes]] = []
        self.broken: list[str] = []

    def frame(self, channel: Channel, frame: Frame) -> None:
        self.frames.append((frame.sequence, bytes(frame.here)))

    def lost(self, channel: Channel, why: str) -> None:
        self.broken.append(why)


@pytest.fixture
def loop() -> Iterator[SocketLoop]:
    made = SocketLoop(GREETING)
    yield made
    made.close()


def turn_until(loop: SocketLoop, wanted: Callable[[], object], within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while not wanted():
        assert time.monotonic() < end, "didn't happen"
        loop.turn(0.05)


def serve(loop: SocketLoop) -> tuple[tuple[str, int], Ends]:
    ends = Ends()

    def accepted(channel: Channel) -> None:
        ends.channels.append(channel)
        loop.add(channel, ends.frame, ends.lost)

    return loop.listen("127.0.0.1", 0, accepted), ends


def attach(loop: SocketLoop) -> tuple[socket.socket, Channel, Ends]:
    """A channel in the loop and the naked, greeted socket at its other end."""
    other, sock = socket.socketpair()
    other.settimeout(5.0)
    channel, ends = Channel(sock, GREETING), Ends()
    loop.add(channel, ends.frame, ends.lost)
    assert other.recv(len(FIRST)) == FIRST
    other.sendall(FIRST)
    turn_until(loop, lambda: channel.greeting)
    return other, channel, ends


def message(data: bytes) -> bytes:
    return HEADER.pack(CONTROL, len(data), 0) + data


def receive(sock: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        data += sock.recv(nbytes - len(data))
    return data


def assert_sleeps(loop: SocketLoop) -> None:
    began = time.monotonic()
    loop.turn(0.1)
    assert time.monotonic() - began > 0.09, "the loop had nothing to do and did not sleep"


def is_closed(sock: socket.socket) -> bool:
    """Has the other side hung up? What it said before is read and dropped."""
    while select.select([sock], [], [], 0)[0]:
        try:
            if not sock.recv(4096):
                return True
        except ConnectionError:
            return True
    return False


# -- channels ----------------------------------------------------------------------------------------------------------


def test_two_ends_talk(loop: SocketLoop) -> None:
    address, served = serve(loop)
    dialled, failures = Ends(), []

    def connected(channel: Channel) -> None:
        loop.add(channel, dialled.frame, dialled.lost)
        loop.send(channel, CONTROL, b"hello")
        assert local_host(channel) == "127.0.0.1"

    loop.dial(address, 5.0, connected, failures.append)
    turn_until(loop, lambda: served.frames)
    loop.send(served.channels[0], CONTROL, b"good day")
    turn_until(loop, lambda: dialled.frames)
    assert (served.frames, dialled.frames, failures) == ([(CONTROL, b"hello")], [(CONTROL, b"good day")], [])


def test_an_end_that_is_cut_is_reported_once(loop: SocketLoop) -> None:
    other, channel, ends = attach(loop)
    other.sendall(message(b"whole") + message(b"torn")[:-1])
    other.close()
    turn_until(loop, lambda: ends.broken)
    for _ in range(3):
        loop.send(channel, CONTROL, b"into the void")
        loop.turn(0.0)
    assert ends.frames == [(CONTROL, b"whole")]
    assert ends.broken == ["closed by the other side"]


def test_a_removed_channel_is_closed_without_a_report(loop: SocketLoop) -> None:
    other, channel, ends = attach(loop)
    loop.remove(channel)
    loop.remove(channel)
    assert other.recv(1) == b""
    assert ends.broken == []


def test_a_channel_closed_by_another_in_the_same_turn_says_nothing_more(loop: SocketLoop) -> None:
    (one, first, _), (two, second, _) = attach(loop), attach(loop)
    heard: list[Channel] = []

    def frame(channel: Channel, frame: Frame) -> None:
        heard.append(channel)
        loop.remove(second if channel is first else first)

    for channel in (first, second):
        loop.add(channel, frame, lambda *_: None)
    one.sendall(message(b"a") * 3), two.sendall(message(b"b"))
    loop.turn(1.0)
    loop.turn(0.05)
    assert len(set(heard)) == 1


def test_a_channel_closed_by_its_own_frame_says_nothing_more(loop: SocketLoop) -> None:
    other, channel, _ = attach(loop)
    heard: list[bytes] = []

    def frame(channel: Channel, frame: Frame) -> None:
        heard.append(bytes(frame.here))
        loop.remove(channel)

    loop.add(channel, frame, lambda *_: None)
    other.sendall(message(b"a") + message(b"b"))
    turn_until(loop, lambda: heard)
    assert heard == [b"a"]


def test_a_channel_closed_while_a_frame_gets_its_place_says_nothing_more(loop: SocketLoop) -> None:
    other, channel, ends = attach(loop)
    asked: list[int] = []

    def place(sequence: int, word: int, nbytes: int) -> memoryview:
        asked.append(sequence)
        loop.remove(channel)
        return memoryview(bytearray(nbytes))

    channel.place = place
    other.sendall(HEADER.pack(1, 2, 0) + b"ab" + message(b"end"))
    turn_until(loop, lambda: asked)
    loop.turn(0.05)
    assert (asked, ends.frames, ends.broken) == ([1], [], [])


def test_a_held_channel_goes_on_when_resumed_with_what_was_buffered(loop: SocketLoop) -> None:
    other, channel, ends = attach(loop)
    memory: list[bytearray] = []
    channel.place = lambda sequence, word, nbytes: memoryview(memory[-1]) if memory else None
    other.sendall(HEADER.pack(1, 2, 0) + b"ab" + HEADER.pack(2, 2, 0) + b"cd" + message(b"end"))
    turn_until(loop, lambda: channel.held)
    assert_sleeps(loop)  # though there is more to read
    memory.append(bytearray(2))
    loop.resume(channel)
    assert ends.frames == [(1, b"ab"), (2, b"cd"), (CONTROL, b"end")]
    other.sendall(message(b"later"))
    turn_until(loop, lambda: len(ends.frames) == 4)


def test_a_flood_of_frames_lets_others_be_heard_in_between(loop: SocketLoop) -> None:
    (one, _, flood), (two, _, calm) = attach(loop), attach(loop)
    one.sendall(message(b"x") * 5000)
    two.sendall(message(b"y"))
    loop.turn(1.0)
    assert calm.frames == [(CONTROL, b"y")]
    assert len(flood.frames) < 1000
    turn_until(loop, lambda: len(flood.frames) == 5000)


# -- writing -----------------------------------------------------------------------------------------------------------


def test_writability_is_asked_for_only_while_bytes_wait(loop: SocketLoop) -> None:
    other, channel, ends = attach(loop)
    assert_sleeps(loop)
    body = bytes(1 << 22)
    loop.send(channel, 1, body)
    assert channel.outgoing
    assert_sleeps(loop)  # the other side doesn't read
    reader = threading.Thread(target=receive, args=(other, HEADER.size + len(body)))
    reader.start()
    turn_until(loop, lambda: not channel.outgoing)
    reader.join()
    assert_sleeps(loop)
    assert ends.broken == []


def test_one_who_reads_too_slowly_is_cut_and_the_others_are_not(
    loop: SocketLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_LARGEST_BACKLOG", 1 << 20)
    (_other, slow, slow_ends), (reader, quick, quick_ends) = attach(loop), attach(loop)
    while not slow_ends.broken:
        assert slow.backlog < 2 << 20
        for channel in (slow, quick):
            loop.send(channel, CONTROL, bytes(50_000))
        loop.turn(0.0)
        assert receive(reader, HEADER.size + 50_000) == message(bytes(50_000))
    assert slow_ends.broken == ["reads too slowly"]
    assert quick_ends.broken == []
    assert quick in loop.channels


def test_data_may_wait_however_much_it_is(loop: SocketLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_LARGEST_BACKLOG", 1 << 10)
    _other, channel, ends = attach(loop)
    loop.send(channel, 1, bytes(1 << 21))
    loop.turn(0.0)
    loop.turn(0.0)
    assert ends.broken == []


def test_flush_waits_for_the_last_byte_but_not_for_ever(loop: SocketLoop) -> None:
    other, channel, _ = attach(loop)
    loop.send(channel, CONTROL, bytes(1 << 20))
    began = time.monotonic()
    loop.flush(0.1)
    assert 0.09 < time.monotonic() - began < 1.0
    reader = threading.Thread(target=receive, args=(other, HEADER.size + (1 << 20)))
    reader.start()
    loop.flush(5.0)
    assert not channel.outgoing
    reader.join()


# -- dialling ----------------------------------------------------------------------------------------------------------


class Dialled:
    def __init__(self) -> None:
        self.connected: list[Channel] = []
        self.failed: list[str] = []

    def dial(self, loop: SocketLoop, address: tuple[str, int], timeout_s: float = 5.0) -> Callable[[], None]:
        return loop.dial(address, timeout_s, self.connected.append, self.failed.append)


def test_a_port_where_nobody_listens_is_said_to_be_one(loop: SocketLoop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    dialled = Dialled()
    dialled.dial(loop, address)
    turn_until(loop, lambda: dialled.failed)
    loop.turn(0.05)
    assert (dialled.connected, dialled.failed) == ([], ["nothing listens there"])
    assert_sleeps(loop)


@pytest.mark.parametrize(
    "address",
    [
        *(("127.0.0.1", 99_999), ("127.0.0.1", -1), ("fe80::1%nowhere", 1), ("255.255.255.255", 9)),
        *(("fe80::1%\0", 1), (f"fe80::1%{'ö' * 100}", 1), ("fe80::1%" + "x" * 10_000, 1), ("\0", 1), ("1" * 300, 1)),
    ],
    ids=lambda address: ascii(address)[:30],
)
def test_an_address_that_cannot_be_dialled_fails_and_harms_nobody(loop: SocketLoop, address: tuple[str, int]) -> None:
    dialled = Dialled()
    dialled.dial(loop, address)
    assert dialled.failed == []  # told in a later turn, not from within
    turn_until(loop, lambda: dialled.failed)
    assert dialled.connected == []
    assert len(dialled.failed) == 1
    assert_sleeps(loop)


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = os.open(os.devnull, os.O_RDONLY)  # the lowest number that was free
    resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(last)


def test_a_dial_without_file_descriptors_fails_and_harms_nobody(loop: SocketLoop) -> None:
    """It is often another connection's news that makes us dial, or a timer's: an error here would end those."""
    dialled = Dialled()
    with no_descriptor_left():
        dialled.dial(loop, ("127.0.0.1", 9))
        assert dialled.failed == []
        turn_until(loop, lambda: dialled.failed)
    assert (dialled.connected, dialled.failed) == ([], ["Too many open files"])
    assert_sleeps(loop)


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address that answers no dial: its queue of connections is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        yield server.getsockname()
        for caller in callers:
            caller.close()


def test_a_dial_that_nobody_answers_ends_in_time(loop: SocketLoop, deaf: tuple[str, int]) -> None:
    dialled = Dialled()
    began = time.monotonic()
    cancel = dialled.dial(loop, deaf, 0.2)
    turn_until(loop, lambda: dialled.failed)
    assert 0.19 < time.monotonic() - began < 1.0
    assert (dialled.connected, dialled.failed) == ([], ["no answer within 0.2 s"])
    cancel()  # too late, and no harm
    assert_sleeps(loop)


def test_a_cancelled_dial_says_nothing(loop: SocketLoop, deaf: tuple[str, int]) -> None:
    address, _ = serve(loop)
    dialled = Dialled()
    for cancel in (dialled.dial(loop, address), dialled.dial(loop, deaf, 0.05), dialled.dial(loop, ("127.0.0.1", -1))):
        cancel()
        cancel()
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        loop.turn(0.05)
    assert (dialled.connected, dialled.failed) == ([], [])


# -- accepting ---------------------------------------------------------------------------------------------------------


def test_beyond_the_bound_newcomers_are_turned_away_and_those_inside_stay(
    loop: SocketLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_MOST_CHANNELS", 8)
    address, served = serve(loop)
    callers = [socket.create_connection(address) for _ in range(30)]
    turn_until(loop, lambda: sum(map(is_closed, callers)) == 22)
    assert len(loop.channels) == 8
    inside = next(caller for caller in callers if not is_closed(caller))
    inside.sendall(FIRST + message(b"still here"))
    turn_until(loop, lambda: served.frames)
    for caller in callers:
        caller.close()
    turn_until(loop, lambda: not loop.channels)
    with socket.create_connection(address):
        turn_until(loop, lambda: len(loop.channels) == 1)


def test_one_who_connects_and_does_not_greet_is_closed(loop: SocketLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "_GREETING_S", 0.2)
    address, served = serve(loop)
    silent, unfinished, good = [socket.create_connection(address) for _ in range(3)]
    unfinished.sendall(FIRST[:-1])
    good.sendall(FIRST)
    turn_until(loop, lambda: len(served.broken) == 2)
    assert all("no greeting" in why for why in served.broken)
    assert [is_closed(sock) for sock in (silent, unfinished, good)] == [True, True, False]
    for sock in (silent, unfinished, good):
        sock.close()


def test_without_file_descriptors_the_listener_rests_and_comes_back(
    loop: SocketLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_NO_DESCRIPTOR_S", 0.3)
    address, served = serve(loop)
    caller = socket.socket()
    with no_descriptor_left():
        caller.connect(address)
        loop.turn(1.0)
        assert served.channels == []
        assert_sleeps(loop)
    turn_until(loop, lambda: served.channels)
    caller.close()


def test_a_newcomer_whose_socket_takes_no_options_harms_nobody(
    loop: SocketLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS answers EINVAL for one that has hung up before it was accepted; an error here would end the loop."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(socket.socket, "setsockopt", refuse)
    address, served = serve(loop)
    with socket.create_connection(address) as caller:
        turn_until(loop, lambda: served.channels)
        tcp.keep_watch(served.channels[0].sock)
        caller.sendall(FIRST + message(b"and yet"))
        turn_until(loop, lambda: served.frames)


# -- time --------------------------------------------------------------------------------------------------------------


def test_timers_fire_in_order_and_not_before_their_time(loop: SocketLoop) -> None:
    began = time.monotonic()
    fired: list[tuple[str, float]] = []
    for name, seconds in (("late", 0.1), ("soon", 0.02), ("at once", 0.0), ("soon too", 0.02)):
        loop.after(seconds, lambda name=name: fired.append((name, time.monotonic() - began)))  # type: ignore[misc]
    assert fired == []
    turn_until(loop, lambda: len(fired) == 4)
    assert [name for name, _ in fired] == ["at once", "soon", "soon too", "late"]
    assert fired[3][1] >= 0.1
    assert fired[1][1] >= 0.02


def test_a_cancelled_timer_does_not_fire_even_when_cancelled_by_another(loop: SocketLoop) -> None:
    fired: list[str] = []
    second = 0

    def first() -> None:
        fired.append("first")
        loop.cancel(second)

    one = loop.after(0.0, first)
    second = loop.after(0.0, lambda: fired.append("second"))
    third = loop.after(0.0, lambda: fired.append("third"))
    loop.cancel(third)
    loop.turn(0.05)
    loop.cancel(one)  # it has fired: nothing happens
    loop.after(0.0, lambda: fired.append("fourth"))
    turn_until(loop, lambda: len(fired) == 2)
    assert fired == ["first", "fourth"]


def test_a_timer_that_sets_itself_again_does_not_keep_a_turn_from_ending(loop: SocketLoop) -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        loop.after(0.0, again)

    again()
    other, _, ends = attach(loop)
    other.sendall(message(b"heard"))
    turn_until(loop, lambda: ends.frames)
    assert count > 1


def test_ring_from_another_thread_ends_the_wait(loop: SocketLoop) -> None:
    threading.Timer(0.05, loop.ring).start()
    began = time.monotonic()
    loop.turn(10.0)
    assert time.monotonic() - began < 5.0


def test_ringing_often_never_blocks_and_is_soon_forgotten(loop: SocketLoop) -> None:
    for _ in range(20_000):
        loop.ring()
    began = time.monotonic()
    while time.monotonic() - began < 5.0:
        before = time.monotonic()
        loop.turn(0.1)
        if time.monotonic() - before > 0.09:
            return
    pytest.fail("the bell never stopped")


def test_an_idle_loop_uses_no_processor(loop: SocketLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(loop)
    _idle = attach(loop)
    held_other, held, _ = attach(loop)
    held.place = lambda sequence, word, nbytes: None
    held_other.sendall(HEADER.pack(1, 4, 0) + b"abcd" + bytes(10_000))
    _full_other, full, _ = attach(loop)
    loop.send(full, 1, bytes(1 << 22))
    turn_until(loop, lambda: held.held)
    began, used, turns = time.monotonic(), time.thread_time(), 0
    while (left := began + 1.0 - time.monotonic()) > 0:
        loop.turn(left)
        turns += 1
    assert time.thread_time() - used < 0.020
    assert turns <= 2
    assert full.outgoing
    assert held.held


def test_a_channel_with_a_bucket_keeps_to_its_rate_and_sleeps_in_between(
    loop: SocketLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, channel, _ = attach(loop)
    channel.bucket = TokenBucket(2e6)
    data = bytes(range(256)) * 2000
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(receive(other, HEADER.size + len(data))))
    reader.start()
    turns = 0
    began = time.monotonic()
    loop.send(channel, CONTROL, data)
    while channel.outgoing:
        loop.turn(1.0)
        turns += 1
    took = time.monotonic() - began
    reader.join(5.0)
    assert read == [message(data)]
    assert took > 0.8 * (len(data) - channel.bucket.burst) / 2e6
    assert turns < 4 * len(data) / channel.bucket.burst, "it is busy while it waits"
