"""The launch scripts, with the real torchrun: islands of two processes, and peers that it only starts."""

import re
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

import atoll
from tests.deploy.commands import DEPLOY, ROOT
from tests.deploy.places import program, running, tiny, until, with_atoll


def environment(tmp_path: Path, master: atoll.Master) -> dict[str, str]:
    program(tmp_path / "bin", "torchrun", f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    return with_atoll(tmp_path / "bin", MASTER=master.address, PROCESSES="2")


@pytest.mark.slow
def test_two_islands_train_and_one_that_loses_a_process_is_started_again(tmp_path: Path) -> None:
    example = tmp_path / "longer.py"
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r}); import fsdp; fsdp.main(sys.argv[1], 150)"
    example.write_text(f"{code}\nfsdp.dist.destroy_process_group()\n")
    one, two = tmp_path / "one", tmp_path / "two"
    with atoll.Master() as master:
        env = environment(tmp_path, master)
        script = DEPLOY / "torchrun" / "islands.sh"
        with (
            running([script, example], one, env=env) as first,
            running([script, example], two, env=env) as second,
        ):
            until(lambda: "on 2 islands" in one.read_text(), "both train", one)
            victim = next(p for p in workers(second) if p.environ()["RANK"] == "1")
            victim.kill()
            until(lambda: "on 1 islands" in one.read_text(), "the other goes on", one)
            assert [first.wait(100), second.wait(100)] == [0, 0], one.read_text() + two.read_text()
    ends = [re.findall(r"round 150, shard (\d) on \d islands: (\w+)", path.read_text()) for path in (one, two)]
    assert sorted(ends[0]) == sorted(ends[1])
    assert len(ends[0]) == 2


def workers(process: Any) -> list[psutil.Process]:
    return [p for p in psutil.Process(process.pid).children(recursive=True) if "RANK" in p.environ()]


@pytest.mark.slow  # peers that a script starts: test_slurm.py
def test_each_process_can_be_a_peer(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with atoll.Master() as master:
        env = environment(tmp_path, master)
        flags = ["--config", tiny(tmp_path, 20), "--min-world", "2"]
        with running([DEPLOY / "torchrun" / "peers.sh", *flags], log, env=env, cwd=tmp_path) as process:
            assert process.wait(100) == 0, log.read_text()
    assert len(list(tmp_path.glob("runs/2*/model/model.safetensors"))) == 1
