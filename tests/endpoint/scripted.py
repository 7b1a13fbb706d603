"""An endpoint that says what the test wants, and a server for it on a real port."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

import uvicorn

from atoll.endpoint.api import Chosen, Conversation, Delta, Load, Request, Served, Text, Tokens
from atoll.endpoint.face import Face
from atoll.errors import ContextExceeded, NotServed
from atoll.serve.instance import Instance
from tests.serve.bytes_model import Bytes

CONTEXT = 1000


class Scripted:
    """`says(request)`: the answer's text. `before`: awaited before each piece; may raise."""

    def __init__(self, says: Callable[[Request], str] = lambda request: f"you said {text_of(request)}") -> None:
        self.says = says
        self.asked: list[Request] = []
        self.open = 0
        self.gone: list[str] = []
        """Requests that were given up."""
        self.before: Callable[[Request, int], object] | None = None
        self.ready = True

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        if request.model != "parrot":
            raise NotServed(f"there is no model {request.model!r} here")
        prompt = text_of(request).encode()
        if len(prompt) > CONTEXT:
            raise ContextExceeded("prompt", f"{len(prompt)} tokens; the context has room for {CONTEXT}")
        self.asked.append(request)
        if request.embed:
            yield Delta(embedding=(0.6, -0.8), prompt_tokens=len(prompt), finish="stop")
            return
        self.open += 1
        finished = False
        try:
            text = self.says(request)
            limit = CONTEXT if request.max_tokens is None else request.max_tokens
            said = text[:limit]
            parts = list(said) or [""]
            scored = (
                tuple(chosen(c, i and -0.5) for i, c in enumerate(prompt.decode())) if request.prompt_logprobs else ()
            )
            for i, part in enumerate(parts):
                if self.before is not None:
                    await self.before(request, i)  # type: ignore[misc]
                yield Delta(
                    text=part,
                    tokens=tuple(part.encode()[:1]),
                    chosen=(chosen(part, -0.25, request.logprobs),) if request.logprobs is not None and part else (),
                    prompt=scored if not i else (),
                    prompt_tokens=len(prompt),
                    finish=("length" if len(said) < len(text) else "stop") if i == len(parts) - 1 else None,
                )
            finished = True
        finally:
            self.open -= 1
            if not finished:
                self.gone.append(request.id)

    def load(self) -> Load:
        return Load(running=self.open, pages=10, free_pages=10 - self.open, counts={"preemptions": 3})

    def describe(self) -> tuple[Served, ...]:
        return (Served(name="parrot", context=CONTEXT, created=17),) if self.ready else ()

    def tokenizer(self, model: str) -> Bytes:
        if model != "parrot":
            raise NotServed(f"there is no model {model!r} here")
        return Bytes()


def chosen(text: str, logprob: float | None, top: int | None = 0) -> Chosen:
    raw = text.encode()
    others = [(text, raw, logprob), ("~", b"~", -3.0), ("?", b"?", -4.0)][: top or 0]
    return Chosen(raw[0], text, raw, logprob or None, tuple((t[1][0], *t) for t in others))  # type: ignore[misc]


def text_of(request: Request) -> str:
    match request.prompt:
        case Text(text):
            return text
        case Tokens(tokens):
            return bytes(token % 256 for token in tokens).decode(errors="replace")
        case Conversation(messages):
            return " / ".join(f"{message['role']}: {message['content']}" for message in messages)


@contextmanager
def served(endpoint: object, port: int = 0, **options: object) -> Iterator[tuple[str, Face]]:
    """Its address, and the face. It ends with the test."""
    face = Face(endpoint, **options)  # type: ignore[arg-type]
    server = uvicorn.Server(
        uvicorn.Config(face.app, port=port, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    )
    started = threading.Event()
    startup = server.startup

    async def told(*args: object, **kwargs: object) -> None:
        await startup(*args, **kwargs)
        started.set()

    server.startup = told  # type: ignore[method-assign]

    async def serve() -> None:
        async with AsyncExitStack() as ending:
            if isinstance(endpoint, Instance):
                await endpoint.start()
                ending.push_async_callback(endpoint.close)
            await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", face
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
