"""The batch script trains on three 'nodes', with a stand-in for srun that starts processes here."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from atoll.errors import AtollError
from atoll.group.wiring.asking import StatusClient
from atoll.net.guard import Guard, read_token
from tests.deploy.commands import DEPLOY
from tests.deploy.places import free_port, program, running, tiny, until, with_atoll

SCRIPT = DEPLOY / "slurm" / "train.sbatch"
SRUN = f"""#!{sys.executable}
import os, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--")]
first = next(i for i, word in enumerate(sys.argv) if i and not word.startswith("--"))
known = ("--nodes=", "--ntasks=", "--cpus-per-task=", "--no-kill", "--kill-on-bad-exit=0", "--wait=0")
assert all(word.startswith(known) for word in sys.argv[1:first]), sys.argv
tasks = int(next(word for word in options if word.startswith("--ntasks=")).partition("=")[2])
run = [subprocess.Popen(sys.argv[first:], env={{**os.environ, "SLURM_PROCID": str(i)}}) for i in range(tasks)]
sys.exit(max(task.wait() for task in run))
"""
Job = Callable[..., AbstractContextManager[Any]]


@pytest.fixture
def job(tmp_path: Path) -> tuple[Job, str]:
    """A way to start the script, and the address of its master."""
    port = free_port()
    program(tmp_path / "bin", "srun", SRUN)
    env = with_atoll(
        tmp_path / "bin", SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="3", SLURM_CPUS_PER_TASK="1",
        RUN_DIR=str(tmp_path / "run"), MASTER_HOST="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip

    def start(steps: int) -> AbstractContextManager[Any]:
        return running(["bash", SCRIPT, "--config", tiny(tmp_path, steps)], tmp_path / "log", env=env)

    return start, f"127.0.0.1:{port}"


def of_this_job(process: Any) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if _session(p) == process.pid]


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return -1


def models(tmp_path: Path) -> int:
    return len(list(tmp_path.glob("run/peer-*/model/model.safetensors")))


@pytest.mark.slow
def test_three_nodes_train_to_the_end_and_leave_nothing_running(tmp_path: Path, job: tuple[Job, str]) -> None:
    start, _ = job
    log = tmp_path / "log"
    with start(steps=20) as process:
        assert process.wait(90) == 0, log.read_text()
        until(lambda: not of_this_job(process), "all have ended", log)
    assert len(list(tmp_path.glob("run/peer-*/finished"))) == 3
    assert models(tmp_path) == 1
    assert (tmp_path / "run" / "token").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_peer_that_dies_comes_back_and_a_job_that_is_requeued_goes_on(tmp_path: Path, job: tuple[Job, str]) -> None:
    start, address = job
    log = tmp_path / "log"

    def members(process: Any) -> int:
        return sum(1 for p in of_this_job(process) if "-m" in p.cmdline() and "join" in p.cmdline())

    with start(steps=1_000_000) as process:
        until(lambda: any(tmp_path.glob("run/peer-*/checkpoint/step-*")), "a checkpoint is there", log)
        victim = next(p for p in of_this_job(process) if "-m" in p.cmdline() and "join" in p.cmdline())
        victim.kill()
        until(lambda: len(reasons(address, tmp_path)) == 1, "the others have noticed", log)
        until(lambda: members(process) == 3 and world(address, tmp_path) == 3, "it has come back", log)
        for p in of_this_job(process):  # the node is gone
            p.send_signal(signal.SIGKILL)
    reached = max(int(path.stem.partition("-")[2]) for path in tmp_path.glob("run/peer-*/checkpoint/step-*"))
    assert reached > 0
    log.unlink()
    with start(steps=1_000_000) as process:  # the same settings: others would be another run
        until(lambda: world(address, tmp_path) == 3, "it has come back", log)
        assert min(m.revision for m in ask(address, tmp_path).members) >= reached


def ask(address: str, tmp_path: Path) -> Any:
    client = StatusClient(address, Guard(read_token(tmp_path / "run" / "token")))
    try:
        return client.ask()
    finally:
        client.close()


def world(address: str, tmp_path: Path) -> int:
    try:
        return sum(m.rank >= 0 and m.revision > 0 for m in ask(address, tmp_path).members)
    except AtollError:
        return 0


def reasons(address: str, tmp_path: Path) -> list[str]:
    return [past.loss.reason for past in ask(address, tmp_path).losses]
