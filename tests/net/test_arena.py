"""Memory lent slot by slot: nobody's bytes change while he reads, nothing is believed of memory that others pass, and
nothing is left of either side, however it ends."""

import errno
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atoll.errors import ProtocolError
from atoll.net.arena import Arena, Tenant, available, machine
from tests.net.holdings import descriptors, mapped_arenas

pytestmark = pytest.mark.skipif(not available(), reason="no shared memory here")

PAGE = 4096


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(4, 2 * PAGE)
    yield made
    made.close()


def tenant_of(arena: Arena) -> Tenant:
    return Tenant(os.dup(arena.fd), arena.slot_bytes)


def lent(arena: Arena, data: bytes) -> int:
    return arena.lend(memoryview(data))


# -- lending -----------------------------------------------------------------------------------------------------------


def test_what_is_lent_is_read_on_the_other_side_without_a_copy(arena: Arena) -> None:
    tenant = tenant_of(arena)
    slots = {lent(arena, bytes([i]) * (PAGE + i)): i for i in range(4)}
    assert len(slots) == 4
    for slot, i in slots.items():
        assert tenant.view(slot, PAGE + i) == bytes([i]) * (PAGE + i)
    view = tenant.view(0, 3)
    arena.give_back(0)
    assert lent(arena, b"new") == 0
    assert view == b"new", "it is the same memory"


def test_when_all_slots_are_lent_nothing_more_is_until_one_comes_back(arena: Arena) -> None:
    slots = [lent(arena, b"x") for _ in range(4)]
    assert arena.free == 0
    for _ in range(2):
        with pytest.raises(IndexError):
            lent(arena, b"one too many")
    assert arena.give_back(slots[2])
    assert lent(arena, b"y") == slots[2]


def test_closed_again_it_leaves_alone_who_has_its_descriptor_by_now() -> None:
    arena = Arena(1, PAGE)
    number = arena.fd
    arena.close()
    theirs = os.open(os.devnull, os.O_RDONLY)
    moved = os.dup2(theirs, number) if theirs != number else theirs
    arena.close()
    os.fstat(moved)  # still open
    for fd in {theirs, moved}:
        os.close(fd)


def test_a_slot_is_free_when_the_last_of_its_borrowers_has_given_it_back(arena: Arena) -> None:
    slot = lent(arena, b"for three")
    arena.lend_again(slot)
    arena.lend_again(slot)
    assert [arena.give_back(slot) for _ in range(3)] == [False, False, True]
    assert arena.free == 4


@pytest.mark.parametrize("slot", [0, 1, 3, 4, -1, -4, 1 << 31, 1 << 63])
def test_what_was_not_lent_cannot_be_given_back(arena: Arena, slot: int) -> None:
    held = {lent(arena, b"x"), lent(arena, b"y")}
    if slot in held:
        arena.give_back(slot)
    free = arena.free
    with pytest.raises(ProtocolError, match=f"slot {slot} was given back, but not lent"):
        arena.give_back(slot)
    assert arena.free == free
    assert len({lent(arena, b"z") for _ in range(free)} | (held - {slot})) == 4, "no slot is lent to two"


@pytest.mark.parametrize("more", [1, PAGE, 4 * PAGE])
def test_more_than_a_slot_holds_is_refused_and_harms_no_neighbour(arena: Arena, more: int) -> None:
    tenant = tenant_of(arena)
    slots = [lent(arena, b"kept" * (arena.slot_bytes // 4)) for _ in range(4)]
    arena.give_back(slots.pop(1))
    with pytest.raises(ValueError, match="don't fit into a slot"):
        lent(arena, bytes(arena.slot_bytes + more))
    assert arena.free == 1
    assert all(tenant.view(slot, arena.slot_bytes) == b"kept" * (arena.slot_bytes // 4) for slot in slots)


@pytest.mark.parametrize("asked", [1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE - 1])
def test_both_sides_round_a_slot_to_the_same_pages(asked: int) -> None:
    arena = Arena(3, asked)
    tenant = Tenant(os.dup(arena.fd), asked)
    for data in (b"a", b"b", b"c"):
        slot = lent(arena, data * asked)
        assert tenant.view(slot, asked) == data * asked
    arena.close()


def test_a_reader_cannot_write(arena: Arena) -> None:
    view = tenant_of(arena).view(lent(arena, b"mine"), 4)
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 1


@pytest.mark.parametrize(("slot", "nbytes"), [(4, 1), (3, 2 * PAGE + 1), (0, 2 * PAGE + 1), (1 << 63, 0), (1 << 64, 9)])
def test_there_is_nothing_to_read_beside_the_slots(arena: Arena, slot: int, nbytes: int) -> None:
    with pytest.raises(ProtocolError, match="no such place"):
        tenant_of(arena).view(slot, nbytes)


class Lending(RuleBasedStateMachine):
    """Many slots, many borrowers, in any order: what was lent is still there, and never in two places at once."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(5, PAGE)
        self.tenant = tenant_of(self.arena)
        self.lent: dict[int, tuple[bytes, int]] = {}

    @precondition(lambda self: len(self.lent) < 5)
    @rule(data=st.binary(max_size=20))
    def lend(self, data: bytes) -> None:
        slot = lent(self.arena, data)
        assert slot not in self.lent
        self.lent[slot] = data, 1

    @precondition(lambda self: self.lent)
    @rule(which=st.integers(0, 4))
    def lend_again(self, which: int) -> None:
        slot = sorted(self.lent)[which % len(self.lent)]
        self.arena.lend_again(slot)
        self.lent[slot] = self.lent[slot][0], self.lent[slot][1] + 1

    @rule(slot=st.integers(-1, 5))
    def give_back(self, slot: int) -> None:
        if slot not in self.lent:
            with pytest.raises(ProtocolError):
                self.arena.give_back(slot)
            return
        data, borrowers = self.lent.pop(slot)
        assert self.arena.give_back(slot) == (borrowers == 1)
        if borrowers > 1:
            self.lent[slot] = data, borrowers - 1

    @invariant()
    def everybody_still_reads_what_was_lent_to_him(self) -> None:
        assert self.arena.free == 5 - len(self.lent)
        for slot, (data, _) in self.lent.items():
            assert self.tenant.view(slot, len(data)) == data

    def teardown(self) -> None:
        self.arena.close()


Lending.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestLending = Lending.TestCase


# -- what others pass as memory ----------------------------------------------------------------------------------------


def sealed(nbytes: int, seals: int) -> int:
    import fcntl

    fd = os.memfd_create("atoll", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def write_only() -> int:
    fd = sealed(PAGE, 7)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
    finally:
        os.close(fd)


def closed_at_the_other_end() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def one_end() -> int:
    ours, theirs = socket.socketpair()
    theirs.close()
    return ours.detach()


SEAL, SHRINK, GROW, WRITE = 1, 2, 4, 8
NO_ARENA: dict[str, Callable[[], int]] = {
    "not sealed": lambda: os.memfd_create("atoll", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING),
    "never to be sealed": lambda: os.memfd_create("atoll", os.MFD_CLOEXEC),
    "could shrink": lambda: sealed(PAGE, SEAL | GROW),
    "could grow": lambda: sealed(PAGE, SEAL | SHRINK),
    "seals could be added": lambda: sealed(PAGE, SHRINK | GROW),
    "empty": lambda: sealed(0, SEAL | SHRINK | GROW),
    "too large": lambda: sealed((1 << 34) + PAGE, SEAL | SHRINK | GROW),
    "not readable": write_only,
    "a file": lambda: os.open(__file__, os.O_RDONLY),
    "a folder": lambda: os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY),
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
    "a path only": lambda: os.open(__file__, os.O_PATH),
    "a pipe": closed_at_the_other_end,
    "a socket": one_end,
    "an event": lambda: os.eventfd(0) if hasattr(os, "eventfd") else closed_at_the_other_end(),
}


@pytest.mark.parametrize("what", NO_ARENA)
def test_what_is_no_arena_is_refused_and_its_descriptor_closed(what: str) -> None:
    gc.collect()
    before, mapped = descriptors(), mapped_arenas()
    with pytest.raises(ProtocolError):
        Tenant(NO_ARENA[what](), PAGE)
    assert descriptors() == before
    assert mapped_arenas() == mapped


def test_memory_that_nobody_can_write_any_more_is_an_arena_too() -> None:
    tenant = Tenant(sealed(PAGE, SEAL | SHRINK | GROW | WRITE), PAGE)
    assert tenant.view(0, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("change", [os.ftruncate, os.posix_fallocate], ids=["shrink", "grow"])
def test_an_arena_cannot_change_its_size_under_its_readers(arena: Arena, change: Any) -> None:
    arguments = (0,) if change is os.ftruncate else (0, 100 * PAGE)
    with pytest.raises(OSError, match="not permitted") as refusal:
        change(arena.fd, *arguments)
    assert refusal.value.errno == errno.EPERM


# -- nothing is left ---------------------------------------------------------------------------------------------------


def test_both_sides_give_back_what_they_took() -> None:
    gc.collect()
    before, mapped = descriptors(), mapped_arenas()
    for _ in range(10):
        arena = Arena(4, PAGE)
        tenant = tenant_of(arena)
        slot = lent(arena, b"x")
        arena.close()
        assert tenant.view(slot, 1) == b"x", "who has mapped it keeps what he reads"
        del tenant
    assert descriptors() == before
    assert mapped_arenas() == mapped


def test_pages_are_taken_only_when_a_slot_is_used() -> None:
    arena = Arena(32, 1 << 20)
    assert os.fstat(arena.fd).st_blocks == 0
    lent(arena, bytes(1 << 20))
    assert os.fstat(arena.fd).st_blocks * 512 == 1 << 20
    arena.close()


def test_no_child_inherits_the_memory(arena: Arena) -> None:
    assert not os.get_inheritable(arena.fd)


OWNER = """
import os, socket, sys, time
sys.path.insert(0, sys.argv[2])
from atoll.net.arena import Arena
sock = socket.socket(fileno=int(sys.argv[1]))
arena = Arena(2, 4096)
slot = arena.lend(memoryview(b"last words"))
socket.send_fds(sock, [bytes([slot])], [arena.fd])
time.sleep(60)
"""


def test_an_owner_that_is_killed_leaves_what_was_read_and_nothing_else() -> None:
    gc.collect()
    before, mapped, files = descriptors(), mapped_arenas(), set(os.listdir("/dev/shm"))
    ours, theirs = socket.socketpair()
    ours.settimeout(10.0)
    source = str(Path(sys.modules[Arena.__module__].__file__ or "").parents[2])
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(theirs.fileno()), source], pass_fds=[theirs.fileno()])
    theirs.close()
    slot, (fd, *_), _, _ = socket.recv_fds(ours, 1, 1)
    tenant = Tenant(fd, PAGE)
    owner.send_signal(signal.SIGKILL)
    owner.wait(10.0)
    assert tenant.view(slot[0], 10) == b"last words"
    assert len(mapped_arenas() - mapped) == 1
    ours.close()
    del tenant
    assert descriptors() == before
    assert mapped_arenas() == mapped
    assert not {name for name in set(os.listdir("/dev/shm")) - files if "atoll" in name}


# -- where there is none -----------------------------------------------------------------------------------------------


def test_elsewhere_than_on_linux_there_is_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not available()
    assert machine() == ""


def test_all_processes_of_this_machine_agree_that_they_are_on_it() -> None:
    code = f"import sys; sys.path.insert(0, {str(Path(machine.__code__.co_filename).parents[2])!r})\n"
    code += "from atoll.net.arena import machine; print(machine(), end='')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30.0, check=True)
    assert said.stdout == machine() != ""
