"""Another process's memory: read where it lies, as it is now; whoever is gone, or is no concern of ours, is an
ordinary connection error."""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from atoll.net import neighbour
from atoll.net.neighbour import Neighbour, address_of
from tests.net.holdings import descriptors

OURSELVES = Neighbour(os.getpid())
LARGEST_ADDRESS = 2**64 - 1


def allowed() -> bool:
    data = bytearray(b"x")
    return OURSELVES.holds(address_of(memoryview(data)), b"x")


pytestmark = pytest.mark.skipif(not allowed(), reason="this system lets nobody read another's memory")

# Holds 3 MiB whose byte i is i % 251, says where, and writes into it what it is told.
HOLDER = """
import ctypes, sys
data = (ctypes.c_char * (3 << 20)).from_buffer(bytearray(bytes(range(251)) * (3 * 4178)))
print(ctypes.addressof(data), flush=True)
for line in sys.stdin:
    data[:len(line)] = line.encode()
    print("written", flush=True)
"""
NBYTES = 3 << 20


class Holder:
    """Another process with something to read."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-S", "-c", HOLDER], stdin=pipe, stdout=pipe, text=True)
        self.pid = self.process.pid
        self.address = int(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def write(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        assert self._line() == "written\n"

    def read(self, at: int, nbytes: int) -> bytes:
        into = bytearray(nbytes)
        Neighbour(self.pid).view(self.address, NBYTES).read(at, memoryview(into))
        return bytes(into)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(10.0)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = Holder()
    yield made
    made.end()


def pattern(at: int, nbytes: int) -> bytes:
    return (np.arange(at, at + nbytes) % 251).astype(np.uint8).tobytes()


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "nbytes"), [(0, 1), (0, NBYTES - 2), (1, 4095), (4095, 2), (1 << 20, 1 << 20), (NBYTES - 5, 3), (7, 0)]
)
def test_any_part_is_read_as_it_lies_there(holder: Holder, at: int, nbytes: int) -> None:
    assert holder.read(at, nbytes) == pattern(at, nbytes)


def test_what_is_read_is_what_is_there_now(holder: Holder) -> None:
    view = Neighbour(holder.pid).view(holder.address, 6)
    into = memoryview(bytearray(6))
    view.read(0, into)
    assert into == bytes(range(6))
    holder.write("later")
    view.read(0, into)
    assert into == b"later\n"


def test_it_is_read_without_the_help_of_its_owner(holder: Holder) -> None:
    holder.process.send_signal(signal.SIGSTOP)
    try:
        assert holder.read(5, 1000) == pattern(5, 1000)
    finally:
        holder.process.send_signal(signal.SIGCONT)


def test_bytes_go_where_they_belong_and_nowhere_else(holder: Holder) -> None:
    into = np.full(300, 255, np.uint8)
    Neighbour(holder.pid).view(holder.address, 100).read(0, memoryview(into)[100:200])
    assert into[100:200].tobytes() == pattern(0, 100)
    assert (into[:100] == 255).all()
    assert (into[200:] == 255).all()


def test_a_view_knows_its_size_and_costs_nothing(holder: Holder) -> None:
    before = descriptors()
    views = [Neighbour(holder.pid).view(holder.address, n) for n in range(1000)]
    assert [len(view) for view in views] == list(range(1000))
    assert descriptors() == before


def test_the_address_of_an_array_is_where_its_first_byte_lies() -> None:
    data = np.arange(10, dtype=np.uint8)
    assert address_of(memoryview(data)) == data.ctypes.data
    assert address_of(memoryview(data)[3:]) == data.ctypes.data + 3
    assert ctypes.string_at(address_of(memoryview(b"constant")), 8) == b"constant"


# -- what can't be read ------------------------------------------------------------------------------------------------


def test_one_that_was_killed_is_a_connection_error_before_and_after_it_is_buried(holder: Holder) -> None:
    view = Neighbour(holder.pid).view(holder.address, NBYTES)
    holder.process.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and still known to the system
    into = memoryview(bytearray(100))
    for _ in range(2):
        with pytest.raises(ConnectionError, match=f"can't read the memory of process {holder.pid}: No such process"):
            view.read(0, into)
        holder.process.wait(10.0)
    assert into == bytes(100)


@pytest.mark.parametrize("address", [0, 1, 4096, 1 << 47, 1 << 63, LARGEST_ADDRESS - 4096, LARGEST_ADDRESS])
def test_where_nothing_is_mapped_is_a_connection_error(holder: Holder, address: int) -> None:
    with pytest.raises(ConnectionError, match="Bad address"):
        Neighbour(holder.pid).view(address, 100).read(0, memoryview(bytearray(100)))


def test_what_begins_in_mapped_memory_and_ends_beyond_it_is_a_connection_error() -> None:
    span = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    address = address_of(memoryview(span))
    span.write(b"x" * len(span))
    libc = ctypes.CDLL(None)
    assert libc.munmap(ctypes.c_void_p(address + 2 * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE)) == 0
    try:
        whole = OURSELVES.view(address, len(span))
        into = memoryview(bytearray(len(span)))
        whole.read(0, into[: 2 * mmap.PAGESIZE])
        assert into[: 2 * mmap.PAGESIZE] == b"x" * (2 * mmap.PAGESIZE)
        with pytest.raises(ConnectionError, match="Bad address"):
            whole.read(0, into)
    finally:  # so that the whole can be unmapped
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap(ctypes.c_void_p(address + 2 * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 3, flags, -1, 0)


@pytest.mark.parametrize("pid", [-1, 0, 2**22 + 1, 2**31 - 1])
def test_a_process_that_is_none_is_a_connection_error(pid: int) -> None:
    data = bytearray(10)
    with pytest.raises(ConnectionError, match=f"process {pid}"):
        Neighbour(pid).view(address_of(memoryview(data)), 10).read(0, memoryview(bytearray(10)))


def in_a_fork(body: Callable[[], bool]) -> bool:
    """What `body` says in a child of ours."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if body() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_users_process_is_a_connection_error(holder: Holder) -> None:
    def refused() -> bool:
        os.setgid(65534)
        os.setuid(65534)
        try:
            holder.read(0, 10)
        except ConnectionError as error:
            return "not permitted" in str(error)
        return False

    assert in_a_fork(refused)
    assert in_a_fork(lambda: holder.read(0, 10) == pattern(0, 10)), "our own child may"


def test_a_system_that_has_no_such_call_lets_nobody_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(b"here")
    monkeypatch.setattr(neighbour, "_readv", lambda: None)
    assert not OURSELVES.holds(address_of(memoryview(data)), b"here")
    with pytest.raises(ConnectionError):
        OURSELVES.view(address_of(memoryview(data)), 4).read(0, memoryview(bytearray(4)))
    monkeypatch.undo()
    neighbour._readv.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert neighbour._readv() is None
    neighbour._readv.cache_clear()


# -- proofs ------------------------------------------------------------------------------------------------------------


def test_a_proof_holds_only_for_whoever_has_those_bytes_in_that_place(holder: Holder) -> None:
    other = Neighbour(holder.pid)
    assert other.holds(holder.address, pattern(0, 16))
    assert not other.holds(holder.address + 1, pattern(0, 16))
    assert not other.holds(holder.address, pattern(0, 15) + b"x")
    for address in (0, LARGEST_ADDRESS, -5, 1 << 70):
        assert not other.holds(address, pattern(0, 16))
    assert not Neighbour(os.getpid()).holds(holder.address, pattern(0, 16))
    holder.end()
    assert not other.holds(holder.address, pattern(0, 16))
