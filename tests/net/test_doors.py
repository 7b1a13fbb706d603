"""Processes of one machine meet, and bring their memory along; who brings something else, nothing, or comes from
another user, is turned away and leaves nothing behind."""

import array
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.net import channel as channel_module
from atoll.net import doors, preamble
from atoll.net import loop as loop_module
from atoll.net.arena import Arena, Tenant, available
from atoll.net.channel import CONTROL, HEADER, LENT, WHERE, Channel
from atoll.net.loop import SocketLoop
from atoll.net.preamble import Greeting
from tests.net.holdings import descriptors, mapped_arenas
from tests.net.test_arena import NO_ARENA
from tests.net.test_channel import anywhere
from tests.net.test_loop import Dialled, Ends, assert_sleeps, is_closed, no_descriptor_left, turn_until

pytestmark = pytest.mark.skipif(not available(), reason="no shared memory here")

GREETING = Greeting("test")
FIRST = preamble.encode(GREETING)
SLOT = 8192


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()
    before, mapped = descriptors(), mapped_arenas()
    yield
    gc.collect()  # what failed tests still hold
    assert (descriptors(), mapped_arenas()) == (before, mapped)


@pytest.fixture
def loop() -> Iterator[SocketLoop]:
    made = SocketLoop(GREETING)
    yield made
    made.close()


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(3, SLOT)
    yield made
    made.close()


class Door:
    """A door and who came in by it."""

    def __init__(self, loop: SocketLoop) -> None:
        self.ends = Ends()
        self.lent: list[bytes] = []

        def accepted(channel: Channel) -> None:
            channel.place = anywhere
            self.ends.channels.append(channel)
            loop.add(channel, lambda _, frame: self.lent.append(bytes(frame.here)), self.ends.lost)

        self.name = doors.open_door(loop, SLOT, accepted)

    @property
    def came(self) -> list[Channel]:
        return self.ends.channels


@pytest.fixture
def door(loop: SocketLoop) -> Door:
    return Door(loop)


def stranger_at(name: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5.0)
    sock.connect(f"\0{name}")
    return sock


def passing(sock: socket.socket, data: bytes, *fds: int) -> None:
    socket.send_fds(sock, [data], fds)


def assert_turned_away(loop: SocketLoop, door: Door, stranger: socket.socket) -> None:
    turn_until(loop, lambda: is_closed(stranger))
    assert door.came == []
    stranger.close()


# -- meeting -----------------------------------------------------------------------------------------------------------


def test_who_knocks_is_known_by_his_process_and_his_memory_can_be_read(
    loop: SocketLoop, door: Door, arena: Arena
) -> None:
    dialled = Dialled()
    doors.knock(loop, door.name, arena, dialled.connected.append, dialled.failed.append)
    assert dialled.connected == [], "told in a later turn, not from within"
    turn_until(loop, lambda: dialled.connected and door.came)
    ours = dialled.connected[0]
    loop.add(ours, *[lambda *_: None] * 2)
    slot = arena.lend(memoryview(b"lies in the arena"))
    ours.lend(7, slot, 17, word=3)
    ours.put(CONTROL, b"through the socket")
    loop.write(ours)
    turn_until(loop, lambda: len(door.lent) == 2)
    assert door.lent == [b"lies in the arena", b"through the socket"]
    assert door.came[0].pid == os.getpid()
    assert isinstance(door.came[0].lender, Tenant)
    assert dialled.failed == door.ends.broken == []


def test_frames_go_both_ways(loop: SocketLoop, door: Door, arena: Arena) -> None:
    dialled, answers = Dialled(), Ends()
    doors.knock(loop, door.name, arena, dialled.connected.append, dialled.failed.append)
    turn_until(loop, lambda: dialled.connected and door.came)
    loop.add(dialled.connected[0], answers.frame, answers.lost)
    loop.send(door.came[0], CONTROL, b"come in")
    turn_until(loop, lambda: answers.frames)
    assert answers.frames == [(CONTROL, b"come in")]


KNOCKING = """
import socket, sys
sys.path.insert(0, sys.argv[2])
from atoll.net.arena import Arena
arena = Arena(1, 8192)
sock = socket.socket(socket.AF_UNIX)
sock.connect("\\0" + sys.argv[1])
socket.send_fds(sock, [b"\\0"], [arena.fd])
sock.recv(1)
"""


def test_another_process_is_known_by_its_number_whatever_it_says(loop: SocketLoop, door: Door) -> None:
    source = str(Path(doors.__file__).parents[2])
    with subprocess.Popen([sys.executable, "-c", KNOCKING, door.name, source]) as other:
        turn_until(loop, lambda: door.came, 20.0)
        assert door.came[0].pid == other.pid
        loop.remove(door.came[0])
        assert other.wait(10.0) == 0


def test_each_door_has_a_name_of_its_own_and_no_place_in_the_file_system(loop: SocketLoop) -> None:
    names = {Door(loop).name for _ in range(20)}
    assert len(names) == 20
    assert not any(Path(name).exists() or Path("/tmp", name).exists() for name in names)


def test_two_hundred_may_come_at_once(loop: SocketLoop, door: Door, arena: Arena) -> None:
    dialled = Dialled()
    for _ in range(200):
        doors.knock(loop, door.name, arena, dialled.connected.append, dialled.failed.append)
    turn_until(loop, lambda: len(door.came) == 200)
    assert (len(dialled.connected), dialled.failed) == (200, [])
    for channel in [*dialled.connected, *door.came]:
        loop.remove(channel)
        channel.close()


# -- no door -----------------------------------------------------------------------------------------------------------


def test_a_door_that_is_none_fails_in_a_later_turn_and_costs_nothing(loop: SocketLoop, arena: Arena) -> None:
    dialled = Dialled()
    cancel = doors.knock(loop, "atoll-nobody", arena, dialled.connected.append, dialled.failed.append)
    assert dialled.failed == []
    turn_until(loop, lambda: dialled.failed)
    cancel()  # too late, and no harm
    assert (dialled.connected, dialled.failed) == ([], ["Connection refused"])
    assert_sleeps(loop)


@pytest.mark.parametrize("name", ["x" * 200, "a name\0with a null"], ids=["too long", "odd"])
def test_a_name_that_cannot_be_one_fails_like_any_other(loop: SocketLoop, arena: Arena, name: str) -> None:
    """Others told us it."""
    dialled = Dialled()
    doors.knock(loop, name, arena, dialled.connected.append, dialled.failed.append)
    turn_until(loop, lambda: dialled.failed)
    assert dialled.connected == []


def test_without_file_descriptors_a_knock_fails_like_any_other(loop: SocketLoop, door: Door, arena: Arena) -> None:
    dialled = Dialled()
    with no_descriptor_left():
        doors.knock(loop, door.name, arena, dialled.connected.append, dialled.failed.append)
        turn_until(loop, lambda: dialled.failed)
    assert (dialled.connected, dialled.failed) == ([], ["Too many open files"])


def test_a_door_with_a_queue_before_it_fails_at_once(loop: SocketLoop, arena: Arena) -> None:
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind("\0" + (name := f"atoll-busy-{os.getpid()}"))
        busy.listen(0)
        dialled = Dialled()
        for _ in range(3):
            doors.knock(loop, name, arena, dialled.connected.append, dialled.failed.append)
        turn_until(loop, lambda: len(dialled.connected) + len(dialled.failed) == 3)
        assert len(dialled.connected) == 1
        for channel in dialled.connected:
            channel.close()


@pytest.mark.parametrize("name", ["there", "nowhere"])
def test_a_cancelled_knock_says_nothing(loop: SocketLoop, door: Door, arena: Arena, name: str) -> None:
    dialled = Dialled()
    at = door.name if name == "there" else name
    cancel = doors.knock(loop, at, arena, dialled.connected.append, dialled.failed.append)
    cancel()
    cancel()
    loop.turn(0.05)
    assert (dialled.connected, dialled.failed) == ([], [])


def test_a_closed_loop_has_no_door(arena: Arena) -> None:
    loop = SocketLoop(GREETING)
    name = Door(loop).name
    waiting = stranger_at(name)
    loop.turn(1.0)
    loop.close()
    with pytest.raises(ConnectionRefusedError):
        stranger_at(name)
    waiting.close()


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", NO_ARENA)
def test_who_brings_what_is_no_arena_is_turned_away(loop: SocketLoop, door: Door, what: str) -> None:
    stranger = stranger_at(door.name)
    fd = NO_ARENA[what]()
    passing(stranger, b"\0" + FIRST, fd)
    os.close(fd)
    assert_turned_away(loop, door, stranger)


@pytest.mark.parametrize("said", [b"", b"\0", FIRST, b"\0" + FIRST], ids=["nothing", "a byte", "a greeting", "both"])
def test_who_brings_nothing_is_turned_away(loop: SocketLoop, door: Door, said: bytes) -> None:
    stranger = stranger_at(door.name)
    stranger.sendall(said)
    if not said:
        stranger.shutdown(socket.SHUT_WR)
    assert_turned_away(loop, door, stranger)


def test_who_comes_and_goes_is_forgotten(loop: SocketLoop, door: Door) -> None:
    for _ in range(300):
        stranger_at(door.name).close()
        loop.turn(0.0)
    before = descriptors()
    turn_until(loop, lambda: descriptors()["socket"] <= before["socket"])
    loop.turn(0.05)
    assert door.came == []


def test_further_descriptors_are_not_kept(loop: SocketLoop, door: Door, arena: Arena) -> None:
    stranger = stranger_at(door.name)
    before = descriptors()
    passing(stranger, b"\0", arena.fd, *[0] * 200)
    turn_until(loop, lambda: door.came)
    assert descriptors() - before == {"memory": 1, "socket": 1}, "the map holds one, the connection another"
    stranger.close()


def test_descriptors_that_come_later_are_not_kept(loop: SocketLoop, door: Door, arena: Arena) -> None:
    stranger = stranger_at(door.name)
    passing(stranger, b"\0", arena.fd)
    turn_until(loop, lambda: door.came)
    before = descriptors()
    message = HEADER.pack(CONTROL, 4, 0) + b"more"
    passing(stranger, FIRST, arena.fd, 0)
    for part in (message[:10], message[10:], message):
        passing(stranger, part, *[arena.fd] * 100)
    turn_until(loop, lambda: len(door.lent) == 2)
    assert descriptors() == before
    stranger.close()


def test_credentials_that_somebody_makes_up_are_not_looked_at(loop: SocketLoop, door: Door, arena: Arena) -> None:
    """Who dials is what the kernel says, not the message."""
    stranger = stranger_at(door.name)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [arena.fd]))
    made_up = (socket.SOL_SOCKET, 2, doors._CREDENTIALS.pack(os.getpid(), os.getuid(), os.getgid()))  # SCM_CREDENTIALS
    stranger.sendmsg([b"\0"], [made_up, rights])
    turn_until(loop, lambda: door.came)
    assert door.came[0].pid == os.getpid()
    stranger.close()


def test_one_who_says_nothing_is_not_waited_for(loop: SocketLoop, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "_PATIENCE_S", 0.1)
    strangers = [stranger_at(door.name) for _ in range(20)]
    for stranger in strangers:
        assert_turned_away(loop, door, stranger)
    assert_sleeps(loop)


def test_one_who_brings_memory_and_no_greeting_is_not_waited_for(
    loop: SocketLoop, door: Door, arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_GREETING_S", 0.1)
    stranger = stranger_at(door.name)
    passing(stranger, b"\0" + FIRST[:-1], arena.fd)
    turn_until(loop, lambda: door.ends.broken)
    assert door.ends.broken == ["no greeting of atoll within 0.1 s"]
    door.came.clear()
    stranger.close()


def test_memory_of_one_from_whom_no_data_is_expected_is_not_looked_at(
    loop: SocketLoop, door: Door, arena: Arena
) -> None:
    slot = arena.lend(memoryview(b"a message, perhaps"))
    stranger = stranger_at(door.name)
    passing(stranger, b"\0" + FIRST, arena.fd)
    turn_until(loop, lambda: door.came)
    door.came[0].place = channel_module._no_data  # as it is until a link has said whose it is
    stranger.sendall(HEADER.pack(1, LENT | 18, 0) + WHERE.pack(slot))
    turn_until(loop, lambda: door.ends.broken)
    assert (door.lent, door.ends.broken) == ([], ["a frame in memory that we may not read"])
    stranger.close()


def test_a_frame_in_a_slot_that_is_none_breaks_its_own_connection_only(
    loop: SocketLoop, door: Door, arena: Arena
) -> None:
    calm, wild = stranger_at(door.name), stranger_at(door.name)
    for stranger in (calm, wild):
        passing(stranger, b"\0" + FIRST, arena.fd)
    turn_until(loop, lambda: len(door.came) == 2)
    wild.sendall(HEADER.pack(5, LENT | 100, 0) + WHERE.pack(3))
    turn_until(loop, lambda: door.ends.broken)
    assert door.ends.broken == ["100 bytes in slot 3: there is no such place"]
    slot = arena.lend(memoryview(b"good"))
    calm.sendall(HEADER.pack(5, LENT | 4, 0) + WHERE.pack(slot))
    turn_until(loop, lambda: door.lent)
    assert door.lent == [b"good"]
    calm.close(), wild.close()


# -- another user ------------------------------------------------------------------------------------------------------


def test_another_users_process_is_hung_up_on_before_it_has_said_a_word(
    loop: SocketLoop, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could hold as many of our descriptors as it likes, for as long as we are patient."""
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    began = time.monotonic()
    assert_turned_away(loop, door, stranger_at(door.name))
    assert time.monotonic() - began < doors._PATIENCE_S / 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_come_in_with_the_best_of_memory(loop: SocketLoop, door: Door, arena: Arena) -> None:
    def knocks() -> bool:
        stranger = socket.socket(socket.AF_UNIX)
        os.setgid(65534)
        os.setuid(65534)
        stranger.settimeout(10.0)
        try:
            stranger.connect(f"\0{door.name}")
            passing(stranger, b"\0" + FIRST, arena.fd)
            while stranger.recv(4096):
                pass
        except ConnectionError:
            pass
        return True  # hung up on: TimeoutError ends with another code

    pid = fork(knocks)
    gone: list[int] = []

    def over() -> bool:
        if not gone:
            found, status = os.waitpid(pid, os.WNOHANG)
            gone.extend([status] if found else [])
        return bool(gone)

    turn_until(loop, over, 15.0)
    assert os.waitstatus_to_exitcode(gone[0]) == 0
    assert door.came == []


def fork(body: Callable[[], bool]) -> int:
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if body() else 1)
        finally:
            os._exit(2)
    return pid
