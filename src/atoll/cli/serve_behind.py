"""Driver: what `atoll serve` has behind its address: an engine or a server elsewhere, or several and a router."""

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from atoll.cli.keys import read_key
from atoll.cli.serve import ServeSettings, nbytes
from atoll.endpoint.api import Endpoint
from atoll.endpoint.upstream import Upstream
from atoll.errors import InvalidConfig, Unavailable
from atoll.route.balance import BALANCES
from atoll.route.router import Router
from atoll.runtime.real import RealRuntime
from atoll.serve.instance import Instance

Begin = Callable[[], Awaitable[str]]
"""Returns when there is somebody to ask, and says in words who."""


@asynccontextmanager
async def behind(settings: ServeSettings) -> AsyncGenerator[tuple[Endpoint, Begin], None]:
    """What answers, and how to begin."""
    parts = _servers(settings) if settings.upstream else _engines(settings)

    async def begin() -> str:
        began = await asyncio.gather(*(part.start() for part in parts.values()), return_exceptions=True)
        failures = [each for each in began if each is not None]
        for each in failures:
            if not isinstance(each, Unavailable) or len(failures) == len(parts):
                raise each
        return _about(parts, failures)

    try:
        yield _one(parts, settings), begin
    finally:
        await asyncio.gather(*(part.close() for part in parts.values()))


def _one(parts: Mapping[str, Upstream | Instance], settings: ServeSettings) -> Endpoint:
    """Of all."""
    if len(parts) == 1:
        return next(iter(parts.values()))
    return Router(RealRuntime(), parts, BALANCES[settings.balance]())


def _about(parts: Mapping[str, Upstream | Instance], failures: list[BaseException]) -> str:
    number = f"{len(parts)} engines, " if len(parts) > 1 else ""
    kernels = {part.kernel for part in parts.values() if isinstance(part, Instance)}
    if kernels:
        return number + " and ".join(sorted(kernels))
    where = "at " + ", ".join(part.url for part in parts.values() if isinstance(part, Upstream))
    return "; ".join([where, *(f"not there yet: {failure}" for failure in failures)])


def _servers(settings: ServeSettings) -> dict[str, Upstream]:
    key = None if settings.upstream_key_file is None else read_key(settings.upstream_key_file)
    found = {server.url: server for server in (Upstream(url, key=key) for url in settings.upstream)}
    if len(found) < len(settings.upstream):
        raise InvalidConfig("--upstream: one address is there twice; name each server once")
    return found


def _engines(settings: ServeSettings) -> dict[str, Instance]:
    """By number. Threads and memory are shared out."""
    from atoll.model.loading import load
    from atoll.model.paged import pages_in
    from atoll.model.store import find
    from atoll.serve.messages import Setup

    n = settings.engines
    path = find(settings.model)
    loaded = load(path)
    setup = Setup(
        path=str(path.resolve()),
        pages=pages_in(nbytes(settings.kv_memory) // n, loaded.weights.config, settings.max_batch),
        kernel=settings.kernel,
        threads=max(1, (settings.threads or os.cpu_count() or 1) // n),
        batch=settings.max_batch,
        step_tokens=settings.chunk or None,
        waiting=settings.max_waiting,
        preemption=settings.preemption,
        guesses=settings.guess,
        record="" if settings.record is None else str(settings.record.resolve()),
    )
    return {str(i): Instance(settings.name or settings.model, loaded, setup) for i in range(n)}
