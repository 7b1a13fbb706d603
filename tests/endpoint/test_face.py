"""Over HTTP: nothing fails, nothing hangs, who goes away is no longer answered."""

import asyncio
import json
import re
import socket
import threading

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from atoll.endpoint.api import Delta
from tests.endpoint.scripted import Scripted, served

BODY = {"model": "parrot", "prompt": "abc", "max_tokens": 5}


# -- what is asked wrongly ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"logit_bias": {"5": -(10**400)}}, "logit_bias.5"),
        ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"n": 0}, "n"), ({"n": 1000}, "n"), ({"n": 1.5}, "n"),
        ({"best_of": 0}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"), ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"), ({"stop": ["a"] * 5}, "stop"), ({"stop": [""]}, "stop"), ({"stop": [1]}, "stop"),
        ({"presence_penalty": 3}, "presence_penalty"), ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"), ({"logit_bias": [1]}, "logit_bias"), ({"seed": "x"}, "seed"),
        ({"stream": "yes"}, "stream"), ({"stream_options": 1}, "stream_options"), ({"echo": 1}, "echo"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"), ({"slo": {"deadline_ms": -1}}, "slo.deadline_ms"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"), ({"slo": {"ttft_ms": "soon"}}, "slo.ttft_ms"),
        ({"slo": {"class": 3}}, "slo.class"), ({"slo": 5}, "slo"), ({"session_id": 5}, "session_id"),
    ],
)  # fmt: skip
def test_the_field_to_mend_is_named(url, changed, param):
    answer = httpx.post(f"{url}/v1/completions", json={**BODY, **changed})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert param in error["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        ([3], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "king", "content": "x"}], "messages[0].role"), ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
    ],
)  # fmt: skip
def test_so_it_is_in_chats(url, messages, param):
    answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "parrot", "messages": messages})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b'{"a": NaN}', b"\xff\xfe", b'{"model":"parrot","prompt":"\\ud800"', b"[" * 5000]
)
def test_what_is_no_object_is_refused(url, data):
    answer = httpx.post(f"{url}/v1/completions", content=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "param"),
    [
        (b'{"model":"parrot","prompt":"x","temperature":NaN}', "temperature"),
        (b'{"model":"parrot","prompt":"x","logit_bias":{"5":Infinity}}', "logit_bias.5"),
        (b'{"model":"parrot","prompt":[1,[-Infinity]]}', "prompt[1][0]"),
        (b'{"model":"parrot","prompt":"x","top_p":1e999}', "top_p"),
        (b'{"top_p":NaN', None),
        (b"NaN", None),
    ],
)
def test_what_is_no_number_of_json_is_named(url, data, param):
    answer = httpx.post(f"{url}/v1/completions", content=data)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_parts_of_a_content_are_one_text(url, parrot):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"model": "parrot", "messages": [{"role": "developer", "content": parts}]}
    assert httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"].endswith("ab")
    assert parrot.asked[-1].prompt.messages[0]["role"] == "system"


def test_paths_and_methods_that_are_none(url):
    assert httpx.get(f"{url}/v2/nothing").json()["error"]["message"] == "there is nothing at /v2/nothing"
    answer = httpx.post(f"{url}/v1/completions/", json=BODY)
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "there is nothing at /v1/completions/")
    answer = httpx.get(f"{url}/v1/completions")
    assert (answer.status_code, answer.json()["error"]["message"]) == (405, "GET is not for /v1/completions")


def test_a_body_too_large_is_refused(url):
    answer = httpx.post(f"{url}/v1/completions", content=b" " * (9 << 20))
    assert answer.status_code == 413
    assert "larger" in answer.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for():
    with served(Scripted(), body_s=0.05) as (url, _), connected(url) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        answer = b""
        while part := client.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"was not there within 0.05 s" in answer


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


VALUES = [
    None,
    True,
    0,
    -1,
    3,
    1e30,
    0.5,
    "",
    "x",
    "€" * 50,
    [],
    [1],
    ["a"],
    {},
    {"a": 1},
    [[1, 2]],
    [{"role": "user", "content": "x"}],
]
FIELDS = [
    "model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "n",
    "best_of", "stop", "stream", "stream_options", "logprobs", "top_logprobs", "echo", "seed", "logit_bias", "tools",
    "tool_choice", "response_format", "presence_penalty", "priority", "slo", "session_id", "ignore_eos",
    "stop_token_ids", "input", "instructions", "max_output_tokens", "text", "include", "metadata",
]  # fmt: skip
SOUND = {
    "/v1/completions": {"prompt": "abc"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": [{"role": "user", "content": "x"}]},
}


def test_no_body_makes_the_server_fail(url):
    """Fields of sound requests, each changed now and then for anything."""
    rng = np.random.default_rng(0)
    with httpx.Client(timeout=20) as client:
        for i in range(1000):
            path = list(SOUND)[i % len(SOUND)]
            body = {"model": "parrot", "max_tokens": 5, **SOUND[path]}
            for name in rng.choice(FIELDS, int(rng.integers(1, 4))):
                body[str(name)] = VALUES[int(rng.integers(len(VALUES)))]
            answer = client.post(url + path, json=body)
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.headers["content-type"].startswith("text/event-stream"):
                last = answer.text.split("\n\n")[-2]
                assert last == "data: [DONE]" or last.startswith("event: response.completed\n"), body
            elif answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


# -- clients that go ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", [0, 3])
def test_who_goes_away_is_no_longer_answered(stream, said, caplog):
    """At once, or in the middle of an answer; before anything could be sent to notice it by."""
    parrot = Scripted(lambda request: "x" * 50)
    reached, gone = threading.Event(), threading.Event()

    async def wait(request, i):
        if i == said:
            reached.set()
            try:
                await asyncio.sleep(60)
            finally:
                gone.set()

    parrot.before = wait
    with served(parrot) as (url, face):
        body = json.dumps({**BODY, "max_tokens": 50, "stream": stream}).encode()
        with connected(url) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert reached.wait(20)
        assert gone.wait(20)
        assert parrot.open == 0
        assert len(parrot.gone) == 1
        assert httpx.get(f"{url}/health").status_code == 200
        assert face.answering == 0
    (line,) = [record.message for record in caplog.records if record.name == "atoll.endpoint.clients"]
    assert re.fullmatch(r"499 POST /v1/completions cmpl-[0-9a-f]{24}: the client went away", line)


def test_who_takes_nothing_of_a_stream_is_given_up(caplog):
    """What it was sent fills all buffers between it and the server; then the server waits, but not for long."""
    gone = threading.Event()

    class Endless(Scripted):
        async def generate(self, request):
            sent = 0
            try:
                while True:
                    sent += 1
                    assert sent < 2000, "it piles up"
                    yield Delta(text="x" * (1 << 16))
                    await asyncio.sleep(0 if sent < 200 else 0.01)
            finally:
                gone.set()

    with served(Endless(), stall_s=0.1) as (url, _), connected(url) as client:
        body = json.dumps({**BODY, "stream": True}).encode()
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert gone.wait(20)
    assert "the client took nothing for 0.1 s" in caplog.text


def test_a_stream_that_waits_is_pinged():
    parrot = Scripted(lambda request: "ab")
    pinged = threading.Event()
    loops = []

    async def wait(request, i):
        loops.append(asyncio.get_running_loop())
        event = asyncio.Event()
        waiting.append(event)
        await event.wait()

    waiting: list[asyncio.Event] = []
    parrot.before = wait
    with (
        served(parrot, ping_s=0.05) as (url, _),
        httpx.stream("POST", f"{url}/v1/completions", json={**BODY, "stream": True}) as answer,
    ):
        lines = []
        for line in answer.iter_lines():
            lines.append(line)
            if line.startswith(": ping"):
                pinged.set()
                for event in waiting:
                    loops[0].call_soon_threadsafe(event.set)
        assert pinged.is_set()
        assert lines[-2] == "data: [DONE]"
        said = [json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")]
        assert "".join(said) == "ab"


def test_who_drains_takes_no_more_and_ends_what_it_has():
    parrot = Scripted(lambda request: "ab")
    going, reached = threading.Event(), threading.Event()

    async def wait(request, i):
        reached.set()
        await asyncio.to_thread(going.wait, 20)

    parrot.before = wait
    with served(parrot) as (url, face):
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=BODY, timeout=20))
        )
        asking.start()
        assert reached.wait(20)
        face.drain()
        refused = httpx.post(f"{url}/v1/completions", json=BODY)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert httpx.get(f"{url}/health").json() == {"status": "draining"}
        assert face.answering == 1
        going.set()
        asking.join(20)
        assert answers[0].json()["choices"][0]["text"] == "ab"


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_not_through_when_the_server_ends_is_told(stream):
    parrot = Scripted(lambda request: "abc")
    reached = threading.Event()
    loops = []

    async def wait(request, i):
        if i == 1:
            loops.append(asyncio.get_running_loop())
            reached.set()
            await asyncio.sleep(60)

    parrot.before = wait
    with served(parrot) as (url, face):
        answers = []
        body = {**BODY, "stream": stream}
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=20))
        )
        asking.start()
        assert reached.wait(20)
        loops[0].call_soon_threadsafe(face.end)
        asking.join(20)
        assert not asking.is_alive()
    (answer,) = answers
    if stream:
        assert '"code": "overloaded"' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
    else:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


# -- mistakes of ours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", ["asking", "the endpoint", "the endpoint later", "writing"])
def test_a_mistake_is_said_under_an_id_that_the_log_has(stream, at, monkeypatch, caplog):
    parrot = Scripted(lambda request: "abc")

    async def fail(request, i):
        if at.startswith("the endpoint") and i == (2 if "later" in at else 0):
            raise ZeroDivisionError("planted")

    def broken(*args):
        raise ZeroDivisionError("planted")

    parrot.before = fail
    if at == "asking":
        monkeypatch.setattr("atoll.endpoint.asking.completion", broken)
    elif at == "writing":
        monkeypatch.setattr("atoll.endpoint.answers.Choice.take", broken)
    with served(parrot) as (url, face):
        answer = httpx.post(f"{url}/v1/completions", json={**BODY, "stream": stream})
        assert httpx.get(f"{url}/health").status_code == 200
        assert face.answering == 0
    if stream and at in ("the endpoint later", "writing"):
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        error = json.loads(answer.text.split("data: ")[-2])["error"]
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "answer_failed")
    assert "planted" not in error["message"]
    (id,) = re.findall(r"cmpl-[0-9a-f]+(?:-0)?|\b[0-9a-f]{16}\b", error["message"])
    (record,) = [record for record in caplog.records if record.exc_info]
    assert id in record.message
    assert "ZeroDivisionError" in caplog.text


def test_it_is_not_healthy_before_a_model_is_there():
    parrot = Scripted()
    parrot.ready = False
    with served(parrot) as (url, _):
        assert httpx.get(f"{url}/health").status_code == 503
        parrot.ready = True
        assert httpx.get(f"{url}/health").status_code == 200


# -- what else there is ------------------------------------------------------------------------------------------------


def test_tokens_and_back(url):
    tokens = httpx.post(f"{url}/tokenize", json={"prompt": "hé"}).json()
    assert tokens == {"tokens": [104, 195, 169], "count": 3}
    assert httpx.post(f"{url}/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "hé"}
    assert httpx.post(f"{url}/detokenize", json={"tokens": [256]}).json()["error"]["param"] == "tokens"


@pytest.mark.parametrize("vllm", [False, True])
def test_metrics_are_read_by_prometheus(vllm):
    with served(Scripted(), vllm_names=vllm) as (url, _):
        for i in range(3):
            httpx.post(f"{url}/v1/completions", json={**BODY, "stream": bool(i % 2)})
        httpx.post(f"{url}/v1/completions", json={**BODY, "model": "crow"})
        answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {family.name: family for family in text_string_to_metric_families(answer.text)}
    samples = {
        (sample.name, sample.labels.get("finish_reason")): sample.value
        for family in found.values()
        for sample in family.samples
        if "crow" not in str(sample.labels) and "unknown" not in str(sample.labels)
    }
    assert samples["atoll_requests_total", "length"] == 3
    assert 'atoll_requests_total{finish_reason="error",model="unknown",status="404"} 1.0' in answer.text
    assert "crow" not in answer.text, "clients could make as many labels as they like"
    assert samples["atoll_generation_tokens_total", None] == 15
    assert samples["atoll_time_to_first_token_count", None] == 3
    assert samples["atoll_inter_token_latency_count", None] == 12
    assert samples["atoll_preemptions_total", None] == 3
    assert ("vllm:num_requests_running" in found) == vllm
    if vllm:
        assert samples["vllm:generation_tokens_total", None] == 15


def test_metrics_can_have_a_port_of_their_own():
    with served(Scripted(), metrics_here=False, keys=["secret"]) as (url, face):
        assert httpx.get(f"{url}/metrics").status_code == 404
        httpx.post(f"{url}/v1/completions", json=BODY, headers={"Authorization": "Bearer secret"})
        with httpx.Client(transport=Loopless(face.metrics.app), base_url="http://x") as client:
            assert (
                'atoll_requests_total{finish_reason="length",model="parrot",status="200"} 1.0'
                in client.get("/metrics").text
            )
            assert client.get("/v1/models").json()["error"]["message"] == "there is nothing at /v1/models"


class Loopless(httpx.BaseTransport):
    """An ASGI application without a server."""

    def __init__(self, app):
        self._transport = httpx.ASGITransport(app)

    def handle_request(self, request):
        async def work():
            answer = await self._transport.handle_async_request(request)
            return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

        return asyncio.run(work())


def test_promises_are_counted_by_their_class():
    parrot = Scripted(lambda request: "abcde")

    async def wait(request, i):
        await asyncio.sleep(0.02 if i and request.labels.get("class") == "slow" else 0)

    parrot.before = wait
    with served(parrot) as (url, _):
        for slo in (
            {"class": "quick", "ttft_ms": 60_000, "tbt_ms": 60_000, "deadline_ms": 60_000},
            {"class": "slow", "tbt_ms": 10},
            {"class": "slow", "ttft_ms": 60_000},
            {"class": "none"},
        ):
            httpx.post(f"{url}/v1/completions", json={**BODY, "slo": slo})
        httpx.post(f"{url}/v1/completions", json={**BODY, "prompt": "x" * 1001, "slo": {"ttft_ms": 60_000}})
        families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    (kept,) = [family for family in families if family.name == "atoll_slo_attained"]
    counted = {
        (sample.labels["class"], sample.labels["result"]): sample.value
        for sample in kept.samples
        if sample.name.endswith("_total")
    }
    assert counted == {("quick", "attained"): 1, ("slow", "missed"): 1, ("slow", "attained"): 1, ("", "missed"): 1}


def test_the_page_is_there(url):
    page = httpx.get(url)
    assert page.headers["content-type"].startswith("text/html")
    assert "v1/chat/completions" in page.text


def test_the_best_of_several_is_given():
    from atoll.endpoint.api import Chosen

    class Graded(Scripted):
        async def generate(self, request):
            async for delta in super().generate(request):
                grade = -float(request.sampling.seed % 4)
                chosen = tuple(Chosen(c.token, c.text, c.nbytes, grade) for c in delta.chosen)
                yield type(delta)(
                    text=delta.text,
                    tokens=delta.tokens,
                    chosen=chosen,
                    prompt_tokens=delta.prompt_tokens,
                    finish=delta.finish,
                )

    with served(Graded(lambda request: f"seed {request.sampling.seed}")) as (url, _):
        body = {**BODY, "best_of": 4, "n": 2, "seed": 5, "max_tokens": 50}
        answer = httpx.post(f"{url}/v1/completions", json=body).json()
    assert [choice["text"] for choice in answer["choices"]] == ["seed 8", "seed 5"]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 4 * 6
