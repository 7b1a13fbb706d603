"""Three peers that reduce without a pause while a test does them harm, and who comes to their ports and doors."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np

import atoll
from atoll.errors import AtollError, PeerLost
from atoll.group import messages
from atoll.group.api import LARGEST_FRAME
from atoll.group.messages import LinkAck, LinkHello
from atoll.group.wiring.asking import StatusClient
from atoll.group.wiring.wire import Wire
from atoll.net.arena import Arena
from atoll.net.channel import HEADER, LENT, WHERE
from atoll.net.neighbour import address_of
from tests.group.test_hostile import FIRST, assert_closed, framed, said

SIZES = (100, 8_000, 100_000)  # in the vote; while the votes travel; after them, in frames that are lent
KNOCK, PORT = "door", "port"
WAYS = ["direct reads", "shared memory", "TCP"]
"""The second where `Neighbour.holds` says no."""


class HungUp(AssertionError):
    """By the other side, where an answer is due."""


class Company:
    """A master and three peers of this machine that reduce without a pause, retry after a loss, check each result."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.master = atoll.Master()
        self.master.__enter__()
        self.groups: list[Any] = [None] * 3
        self.steps = [0, 0, 0]
        self.retries = 0
        self.problems: list[str] = []
        self._stop = False
        self.awake = threading.Event()
        """Only then they go on."""
        self.awake.set()
        self.late: int | None = None
        """This one comes late to each operation."""
        self._threads = [threading.Thread(target=self._reduce, args=(i,), daemon=True) for i in range(3)]
        for thread in self._threads:
            thread.start()
        self.go_on()
        self.ids = sorted(group.id for group in self.groups)
        members = self.master._policy.roster.members
        self.come_to(lambda: all(member.beats for member in members.values()), "a helper has not connected")

    def _reduce(self, which: int) -> None:
        try:
            shared = self.way != "TCP"
            with atoll.join(self.master.address, min_world=3, timeout_s=20.0, shared_memory=shared) as group:
                self.groups[which] = group
                while not self._step(which, group):
                    self.awake.wait(600.0)
                    self.steps[which] += 1
        except AtollError as error:
            self.problems.append(f"{which}: {error!r}")

    def _step(self, which: int, group: atoll.Group) -> bool:
        step = 0.0
        for size in SIZES:
            x = np.full(size, step + group.rank)
            x[0] = self._stop
            while True:
                try:
                    if which == self.late:
                        time.sleep(0.005)
                    before = x.copy()
                    group.all_reduce(x, "sum", algorithm="direct" if size == SIZES[-1] else None, timeout_s=20.0)
                    break
                except PeerLost:
                    self.retries += 1
                    if not (x == before).all():
                        self.problems.append(f"{which}: a reduce that failed left {x}")
            if not (x[1:] == 3 * step + 3).all():
                self.problems.append(f"{which}: {x[1:]} instead of {3 * step + 3}")
            step = 1.0
        return bool(x[0])

    def go_on(self, steps: int = 5) -> None:
        """All get on, with right results."""
        goal = max(self.steps) + steps
        end = time.monotonic() + 20.0
        while min(self.steps) < goal:
            assert not self.problems, self.problems
            assert time.monotonic() < end, f"they stand still at {self.steps}"
            time.sleep(0.005)

    def members(self) -> list[int]:
        client = StatusClient(self.master.address)
        try:
            return sorted(member.id for member in client.ask().members)
        finally:
            client.close()

    def end(self) -> None:
        self._stop = True
        self.awake.set()
        for thread in self._threads:
            thread.join(30.0)
        self.master.close()

    # -- from within --------------------------------------------------------------------------------------------------

    def wire(self, which: int) -> Wire:
        wire: Wire = self.groups[which]._membership.port
        return wire

    def inside(self, which: int) -> AbstractContextManager[Any]:
        """While nobody turns the loop of that peer."""
        return self.wire(which)._loop._lock

    def told(self, which: int) -> tuple[int, bytes]:
        """Epoch and key, as all members know them."""
        with self.inside(which):
            links = self.wire(which)._links
            return links._epoch, links._key

    @property
    def epoch(self) -> int:
        return max(self.told(which)[0] for which in range(3))

    def settled(self) -> bool:
        """Do all live in one epoch?"""
        return len({self.told(which) for which in range(3)}) == 1

    def ways(self) -> set[str]:
        """By which data travels."""
        found = set()
        for which in range(3):
            with self.inside(which):
                found |= {out.way.name for out in self.wire(which)._links._out.values()}
        return found

    def holds(self) -> list[tuple[int, ...]]:
        """What strangers could make grow, of each peer."""
        found = []
        for which in range(3):
            with self.inside(which):
                wire = self.wire(which)
                links = wire._links
                channels = sum(len(link.channels) for link in links._in.values())
                found.append((len(wire._net.channels), len(links._in), channels, len(links._out)))
        return found

    def renew(self) -> None:
        """Let them make their links anew."""
        epoch = self.epoch

        def renewed() -> bool:
            with suppress(HungUp), Caller(self, PORT) as insider:  # it may be under way already
                insider.enter(self.groups[1].id)
                insider.sendall(framed(b"garbage"))
                assert_closed(insider)
            return self.settled() and self.epoch > epoch

        self.come_to(renewed, "no new epoch")

    def come_to(self, wanted: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 15.0
        while not wanted():
            assert not self.problems, self.problems
            assert time.monotonic() < end, what
            time.sleep(0.01)


def lent(seq: int, nbytes: int, where: int, word: int = 1) -> bytes:
    return HEADER.pack(seq, LENT | nbytes, word) + WHERE.pack(where)


class Caller(socket.socket):
    """At the port or the door of a peer."""

    def __init__(self, company: Company, at: str, which: int = 0, memory: Arena | None = None) -> None:
        self.company, self.which = company, which
        seat = company.wire(which)._peer.seat
        if at == PORT:
            super().__init__(socket.AF_INET)
            self.settimeout(10.0)
            self.connect((seat.host, seat.port))
        else:
            super().__init__(socket.AF_UNIX)
            self.settimeout(10.0)
            self.connect(f"\0{seat.door}")
            ours = memory or Arena(1, LARGEST_FRAME)
            socket.send_fds(self, [b"\0"], [ours.fd])
            if memory is None:
                ours.close()

    def enter(self, source: int, epochs_ahead: int = 0, key: bytes | None = None, proof: bytes = b"") -> None:
        """Greet, say hello as the member `source`, hear the acknowledgement."""
        epoch, true_key = self.company.told(self.which)
        address = address_of(memoryview(proof)) if proof else 0
        hello = LinkHello(epoch + epochs_ahead, source, true_key if key is None else key, address, proof)
        self.sendall(FIRST + said(hello))
        self.heard(LinkAck(epoch + epochs_ahead, bool(proof)))

    def heard(self, *expected: messages.Message) -> None:
        """Read just this, behind a greeting if there is one."""
        words = b"".join(said(message) for message in expected)
        start = self._exactly(4)
        if start == FIRST[:4]:
            start = (start + self._exactly(len(FIRST)))[len(FIRST) :]
        assert start + self._exactly(len(words) - 4) == words

    def _exactly(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            more = self.recv(nbytes - len(data))
            if not more:
                raise HungUp
            data += more
        return data
