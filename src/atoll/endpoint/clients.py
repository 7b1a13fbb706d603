"""Driver: who is at the other end of a call: its body as it comes, a stream for it to read, and whether it is still
there. One that goes, or that takes nothing for long, is waited for no longer."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, Final, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from atoll.endpoint.fields import Fields, body

log = logging.getLogger(__name__)

LARGEST_BODY: Final = 8 << 20
BODY_S: Final = 60.0
"""By then a body is there."""
STALL_S: Final = 60.0
"""For which a client may take nothing of its stream."""
CLOSED: Final = 499
"""The status, in logs and metrics, of what nobody waited for."""
_CLOSE: Final = {"Connection": "close"}
"""What is left of the body is not read."""

T = TypeVar("T")


class Gone(Exception):
    """The client isn't there any more, or as good as gone."""


async def read(call: Call, body_s: float = BODY_S) -> Fields:
    """The body. HTTPException 413 or 408 where it is too large or does not come."""
    data = bytearray()
    try:
        async with asyncio.timeout(body_s):
            async for part in call.stream():
                data += part
                if len(data) > LARGEST_BODY:
                    raise HTTPException(413, f"the body is larger than {LARGEST_BODY} bytes", _CLOSE)
    except TimeoutError as error:
        raise HTTPException(408, f"the body was not there within {body_s:g} s", _CLOSE) from error
    return body(bytes(data))


async def unless_gone(call: Call, work: Coroutine[Any, Any, T]) -> T:
    """What comes of it. Gone: the client has gone away meanwhile, and it was given up."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(call))
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(call: Call) -> None:
    while (await call.receive())["type"] != "http.disconnect":
        pass


def left(call: Call, error: Gone | ClientDisconnect) -> None:
    """Write down that it went."""
    id = getattr(call.state, "id", "")
    log.warning("%d %s %s %s: the client %s", CLOSED, call.method, call.url.path, id, str(error) or "went away")


class EventStream(Response):
    """Server-sent events, until they end or the client goes."""

    def __init__(self, call: Call, frames: AsyncGenerator[bytes, None], stall_s: float = STALL_S) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
            media_type="text/event-stream; charset=utf-8",
        )
        del self.headers["content-length"]
        self._call, self._frames, self._stall_s = call, frames, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(self._call, self._send(send))
        except Gone as error:
            left(self._call, error)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._frames) as frames:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for frame in frames:
                try:
                    async with asyncio.timeout(self._stall_s):
                        await send({"type": "http.response.body", "body": frame, "more_body": True})
                except TimeoutError as error:
                    raise Gone(f"took nothing for {self._stall_s:g} s") from error
            await send({"type": "http.response.body", "body": b"", "more_body": False})
