"""The command line as people use it: help that teaches, one clear line for what is wrong, exit codes, nothing left
behind."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

import atoll
from atoll.cli.launch import Launch
from atoll.cli.main import COMMANDS, run

RUN = uuid.uuid4().hex
"""In the environment of all that these tests start, so that other runs on this machine don't count."""
TINY = [
    *("--model.width", "16", "--model.layers", "1", "--model.heads", "2", "--model.context", "16", "--batch", "2"),
    *("--warm-up", "2", "--save-every", "10"),
]


def atoll_command(*argv: str, cwd: Path, **options: Any) -> "subprocess.Popen[str]":
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "ATOLL_TEST_RUN": RUN}
    return subprocess.Popen(
        [sys.executable, "-m", "atoll", *argv],
        cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(*argv: str, cwd: Path, timeout_s: float = 100.0) -> tuple[int, str, str]:
    process = atoll_command(*argv, cwd=cwd)
    out, err = process.communicate(timeout=timeout_s)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little text to learn."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("the ring between them is thin, and islands rise and sink. " * 400)
    return file


def assert_nothing_is_left() -> None:
    """Whatever these tests have started is gone."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        left = [p for p in psutil.process_iter(["cmdline"]) if _is_ours(p)]
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {[p.info['cmdline'] for p in left]}")


def _is_ours(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("ATOLL_TEST_RUN") == RUN
    except psutil.Error:
        return False


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert "atoll join HOST" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = run([command, "--help"])
    except SystemExit as ended:
        code = ended.code
    assert code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["trian"], 2, ["trian", "train"]),
        (["train", "--peers", "0"], 2, ["--peers", "from 1 to 64"]),
        (["train", "--every", "0"], 2, ["--every", "at least 1"]),
        (["train", "--lr", "0"], 2, ["--lr", "above 0"]),
        (["train", "--one-byte.lr", "0"], 2, ["--one-byte.lr", "above 0"]),
        (["train", "--task", "docstrings"], 2, ["--task", "one-byte"]),
        (["train", "--strategy", "streaming", "--delay", "5"], 2, ["--delay", "from 0 to 4 steps"]),
        (["train", "--strategy", "streaming", "--every", "21"], 2, ["--every", "multiple of fragments (4)"]),
        (["train", "--strategy", "streaming", "--fragments", "5"], 2, ["--fragments", "from 1 to 4"]),
        (["train", "--strategy", "diloco", "--mix", "2"], 2, ["--mix", "from 0 to 1"]),
        (["join", "127.0.0.1:1", "--strategy", "slowmo", "--delay", "1"], 2, ["--delay", "slowmo"]),
        (["train", "--resume", "never-was"], 2, ["never-was"]),
        (["train", "--resume", "some.file"], 2, ["some.file is a file", "one-byte"]),
        (["train", "--strategy", "ddp", "--fragments", "2"], 2, ["--fragments", "streaming", "ddp"]),
        (["train", "--token-file", "none"], 2, ["can't read the token in none", "make one"]),
        (["train", "--text", os.devnull], 1, [os.devnull, "neither a file nor a folder"]),
        (["join", "127.0.0.1:1", "--run-dir", "some.file"], 1, ["some.file", "another folder"]),
        (["train", "--config", "missing.toml"], 2, ["missing.toml"]),
        (["join", "nonsense"], 2, ["HOST:PORT"]),
        (["train", "--text", "/no/such/folder"], 1, ["/no/such/folder"]),
        (["join", "127.0.0.1:1", "--text", "/no/such/file"], 1, ["/no/such/file"]),
        (["status", "127.0.0.1:1"], 1, ["no master answers at 127.0.0.1:1"]),
        (["join", "127.0.0.1:1", "--connections", "0"], 2, ["--connections is 0", "1 to 16"]),
        (["join", "127.0.0.1:1", "--min-world", "0"], 2, ["--min-world is 0", "at least 1"]),
        (["train", "--model.width", "130"], 2, ["--model.width", "multiple of 8"]),
        (["train", "--model", "smollm2"], 2, ["--model.name", "one-byte"]),
        (["train", "--strategy", "one-byte", "--model", "nobody's"], 2, ['there is no model "nobody\'s"']),
        (["train", "--strategy", "one-byte", "--task", "no.tsv"], 1, ["no.tsv", "--task takes docstrings or a file"]),
        (["join", "127.0.0.1:1", "--upload-mbit=-3"], 2, ["--upload-mbit is -3"]),
        (["join", "127.0.0.1:1", "--listen", "here"], 2, ["'here' is no address"]),
        (["reproduce", "pcl"], 2, ["pccl"]),
        (["reproduce", "fedcompass"], 2, ["planned"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    argv: list[str], code: int, words: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.file").touch()
    monkeypatch.setattr("atoll.group.wiring.asking._DIAL_S", 0.1)
    assert run(argv) == code
    err = capsys.readouterr().err
    assert err.startswith("atoll: ")
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_output_that_finds_no_room_costs_one_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "atoll", "systems"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert ended.returncode == 1
    assert ended.stderr.startswith("atoll: No space left on device")
    assert len(ended.stderr.splitlines()) == 1


def test_into_a_pipe_each_row_of_a_table_is_one_line(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert run(["systems"]) == 0
    wide = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("pccl ") and line.rstrip().endswith("equal bitwise.") for line in wide) == 1
    monkeypatch.setenv("COLUMNS", "60")
    assert run(["systems"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) == 60


def test_an_unknown_key_in_a_file_names_the_nearest(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text("stepps = 3\n")
    assert run(["train", "--config", "run.toml"]) == 2
    assert "steps" in capsys.readouterr().err


def test_a_port_in_use(capsys: Any) -> None:
    with atoll.Master() as master:
        assert run(["master", "--listen", master.address]) == 1
    assert "--listen" in capsys.readouterr().err


def test_status_shows_who_is_in(capsys: Any) -> None:
    with atoll.Master() as master, atoll.join(master.address, name="here", labels={"zone": "a"}) as group:
        assert run(["status", master.address, "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        assert run(["status", master.address]) == 0
        shown = capsys.readouterr().out
    (member,) = status["members"]
    assert (member["name"], member["rank"], member["labels"]) == ("here", 0, {"zone": "a"})
    assert status["epoch"] == group.epoch
    assert "here" in shown


# -- a run that ends ---------------------------------------------------------------------------------------------------


@dataclass
class Finished:
    """A run that has come to its end, and what was seen of it."""

    folder: Path
    token: bytes
    code: int
    events: list[dict[str, Any]]
    err: str


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three peers that know each other by a token, one of which is killed and replaced."""
    folder, token = tmp_path_factory.mktemp("finished"), uuid.uuid4().hex
    (folder / "team.token").write_text(token)
    (folder / "team.token").chmod(0o600)
    flags = ["--peers", "3", "--chaos", "--steps", "60", "--every", "3", "--text", str(text), "--json", *TINY]
    code, out, err = finish("train", "--name", "one", "--token-file", "team.token", *flags, cwd=folder)
    return Finished(folder / "runs", token.encode(), code, [json.loads(line) for line in out.splitlines()], err)


def test_train_with_chaos_survives_and_saves_a_model_others_load(finished: Finished) -> None:
    assert finished.code == 0, finished.err
    summary = finished.events[-1]
    assert summary["event"] == "summary"
    assert summary["hashes_equal"]
    assert summary["hashes_compared"] > 5
    assert summary["failures_survived"] == 1
    assert summary["loss_after"] < summary["loss_before"]
    assert summary["bytes_sent"] < summary["bytes_ddp"]
    run_folder = finished.folder / "one"
    assert (run_folder / "plots" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (run_folder / "config.toml").exists()

    from atoll.model.saved import load_model

    model, _ = load_model(run_folder / "model")
    assert model.config.width == 16
    assert (finished.folder / "last").resolve() == run_folder.resolve()
    assert_nothing_is_left()


def test_the_token_is_handed_on_and_written_nowhere(finished: Finished) -> None:
    files = [file for file in finished.folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 5
    for file in files:
        assert finished.token not in file.read_bytes(), file


# -- a run that is told to end -----------------------------------------------------------------------------------------


@dataclass
class Long:
    """A run that goes on, what was done to it, and what it said to that."""

    stranger: tuple[int, str, str]
    after_the_stranger: list[dict[str, Any]]
    after_the_master: list[dict[str, Any]]
    after_sigterm: list[dict[str, Any]]
    ended: tuple[int, str]
    resumed: list[dict[str, Any]]
    ended_again: tuple[int, str]


@pytest.fixture(scope="module")
def long(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Long:
    """Somebody with another model comes, the master is killed, SIGTERM ends it, it is resumed, Ctrl-C ends it."""
    folder = tmp_path_factory.mktemp("long")
    flags = ["--steps", "4000", "--every", "5", "--text", str(text), *TINY, "--save-every", "0"]
    process = atoll_command("train", "--name", "long", "--peers", "2", "--json", *flags, cwd=folder)
    lines = _listen(process)
    address = _until(lines, "listening")[-1]["address"]
    _until(lines, "step")

    other = [*flags]
    other[other.index("--model.width") + 1] = "32"
    stranger = finish("join", address, *other, cwd=folder)
    _so_far(lines)
    after_the_stranger = _until(lines, "step")

    children = psutil.Process(process.pid).children(recursive=True)
    (master,) = [child for child in children if "master" in child.cmdline()]
    master.kill()
    after_the_master = _until(lines, "listening")
    after_the_master += [event for _ in range(40) for event in _until(lines, "step")]

    ended, after_sigterm = _end(process, lines, signal.SIGTERM)
    again = atoll_command("train", "--resume", "long", "--peers", "2", "--json", cwd=folder)
    lines = _listen(again)
    resumed = _until(lines, "step")
    ended_again, _ = _end(again, lines, signal.SIGINT)
    return Long(stranger, after_the_stranger, after_the_master, after_sigterm, ended, resumed, ended_again)


Lines = queue.Queue[str]


def _listen(process: "subprocess.Popen[str]") -> Lines:
    """Its lines as they come, so that it never waits for us."""
    lines: Lines = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: [lines.put(line) for line in stdout], daemon=True).start()
    return lines


def _until(lines: Lines, kind: str) -> list[dict[str, Any]]:
    """All that is said up to the first of this kind."""
    said: list[dict[str, Any]] = []
    while not said or said[-1]["event"] != kind:
        said.append(json.loads(lines.get(timeout=60)))
    return said


def _so_far(lines: Lines) -> list[dict[str, Any]]:
    """What has been said and not been read."""
    return [json.loads(lines.get()) for _ in range(lines.qsize())]


def _end(
    process: "subprocess.Popen[str]", lines: Lines, how: signal.Signals
) -> tuple[tuple[int, str], list[dict[str, Any]]]:
    """Its exit code and what it wrote to stderr; and its last events."""
    process.send_signal(how)
    last = _until(lines, "summary")
    code = process.wait(timeout=30)
    assert process.stderr is not None
    return (code, process.stderr.read()), last


def test_who_has_another_model_is_told_in_one_line_and_the_run_goes_on(long: Long) -> None:
    code, _, err = long.stranger
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "'width': 16" in err
    assert "'width': 32" in err
    assert long.after_the_stranger[-1]["event"] == "step"


def test_a_run_outlives_its_master(long: Long) -> None:
    events = long.after_the_master
    losses = [event["message"] for event in events if event["event"] == "lost"]
    assert sum("new master" in message for message in losses) == 2, losses  # made anew, or without who had just left
    assert max(event.get("step", 0) for event in events) >= 20
    assert not [event for event in events if event["event"] in ("failed", "expelled")]


def test_sigterm_ends_a_run_in_order_and_saves_it(long: Long) -> None:
    assert long.ended == (130, "")
    assert _saved(long) >= 20
    summary = long.after_sigterm[-1]
    assert summary["hashes_equal"]
    assert summary["resume"] == "atoll train --resume long"


def test_a_run_is_resumed_where_it_was_saved(long: Long) -> None:
    assert {event["step"] for event in long.resumed if event["event"] == "resumed"} == {_saved(long)}
    assert long.resumed[-1]["step"] == _saved(long) + 1
    assert long.ended_again == (130, "")
    assert_nothing_is_left()


def _saved(long: Long) -> int:
    """The newest checkpoint. When the first has left the next may save too, before it leaves."""
    return max(event["step"] for event in long.after_sigterm if event["event"] == "saved")


def test_a_run_goes_on_with_its_own_settings(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("atoll.cli.train.run_local", lambda *_: 0)
    assert run(["train", "--name", "short", "--steps", "7"]) == 0
    assert run(["train", "--resume", "short", "--steps", "7", "--peers", "2"]) == 0
    assert run(["train", "--resume", "short", "--steps", "7", "--model.width", "64"]) == 2
    assert "short goes on with its own --model.width 128, not with 64" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_resumed_from_its_start(tmp_path: Path, monkeypatch: Any) -> None:
    launched: list[tuple[Launch, str]] = []

    def launch(launch: Launch, history: Any, view: Any) -> int:
        launched.append((launch, view._title))
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("atoll.cli.train.run_local", launch)
    assert run(["train", "--name", "short", "--steps", "7"]) == 0
    assert run(["train", "--resume", "short"]) == 0
    (tmp_path / "runs" / "short" / "checkpoint" / "step-000000005.safetensors").touch()
    assert run(["train", "--resume", "short"]) == 0
    assert [(some.resume, some.steps, some.run.path.name) for some, _ in launched] == [
        (False, 7, "short"),
        (False, 7, "short"),
        (True, 7, "short"),
    ]
    assert ["it has saved no checkpoint yet" in title for _, title in launched] == [False, True, False]


@pytest.mark.parametrize("wait_s", [0.3, 1.5, pytest.param(4.0, marks=pytest.mark.slow)])
def test_ctrl_c_at_any_moment_leaves_nothing_behind(text: Path, tmp_path: Path, wait_s: float) -> None:
    flags = ["--peers", "2", "--steps", "4000", "--text", str(text), *TINY]
    process = atoll_command("train", "--name", "cut", *flags, cwd=tmp_path)
    time.sleep(wait_s)  # the moment is what is tested
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    early = wait_s < 1.0 and err.startswith(("Could not import runpy", "Fatal Python error"))  # Python was not up yet
    assert early or process.returncode in (130, -signal.SIGINT), err
    assert "Traceback" not in err or wait_s < 1.0, err  # before our first line runs, the message is Python's
    assert_nothing_is_left()


SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.{})
    range(10)
except KeyboardInterrupt:
    raise ImportError("a part is missing") from None
"""


@pytest.mark.parametrize(
    ("argv", "module", "by"),
    [
        (["train"], "numpy", "SIGINT"),
        (["join", "127.0.0.1:1"], "torch", "SIGINT"),
        (["join", "127.0.0.1:1"], "torch", "SIGTERM"),
    ],
)
def test_a_signal_while_modules_load_ends_the_command_at_once(
    argv: list[str], module: str, by: str, tmp_path: Path
) -> None:
    """Even where the module makes something else of a KeyboardInterrupt."""
    (tmp_path / f"{module}.py").write_text(SWALLOWS.format(by))  # the folder we are in comes first
    assert finish(*argv, cwd=tmp_path) == (130, "", "")
    assert not (tmp_path / "runs").exists()
