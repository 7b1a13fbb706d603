"""The FSDP example: shards of one number are the same bits on all islands, while an island dies and another comes."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean

import psutil
import pytest

import atoll

SCRIPT = Path(__file__).parents[1] / "examples" / "fsdp.py"
CODE = f"""
import hashlib, json, os, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
sys.stdout.reconfigure(line_buffering=True)
import fsdp, torch._dynamo
ranks = []
for rank in range(2):
    if not (child := os.fork()):
        os.environ["RANK"] = str(rank)
        losses, shard = fsdp.main(sys.argv[1], int(sys.argv[2]))
        print(json.dumps([rank, hashlib.sha256(shard.numpy().tobytes()).hexdigest(), losses]))
        fsdp.dist.destroy_process_group()
        sys.exit()
    ranks.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in ranks]))
"""
"""Two processes, as torchrun would start them, but for torch, which is loaded once."""


class Island:
    """Both processes, their parent, and what they print."""

    def __init__(self, address: str, rounds: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        self.parent = subprocess.Popen(
            [sys.executable, "-c", CODE, address, str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **here},
            start_new_session=True,
        )
        self.said: list[str] = []
        self._heard = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.parent.stdout is not None
        for line in self.parent.stdout:
            with self._heard:
                self.said.append(line)
                self._heard.notify_all()

    def wait_for(self, words: str) -> None:
        """Until a line with these words is printed."""
        with self._heard:
            assert self._heard.wait_for(lambda: any(words in line for line in self.said), 60), self.said

    def kill_one(self) -> None:
        """Of its processes, the second."""
        psutil.Process(self.parent.pid).children()[1].kill()

    def finish(self) -> tuple[dict[int, str], list[list[float]]]:
        """The digest of each shard at the end, and the losses of each process."""
        code = self.parent.wait(60)
        self._thread.join(5)
        assert code == 0, self.said
        ends = [json.loads(line) for line in self.said if line.startswith("[")]
        return {rank: digest for rank, digest, _ in ends}, [losses for _, _, losses in ends]

    def gone(self) -> bool:
        """Has it ended within a minute, not well?"""
        return self.parent.wait(60) != 0

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.parent.pid, signal.SIGKILL)
        self.parent.wait()


@pytest.fixture
def island() -> Iterator[Callable[[str, int], Island]]:
    started: list[Island] = []

    def start(address: str, rounds: int) -> Island:
        started.append(Island(address, rounds))
        return started[-1]

    yield start
    for one in started:
        one.end()


NOTHING_LEARNT = (1 - math.exp(-2)) / 2
"""The loss of who always answers 0: the mean square of sin(z), where z is normal."""


def assert_small(losses: list[list[float]]) -> None:
    assert mean(mean(some[-3:]) for some in losses) < 0.1 * NOTHING_LEARNT, losses


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 90


@pytest.mark.slow
def test_two_islands_end_with_the_same_shards_and_a_small_loss(island: Callable[[str, int], Island]) -> None:
    with atoll.Master() as master:
        two = [island(master.address, 10) for _ in range(2)]
        (shards, losses), (others, more) = [one.finish() for one in two]
    assert shards == others
    assert len(set(shards.values())) == 2
    assert_small(losses + more)


@pytest.mark.slow
def test_when_an_island_loses_a_process_the_other_goes_on_and_a_new_one_joins(
    island: Callable[[str, int], Island],
) -> None:
    rounds = 150
    with atoll.Master() as master:
        first, broken = island(master.address, rounds), island(master.address, rounds)
        broken.wait_for("on 2 islands")
        broken.kill_one()
        assert broken.gone()
        first.wait_for("on 1 islands")
        second = island(master.address, rounds)
        second.wait_for("on 2 islands")
        (shards, losses), (others, _) = first.finish(), second.finish()
    assert shards == others
    assert len(set(shards.values())) == 2
    assert_small(losses)
