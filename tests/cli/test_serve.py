"""`atoll serve` and `atoll chat` as people use them: one line for what is wrong, answers until told to end."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from atoll.cli.main import run
from atoll.cli.serve import ServeSettings, _listening, nbytes
from atoll.cli.serve_behind import behind
from atoll.endpoint.api import Request, Text
from atoll.errors import InvalidConfig
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from tests.endpoint.scripted import Scripted, served
from tests.model import gguf_files
from tests.serve.bytes_model import model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that has trained a model, and with files that are none, or not whole."""
    path = tmp_path_factory.mktemp("home")
    save_model(path / "runs" / "first" / "model", model(), ByteTokenizer())
    shutil.copytree(path / "runs" / "first" / "model", path / "dumb")
    (path / "dumb" / "tokenizer.json").unlink()
    about, tensors = gguf_files.metadata(), gguf_files.tensors()
    for name, metadata in {
        "whole": about,
        "alien": {**about, "general.architecture": "mamba"},
        "mute": {key: value for key, value in about.items() if not key.startswith("tokenizer")},
        "shapeless": {key: value for key, value in about.items() if key != "llama.block_count"},
    }.items():
        (path / f"{name}.gguf").write_bytes(gguf_files.gguf(metadata, tensors))
    whole = (path / "whole.gguf").read_bytes()
    (path / "cut.gguf").write_bytes(whole[: len(whole) * 2 // 3])
    (path / "rotten.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    return path


@contextmanager
def serving(
    home: Path, *flags: str, told: dict[str, str] | None = None
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    argv = [sys.executable, "-m", "atoll", "serve", "--port", "0", "--json", "--threads", "1", *flags]
    process = subprocess.Popen(
        argv,
        cwd=home,
        env={**os.environ, "XDG_CACHE_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if said["event"] == "starting" and told is not None:
                told["health"] = httpx.get(f"{said['url']}/health", timeout=60).text
            if said["event"] == "ready":
                (told if told is not None else {}).update(said)
                yield said["url"], process
                break
        else:
            raise AssertionError(process.communicate()[1])
    finally:
        process.kill()
        process.wait()


def ask(url: str, **changed: Any) -> httpx.Response:
    body = {"model": "runs/first", "prompt": "once", "max_tokens": 5, "temperature": 0, **changed}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=60)


def ended(process: "subprocess.Popen[str]", warned: str = "") -> tuple[int, list[str]]:
    """Its exit code and the last things it said; its engine is gone too."""
    engines = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert err == warned
    _, alive = psutil.wait_procs(engines, timeout=10)
    assert not alive
    return process.returncode, [json.loads(line)["event"] for line in out.splitlines()]


def test_a_run_is_served_until_it_is_told_to_end(home):
    with serving(home, "runs/first", "--kernel", "torch", "--metrics", "127.0.0.1:0", told=(about := {})) as (
        url,
        process,
    ):
        assert about["health"] == '{"status":"loading"}'
        apart = about["metrics"]
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert "atoll_kv_blocks_free" in httpx.get(apart).text
        assert httpx.get(apart.replace("/metrics", "/v1/models")).status_code == 404
        answer = ask(url).json()
        assert len(answer["choices"][0]["text"]) >= 1
        assert answer["usage"]["completion_tokens"] == 5
        assert [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]] == ["runs/first"]
        assert ended(process) == (0, ["ended"])


def test_after_sigterm_all_are_answered_or_told_to_go_elsewhere(home):
    """Some are being answered then, some wait, and all ask again and again. (Who asks while others are still answered
    is refused, tests/endpoint/test_face.py; how many do depends on what else the machine does.)"""
    body = {"model": "small", "prompt": "once", "max_tokens": 60, "temperature": 0, "logit_bias": {"0": -100}}
    begun = threading.Semaphore(0)
    ends: list[str] = []

    def ask_once(i: int) -> str:
        stream = i % 3 > 0
        try:
            asking = httpx.stream("POST", f"{url}/v1/completions", json={**body, "stream": stream}, timeout=60)
            answer = asking.__enter__()
        except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
            return "closed"
        try:
            lines = []
            for line in answer.iter_lines():
                lines += [line] if line else []
                begun.release()
        except httpx.HTTPError as error:
            return f"broken: {error!r}"
        finally:
            asking.__exit__(None, None, None)
        if answer.status_code == 503:
            return "refused" if answer.headers["retry-after"] == "5" else "refused in no way"
        whole = '"finish_reason":"length"' in "".join(lines) and (lines[-1] == "data: [DONE]" or not stream)
        return "answered" if whole else "cut short"

    def work(i: int) -> None:
        end = "answered"
        while end == "answered":
            ends.append(end := ask_once(i))

    with serving(home, "runs/first", "--kernel", "torch", "--name", "small", "--max-batch", "3") as (url, process):
        clients = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for client in clients:
            client.start()
        for _ in range(70):
            assert begun.acquire(timeout=30)
        code, events = ended(process)
        for client in clients:
            client.join(30)
            assert not client.is_alive()
        assert (code, events) == (0, ["draining", "ended"])
    assert set(ends) <= {"answered", "refused", "closed"}, ends
    assert "answered" in ends


@pytest.mark.slow
def test_a_server_before_a_server(home):
    with (
        serving(home, "runs/first", "--kernel", "torch") as (behind, _),
        serving(home, "--upstream", behind) as (url, process),
    ):
        assert ask(url).json()["choices"][0]["text"] == ask(behind).json()["choices"][0]["text"]
        assert ask(url, model="other").status_code == 404
        assert ended(process) == (0, ["ended"])


def test_several_servers_are_one_address_and_one_that_is_not_there_is_gone_round():
    """As `atoll serve` puts them together, without its process."""

    async def answered(*urls: str) -> tuple[str, list[str]]:
        async with behind(ServeSettings(upstream=urls, balance="turns")) as (endpoint, begin):
            about = await begin()
            request = Request(id="a", model="parrot", prompt=Text("hi"))
            said = ["".join([delta.text async for delta in endpoint.generate(request)]) for _ in range(4)]
            return about, said

    first, second = Scripted(lambda request: "first"), Scripted(lambda request: "second")
    with served(first) as (one, _), served(second) as (other, _):
        about, said = asyncio.run(answered("http://127.0.0.1:9", one, other))
    assert said == ["first", "second"] * 2
    assert "not there yet: http://127.0.0.1:9 can't be reached" in about


@pytest.mark.slow
def test_of_two_engines_one_may_die(home):
    with serving(home, "runs/first", "--kernel", "torch", "--engines", "2", "--threads", "2") as (url, process):
        whole = ask(url).json()["choices"][0]["text"]
        killed = psutil.Process(process.pid).children()[0]
        killed.kill()
        killed.wait(10)
        assert [ask(url).json()["choices"][0]["text"] for _ in range(4)] == [whole] * 4
        deadline = time.monotonic() + 60
        while 'state="starting"' in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        told = httpx.get(f"{url}/metrics").text
        assert 'atoll_instances{model="runs/first",role="mixed",state="ready"} 2.0' in told
        assert 'atoll_engine_restarts_total{engine="0",model="runs/first",role="mixed"} 1.0' in told
        warned = "engine runs/first ended (it ended without a word); it is started again\n"
        assert ended(process, warned) == (0, ["ended"])


@pytest.mark.slow
def test_keys_and_a_dead_engine(home, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\nalpha-key\nbeta-key\n")
    with serving(home, "runs/first", "--kernel", "torch", "--api-key-file", str(keys)) as (url, process):
        assert ask(url).status_code == 401
        headers = {"Authorization": "Bearer beta-key"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        (engine,) = psutil.Process(process.pid).children()
        engine.kill()
        deadline = time.monotonic() + 60
        seen = set()
        while 200 not in seen or 503 not in seen:
            seen.add(httpx.get(f"{url}/health").status_code)
            assert time.monotonic() < deadline, "it isn't started again"
            if 503 not in seen:
                seen.discard(200)
        answer = httpx.post(
            f"{url}/v1/completions",
            json={"model": "runs/first", "prompt": "x", "max_tokens": 2},
            headers=headers,
            timeout=60,
        )
        assert answer.status_code == 200


@pytest.mark.slow
def test_a_conversation_in_a_pipe(home):
    with serving(home, "runs/first", "--kernel", "torch") as (url, _):
        said = subprocess.run(
            [sys.executable, "-m", "atoll", "chat", "--url", url],
            input="hello\n",
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert said.returncode == 1
    assert "has learnt no conversations" in said.stderr
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("argv", "code", "named"),
    [
        (["serve", "nothing-there"], 2, "there is no model 'nothing-there'"),
        (["serve", "smollm2"], 2, "get it with: atoll model pull smollm2"),
        (["serve", "runs"], 2, "runs is no model"),
        (["serve", "alien.gguf"], 1, "alien.gguf: general.architecture is 'mamba'; known here: llama"),
        (["serve", "mute.gguf"], 1, "mute.gguf: has no tokenizer.ggml.model"),
        (["serve", "shapeless.gguf"], 1, "shapeless.gguf: has no llama.block_count"),
        (["serve", "cut.gguf"], 1, "cut.gguf: "),
        (["serve", "rotten.gguf"], 1, "rotten.gguf: "),
        (["serve", "dumb"], 1, "dumb/tokenizer.json: "),
        (["serve", "runs/first", "--metrics", "9090"], 2, "--metrics is '9090'; write HOST:PORT"),
        (["serve", "runs/first", "--kv-memory", "much"], 2, "--kv-memory"),
        (["serve", "runs/first", "--kv-memory", "10"], 2, "--kv-memory"),
        (["serve", "runs/first", "--port", "99999"], 2, "--port must be from 0 to 65535"),
        (["serve", "runs/first", "--max-batch", "0"], 2, "--max-batch must be from 1"),
        (["serve", "runs/first", "--api-key-file", "none"], 1, "none: can't be read"),
        (["serve", "--upstream", "http://127.0.0.1:9"], 1, "http://127.0.0.1:9 can't be reached"),
        (["serve", *(f"--upstream=http://127.0.0.1:{port}" for port in (9, 10))], 1, "can't be reached"),
        (["serve", "--upstream", "http://h:1", "--upstream", "http://h:1/v1"], 2, "one address is there twice"),
        (["serve", "--upstream", "http://h:1", "--engines", "2"], 2, "give one of the two"),
        (["serve", "runs/first", "--engines", "2", "--record", "new"], 2, "--record is of one engine"),
        (["serve", "runs/first", "--engines", "0"], 2, "--engines must be from 1"),
        (["serve", "--upstream", "http://h:1", "--record", "new"], 2, "--record is of one engine"),
        (["serve", "runs/first", "--upstream-key-file", "key"], 2, "--upstream-key-file is for --upstream"),
        (["serve", "--upstream", "h:1"], 2, "'h:1' is no address of a server; write http://HOST:PORT"),
        (["serve", "--upstream", "http://h:x"], 2, "'http://h:x' is no address of a server"),
        (["serve", "runs/first", "--host", "198.51.100.1"], 1, "take another --host"),
        (["chat", "--url", "http://127.0.0.1:9"], 1, "`atoll serve` starts one"),
        (["chat", "--url", "127.0.0.1:8000"], 2, "--url is '127.0.0.1:8000', which is no address"),
        (["chat", "--url", "http://h:x"], 2, "write http://HOST:PORT"),
    ],
)
def test_what_is_wrong_costs_one_line(home, monkeypatch, capfd, argv, code, named):
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    if argv[0] == "serve" and "--port" not in argv:
        argv = [*argv, "--port", "0"]
    assert run(argv) == code
    err = capfd.readouterr().err.strip()
    assert named in err
    assert len(err.splitlines()) == 1


def test_a_port_in_use_is_said_before_anything_is_loaded(home, monkeypatch, capfd):
    monkeypatch.chdir(home)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["serve", "runs/first", "--port", str(taken.getsockname()[1])]) == 1
    assert "take another --port" in capfd.readouterr().err


def test_what_goes_wrong_later_is_not_said_of_the_port():
    with pytest.raises(OSError, match="no such file"), _listening("--host", "--port", "127.0.0.1", 0):
        raise OSError("no such file")


@pytest.mark.parametrize(("text", "n"), [("10", 10), ("2GiB", 2 << 30), ("1.5 MiB", 3 << 19), ("3KB", 3000)])
def test_sizes(text, n):
    assert nbytes(text) == n


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2TiB", "1e9"])
def test_what_is_no_size(text):
    with pytest.raises(InvalidConfig):
        nbytes(text)


@pytest.mark.slow
def test_a_workload_is_driven_and_reported(home):
    with serving(home, "runs/first", "--kernel", "torch") as (url, _):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "atoll", "workload", "run", url, "--rate", "5", "--seconds", "2"),
                *("--prompt", "20", "--output", "4", "--slo", "ttft=20s,tpot=9s", "--json", "--plots", "none"),
            ],
            capture_output=True, text=True, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *requests, report = map(json.loads, done.stdout.splitlines())
    assert report["offered"] == len(requests) == report["answered"] > 3
    assert report["attainment"] == 1.0
    assert {request["end"] for request in requests} == {"answered"}


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--slo", "ttft=fast"], "--slo: 'ttft=fast' isn't understood"),
        (["--rate", "0"], "--rate must be above 0"),
        (["--trace", "none.csv"], "none.csv"),
    ],
)
def test_what_is_wrong_with_a_drive_costs_one_line(home, monkeypatch, capfd, argv, named):
    monkeypatch.chdir(home)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert run(["workload", "run", f"http://127.0.0.1:{port}", *argv]) in (1, 2)
    err = capfd.readouterr().err.strip()
    assert named in err or "can't be reached" in err
    assert len(err.splitlines()) == 1
