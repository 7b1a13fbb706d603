"""A small model behind the API, in an engine's own process: vectors, scores, deadlines, mistakes, and what is counted.

The engine has two mistakes planted: it can't draw for seed 666, nor begin what is of the session "broken".
"""

import base64
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from atoll.model.loading import load
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.runtime.processes import popen
from atoll.serve import instance as driver
from atoll.serve.instance import Instance
from atoll.serve.messages import Setup
from tests.endpoint.scripted import served
from tests.serve.bytes_model import model

PLANTED = """
from atoll.serve import engine, process
draw, limit = engine.draw, engine.Engine._limit
engine.draw = lambda row, sampling, *rest: 1 // (sampling.seed != 666) and draw(row, sampling, *rest)
engine.Engine._limit = lambda self, request, n: 1 // (request.session != "broken") and limit(self, request, n)
process.main()
"""
BODY = {"model": "small", "prompt": "once", "max_tokens": 8, "temperature": 0, "logit_bias": {"0": -100}}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engine's process writes."""
    return tmp_path_factory.mktemp("log") / "engine"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[str]:
    path: Path = tmp_path_factory.mktemp("small") / "model"
    save_model(path, model(), ByteTokenizer())
    stderr = log.open("wb")
    setup = Setup(
        path=str(path), pages=60, kernel="torch", threads=1, batch=8, step_tokens=32, waiting=40,
        preemption="recompute", guesses=2,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            driver, "popen", lambda argv, **options: popen([sys.executable, "-c", PLANTED], stderr=stderr, **options)
        )
        with stderr, served(Instance("small", load(path), setup), vllm_names=True) as (url, _):
            yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(url: str, **changed: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={**BODY, **changed}, timeout=30)


MODEL = model()


@cache
def mean_state(text: bytes) -> np.ndarray:
    with torch.inference_mode():
        states = MODEL.model(torch.tensor([list(text)]))[0]
    return torch.nn.functional.normalize(states.mean(0), dim=0).numpy()


# -- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "texts"),
    [
        ("a text", [b"a text"]),
        (["one", "two", "one"], [b"one", b"two", b"one"]),
        ([104, 105], [b"hi"]),
        ([[104, 105], [106]], [b"hi", b"j"]),
    ],
)
def test_texts_and_tokens_are_vectors(client, asked, texts):
    for options in ({}, {"encoding_format": "float"}, {"dimensions": 64}):
        found = client.embeddings.create(model="small", input=asked, **options)
        assert [each.index for each in found.data] == list(range(len(texts)))
        for each, text in zip(found.data, texts, strict=True):
            np.testing.assert_allclose(each.embedding, mean_state(text), atol=2e-5)
        n = sum(map(len, texts))
        assert (found.usage.prompt_tokens, found.usage.total_tokens) == (n, n)
        assert (found.object, found.model) == ("list", "small")


def test_vectors_in_base64_are_the_same_numbers(url):
    body = {"model": "small", "input": "once"}
    (plain,) = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"]
    (coded,) = httpx.post(f"{url}/v1/embeddings", json={**body, "encoding_format": "base64"}).json()["data"]
    numbers = np.frombuffer(base64.b64decode(coded["embedding"]), "<f4")
    assert numbers.tolist() == plain["embedding"]
    assert np.linalg.norm(numbers) == pytest.approx(1, abs=1e-6)


def test_more_texts_than_may_wait_are_all_answered(client):
    found = client.embeddings.create(model="small", input=[f"text {i}" for i in range(100)])
    assert len(found.data) == 100
    np.testing.assert_allclose(found.data[73].embedding, mean_state(b"text 73"), atol=2e-5)


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"input": None}, 400, "input"), ({"input": []}, 400, "input"), ({"input": [[]]}, 400, "input"),
        ({"input": ""}, 400, "input"), ({"input": 3}, 400, "input"), ({"input": ["a"] * 2049}, 400, "input"),
        ({"input": [300]}, 400, "input"), ({"input": "x" * 257}, 400, "input"),
        ({"dimensions": 32}, 400, "dimensions"),
        ({"encoding_format": "hex"}, 400, "encoding_format"), ({"model": "other"}, 404, None),
        ({"session_id": "broken"}, 500, None),
    ],
)  # fmt: skip
def test_what_can_be_no_vector_is_refused(url, changed, status, param):
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": "small", "input": "x", **changed})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


# -- scores and deadlines ----------------------------------------------------------------------------------------------


def test_a_prompt_is_scored_as_the_model_would(client):
    text = "once upon a time, and never again " * 3
    answer = client.completions.create(model="small", prompt=text, max_tokens=0, echo=True, logprobs=2)
    scores = answer.choices[0].logprobs
    tokens = list(text.encode())
    with torch.inference_mode():
        wanted = torch.log_softmax(MODEL(torch.tensor([tokens]))[0], -1)
    assert answer.choices[0].text == text == "".join(scores.tokens)
    assert scores.token_logprobs[0] is None
    np.testing.assert_allclose(scores.token_logprobs[1:], wanted[range(len(tokens) - 1), tokens[1:]].numpy(), atol=1e-3)
    assert scores.text_offset == list(range(len(tokens)))
    for found, row in zip(scores.top_logprobs[1:], wanted, strict=False):
        assert max(found.values()) == pytest.approx(float(row.max()), abs=1e-3)


def test_a_deadline_that_has_passed_or_can_not_be_met(url):
    ask(url, max_tokens=20)
    late = ask(url, slo={"deadline_ms": 0})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_passed")
    vain = late
    while vain.status_code == 504:  # the time in which it came to the engine counts, too
        vain = ask(url, max_tokens=250, ignore_eos=True, slo={"deadline_ms": 50})
    assert (vain.status_code, vain.json()["error"]["code"]) == (503, "deadline_impossible")
    assert int(vain.headers["retry-after"]) >= 1
    assert ask(url, slo={"deadline_ms": 60_000}).status_code == 200


def test_a_deadline_that_passes_meanwhile_ends_the_answer(url):
    """It can't be foreseen, since the answer may end at any token."""
    answer = ask(url, prompt="zz", max_tokens=250, n=4, stream=True, slo={"deadline_ms": 40})
    if answer.status_code == 200:
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert answer.status_code in (503, 504)
    assert '"deadline_' in answer.text


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [{"seed": 666}, {"session_id": "broken"}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_in_one_answer_is_said_and_no_others_concern(url, broken, stream, log):
    found: dict[int, httpx.Response] = {}

    def work(i: int) -> None:
        found[i] = ask(url, max_tokens=30, **(broken if i == 3 else {}), stream=stream and i == 3)

    alone = ask(url, max_tokens=30).json()["choices"][0]["text"]
    crowd = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(30)
    failed = found.pop(3)
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "answer_failed")
    assert [answer.json()["choices"][0]["text"] for answer in found.values()] == [alone] * 5
    assert httpx.get(f"{url}/health").status_code == 200
    assert metrics(url)["atoll_engine_restarts_total"] == 0
    id = failed.json()["error"]["message"].split()[2] if "seed" in broken else "cmpl-"
    assert f"request {id}" in log.read_text()
    assert "ZeroDivisionError" in log.read_text()


# -- clients that go, and what is counted ------------------------------------------------------------------------------


def metrics(url: str) -> dict[str, float]:
    """By name and labels but the model and the engine; all of it must be read by Prometheus's own parser."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if "unknown" in sample.labels.values():
                continue
            labels = {k: v for k, v in sample.labels.items() if k not in ("model", "model_name", "engine", "role")}
            found[sample.name + (json.dumps(labels) if labels else "")] = sample.value
    return found


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, "it never comes"


def test_who_vanishes_in_the_middle_of_a_stream_frees_its_pages(url):
    closed = 'atoll_requests_total{"finish_reason": "aborted", "status": "499"}'
    before = metrics(url).get(closed, 0)
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({**BODY, "max_tokens": 250, "stream": True, "n": 6}).encode()
    with socket.create_connection((host, int(port))) as link:
        link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert b"200 OK" in link.recv(4096)
    until(lambda: metrics(url).get(closed, 0) == before + 6)
    until(lambda: metrics(url)["atoll_kv_blocks_free"] == metrics(url)["atoll_kv_blocks_total"] == 60)
    assert metrics(url)["atoll_requests_running"] == 0


def test_metrics_are_sound_under_load(url):
    stop = threading.Event()
    total = {"n": 0}

    def load_it(i: int) -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                slo = {"class": f"class {total['n'] % 40}", "ttft_ms": 60_000}
                body = {**BODY, "prompt": "once upon a time there was", "stream": bool(i % 2), "slo": slo}
                client.post(f"{url}/v1/completions", json=body)
                total["n"] += 1

    threads = [threading.Thread(target=load_it, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        seen: list[dict[str, float]] = []
        until(lambda: seen.append(metrics(url)) or (total["n"] > 60 and len(seen) > 10))
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    for earlier, later in pairwise(seen):
        shrunk = [name for name in earlier if "_total" in name.partition("{")[0] and later[name] < earlier[name]]
        assert not shrunk
    last = metrics(url)
    for name in (
        "time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time",
        "request_prefill_time", "request_decode_time", "request_prompt_tokens", "request_generation_tokens",
        "iteration_tokens",
    ):  # fmt: skip
        buckets = [value for key, value in last.items() if key.startswith(f"atoll_{name}_bucket")]
        assert buckets == sorted(buckets), name
        assert buckets[-1] == last[f"atoll_{name}_count"] > 0, name
        assert last[f"atoll_{name}_sum"] >= 0
    assert last["atoll_iteration_tokens_count"] == last["atoll_engine_steps_total"]
    assert last['atoll_instances{"state": "ready"}'] == 1
    assert last["atoll_spec_drafted_tokens_total"] >= last["atoll_spec_accepted_tokens_total"] >= 0
    assert last["atoll_prefix_cache_queries_total"] >= last["atoll_prefix_cache_hits_total"] > 0
    kept = {key: value for key, value in last.items() if key.startswith("atoll_slo_attained_total")}
    assert sum(value for key, value in kept.items() if '"class": "class ' in key or "other" in key) == total["n"]
    assert len(kept) <= 40, "clients could make as many labels as they like"
    for ours, theirs in {
        "atoll_request_queue_time_count": "vllm:request_queue_time_seconds_count",
        "atoll_iteration_tokens_sum": "vllm:iteration_tokens_total_sum",
        "atoll_preemptions_total": "vllm:num_preemptions_total",
        'atoll_requests_total{"finish_reason": "length", "status": "200"}':
            'vllm:request_success_total{"finished_reason": "length"}',
    }.items():  # fmt: skip
        assert last[ours] == last[theirs], ours
