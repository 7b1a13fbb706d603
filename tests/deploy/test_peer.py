"""peer.sh: resumes where there is something to resume, stays finished, passes signals and exit codes on; and `atoll`
ends cleanly as process 1, as in a container without an init."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

import atoll
from atoll.group.wiring.asking import StatusClient
from tests.deploy.commands import DEPLOY
from tests.deploy.places import free_port, program, running, tiny, until, with_atoll

PEER = str(DEPLOY / "peer.sh")
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def processes_one() -> str:
    """Why there can be no process 1 here; empty: there can."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def peer(tmp_path: Path, atoll_script: str) -> tuple[int, str]:
    """Exit code and output of peer.sh with a stand-in for atoll."""
    program(tmp_path / "bin", "atoll", atoll_script)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    argv = [PEER, str(tmp_path / "run"), "master:48148", "--name", "a b"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, timeout=20)
    return done.returncode, done.stdout + done.stderr


SAY = '#!/bin/sh\nfor word; do echo "[$word]"; done\n'


def test_it_resumes_only_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    code, said = peer(tmp_path, SAY + "exit 1\n")
    assert code == 1
    assert said.split("\n")[:4] == ["[join]", "[master:48148]", "[--name]", "[a b]"]
    assert "--resume" not in said
    (tmp_path / "run" / "checkpoint" / "step-00000010.safetensors").touch()
    assert "[--resume]" in peer(tmp_path, SAY + "exit 1\n")[1]


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    assert peer(tmp_path, SAY) != (0, "")
    code, said = peer(tmp_path, SAY)
    assert code == 0
    assert "is finished" in said
    assert "[join]" not in said


@pytest.mark.parametrize("code", [1, 2, 130])
def test_other_ends_are_passed_on(tmp_path: Path, code: int) -> None:
    assert peer(tmp_path, f"#!/bin/sh\nexit {code}\n")[0] == code
    assert not (tmp_path / "run" / "finished").exists()


def test_it_passes_sigterm_on_and_waits(tmp_path: Path) -> None:
    slow = (
        "#!/bin/sh\ntrap 'echo leaving; sleep 0.5; echo left; exit 130' TERM\necho here\nwhile :; do sleep 0.05; done\n"
    )
    program(tmp_path / "bin", "atoll", slow)
    env, log = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}, tmp_path / "log"
    with running([PEER, tmp_path / "run", "m:1"], log, env=env) as process:
        until(lambda: "here" in log.read_text(), "atoll is started", log)
        process.terminate()
        assert process.wait(20) == 130
    assert log.read_text().split() == ["here", "leaving", "left"]


@pytest.mark.skipif(bool(processes_one()), reason=processes_one())
@pytest.mark.parametrize("by_script", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["atoll", "peer.sh"])
def test_a_peer_that_is_process_1_leaves_at_sigterm(tmp_path: Path, by_script: bool) -> None:
    """What a container runtime does at its end."""
    env, log = with_atoll(tmp_path / "bin"), tmp_path / "log"
    (tmp_path / "run").mkdir()
    with atoll.Master() as master:
        flags = ["--config", tiny(tmp_path, steps=1_000_000), "--name", "one"]
        direct = ["atoll", "join", master.address, "--run-dir", tmp_path / "run", *flags]
        argv = [PEER, tmp_path / "run", master.address, *flags] if by_script else direct
        with running([*UNSHARE, *argv], log, env=env) as process:
            client = StatusClient(master.address)
            until(lambda: any(m.revision for m in client.ask().members), "it trains", log)
            ((first),) = psutil.Process(process.pid).children()
            first.send_signal(signal.SIGTERM)
            assert process.wait(20) == 130
        assert [past.loss.reason for past in client.ask().losses] == ["left"]
        client.close()
    assert psutil.pid_exists(first.pid) is False


@pytest.mark.skipif(bool(processes_one()), reason=processes_one())
def test_a_master_that_is_process_1_ends_at_sigterm(tmp_path: Path) -> None:
    env, log = with_atoll(tmp_path / "bin"), tmp_path / "log"
    argv = ["atoll", "master", "--listen", f"127.0.0.1:{free_port()}"]
    with running([*UNSHARE, *argv], log, env=env) as process:
        until(lambda: "listening" in log.read_text(), "it listens", log)
        (first,) = psutil.Process(process.pid).children()
        first.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
