"""A server elsewhere is an endpoint like any other: what goes in comes out, and its errors are ours."""

import asyncio
import socket
import threading

import msgspec
import pytest

from atoll.endpoint.api import Conversation, Delta, Request, Sampling, Text, Tokens
from atoll.endpoint.refusals import refused
from atoll.endpoint.upstream import Upstream
from atoll.errors import (
    ContextExceeded,
    DeadlineImpossible,
    DeadlinePassed,
    Draining,
    EngineLost,
    NotServed,
    Overloaded,
    RequestFailed,
    Unavailable,
)
from tests.endpoint.scripted import Scripted, served

ASK = Request(id="a", model="parrot", prompt=Text("häy"), max_tokens=90, sampling=Sampling(seed=4))


async def gathered(upstream: Upstream, request: Request) -> tuple[str, Delta]:
    """The text, and the last delta."""
    text, last = "", Delta()
    async for delta in upstream.generate(request):
        text += delta.text
        last = delta
    return text, last


def against(url: str, work, **options):
    async def run():
        upstream = Upstream(url, **options)
        try:
            await upstream.start()
            return await work(upstream)
        finally:
            await upstream.close()

    return asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (Text("häy"), "you said häy"),
        (Tokens((104, 105)), "you said hi"),
        (Conversation(({"role": "user", "content": "hi"},)), "you said user: hi"),
    ],
)
def test_what_goes_in_comes_out(prompt, said):
    parrot = Scripted()
    request = Request(
        id="a", model="parrot", prompt=prompt, max_tokens=90, min_tokens=2, stop=("zz",), stop_tokens=(7,),
        ignore_end=True,
        sampling=Sampling(temperature=0.5, top_p=0.5, top_k=3, min_p=0.25, seed=9, presence_penalty=1.0, bias={5: 2.0}),
        priority=3, session="s",
    )  # fmt: skip
    with served(parrot) as (url, _):
        text, last = against(f"{url}/v1/", lambda upstream: gathered(upstream, request))
    assert text == said
    assert last.finish == "stop"
    assert last.prompt_tokens > 0
    assert last.unnumbered == len(said), "tokens whose numbers nobody told are counted"
    arrived = parrot.asked[-1]
    for name in (
        "max_tokens",
        "min_tokens",
        "stop",
        "stop_tokens",
        "ignore_end",
        "sampling",
        "priority",
        "session",
        "prompt",
    ):
        assert getattr(arrived, name) == getattr(request, name), name


def test_tokens_come_by_number_where_they_are_wanted():
    async def collected(upstream):
        request = msgspec.structs.replace(ASK, token_ids=True)
        return [delta async for delta in upstream.generate(request)]

    with served(Scripted(lambda request: "five!")) as (url, _):
        deltas = against(url, collected)
    assert bytes(token for delta in deltas for token in delta.tokens) == b"five!"
    assert deltas[-1].unnumbered == 0, "none is counted twice"


def test_calls_come_as_the_text_that_makes_them():
    call = '<tool_call>{"name": "look", "arguments": {"at": "sea"}}</tool_call>'
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    request = msgspec.structs.replace(ASK, prompt=Conversation(({"role": "user", "content": "hi"},), (tool,)))
    with served(Scripted(lambda request: call)) as (url, _):
        text, last = against(url, lambda upstream: gathered(upstream, request))
    assert text == call
    assert last.finish == "stop"


@pytest.mark.parametrize("prompt", [Text("häy"), Tokens((104, 105))])
def test_vectors_come_through_as_they_are(prompt):
    request = msgspec.structs.replace(ASK, prompt=prompt, embed=True)
    with served(Scripted()) as (url, _):
        _, last = against(url, lambda upstream: gathered(upstream, request))
    assert last.embedding == pytest.approx((0.6, -0.8))
    assert (last.prompt_tokens, last.finish) == (4 if isinstance(prompt, Text) else 2, "stop")


def test_models_are_found():
    with served(Scripted()) as (url, _):
        found = against(url, lambda upstream: asyncio.sleep(0, upstream.describe()))
    assert [(each.name, each.context) for each in found] == [("parrot", 1000)]


@pytest.mark.parametrize(
    "error",
    [
        Overloaded("too many", 3.0), Draining("about to end"), DeadlinePassed("late"), NotServed("none"),
        ContextExceeded("prompt", "too long"), DeadlineImpossible("in vain", 3.0),
    ],
)  # fmt: skip
def test_its_errors_are_ours(error):
    parrot = Scripted()

    async def fail(request, i):
        raise error

    parrot.before = fail
    with served(parrot) as (url, _), pytest.raises(type(error), match=str(error)) as caught:
        against(url, lambda upstream: gathered(upstream, ASK))
    assert type(caught.value) is type(error)
    if isinstance(error, Overloaded):
        assert caught.value.retry_s == error.retry_s


def test_a_key_is_given():
    with served(Scripted(), keys=["secret", "gehéim"]) as (url, _):
        for key in ("secret", "gehéim"):
            assert against(url, lambda upstream: gathered(upstream, ASK), key=key)[0] == "you said häy"
        with pytest.raises(Unavailable, match="401"):
            against(url, lambda upstream: gathered(upstream, ASK), key="other")


def test_who_gives_up_frees_what_is_elsewhere():
    parrot = Scripted(lambda request: "x" * 80)
    gone = threading.Event()

    async def wait(request, i):
        if i == 2:
            try:
                await asyncio.sleep(60)
            finally:
                gone.set()

    parrot.before = wait

    async def work(upstream):
        stream = upstream.generate(ASK)
        await anext(stream)
        await stream.aclose()
        await asyncio.to_thread(gone.wait, 20)

    with served(parrot) as (url, _):
        against(url, work)
    assert gone.is_set()
    assert len(parrot.gone) == 1


def test_a_deadline_holds_here_too():
    parrot = Scripted()

    async def wait(request, i):
        await asyncio.sleep(60)

    parrot.before = wait
    with served(parrot) as (url, _), pytest.raises(DeadlinePassed):
        against(url, lambda upstream: gathered(upstream, msgspec.structs.replace(ASK, deadline_s=0.2)))


def test_nobody_there_is_said():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
        against(f"http://127.0.0.1:{port}", lambda upstream: gathered(upstream, ASK))


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (STREAM + b"data: {not json\n\n", RequestFailed),
        (STREAM + b"data: []\n\n", RequestFailed),
        (STREAM + b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n", EngineLost),
        (STREAM + b"data: {\"choices\":[3]}\n\n", RequestFailed),
        (STREAM + b"data: {\"choices\":null}\n\ndata:[DONE]\n\n", EngineLost),
        (b"HTTP/1.1 503 Oh\r\nRetry-After: inf\r\nContent-Length: 2\r\n\r\n{}", Draining),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 3\r\n\r\nno!", RequestFailed),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", EngineLost),
        (STREAM + b'data: {"error":{"message":"it died","code":"engine_lost"}}\n\n', EngineLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", EngineLost),
        (b"nonsense\r\n\r\n", EngineLost),
        (b"", EngineLost),
    ],
)  # fmt: skip
def test_a_server_that_talks_nonsense(answer, error):
    """It lists its models well, and then answers so and closes."""
    models = b'{"data":[{"id":"parrot"}]}'

    def serve(listener):
        for i in range(2):
            connection, _ = listener.accept()
            with connection:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(models)
                connection.sendall(answer if i else head + models)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(error) as caught:
            against(f"http://127.0.0.1:{listener.getsockname()[1]}", lambda upstream: gathered(upstream, ASK))
        assert refused(caught.value).status_code >= 400
        thread.join(20)
