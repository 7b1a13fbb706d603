"""Driver: OpenAI's API over HTTP, before any endpoint. Clients that go away are no longer answered."""

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from atoll.endpoint import asking
from atoll.endpoint.answers import PING, Answers
from atoll.endpoint.api import Delta, Endpoint, Request, Text, Tokens
from atoll.endpoint.asking import Asked, Drawn
from atoll.endpoint.clients import BODY_S, CLOSED, STALL_S, EventStream, Gone, left, read, unless_gone
from atoll.endpoint.embeddings import CALLED, TOGETHER, embeddings
from atoll.endpoint.fields import Fields
from atoll.endpoint.items import Items
from atoll.endpoint.metrics import Metrics, Watch
from atoll.endpoint.openapi import document
from atoll.endpoint.refusals import described, http_error, in_json, refused, refused_with
from atoll.endpoint.responses import response
from atoll.errors import AnswerFailed, Draining, InvalidRequest, NotServed, RequestFailed
from atoll.model.api import Tokenizer
from atoll.version import VERSION

log = logging.getLogger(__name__)

PING_S: Final = 15.0
"""For which a stream may be silent."""
_OPEN: Final = frozenset({"/", "/openapi.json", "/health", "/version", "/metrics"})
"""Paths that need no key."""
_PAGE: Final = Path(__file__).with_name("page.html")

Answer = Callable[[Call], Awaitable[Response]]
_Event = tuple[int, Delta | RequestFailed | None]
"""Of which request, and what: more of it, why it failed, or that it is over."""
_NOTHING: Final[_Event] = (-1, None)
"""Has come for a while."""


class Face:
    """`app` is an ASGI application. `keys`: who asks must have one of them; none: everybody may. `metrics_here`: is
    /metrics among its paths?"""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        keys: Collection[str] = (),
        vllm_names: bool = False,
        metrics_here: bool = True,
        ping_s: float = PING_S,
        body_s: float = BODY_S,
        stall_s: float = STALL_S,
    ) -> None:
        self.endpoint = endpoint
        self.metrics = Metrics(endpoint, vllm_names)
        self.answering = 0
        """Calls under way."""
        self._keys = [key.encode() for key in keys]
        self._ping_s, self._body_s, self._stall_s = ping_s, body_s, stall_s
        self._open: set[asyncio.Queue[_Event]] = set()
        self._draining = False
        routes: tuple[tuple[str, str, Answer], ...] = (
            ("GET", "/", self._page),
            ("GET", "/openapi.json", self._document),
            ("GET", "/health", self._health),
            ("GET", "/version", self._version),
            *((("GET", "/metrics", self.metrics.page),) if metrics_here else ()),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/{model:path}", self._model),
            ("POST", "/v1/completions", self._completions),
            ("POST", "/v1/chat/completions", self._chat),
            ("POST", "/v1/responses", self._responses),
            ("POST", "/v1/embeddings", self._embeddings),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/detokenize", self._detokenize),
        )
        self.app = Starlette(
            routes=[Route(path, self._guarded(answer), methods=[method]) for method, path, answer in routes],
            exception_handlers={HTTPException: http_error},
        )
        self.app.router.redirect_slashes = False

    def drain(self) -> None:
        """Take no more requests; those under way go on."""
        self._draining = True

    def end(self) -> None:
        """Those under way end now, and their clients are told."""
        self.drain()
        for events in self._open:
            events.put_nowait((0, self._ending()))

    def _ending(self) -> Draining:
        return Draining("the server is about to end and takes no more requests", retry_s=5.0)

    # -- who may, and what went wrong ---------------------------------------------------------------------------------

    def _guarded(self, answer: Answer) -> Answer:
        async def guarded(call: Call) -> Response:
            if self._keys and call.url.path not in _OPEN and not self._known(call):
                return refused_with(
                    401, "the key is missing or not known here", "authentication_error", "invalid_api_key"
                )
            try:
                return await answer(call)
            except RequestFailed as error:
                return refused(error)
            except (Gone, ClientDisconnect) as error:
                left(call, error)
                return Response(status_code=CLOSED)
            except HTTPException:
                raise
            except Exception:
                id = secrets.token_hex(8)
                log.exception("%s %s failed: %s", call.method, call.url.path, id)
                return refused(AnswerFailed(f"the server failed; its log has the reason under {id}"))

        return guarded

    def _known(self, call: Call) -> bool:
        scheme, _, given = call.headers.get("authorization", "").partition(" ")
        found = [hmac.compare_digest(key, given.strip().encode("latin-1")) for key in self._keys]
        return scheme.lower() == "bearer" and any(found)

    # -- what is there ------------------------------------------------------------------------------------------------

    async def _page(self, call: Call) -> Response:
        return HTMLResponse(_PAGE.read_bytes())

    async def _document(self, call: Call) -> Response:
        return in_json(document())

    async def _health(self, call: Call) -> Response:
        if self._draining or not self.endpoint.describe():
            why = "draining" if self._draining else "loading"
            return in_json({"status": why}, 503, {"Retry-After": "5"})
        return in_json({"status": "ok"})

    async def _version(self, call: Call) -> Response:
        return in_json({"version": VERSION})

    async def _models(self, call: Call) -> Response:
        return in_json({"object": "list", "data": self._cards()})

    async def _model(self, call: Call) -> Response:
        name = call.path_params["model"]
        card = next((card for card in self._cards() if card["id"] == name), None)
        if card is None:
            raise NotServed(f"there is no model {name!r} here")
        return in_json(card)

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

    async def _tokenize(self, call: Call) -> Response:
        model, text = asking.text(await read(call, self._body_s))
        try:
            tokens = await asyncio.to_thread(self._tokenizer(model).encode, text)
        except UnicodeEncodeError as error:
            raise InvalidRequest("prompt", "prompt has half a character in it") from error
        return in_json({"tokens": tokens, "count": len(tokens)})

    async def _detokenize(self, call: Call) -> Response:
        model, tokens = asking.tokens(await read(call, self._body_s))
        tokenizer = self._tokenizer(model)
        if tokens and max(tokens) >= tokenizer.vocab_size:
            raise InvalidRequest("tokens", f"tokens has one above {tokenizer.vocab_size - 1}")
        return in_json({"prompt": await asyncio.to_thread(tokenizer.decode, tokens)})

    def _tokenizer(self, model: str) -> Tokenizer:
        served = self.endpoint.describe()
        name = model or (served[0].name if served else "")
        tokenizer = self.endpoint.tokenizer(name)
        if tokenizer is None:
            raise NotServed(f"the tokens of {name!r} are known to the server elsewhere only")
        return tokenizer

    # -- answers ------------------------------------------------------------------------------------------------------

    async def _completions(self, call: Call) -> Response:
        return await self._answer(call, asking.completion, "cmpl-", self._answers)

    async def _chat(self, call: Call) -> Response:
        return await self._answer(call, asking.chat, "chatcmpl-", self._answers)

    async def _responses(self, call: Call) -> Response:
        return await self._answer(call, response, "resp_", Items)

    async def _answer(
        self,
        call: Call,
        ask: Callable[[Fields, Drawn], Asked],
        prefix: str,
        written: Callable[[Asked, str, int], Answers | Items],
    ) -> Response:
        drawn, fields = await self._begun(call, prefix)

        def begin() -> tuple[Asked, Answers | Items]:  # schemas may be large, prompts that are to be said long
            asked = ask(fields, drawn)
            return asked, written(asked, drawn.id, int(time.time()))

        asked, answers = await asyncio.to_thread(begin)
        stream = self._events(asked.requests, asked.called, pinged=asked.stream)
        if asked.stream:
            return await self._streamed(call, stream, answers)
        async with aclosing(stream):
            await unless_gone(call, _collected(stream, lambda number, delta: answers.choices[number].take(delta)))
        return in_json(answers.body())

    async def _embeddings(self, call: Call) -> Response:
        drawn, fields = await self._begun(call, "embd-")
        vectors = embeddings(fields, drawn)
        async with aclosing(self._events(vectors.requests, CALLED, together=TOGETHER)) as stream:
            await unless_gone(call, _collected(stream, vectors.take))
        return await asyncio.to_thread(lambda: in_json(vectors.body()))

    async def _begun(self, call: Call, prefix: str) -> tuple[Drawn, Fields]:
        """A call's name, which logs have, and its body."""
        if self._draining:
            raise self._ending()
        call.state.id = prefix + secrets.token_hex(12)
        return Drawn(call.state.id, lambda: secrets.randbits(48)), await read(call, self._body_s)

    def _answers(self, asked: Asked, id: str, created: int) -> Answers:
        return Answers(asked, id, created, self._echoes(asked))

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

    async def _streamed(self, call: Call, stream: AsyncGenerator[_Event, None], answers: Answers | Items) -> Response:
        """Errors that come before the first token are answered as such, unless that takes too long."""
        try:
            first = await unless_gone(call, _next(stream))
            if isinstance(first[1], RequestFailed):
                raise first[1]
        except BaseException:
            await stream.aclose()
            raise
        return EventStream(call, _frames(first, stream, answers), self._stall_s)

    async def _events(
        self,
        requests: Sequence[Request],
        called: Mapping[str, str],
        *,
        pinged: bool = False,
        together: int = asking.MOST_ANSWERS,
    ) -> AsyncGenerator[_Event, None]:
        """All that comes of a call's requests, so many at once, as it comes; and now and then _NOTHING, if `pinged`.
        Errors name fields as they are `called` in the body."""
        events: asyncio.Queue[_Event] = asyncio.Queue()
        turn = asyncio.Semaphore(together)
        self.answering += 1
        self._open.add(events)
        tasks = [asyncio.create_task(self._ask(number, each, events, turn)) for number, each in enumerate(requests)]
        left = len(tasks)
        if pinged:
            tasks.append(asyncio.create_task(self._ping(events)))
        try:
            while left:
                event = await events.get()
                left -= event[1] is None and event is not _NOTHING
                if isinstance(event[1], InvalidRequest):
                    event[1].field = called.get(event[1].field, event[1].field)
                yield event
        finally:
            self.answering -= 1
            self._open.discard(events)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ping(self, events: "asyncio.Queue[_Event]") -> None:
        while True:
            await asyncio.sleep(self._ping_s)
            events.put_nowait(_NOTHING)

    async def _ask(
        self, number: int, request: Request, events: "asyncio.Queue[_Event]", turn: asyncio.Semaphore
    ) -> None:
        watch = self.metrics.watch(request, time.monotonic())
        status, finish = CLOSED, "aborted"
        try:
            async with turn, aclosing(self.endpoint.generate(request)) as answer:
                async for delta in answer:
                    watch.delta(delta, time.monotonic())
                    events.put_nowait((number, delta))
                    finish = delta.finish or finish
            status = 200
            events.put_nowait((number, None))
        except RequestFailed as error:
            status, finish = described(error)[0], "error"
            events.put_nowait((number, error))
        except Exception:
            status, finish = 500, "error"
            log.exception("request %s failed", request.id)
            events.put_nowait((number, AnswerFailed(f"the answer {request.id} failed; the server's log says why")))
        finally:
            self._ended(watch, status, finish)

    def _ended(self, watch: Watch, status: int, finish: str) -> None:
        watch.end(status, finish, time.monotonic())


async def _frames(
    first: _Event, stream: AsyncGenerator[_Event, None], answers: Answers | Items
) -> AsyncGenerator[bytes, None]:
    """A call's stream as the client reads it."""
    async with aclosing(stream):
        try:
            for frame in answers.opening():
                yield frame
            event: _Event | None = first
            while event is not None:
                number, delta = event
                if isinstance(delta, RequestFailed):
                    raise delta
                if event is _NOTHING:
                    yield PING
                elif delta is not None:
                    frames = answers.events(number, delta)
                    if frames:
                        yield b"".join(frames)
                event = await anext(stream, None)
            for frame in answers.closing():
                yield frame
        except RequestFailed as error:
            yield answers.failed(described(error)[1])
        except Exception:
            log.exception("the stream %s failed", answers.id)
            ours = AnswerFailed(f"the stream {answers.id} failed; the server's log says why")
            yield answers.failed(described(ours)[1])


async def _collected(stream: AsyncGenerator[_Event, None], take: Callable[[int, Delta], object]) -> None:
    async for number, event in stream:
        if isinstance(event, RequestFailed):
            raise event
        if event is not None:
            take(number, event)


async def _next(stream: AsyncGenerator[_Event, None]) -> _Event:
    return await anext(stream)
