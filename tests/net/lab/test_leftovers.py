"""A lab leaves nothing behind: not when closed, not when its owner ends, not when that is killed."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from atoll.errors import LabUnavailable
from atoll.net.lab import open_lab
from tests.net.lab.hosts import BACK_ENDS, PACKETS, PROGRAM, Program, need, wait_until_gone, workers

OWNER = """
import json, subprocess, sys
from atoll.errors import LabUnavailable
from atoll.net.lab import open_lab
back_end, program = sys.argv[1:]
lab = open_lab(2, back_end=back_end)
child = lab.start(1, [sys.executable, program, "sleep", "", "0"], stdout=subprocess.PIPE, text=True)
print(json.dumps([child.pid, int(child.stdout.readline())]), flush=True)
sys.stdin.readline()
"""
FORKED = """
import os, sys
from atoll.errors import LabUnavailable
from atoll.net.lab import open_lab
lab = open_lab(1, back_end=sys.argv[1])
if (child := os.fork()) == 0:
    sys.exit()
os.waitpid(child, 0)
sys.exit(lab.start(0, ["true"]).wait())
"""
NAMESPACES = Path("/var/run/netns")


def owner(back_end: str) -> tuple["subprocess.Popen[str]", psutil.Process, psutil.Process]:
    """The owner of a lab, who ends when told anything; a process on a host; that one's child."""
    argv = [sys.executable, "-c", OWNER, back_end, PROGRAM]
    started = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    child, grandchild = json.loads(started.stdout.readline())
    return started, psutil.Process(child), psutil.Process(grandchild)


def namespaces_of(pid: int) -> list[str]:
    return [path.name for path in NAMESPACES.glob(f"atoll-lab-{pid}-*")]


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_close_ends_processes_and_their_children(back_end: str) -> None:
    lab = open_lab(2, back_end=need(back_end))
    with Program(lab, 1, "sleep", ":0") as program:
        family = [psutil.Process(program.process.pid), psutil.Process(program.hear())]
        family += [*workers(), psutil.Process(lab.start(0, ["sleep", "1000"]).pid)]
        lab.close()
        wait_until_gone(family)
        assert namespaces_of(psutil.Process().pid) == []
        lab.close()
        for use in (lambda: lab.start(0, ["true"]), lambda: lab.cut(0)):
            with pytest.raises(LabUnavailable, match="closed"):
                use()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_an_owner_that_ends_closes_its_lab(back_end: str) -> None:
    process, child, grandchild = owner(need(back_end))
    process.communicate("end\n", timeout=20)
    assert process.returncode == 0
    wait_until_gone([child, grandchild])
    assert namespaces_of(process.pid) == []


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_nothing_outlives_an_owner_that_is_killed(back_end: str) -> None:
    process, child, grandchild = owner(need(back_end))
    family = psutil.Process(process.pid).children()
    assert child in family
    process.kill()
    process.communicate()
    wait_until_gone(family)
    if back_end == "relay":
        grandchild.kill()  # only namespaces tell whose that was
        return
    assert namespaces_of(process.pid)
    with open_lab(1, back_end=back_end):
        assert namespaces_of(process.pid) == []
        wait_until_gone([grandchild])


@pytest.mark.parametrize("back_end", PACKETS)
def test_a_living_owners_lab_is_left_alone(back_end: str) -> None:
    process, child, grandchild = owner(need(back_end))
    try:
        with open_lab(1, back_end=back_end):
            assert len(namespaces_of(process.pid)) >= 2
            assert child.is_running()
            assert grandchild.is_running()
    finally:
        process.kill()
        process.communicate()
        open_lab(1, back_end=back_end).close()


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_fork_of_the_owner_does_not_close_the_lab(back_end: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, need(back_end)], timeout=20, check=False)
    assert done.returncode == 0
