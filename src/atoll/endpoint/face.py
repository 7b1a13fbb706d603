"""Driver: OpenAI's API over HTTP, before any endpoint. Clients that go away are no longer answered."""

import asyncio
import hmac
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from atoll.endpoint import asking
from atoll.endpoint.answers import PING, Answers, failed
from atoll.endpoint.api import Delta, Endpoint, Request, Text, Tokens
from atoll.endpoint.asking import Asked, Drawn
from atoll.endpoint.fields import Fields, body
from atoll.endpoint.metrics import CONTENT_TYPE, Metrics, Watch
from atoll.endpoint.openapi import document
from atoll.errors import (
    ContextExceeded,
    DeadlinePassed,
    Draining,
    EngineLost,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestFailed,
)
from atoll.model.api import Tokenizer
from atoll.version import VERSION

LARGEST_BODY: Final = 8 << 20
PING_S: Final = 15.0
"""For which a stream may be silent."""
_CLOSED: Final = 499
_OPEN: Final = frozenset({"/", "/openapi.json", "/health", "/version", "/metrics"})
"""Paths that need no key."""
_PAGE: Final = Path(__file__).with_name("page.html")

T = TypeVar("T")
Answer = Callable[[Call], Awaitable[Response]]
_Event = tuple[int, Delta | RequestFailed | None]
"""Of which request, and what: more of it, why it failed, or that it is over."""
_NOTHING: Final[_Event] = (-1, None)
"""Has come for a while."""


class _Gone(Exception):
    """The client isn't there any more."""


class Face:
    """`app` is an ASGI application. `keys`: who asks must have one of them; none: everybody may."""

    def __init__(
        self, endpoint: Endpoint, *, keys: Collection[str] = (), vllm_names: bool = False, ping_s: float = PING_S
    ) -> None:
        self.endpoint = endpoint
        self.metrics = Metrics(endpoint, vllm_names)
        self.answering = 0
        """Calls under way."""
        self._keys = [key.encode() for key in keys]
        self._ping_s = ping_s
        self._draining = False
        routes: tuple[tuple[str, str, Answer], ...] = (
            ("GET", "/", self._page),
            ("GET", "/openapi.json", self._document),
            ("GET", "/health", self._health),
            ("GET", "/version", self._version),
            ("GET", "/metrics", self._metrics),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{model:path}", self._model),
            ("POST", "/v1/completions", self._completions),
            ("POST", "/v1/chat/completions", self._chat),
            ("POST", "/v1/embeddings", self._embeddings),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/detokenize", self._detokenize),
        )
        self.app = Starlette(
            routes=[Route(path, self._guarded(answer), methods=[method]) for method, path, answer in routes],
            exception_handlers={HTTPException: _http_error, Exception: _server_error},
        )

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        self._draining = True

    # -- who may, and what went wrong ---------------------------------------------------------------------------------

    def _guarded(self, answer: Answer) -> Answer:
        async def guarded(call: Call) -> Response:
            if self._keys and call.url.path not in _OPEN and not self._known(call):
                return _error(401, "the key is missing or not known here", "authentication_error", "invalid_api_key")
            try:
                return await answer(call)
            except RequestFailed as error:
                return _refused(error)
            except (_Gone, ClientDisconnect):
                return Response(status_code=_CLOSED)

        return guarded

    def _known(self, call: Call) -> bool:
        scheme, _, given = call.headers.get("authorization", "").partition(" ")
        found = [hmac.compare_digest(key, given.strip().encode()) for key in self._keys]
        return scheme.lower() == "bearer" and any(found)

    async def _fields(self, call: Call) -> Fields:
        data = bytearray()
        async for part in call.stream():
            data += part
            if len(data) > LARGEST_BODY:
                raise HTTPException(413, f"the body is larger than {LARGEST_BODY} bytes")
        return body(bytes(data))

    # -- what is there ------------------------------------------------------------------------------------------------

    async def _page(self, call: Call) -> Response:
        return HTMLResponse(_PAGE.read_bytes())

    async def _document(self, call: Call) -> Response:
        return _json(document())

    async def _health(self, call: Call) -> Response:
        if self._draining or not self.endpoint.describe():
            why = "draining" if self._draining else "loading"
            return _json({"status": why}, 503, {"Retry-After": "5"})
        return _json({"status": "ok"})

    async def _version(self, call: Call) -> Response:
        return _json({"version": VERSION})

    async def _metrics(self, call: Call) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _models(self, call: Call) -> Response:
        return _json({"object": "list", "data": self._cards()})

    async def _model(self, call: Call) -> Response:
        name = call.path_params["model"]
        card = next((card for card in self._cards() if card["id"] == name), None)
        if card is None:
            raise NotServed(f"there is no model {name!r} here")
        return _json(card)

    def _cards(self) -> list[dict[str, Any]]:
        return [
            {
                "id": served.name,
                "object": "model",
                "created": served.created,
                "owned_by": "atoll",
                "max_model_len": served.context,
                "chat": served.chat,
            }
            for served in self.endpoint.describe()
        ]

    async def _embeddings(self, call: Call) -> Response:
        raise NotServed("no model that gives embeddings is loaded here")

    async def _tokenize(self, call: Call) -> Response:
        model, text = asking.text(await self._fields(call))
        try:
            tokens = self._tokenizer(model).encode(text)
        except UnicodeEncodeError as error:
            raise InvalidRequest("prompt", "prompt has half a character in it") from error
        return _json({"tokens": tokens, "count": len(tokens)})

    async def _detokenize(self, call: Call) -> Response:
        model, tokens = asking.tokens(await self._fields(call))
        tokenizer = self._tokenizer(model)
        if tokens and max(tokens) >= tokenizer.vocab_size:
            raise InvalidRequest("tokens", f"tokens has one above {tokenizer.vocab_size - 1}")
        return _json({"prompt": tokenizer.decode(tokens)})

    def _tokenizer(self, model: str) -> Tokenizer:
        served = self.endpoint.describe()
        name = model or (served[0].name if served else "")
        tokenizer = self.endpoint.tokenizer(name)
        if tokenizer is None:
            raise NotServed(f"the tokens of {name!r} are known to the server elsewhere only")
        return tokenizer

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _completions(self, call: Call) -> Response:
        return await self._answer(call, asking.completion, "cmpl-")

    async def _chat(self, call: Call) -> Response:
        return await self._answer(call, asking.chat, "chatcmpl-")

    async def _answer(self, call: Call, ask: Callable[[Fields, Drawn], Asked], prefix: str) -> Response:
        if self._draining:
            raise Draining("the server is about to end and takes no more requests", retry_s=5.0)
        id = prefix + secrets.token_hex(12)
        fields = await self._fields(call)
        asked = await asyncio.to_thread(ask, fields, Drawn(id, lambda: secrets.randbits(48)))  # schemas may be large
        answers = Answers(asked, id, int(time.time()), self._echoes(asked))
        stream = self._events(asked)
        if asked.stream:
            return await self._streamed(call, stream, answers)
        async with aclosing(stream):
            await _unless_gone(call, _collected(stream, answers))
        return _json(answers.body())

    def _echoes(self, asked: Asked) -> list[str]:
        """The prompts' texts, if they are to be said."""
        if not asked.echo:
            return []
        echoes = []
        for request in asked.requests[:: asked.best_of]:
            if isinstance(request.prompt, Text):
                echoes.append(request.prompt.text)
            elif isinstance(request.prompt, Tokens):
                tokenizer = self.endpoint.tokenizer(asked.model)
                if tokenizer is None or max(request.prompt.tokens, default=0) >= tokenizer.vocab_size:
                    raise InvalidRequest("echo", "these tokens can't be said as a text here")
                echoes.append(tokenizer.decode(request.prompt.tokens))
        return echoes

    async def _streamed(self, call: Call, stream: AsyncGenerator[_Event, None], answers: Answers) -> Response:
        """Errors that come before the first token are answered as such, unless that takes too long."""
        try:
            first = await _unless_gone(call, _next(stream))
            if isinstance(first[1], RequestFailed):
                raise first[1]
        except BaseException:
            await stream.aclose()
            raise
        return _EventStream(call, _frames(first, stream, answers))

    async def _events(self, asked: Asked) -> AsyncGenerator[_Event, None]:
        """All that comes of a call's requests, as it comes; and now and then _NOTHING, in a stream."""
        events: asyncio.Queue[_Event] = asyncio.Queue()
        self.answering += 1
        tasks = [
            asyncio.create_task(self._ask(number, request, events)) for number, request in enumerate(asked.requests)
        ]
        left = len(tasks)
        if asked.stream:
            tasks.append(asyncio.create_task(self._ping(events)))
        try:
            while left:
                event = await events.get()
                left -= event[1] is None and event is not _NOTHING
                yield event
        finally:
            self.answering -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ping(self, events: "asyncio.Queue[_Event]") -> None:
        while True:
            await asyncio.sleep(self._ping_s)
            events.put_nowait(_NOTHING)

    async def _ask(self, number: int, request: Request, events: "asyncio.Queue[_Event]") -> None:
        watch = self.metrics.watch(request.model, time.monotonic())
        status, finish = _CLOSED, "aborted"
        try:
            async with aclosing(self.endpoint.generate(request)) as answer:
                async for delta in answer:
                    watch.delta(delta, time.monotonic())
                    events.put_nowait((number, delta))
                    finish = delta.finish or finish
            status = 200
            events.put_nowait((number, None))
        except RequestFailed as error:
            status, finish = _described(error)[0], "error"
            events.put_nowait((number, error))
        except Exception as error:
            status, finish = 500, "error"
            events.put_nowait((number, EngineLost(f"the answer failed: {error}")))
            raise
        finally:
            self._ended(watch, status, finish)

    def _ended(self, watch: Watch, status: int, finish: str) -> None:
        watch.end(status, finish, time.monotonic())


class _EventStream(Response):
    """Server-sent events, until they end or the client goes."""

    def __init__(self, call: Call, frames: AsyncGenerator[bytes, None]) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            media_type="text/event-stream; charset=utf-8",
        )
        del self.headers["content-length"]
        self._call, self._frames = call, frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(_Gone):
            await _unless_gone(self._call, self._send(send))

    async def _send(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _frames(first: _Event, stream: AsyncGenerator[_Event, None], answers: Answers) -> AsyncGenerator[bytes, None]:
    """A call's stream as the client reads it."""
    async with aclosing(stream):
        for frame in answers.opening():
            yield frame
        event: _Event | None = first
        while event is not None:
            number, delta = event
            if isinstance(delta, RequestFailed):
                yield failed(_described(delta)[1])
                return
            if event is _NOTHING:
                yield PING
            elif delta is not None:
                frames = answers.events(number, delta)
                if frames:
                    yield b"".join(frames)
            event = await anext(stream, None)
        for frame in answers.closing():
            yield frame


async def _collected(stream: AsyncGenerator[_Event, None], answers: Answers) -> None:
    async for number, event in stream:
        if isinstance(event, RequestFailed):
            raise event
        if event is not None:
            answers.choices[number].take(event)


async def _next(stream: AsyncGenerator[_Event, None]) -> _Event:
    return await anext(stream)


async def _unless_gone(call: Call, work: Coroutine[Any, Any, T]) -> T:
    """What comes of it. _Gone: the client has gone away meanwhile, and it was given up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(call))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Gone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(call: Call) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass


# -- errors ------------------------------------------------------------------------------------------------------------


def _described(error: RequestFailed) -> tuple[int, dict[str, Any]]:
    """Status and body."""
    param = error.field or None if isinstance(error, InvalidRequest) else None
    status, kind, code = next(found for which, *found in _ERRORS if isinstance(error, which))
    return status, {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


_ERRORS: Final[tuple[tuple[Any, ...], ...]] = (
    (ContextExceeded, 400, "invalid_request_error", "context_length_exceeded"),
    (InvalidRequest, 400, "invalid_request_error", None),
    (NotServed, 404, "invalid_request_error", "model_not_found"),
    (Draining, 503, "server_error", "overloaded"),
    (Overloaded, 429, "rate_limit_error", "rate_limit_exceeded"),
    (DeadlinePassed, 504, "timeout_error", "deadline_passed"),
    (EngineLost, 500, "server_error", "engine_lost"),
    (RequestFailed, 502, "server_error", "upstream_failed"),
)


def _refused(error: RequestFailed) -> Response:
    status, described = _described(error)
    headers = {"Retry-After": f"{max(1, round(error.retry_s))}"} if isinstance(error, Overloaded) else None
    return _json(described, status, headers)


def _error(status: int, message: str, kind: str, code: str | None) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return _json({"error": {"message": message, "type": kind, "param": None, "code": code}}, status, headers)


async def _http_error(call: Call, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: f"there is nothing at {call.url.path}", 405: f"{call.method} is not for {call.url.path}"}
    message = messages.get(error.status_code, str(error.detail))
    return _error(error.status_code, message, "invalid_request_error", None)


async def _server_error(call: Call, error: Exception) -> Response:
    return _error(500, "the server failed; its log has the reason", "server_error", None)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
