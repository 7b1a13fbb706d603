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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import atoll
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


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A little text to learn."""
    file = tmp_path / "text.txt"
    file.write_text("the ring between them is thin, and islands rise and sink. " * 400)
    return file


@pytest.fixture
def no_orphans() -> Iterator[None]:
    """Whatever the test starts is gone at its end."""
    before = set(psutil.pids())
    yield
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        left = [p for p in psutil.process_iter(["cmdline"]) if p.pid not in before and _is_ours(p)]
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
    with pytest.raises(SystemExit) as ended:
        run([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["trian"], 2, ["trian", "train"]),
        (["train", "--peers", "0"], 2, ["--peers", "from 1 to 64"]),
        (["train", "--every", "0"], 2, ["--every", "at least 1"]),
        (["train", "--lr", "0"], 2, ["--lr", "above 0"]),
        (["train", "--resume", "never-was"], 2, ["never-was"]),
        (["train", "--config", "missing.toml"], 2, ["missing.toml"]),
        (["join", "nonsense"], 2, ["HOST:PORT"]),
        (["train", "--text", "/no/such/folder"], 1, ["/no/such/folder"]),
        (["join", "127.0.0.1:1", "--text", "/no/such/file"], 1, ["/no/such/file"]),
        (["status", "127.0.0.1:1"], 1, ["no master answers at 127.0.0.1:1"]),
        (["join", "127.0.0.1:1", "--connections", "0"], 2, ["--connections is 0", "1 to 16"]),
        (["join", "127.0.0.1:1", "--upload-mbit=-3"], 2, ["--upload-mbit is -3"]),
        (["join", "127.0.0.1:1", "--listen", "here"], 2, ["'here' is no address"]),
        (["reproduce", "pcl"], 2, ["pccl"]),
        (["reproduce", "co2"], 2, ["planned"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    argv: list[str], code: int, words: list[str], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(argv) == code
    err = capsys.readouterr().err
    assert err.startswith("atoll: ")
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words)


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


def test_train_with_chaos_survives_and_saves_a_model_others_load(text: Path, tmp_path: Path, no_orphans: None) -> None:
    flags = ["--peers", "3", "--chaos", "--steps", "60", "--every", "3", "--text", str(text), "--json", *TINY]
    code, out, err = finish("train", "--name", "one", *flags, cwd=tmp_path)
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    summary = events[-1]
    assert summary["event"] == "summary"
    assert summary["hashes_equal"]
    assert summary["hashes_compared"] > 5
    assert summary["failures_survived"] == 1
    assert summary["loss_after"] < summary["loss_before"]
    assert summary["bytes_sent"] < summary["bytes_ddp"]
    run_folder = tmp_path / "runs" / "one"
    assert (run_folder / "plots" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (run_folder / "config.toml").exists()

    from atoll.model.saved import load_model

    model, _ = load_model(run_folder / "model")
    assert model.config.width == 16
    assert (tmp_path / "runs" / "last").resolve() == run_folder.resolve()


def test_a_run_outlives_its_master(text: Path, tmp_path: Path, no_orphans: None) -> None:
    flags = ["--peers", "2", "--steps", "4000", "--every", "5", "--text", str(text), *TINY]
    process = atoll_command("train", "--json", *flags, cwd=tmp_path)
    assert process.stdout is not None
    before = list(_until(process.stdout, "step"))
    children = psutil.Process(process.pid).children(recursive=True)
    (master,) = [child for child in children if "master" in child.cmdline()]
    master.kill()
    meanwhile = [json.loads(line) for line in _until(process.stdout, "listening")]
    meanwhile += [json.loads(line) for _ in range(40) for line in _until(process.stdout, "step")]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert sum(event["event"] == "lost" and "a new master" in event["message"] for event in meanwhile) == 2
    steps = [json.loads(line).get("step", 0) for line in before] + [event.get("step", 0) for event in meanwhile]
    assert max(steps) >= 20
    assert not [event for event in meanwhile if event["event"] in ("failed", "expelled")]
    assert json.loads(out.splitlines()[-1])["hashes_equal"]


def test_interrupt_and_resume(text: Path, tmp_path: Path, no_orphans: None) -> None:
    flags = ["--peers", "2", "--steps", "4000", "--every", "5", "--text", str(text), *TINY]
    process = atoll_command("train", "--name", "long", "--json", *flags, cwd=tmp_path)
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "saved":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["event"] == "summary"

    again = atoll_command("train", "--resume", "long", "--peers", "2", "--json", cwd=tmp_path)
    assert again.stdout is not None
    resumed = [json.loads(line) for line in _until(again.stdout, "step")]
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=30)
    assert next(e["step"] for e in resumed if e["event"] == "resumed") >= 10
    assert resumed[-1]["step"] > 10


def _until(lines: Any, kind: str) -> Iterator[str]:
    for line in lines:
        yield line
        if json.loads(line)["event"] == kind:
            return


def _listen(process: "subprocess.Popen[str]") -> "queue.Queue[str]":
    """Its lines as they come, so that it never waits for us."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stdout = process.stdout
    threading.Thread(target=lambda: [lines.put(line) for line in stdout], daemon=True).start()
    return lines


def _wait_for_step(lines: "queue.Queue[str]") -> None:
    while json.loads(lines.get(timeout=60))["event"] != "step":
        pass


def test_ctrl_c_at_any_moment_leaves_nothing_behind(text: Path, tmp_path: Path, no_orphans: None) -> None:
    for i, wait_s in enumerate((0.3, 1.5, 4.0)):
        flags = ["--peers", "2", "--steps", "4000", "--text", str(text), *TINY]
        process = atoll_command("train", "--name", f"cut-{i}", *flags, cwd=tmp_path)
        time.sleep(wait_s)  # the moment is what is tested
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode in (130, -signal.SIGINT)
        assert "Traceback" not in err or wait_s < 1.0, err  # before our first line runs, the message is Python's


def test_two_peers_with_different_models_part_in_one_line(text: Path, tmp_path: Path, no_orphans: None) -> None:
    with atoll.Master() as master:
        flags = ["--steps", "2000", "--every", "5", "--text", str(text), "--json", *TINY]
        first = atoll_command("join", master.address, *flags, cwd=tmp_path)
        lines = _listen(first)
        _wait_for_step(lines)
        other = [*flags]
        other[other.index("--model.width") + 1] = "32"
        code, _, err = finish("join", master.address, *other, cwd=tmp_path)
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert "'width': 16" in err
        assert "'width': 32" in err
        assert first.poll() is None
        while not lines.empty():
            lines.get()
        _wait_for_step(lines)
        first.send_signal(signal.SIGINT)
        assert first.wait(timeout=30) == 130
