"""Local processes: real children, started, watched, frozen and ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.runtime import processes
from atoll.runtime.processes import Exit, LocalProcesses

WAIT_S = 20.0
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

ANSWER = """
import signal, socket, sys
line = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "polite" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: (line.sendall(b"bye"), sys.exit()))
line.sendall(b"hello")
while question := line.recv(100):
    line.sendall(question)
"""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[LocalProcesses]:
    with LocalProcesses(tmp_path) as children:
        yield children


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        yield server


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code, *map(str, arguments)]


def answering(server: socket.socket, *options: str) -> list[str]:
    """A child that connects and echoes: its connection breaks when it ends, and is silent while it is frozen."""
    return python(ANSWER, server.getsockname()[1], *options)


def greeted(server: socket.socket) -> socket.socket:
    line, _ = server.accept()
    line.settimeout(WAIT_S)
    assert line.recv(100) == b"hello"
    return line


def ended(line: socket.socket) -> bool:
    try:
        return line.recv(100) == b""
    except ConnectionResetError:
        return True


def exits(children: LocalProcesses, count: int) -> list[Exit]:
    deadline, seen = time.monotonic() + WAIT_S, list[Exit]()
    while len(seen) < count and time.monotonic() < deadline:
        seen += children.wait_any(WAIT_S)
    return seen


def test_an_exit_is_told_once_with_its_code(children: LocalProcesses) -> None:
    children.start(python("raise SystemExit(7)"), "seven")
    children.start(python("pass"), "zero")
    assert sorted(exits(children, 2), key=lambda e: e.name) == [Exit("seven", 7), Exit("zero", 0)]
    assert children.alive() == []
    assert children.wait_any(WAIT_S) == []


def test_waiting_without_children_returns_at_once(children: LocalProcesses) -> None:
    start = time.monotonic()
    assert children.wait_any(WAIT_S) == []
    assert time.monotonic() - start < WAIT_S / 2


def test_waiting_ends_with_the_timeout(children: LocalProcesses, server: socket.socket) -> None:
    children.start(answering(server), "quiet")
    assert children.wait_any(0.01) == []
    assert children.alive() == ["quiet"]


def test_lines_come_in_order_and_before_the_exit(children: LocalProcesses) -> None:
    lines: list[tuple[str, str]] = []
    code = "for i in range(2000): print('line', i)\nprint('\\u00fc and no newline', end='')"
    children.start([sys.executable, "-X", "utf8", "-c", code], "talker", stdout=lambda *line: lines.append(line))
    assert lines == []
    while not children.wait_any(WAIT_S):
        pass
    assert lines == [("talker", f"line {i}") for i in range(2000)] + [("talker", "ü and no newline")]


def test_a_callback_that_fails_loses_neither_later_lines_nor_exits(children: LocalProcesses) -> None:
    lines: list[str] = []

    def on_line(name: str, line: str) -> None:
        lines.append(line)
        if line == "1":
            raise LookupError("on purpose")

    children.start(python("print(1); print(2)"), "child", stdout=on_line)
    with pytest.raises(LookupError):
        exits(children, 1)
    assert exits(children, 1) == [Exit("child", 0)]
    assert lines == ["1", "2"]


def test_an_exit_is_told_though_a_grandchild_holds_the_pipe(children: LocalProcesses, server: socket.socket) -> None:
    code = f"import subprocess\nsubprocess.Popen({answering(server)!r})\nprint('started', flush=True)"
    lines: list[str] = []
    children.start(python(code), "parent", stdout=lambda _, line: lines.append(line))
    with greeted(server) as line:
        assert exits(children, 1) == [Exit("parent", 0)]
        line.sendall(b"still there")
        assert line.recv(100) == b"still there"
    assert lines == ["started"]


def test_output_without_a_callback_goes_to_the_log(children: LocalProcesses, tmp_path: Path) -> None:
    code = "import os\nos.write(1, b'out\\n')\nos.write(2, b'err\\n')"
    for _ in range(2):
        child = children.start(python(code), "noisy")
        exits(children, 1)
    assert child.log == tmp_path / "logs" / "noisy.log"
    assert child.log.read_text() == "out\nerr\n" * 2


def test_stderr_goes_to_the_log_even_with_a_callback(children: LocalProcesses) -> None:
    lines: list[str] = []
    code = "import os\nos.write(1, b'out\\n')\nos.write(2, b'err\\n')"
    child = children.start(python(code), "noisy", stdout=lambda _, line: lines.append(line))
    exits(children, 1)
    assert lines == ["out"]
    assert child.log.read_text() == "err\n"


def test_env_is_added_to_ours(children: LocalProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATOLL_A", "ours")
    lines: list[str] = []
    code = "import os\nprint(os.environ['ATOLL_A'], os.environ['ATOLL_B'])"
    children.start(python(code), "child", stdout=lambda _, line: lines.append(line), env={"ATOLL_B": "given"})
    exits(children, 1)
    assert lines == ["ours given"]


def test_a_living_name_is_taken_and_a_dead_one_free(children: LocalProcesses, server: socket.socket) -> None:
    children.start(answering(server), "twin")
    with greeted(server) as line:
        with pytest.raises(ValueError, match="twin"):
            children.start(python("pass"), "twin")
        children.kill("twin")
        assert ended(line)
    assert [e.name for e in exits(children, 1)] == ["twin"]
    children.start(python("pass"), "twin")
    assert exits(children, 1) == [Exit("twin", 0)]


@pytest.mark.parametrize("name", ["", "a/b", "../up"])
def test_a_name_that_is_no_file_name_is_refused(children: LocalProcesses, name: str) -> None:
    with pytest.raises(ValueError, match="log file"):
        children.start(python("pass"), name)


def test_a_program_that_does_not_exist_raises_and_leaves_nothing(children: LocalProcesses) -> None:
    with pytest.raises(FileNotFoundError):
        children.start(["no-such-program-here"], "ghost")
    assert children.alive() == []
    assert children.wait_any(WAIT_S) == []


def test_an_unknown_name_is_named(children: LocalProcesses) -> None:
    with pytest.raises(ValueError, match="nobody"):
        children.kill("nobody")


@posix_only
def test_kill_and_interrupt_end_with_their_signals(children: LocalProcesses, server: socket.socket) -> None:
    for name, act, code in (("a", children.kill, -signal.SIGKILL), ("b", children.interrupt, -signal.SIGINT)):
        children.start(answering(server), name)
        with greeted(server):
            act(name)
            assert exits(children, 1) == [Exit(name, code)]


def test_a_frozen_child_is_silent_and_alive_until_thawed(children: LocalProcesses, server: socket.socket) -> None:
    children.start(answering(server), "still")
    with greeted(server) as line:
        children.freeze("still")
        line.settimeout(0.2)
        line.sendall(b"there?")
        with pytest.raises(TimeoutError):
            line.recv(100)
        assert children.alive() == ["still"]
        children.thaw("still")
        line.settimeout(WAIT_S)
        assert line.recv(100) == b"there?"


@posix_only
def test_close_ends_the_willing_the_deaf_and_the_frozen(
    tmp_path: Path, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 1.0)  # as long as it takes with one that is deaf
    children = LocalProcesses(tmp_path)
    for name, *options in (("willing",), ("frozen", "polite"), ("deaf", "deaf")):
        children.start(answering(server, *options), name)
    with greeted(server), greeted(server), greeted(server):
        children.freeze("frozen")
        children.close()
    assert children.alive() == []
    assert {e.name: -e.code for e in children.wait_any(0)} == {
        "willing": signal.SIGTERM,
        "frozen": 0,  # it was thawed to end in its own way
        "deaf": signal.SIGKILL,
    }
    children.close()


@posix_only
def test_close_tells_the_last_words(tmp_path: Path) -> None:
    code = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("up", flush=True)
signal.sigwait({signal.SIGTERM})
print("bye")
"""
    lines: list[str] = []
    with LocalProcesses(tmp_path) as children:
        children.start(python(code), "child", stdout=lambda _, line: lines.append(line))
        while not lines:
            children.wait_any(WAIT_S)
    assert children.wait_any(0) == [Exit("child", 0)]
    assert lines == ["up", "bye"]


PARENT = """
import signal, sys, threading
from pathlib import Path
from atoll.runtime.processes import LocalProcesses

children = LocalProcesses(Path(sys.argv[1]))
start = threading.Thread(target=lambda: [children.start(sys.argv[2:], name) for name in ("a", "b")])
start.start()
start.join()
print("started", flush=True)
sys.stdin.readline()
"""


@contextmanager
def family(tmp_path: Path, argv: list[str], then: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that starts two children from a short-lived thread, and does `then` after a line on its stdin."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT + then, str(tmp_path), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=sys.platform != "win32",
    ) as parent:
        try:
            assert said(parent) == "started"
            yield parent
        finally:
            parent.kill()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


FREEZE = "children.freeze('b'); print('frozen', flush=True); signal.pause()"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed parent is seen as end of file on stdin")
@pytest.mark.parametrize("options", [[], ["deaf"]])
def test_no_child_outlives_a_killed_parent(tmp_path: Path, server: socket.socket, options: list[str]) -> None:
    with family(tmp_path, answering(server, *options), FREEZE) as parent, greeted(server) as a, greeted(server) as b:
        a.sendall(b"alive?")
        assert a.recv(100) == b"alive?"
        tell(parent)
        assert said(parent) == "frozen"
        parent.kill()
        assert ended(a)
        assert ended(b)


@posix_only
def test_a_parent_that_just_exits_ends_its_children_first(tmp_path: Path, server: socket.socket) -> None:
    with family(tmp_path, answering(server, "polite"), "") as parent, greeted(server) as a, greeted(server) as b:
        tell(parent)
        assert a.recv(100) == b"bye"
        assert b.recv(100) == b"bye"
        assert parent.wait(WAIT_S) == 0
        assert ended(a)
        assert ended(b)


@posix_only
def test_a_child_that_cares_sees_our_end_on_its_stdin(children: LocalProcesses) -> None:
    """The means elsewhere than on Linux; here the kernel would be first, so the pipe is closed by hand."""
    child = children.start(python("import os\nos.read(0, 1)"), "heeding")
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert exits(children, 1) == [Exit("heeding", 0)]


@posix_only
def test_ctrl_c_reaches_only_the_parent_which_ends_the_children(tmp_path: Path, server: socket.socket) -> None:
    then = """
try:
    print("ready", flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdin.readline()
    children.close()
    print(*(e.code for e in children.wait_any(0)))
"""
    with family(tmp_path, answering(server), then) as parent, greeted(server) as a, greeted(server) as b:
        tell(parent)
        assert said(parent) == "ready"
        os.killpg(parent.pid, signal.SIGINT)  # as the terminal does: to the whole foreground group
        assert said(parent) == "interrupted"
        for line in (a, b):
            line.sendall(b"alive?")
            assert line.recv(100) == b"alive?"
        tell(parent)
        assert said(parent) == f"{-signal.SIGTERM} {-signal.SIGTERM}"


def test_a_process_that_got_the_number_of_one_that_ended_is_left_alone(
    children: LocalProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = children.start(python("pass"), "short")
    child.process.wait(WAIT_S)
    monkeypatch.setattr(processes.psutil, "Process", lambda pid: pytest.fail(f"{pid} may be anybody's"))
    children.freeze("short")
    children.thaw("short")
