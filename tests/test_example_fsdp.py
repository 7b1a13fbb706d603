"""The FSDP example: shards of one number are the same bits on all islands, while an island dies and another comes."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean

import pytest

import atoll

SCRIPT = Path(__file__).parents[1] / "examples" / "fsdp.py"
CODE = f"""
import hashlib, json, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import fsdp
losses, shard = fsdp.main(sys.argv[1], int(sys.argv[2]))
print(json.dumps([fsdp.dist.get_rank(), hashlib.sha256(shard.numpy().tobytes()).hexdigest(), losses]))
fsdp.dist.destroy_process_group()
"""


class Island:
    """Two processes, as torchrun would start them, and what they print."""

    def __init__(self, address: str, rounds: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", CODE, address, str(rounds)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **here, "RANK": str(rank), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )
            for rank in range(2)
        ]
        self.said: list[list[str]] = [[], []]
        self._heard = threading.Condition()
        self._threads = [threading.Thread(target=self._listen, args=(rank,), daemon=True) for rank in range(2)]
        for thread in self._threads:
            thread.start()

    def _listen(self, rank: int) -> None:
        stdout = self.processes[rank].stdout
        assert stdout is not None
        for line in stdout:
            with self._heard:
                self.said[rank].append(line)
                self._heard.notify_all()

    def wait_for(self, words: str) -> None:
        """Until its first process prints a line with these words."""
        with self._heard:
            assert self._heard.wait_for(lambda: any(words in line for line in self.said[0]), 60), self.said

    def finish(self) -> tuple[dict[int, str], list[list[float]]]:
        """The digest of each shard at the end, and the losses of each process."""
        codes = [process.wait(60) for process in self.processes]
        for thread in self._threads:
            thread.join(5)
        assert codes == [0, 0], self.said
        ends = [json.loads(said[-1]) for said in self.said]
        return {rank: digest for rank, digest, _ in ends}, [losses for _, _, losses in ends]

    def gone(self) -> bool:
        """Have both ended within a minute, not well?"""
        return all(process.wait(60) != 0 for process in self.processes)


@pytest.fixture
def island() -> Iterator[Callable[[str, int], Island]]:
    started: list[Island] = []

    def start(address: str, rounds: int) -> Island:
        started.append(Island(address, rounds))
        return started[-1]

    yield start
    for one in started:
        for process in one.processes:
            process.kill()
            process.wait()


def assert_falls(losses: list[list[float]]) -> None:
    first, last = [mean(some[0] for some in losses), mean(mean(some[-3:]) for some in losses)]
    assert last < 0.5 * first, losses


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 90


def test_two_islands_end_with_the_same_shards_and_a_smaller_loss(island: Callable[[str, int], Island]) -> None:
    with atoll.Master() as master:
        two = [island(master.address, 15) for _ in range(2)]
        (shards, losses), (others, more) = [one.finish() for one in two]
    assert shards == others
    assert len(set(shards.values())) == 2
    assert_falls(losses + more)


@pytest.mark.slow
def test_when_an_island_loses_a_process_the_other_goes_on_and_a_new_one_joins(
    island: Callable[[str, int], Island],
) -> None:
    rounds = 150
    with atoll.Master() as master:
        first, broken = island(master.address, rounds), island(master.address, rounds)
        broken.wait_for("on 2 islands")
        broken.processes[1].kill()
        assert broken.gone()
        first.wait_for("on 1 islands")
        second = island(master.address, rounds)
        second.wait_for("on 2 islands")
        (shards, losses), (others, _) = first.finish(), second.finish()
    assert shards == others
    assert len(set(shards.values())) == 2
    assert_falls(losses)
