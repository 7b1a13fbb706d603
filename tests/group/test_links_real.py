"""Real processes of one machine, by each way that data can take: the same bits; and when one of them is killed or
stopped in the middle of a reduce, the others go on and keep nothing of it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.group.wiring.asking import StatusClient
from atoll.net.arena import available
from tests.group.company import WAYS
from tests.group.linked import numbers

pytestmark = pytest.mark.skipif(not available(), reason="no shared memory here")

ROOT = Path(__file__).resolve().parents[2]
SHARED = WAYS[:2]
LARGE, MIDDLE = 16 << 20, 2 << 20
"""Elements of 4 bytes: 64 and 8 MiB."""


class Linked:
    """A peer in a process of its own."""

    def __init__(self) -> None:
        pipe, env = subprocess.PIPE, {**os.environ, "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, "-m", "tests.group.linked"]
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=env)
        self.way, self.arena = "", 0
        self._said: queue.Queue[str] = queue.Queue()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line)

    def tell(self, command: str, **options: Any) -> "Linked":
        self.way = options.get("way", self.way)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, options]) + "\n")
        self.process.stdin.flush()
        return self

    def answer(self, timeout_s: float = 60.0) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._said.get(timeout=timeout_s))
        return answer

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10.0)
        self._thread.join(10.0)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


Start = Callable[[int], list[Linked]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Linked] = []

    def several(count: int) -> list[Linked]:
        started.extend(Linked() for _ in range(count))
        return started[-count:]

    yield several
    for peer in started:
        peer.end()


def ask(peers: list[Linked], command: str, **options: Any) -> list[dict[str, Any]]:
    """All at once."""
    return [peer.answer() for peer in [peer.tell(command, **options) for peer in peers]]


def lanes(master: atoll.Master) -> set[str]:
    client = StatusClient(master.address)
    try:
        return {member.lane for member in client.ask().members}
    finally:
        client.close()


def expected_sample(n: int, world: int) -> Any:
    return np.sum([numbers(n, rank)[:: n // 7].astype(np.float64) for rank in range(world)], axis=0)


def assert_reduced(answers: list[dict[str, Any]], n: int, world: int, off: float = 0.0) -> None:
    assert all("hash" in answer for answer in answers), answers
    assert len({answer["hash"] for answer in answers}) == 1
    np.testing.assert_allclose(answers[0]["sample"], expected_sample(n, world), rtol=1e-4, atol=off + 1e-5)


# -- every way ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_ways_give_the_same_bits(start: Start) -> None:
    """64 MiB among three; and less along each schedule, with codecs and without."""
    hows: list[tuple[int, str, str | None]] = [
        (LARGE, "direct", None), (MIDDLE, "ring", None), (MIDDLE, "halving", None), (MIDDLE, "ring", "uint8"),
        (MIDDLE, "direct", "int4"),
    ]  # fmt: skip
    peers = start(3)
    found: dict[tuple[int, str, str | None], set[str]] = {how: set() for how in hows}
    for way in WAYS:
        with atoll.Master() as master:
            joined = ask(peers, "join", address=master.address, way=way, min_world=3)
            assert [answer["world"] for answer in joined] == [3, 3, 3]
            assert lanes(master) == {way}
            for n, algorithm, codec in hows:
                answers = ask(peers, "reduce", n=n, algorithm=algorithm, codec=codec)
                assert_reduced(answers, n, 3, off=0.0 if codec is None else 3.0)
                found[n, algorithm, codec] |= {answer["hash"] for answer in answers}
            ask(peers, "leave")
    assert {how: len(hashes) for how, hashes in found.items()} == dict.fromkeys(hows, 1)


@pytest.mark.parametrize("way", WAYS)
def test_who_has_left_holds_nothing_of_the_group(start: Start, way: str) -> None:
    peers = start(2)
    before = ask(peers, "holds")
    for _ in range(3):
        with atoll.Master() as master:
            ask(peers, "join", address=master.address, way=way, min_world=2)
            assert_reduced(ask(peers, "reduce", n=1 << 20, algorithm="direct"), 1 << 20, 2)
            during = ask(peers, "holds")
            ask(peers, "leave")
    assert all(holds["descriptors"]["socket"] > 5 for holds in during)
    assert ask(peers, "holds") == before


# -- one is killed -----------------------------------------------------------------------------------------------------


def shared_files() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if "atoll" in name}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("way", SHARED)
@pytest.mark.parametrize("algorithm", ["direct", "halving", "ring"])
def test_one_killed_in_a_reduce_is_survived_again_and_again_and_leaves_nothing(
    start: Start, way: str, algorithm: str
) -> None:
    n, files = MIDDLE, shared_files()
    with atoll.Master() as master:
        peers = start(3)
        for peer, answer in zip(peers, ask(peers, "join", address=master.address, way=way, min_world=3), strict=True):
            peer.arena = answer["arena"]
        assert lanes(master) == {way}
        before = settled(peers, n, algorithm)
        for rank, end_at in (0, 1), (1, 4), (2, 7), (0, 9):  # the first frame, sums, what comes of them, nearly all
            victim = peers.pop(rank)
            del before[rank]
            for peer in peers:
                peer.tell("reduce", n=n, algorithm=algorithm)
            victim.tell("reduce", n=n, algorithm=algorithm, end_at=end_at)
            assert victim.process.wait(30.0) == -signal.SIGKILL
            killed = time.time()
            for failed in [peer.answer() for peer in peers]:
                assert failed["error"] == "PeerLost", failed
                assert (failed["world"], failed["intact"]) == (2, True)
                assert failed["at"] - killed < 3.0
            for holds, full in zip(settled(peers, n, algorithm), before, strict=True):
                assert victim.arena not in holds["arenas"], "memory of the dead one is still mapped"
                gone = Counter(full["descriptors"]) - Counter(holds["descriptors"])
                assert gone == {"socket": 2, **({"memory": 1} if way == "shared memory" else {})}
                assert not Counter(holds["descriptors"]) - Counter(full["descriptors"])
            (newcomer,) = start(1)
            newcomer.tell("join", address=master.address, way=way, min_world=1)
            wait_for(master, 3)
            worlds, joined = [answer["world"] for answer in ask(peers, "let_in")], newcomer.answer()
            assert worlds == [3, 3], joined
            newcomer.arena = joined["arena"]
            peers.append(newcomer)
            after = settled(peers, n, algorithm)
            assert [holds["descriptors"] for holds in after[:2]] == [holds["descriptors"] for holds in before]
            before = after
    assert shared_files() == files


def settled(peers: list[Linked], n: int, algorithm: str) -> list[dict[str, Any]]:
    """What they hold once they have reduced, and each is linked to each."""
    for how in (algorithm, "direct"):
        assert_reduced(ask(peers, "reduce", n=n, algorithm=how), n, len(peers))
    found = ask(peers, "holds")
    for peer, holds in zip(peers, found, strict=True):
        arenas = {peer.arena} if peer.way == "direct reads" else {other.arena for other in peers}
        assert set(holds["arenas"]) == arenas, "memory that nobody reads is mapped"
    return found


def wait_for(master: atoll.Master, members: int) -> None:
    """Until so many have come, if not in."""
    client = StatusClient(master.address)
    end = time.monotonic() + 30.0
    while len(client.ask().members) < members:
        assert time.monotonic() < end
        threading.Event().wait(0.01)
    client.close()


# -- one is stopped ----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # one stopped at some other moment: test_real.py
def test_one_stopped_in_a_reduce_is_expelled_and_joins_again_when_it_thaws(start: Start) -> None:
    """By both ways at once, for the stop takes its time."""
    n = MIDDLE
    with atoll.Master() as one, atoll.Master() as other:
        groups = {way: (master, start(3)) for way, master in zip(SHARED, (one, other), strict=True)}
        for way, (master, peers) in groups.items():
            ask(peers, "join", address=master.address, way=way, min_world=3)
        for _, peers in groups.values():
            for peer in peers[:2]:
                peer.tell("reduce", n=n, algorithm="direct")
            peers[2].tell("reduce", n=n, algorithm="direct", end_at=5, by="SIGSTOP")
        for way, (_, peers) in groups.items():
            for failed in [peer.answer() for peer in peers[:2]]:
                assert failed["error"] == "PeerLost", (way, failed)
                assert "stopped" in failed["message"]
                assert (failed["world"], failed["intact"]) == (2, True)
            assert_reduced(ask(peers[:2], "reduce", n=n, algorithm="direct"), n, 2)
        for way, (master, peers) in groups.items():
            assert_reduced(ask(peers[:2], "reduce", n=n, algorithm="direct"), n, 2)
            peers[2].process.send_signal(signal.SIGCONT)
            expelled = peers[2].answer()
            assert expelled["error"] == "Expelled", (way, expelled)
            assert expelled["intact"]
            peers[2].tell("join", address=master.address, way=way, min_world=1)
            wait_for(master, 3)
            ask(peers[:2], "let_in")
            assert peers[2].answer()["world"] == 3
            assert_reduced(ask(peers, "reduce", n=n, algorithm="direct"), n, 3)
