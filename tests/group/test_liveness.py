"""The helper as a real process: what it says of its parent, when it ends, and how little it takes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from atoll.group import messages
from atoll.group.messages import Beat
from atoll.group.wiring import liveness
from atoll.group.wiring.helper import Helper
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER, Channel, Frame
from atoll.net.guard import OPEN, Guard
from atoll.net.loop import SocketLoop
from atoll.net.preamble import Greeting

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no stopped processes, no shared page")

SECRET = bytes(range(16))
PARENT = """
import sys, time
from atoll.group.wiring.helper import Helper
helper = Helper(("127.0.0.1", int(sys.argv[1])))
helper.start(7, bytes(range(16)))
for line in sys.stdin:
    helper.progress()
"""


class Listener:
    """In the place of the master: hears beats."""

    def __init__(self, guard: Guard = OPEN) -> None:
        self.net = SocketLoop(Greeting("test"), guard)
        self.channels: list[Channel] = []
        self.beats: list[Beat] = []
        self.ended = 0
        self.address = self.net.listen("127.0.0.1", 0, self._accepted)

    def _accepted(self, channel: Channel) -> None:
        self.channels.append(channel)
        self.net.add(channel, self._heard, self._lost)

    def _heard(self, channel: Channel, frame: Frame) -> None:
        beat = messages.decode_to_master(frame.here)
        assert isinstance(beat, Beat)
        self.beats.append(beat)

    def _lost(self, channel: Channel, why: str) -> None:
        self.ended += 1

    def until(self, wanted: Callable[[], Any], within_s: float = 10.0) -> None:
        end = time.monotonic() + within_s
        while not wanted():
            assert time.monotonic() < end, f"heard {self.beats[-3:]}"
            self.net.turn(0.05)

    def next_state(self) -> str:
        count = len(self.beats)
        self.until(lambda: len(self.beats) > count)
        return self.beats[-1].state


@pytest.fixture
def master() -> Iterator[Listener]:
    made = Listener()
    yield made
    made.net.close()


@pytest.fixture
def parent(master: Listener) -> Iterator[subprocess.Popen[str]]:
    """A process with a helper of its own; a line on its input is progress."""
    argv = [sys.executable, "-c", PARENT, str(master.address[1])]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, text=True)
    yield process
    process.send_signal(signal.SIGCONT)
    process.kill()
    process.communicate()


@pytest.fixture
def script(master: Listener) -> Iterator[subprocess.Popen[bytes]]:
    """The script as a child of ours, without a page."""
    argv = [sys.executable, "-S", "-E", liveness.__file__, str(os.getpid()), "-1"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE)
    bodies = {state: messages.encode(Beat(7, SECRET, state, bytes(8))) for state in ("running", "stopped", "gone")}
    told = {
        "master": master.address,
        "greeting": preamble.encode(Greeting("test")).hex(),
        "key": "",
        "proof": "",
        "tls": [],
        "beats": {state: (HEADER.pack(CONTROL, len(body), 0) + body).hex() for state, body in bodies.items()},
    }
    assert process.stdin is not None
    process.stdin.write(json.dumps(told).encode() + b"\n")
    process.stdin.flush()
    yield process
    process.kill()
    process.communicate()


def test_beats_say_running_stopped_running_and_gone(master: Listener, parent: subprocess.Popen[str]) -> None:
    master.until(lambda: len(master.beats) >= 2)
    assert master.beats == [Beat(7, SECRET, "running", bytes(8))] * len(master.beats)
    parent.send_signal(signal.SIGSTOP)
    master.until(lambda: master.next_state() == "stopped")
    assert master.next_state() == "stopped"
    parent.send_signal(signal.SIGCONT)
    master.until(lambda: master.next_state() == "running")
    parent.kill()
    killed = time.monotonic()
    master.until(lambda: master.ended)
    assert master.beats[-1] == Beat(7, SECRET, "gone", bytes(8))
    assert [beat.state for beat in master.beats].count("gone") == 1
    assert time.monotonic() - killed < 2.0


def test_beats_carry_the_progress_of_the_parent(master: Listener, parent: subprocess.Popen[str]) -> None:
    assert parent.stdin is not None
    parent.stdin.write("\n" * 300)
    parent.stdin.flush()
    master.until(lambda: master.beats and int.from_bytes(master.beats[-1].progress, "little") == 300)


def test_it_ends_when_its_parents_pipe_closes(master: Listener, script: subprocess.Popen[bytes]) -> None:
    master.until(lambda: master.beats)
    assert script.stdin is not None
    script.stdin.close()
    master.until(lambda: master.ended)
    assert master.beats[-1].state == "gone"
    assert script.wait(5.0) == 0
    script.stdin = None


def test_it_ends_when_the_master_is_gone(master: Listener, script: subprocess.Popen[bytes]) -> None:
    master.until(lambda: master.beats)
    master.net.close()
    assert script.wait(10.0) == 0


def test_it_beats_at_least_once_a_second_and_takes_almost_nothing(
    master: Listener, script: subprocess.Popen[bytes]
) -> None:
    master.until(lambda: len(master.beats) >= 2)
    process = psutil.Process(script.pid)
    began, used, count = time.monotonic(), sum(process.cpu_times()[:2]), len(master.beats)
    end = began + 2.0
    while time.monotonic() < end:
        master.net.turn(end - time.monotonic())
    assert len(master.beats) - count >= 2
    assert sum(process.cpu_times()[:2]) - used <= 0.01 * 2.0
    assert process.memory_info().rss < 25 << 20


def helpers() -> list[psutil.Process]:
    """Those of this process, which may have other children."""
    return [c for c in psutil.Process().children() if any("liveness.py" in word for word in c.cmdline())]


def test_a_helper_that_died_is_started_again_and_closing_ends_it(master: Listener) -> None:
    helper = Helper(master.address)
    helper.start(7, SECRET)
    master.until(lambda: master.beats)
    (child,) = helpers()
    helper.keep()
    assert helpers() == [child]  # it lives: nothing to do
    child.kill()
    master.until(lambda: master.ended)
    psutil.wait_procs([child], 0.1)
    helper.keep()
    master.until(lambda: len(master.channels) == 2 and master.next_state() == "running")
    assert helpers() != [child]
    helper.close()
    helper.close()
    assert helpers() == []


def test_a_helper_that_can_not_be_started_harms_nobody_and_is_tried_again(
    master: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory or descriptors a process can't fork: no reason to leave the group."""

    def no_more(*_: Any, **__: Any) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    helper = Helper(master.address)
    helper.keep()
    assert helpers() == []  # nobody to speak for yet
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_more)
        helper.start(7, SECRET)
        helper.keep()
    helper.keep()
    master.until(lambda: master.beats)
    helper.close()
    helper.keep()
    assert helpers() == []
