"""`--strategy diloco-server` from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.history import History
from atoll.cli.train import main
from atoll.errors import InvalidConfig

TINY = ("--model.width", "16", "--model.layers", "1", "--model.heads", "2", "--model.context", "16", "--steps", "40")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--peers", "0"], "0 with --strategy diloco-server"),
        (["--listen", "0.0.0.0:1"], "--listen 0.0.0.0:1 is for --strategy diloco-server"),
        (["--strategy", "diloco-server", "--listen", "0.0.0.0:1"], "--token-file"),
        (["--strategy", "diloco-server", "--listen", "nowhere"], "HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_refused(flags: list[str], why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        main(flags)


def said(kind: str, peer: str = "server", **about: Any) -> dict[str, Any]:
    return {"event": kind, "peer": peer, "at": 1.0, **about}


def test_a_server_speaks_for_workers_that_are_not_heard_themselves() -> None:
    history = History(40)
    push = {"version": 1, "staleness": 0, "steps": 5, "step": 5, "loss": 3.0, "tokens": 80, "world": 2}
    history.add(said("listening", address="h:1"))
    assert history.add(said("came", who="far", message="far joined", world=1, epoch=1)) == "far joined; there are 1 now"
    history.add(said("started", "near", pid=7))
    for who in ("far", "near"):
        history.add(said("applied", who=who, **push))
    far, near = history.peers["far"], history.peers["near"]
    assert (far.state, far.step, far.loss, far.tokens) == ("training", 5, 3.0, 80)
    assert (near.state, near.step) == ("joining", 0)
    assert history.peers["server"].state == "serving"
    sentence = history.add(said("went", who="far", message="far (silent)", world=1, epoch=3))
    assert sentence == "far (silent) is gone; 1 go on"
    assert far.state == "lost"
    history.add(said("done", step=40, hash="", sent=0, ddp=0))
    assert (history.step, far.state, near.state) == (40, "done", "joining")


def test_what_is_refused_or_too_old_is_named() -> None:
    history = History(40)
    assert "what near came to was no number" in str(history.add(said("refused", who="near", step=3)))
    assert "what near learnt was dropped: 31 versions old" in str(
        history.add(said("dropped", who="near", step=3, staleness=31))
    )
    assert "near: gone; it looks for the server" in str(history.add(said("alone", "near", message="gone", epoch=1)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_run_of_processes_with_chaos(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "atoll", "train", "--strategy", "diloco-server", "--peers", "3", "--every", "5"]
    argv += [*TINY, "--steps", "400", "--save-every", "100", "--chaos", "--json"]
    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, text=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["event"] == "summary"
    assert summary["loss_after"] < summary["loss_before"]
    assert summary["failures_survived"] == 1
    assert (Path(tmp_path, summary["model"]) / "model.safetensors").exists()
