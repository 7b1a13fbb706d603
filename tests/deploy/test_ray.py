"""The Ray example, with a real Ray where one is installed (`pip install ray`); it is no dependency of atoll."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.commands import ROOT

CODE = """
import sys, threading
import psutil, ray
sys.path.insert(0, "examples")
import atoll, ray_train
from atoll.group.wiring.asking import StatusClient

def kill_one(address):
    client = StatusClient(address)
    while sum(m.revision > 10 for m in client.ask().members) < 3:
        threading.Event().wait(0.1)
    next(p for p in psutil.Process().children(recursive=True) if "ray::Peer.train" in " ".join(p.cmdline())).kill()

ray.init(num_cpus=3, include_dashboard=False)
with atoll.Master() as master:
    threading.Thread(target=kill_one, args=(master.address,), daemon=True).start()
    ends = ray_train.main(master.address, peers=3, steps=8000)
print("ENDS", len(ends), len({digest for _, digest in ends}), max(loss for loss, _ in ends) < 0.1)
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_actors_train_and_one_that_is_killed_is_replaced(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=env, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost Actor(Peer" in done.stdout
    assert "ENDS 3 1 True" in done.stdout
