"""Driver: an engine in a process of its own, as an `Endpoint`. When it dies it is started again.

Texts become tokens here, so that the engine's steps wait for nobody's prompt.
"""

import asyncio
import logging
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import psutil

from atoll import errors
from atoll.endpoint.api import Conversation, Delta, Load, Prompt, Request, Served, Text, Tokens
from atoll.errors import (
    AnswerFailed,
    ContextExceeded,
    DeadlinePassed,
    Draining,
    EngineLost,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestFailed,
)
from atoll.model.api import Loaded, Tokenizer
from atoll.runtime.processes import popen
from atoll.serve.messages import Add, Drop, Failed, Ready, Refused, Said, Setup, Unpacker, packed
from atoll.serve.pulse import LOOK_S, Pulse
from atoll.serve.restarts import AGAIN_S, Restarts

log = logging.getLogger(__name__)

START_S: Final = 120.0
"""By then an engine has loaded its model, or it is given up."""
_READ: Final = 1 << 16
_SPIN: Final = "GOMP_SPINCOUNT"
_SPINS: Final = "10000"
"""How often a thread looks for the others before it sleeps. Where something else wants the cores, waiting for who isn't
let on by keeping a core busy makes a step take a hundred times as long."""

_MOST_CHARACTERS: Final = 256
"""Of a token, on the average of a long text: one with more for each token of the context is too long, unread."""

_Event = Delta | RequestFailed


@dataclass
class _Running:
    """A living engine process."""

    process: "subprocess.Popen[bytes]"
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader


class Instance:
    """A model that answers. `loaded` has its tokens and its manner of conversation."""

    def __init__(self, name: str, loaded: Loaded, setup: Setup) -> None:
        self.name, self.setup = name, setup
        self._loaded = loaded
        self._asked: dict[str, asyncio.Queue[_Event]] = {}
        self._engine: _Running | None = None
        self._load = Load()
        self._created = 0
        self._keeper: asyncio.Task[None] | None = None
        self.kernel = ""
        self.restarts = 0

    async def start(self) -> None:
        """Returns when the model can be asked. EngineLost: it can't be loaded; the message says why."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(ready), name=f"engine-{self.name}")
        await ready

    async def close(self) -> None:
        """End the engine. Answers under way fail with EngineLost."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self._fail_all("the engine is ended")

    # -- Endpoint -----------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """See `endpoint.api.Endpoint`."""
        if request.model != self.name:
            raise NotServed(f"there is no model {request.model!r} here; there is {self.name!r}")
        now = asyncio.get_running_loop().time
        until = None if request.deadline_s is None else now() + request.deadline_s
        tokens = await asyncio.to_thread(self._tokens, request.prompt)
        left_s = None if until is None else until - now()
        if self._engine is None or not self._created:
            raise Draining("the engine is not ready yet", retry_s=AGAIN_S[-1])
        events: asyncio.Queue[_Event] = asyncio.Queue()
        if request.id in self._asked:
            raise InvalidRequest("id", f"{request.id} is being answered already")
        self._asked[request.id] = events
        try:
            self._tell(Add(msgspec.structs.replace(request, prompt=tokens, deadline_s=left_s)))
            while True:
                async with asyncio.timeout_at(until):
                    event = await events.get()
                if isinstance(event, RequestFailed):
                    raise event
                if event.finish == "error":
                    raise AnswerFailed(f"the answer {request.id} failed; the server's log says why")
                yield event
                if event.finish is not None:
                    return
        except TimeoutError as error:
            raise DeadlinePassed(f"the answer was not there within {request.deadline_s} s") from error
        finally:
            if self._asked.pop(request.id, None) is not None:
                self._tell(Drop(request.id))

    def load(self) -> Load:
        """As of the engine's last step."""
        state = "ready" if self._created else "starting"
        counts = {**self._load.counts, "engine_restarts": self.restarts}
        return msgspec.structs.replace(self._load, counts=counts, instances={state: 1})

    def describe(self) -> tuple[Served, ...]:
        """See `endpoint.api.Endpoint`."""
        if not self._created:
            return ()
        context = self._loaded.weights.config.context
        chat = self._loaded.chat is not None
        return (Served(name=self.name, context=context, created=self._created, chat=chat),)

    def tokenizer(self, model: str) -> Tokenizer:
        """See `endpoint.api.Endpoint`."""
        if model != self.name:
            raise NotServed(f"there is no model {model!r} here; there is {self.name!r}")
        return self._loaded.tokenizer

    # -- inside -------------------------------------------------------------------------------------------------------

    def _tokens(self, prompt: Prompt) -> Tokens:
        tokenizer = self._loaded.tokenizer
        if isinstance(prompt, Tokens):
            return prompt
        try:
            if isinstance(prompt, Text):
                return Tokens((*tokenizer.prefix, *self._encoded(prompt.text)))
            return Tokens(tuple(self._encoded(self._conversation(prompt))))
        except UnicodeEncodeError as error:
            raise InvalidRequest("prompt", "the text has half a character in it") from error

    def _encoded(self, text: str) -> list[int]:
        context = self._loaded.weights.config.context
        if len(text) > _MOST_CHARACTERS * context:
            raise ContextExceeded(
                "prompt", f"the prompt has {len(text)} characters; the context has room for {context} tokens"
            )
        return self._loaded.tokenizer.encode(text)

    def _conversation(self, prompt: Conversation) -> str:
        if self._loaded.chat is None:
            raise InvalidRequest("messages", f"{self.name!r} has learnt no conversations: ask it for completions")
        try:
            return self._loaded.chat.text(prompt.messages, tools=prompt.tools)
        except errors.InvalidData as error:
            raise InvalidRequest("messages", str(error)) from error

    def _tell(self, message: Add | Drop) -> None:
        if self._engine is not None:
            self._engine.writer.write(packed(message))

    async def _keep(self, ready: "asyncio.Future[None]") -> None:
        """Run the engine, again and again."""
        restarts = Restarts()
        while True:
            began = time.monotonic()
            why = await self._run(ready)
            self._created, self._load = 0, Load()
            self._fail_all(f"the engine died while it answered ({why}); it is being started again")
            if not ready.done():
                ready.set_exception(EngineLost(why))
                return
            log.warning("engine %s ended (%s); it is started again", self.name, why)
            await asyncio.sleep(restarts.wait_s(time.monotonic() - began))
            self.restarts += 1

    async def _run(self, ready: "asyncio.Future[None]") -> str:
        """One process, from its start to its end. Why it ended."""
        try:
            process = popen(
                [sys.executable, "-m", "atoll.serve.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                process_group=0,
                env={_SPIN: _SPINS, **os.environ},
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"it can't be started: {error}"
        try:
            self._engine = await _connected(process)
            self._engine.writer.write(packed(self.setup))
            return await self._listen(self._engine, ready)
        except (OSError, ValueError) as error:
            return f"what it says can't be heard: {error}"
        finally:
            engine, self._engine = self._engine, None
            process.kill()
            await asyncio.to_thread(process.wait)
            if engine is not None:
                engine.writer.close()

    async def _listen(self, engine: _Running, ready: "asyncio.Future[None]") -> str:
        unpacker, pulse = Unpacker.of_engine(), Pulse()
        deadline = time.monotonic() + START_S
        why = "it ended without a word"
        while True:
            try:
                async with asyncio.timeout(LOOK_S if self._created else max(0.0, deadline - time.monotonic())):
                    data = await engine.reader.read(_READ)
            except TimeoutError:
                if not self._created:
                    return f"it did not load its model within {START_S:.0f} s"
                if self._asked and pulse.lost(_used_s(engine.process)):
                    return "it is stopped or stuck: it neither says nor does anything"
                continue
            pulse.heard()
            if not data:
                return why
            for message in unpacker.push(data):
                if isinstance(message, Ready):
                    self._created, self.kernel = int(time.time()), message.kernel
                    if not ready.done():
                        ready.set_result(None)
                elif isinstance(message, Failed):
                    why = message.message
                else:
                    self._take(message)

    def _take(self, message: Any) -> None:
        if isinstance(message, Refused):
            self._event(message.id, _error(message), last=True)
        elif isinstance(message, Said):
            self._load = message.load
            for id, delta in message.deltas:
                self._event(id, delta, last=delta.finish is not None)

    def _event(self, id: str, event: _Event, last: bool) -> None:
        events = self._asked.pop(id, None) if last else self._asked.get(id)
        if events is not None:
            events.put_nowait(event)

    def _fail_all(self, why: str) -> None:
        for id in list(self._asked):
            self._event(id, EngineLost(why), last=True)


def _used_s(process: "subprocess.Popen[bytes]") -> float:
    """Processor time."""
    try:
        used = psutil.Process(process.pid).cpu_times()
    except psutil.Error:  # it has ended: the pipe will say so
        return math.inf
    return float(used.user + used.system)


async def _connected(process: "subprocess.Popen[bytes]") -> _Running:
    """Its pipes as streams."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), process.stdout)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, process.stdin)
    return _Running(process, asyncio.StreamWriter(transport, protocol, reader, loop), reader)


def _error(refused: Refused) -> RequestFailed:
    kind: Any = getattr(errors, refused.error, None)
    if not (isinstance(kind, type) and issubclass(kind, RequestFailed)):
        return RequestFailed(refused.message)
    error: RequestFailed
    if issubclass(kind, InvalidRequest):
        error = kind(refused.field, refused.message)
    elif issubclass(kind, Overloaded):
        error = kind(refused.message, refused.retry_s)
    else:
        error = kind(refused.message)
    return error


async def whole(answers: AsyncGenerator[Delta, None]) -> Delta:
    """All of an answer in one."""
    parts: list[Delta] = []
    async with aclosing(answers) as stream:
        async for delta in stream:
            parts.append(delta)
    return Delta(
        text="".join(part.text for part in parts),
        tokens=tuple(token for part in parts for token in part.tokens),
        chosen=tuple(chosen for part in parts for chosen in part.chosen),
        prompt=parts[0].prompt,
        prompt_tokens=parts[-1].prompt_tokens,
        cached_tokens=parts[-1].cached_tokens,
        finish=parts[-1].finish,
        embedding=parts[-1].embedding,
    )
