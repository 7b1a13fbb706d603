"""The example script trains, survives a kill -9 of one of its peers, and stays as short as promised."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import atoll

SCRIPT = Path(__file__).parents[1] / "examples" / "train.py"


def start(address: str) -> "subprocess.Popen[str]":
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import train; print(train.main({address!r}, 800))"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)


def test_it_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 60


def test_it_trains_on_when_a_peer_is_killed() -> None:
    with atoll.Master() as master:
        peers = [start(master.address) for _ in range(3)]
        said: list[str] = []
        three = threading.Event()

        def listen(process: "subprocess.Popen[str]") -> None:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if "3 peers" in line:
                    three.set()

        threads = [threading.Thread(target=listen, args=(p,), daemon=True) for p in peers]
        for thread in threads:
            thread.start()
        assert three.wait(60), said
        peers[1].kill()
        assert [peers[0].wait(60), peers[2].wait(60)] == [0, 0], said
        for thread in threads:
            thread.join(5)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in said if "loss " in line]
    assert any("2 peers" in line for line in said)
    assert min(losses[-3:]) < 0.6 * losses[0]
