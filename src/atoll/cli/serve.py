"""Driver: `atoll serve`: a model behind OpenAI's API, until Ctrl-C or SIGTERM."""

import asyncio
import errno
import json
import os
import re
import signal
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tyro.conf import Positional, UseAppendAction

from atoll.cli.keys import read_keys
from atoll.cli.output import say
from atoll.config import parse
from atoll.errors import InvalidConfig, Unavailable
from atoll.route.balance import Name

DRAIN_S: Final = 30.0
"""For which answers under way may go on after SIGTERM."""
STALL_S: Final = 60.0
"""For which a connection may take nothing of what was sent."""
_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Serve a model to any client that speaks OpenAI's API; a page to try it is at / in a browser.

    MODEL is one that `atoll model list` knows, a GGUF file, a model folder, or a run: `atoll serve runs/last` serves
    what `atoll train` has just trained. With --upstream requests go on to a server elsewhere instead, or to several.
    """

    model: Positional[str] = "smollm2"
    """What to serve."""
    host: str = "127.0.0.1"
    """The address to listen on. Others than this machine reach it only at another one: 0.0.0.0, say."""
    port: int = 8000
    """0: any that is free."""
    name: str | None = None
    """What clients call the model. Default: MODEL."""
    api_key_file: Path | None = None
    """A file with a key on each line; who asks must have one. Without it everybody who reaches the port may ask."""
    max_batch: int = 16
    """How many answers are computed at once; more wait."""
    max_waiting: int = 256
    """How many may wait; more are told to come back (429)."""
    kv_memory: str = "2GiB"
    """Memory for keys and values of texts being read and written, and of beginnings seen before, in all engines."""
    engines: int = 1
    """How many engines of the model, each a process of its own, behind this address."""
    balance: Name = "fewest"
    """Which of several engines or servers is asked. fewest: the one with the fewest requests. turns: one after the
    other. prefix: for prompts that begin alike the same one, while it isn't too busy."""
    kernel: Literal["exact", "fast", "torch"] = "exact"
    """exact: float32 sums over packed weights. fast: activations in 8 bits. torch: PyTorch, unpacked."""
    threads: int | None = None
    """How many compute, in all engines. Default: one a core."""
    chunk: int = 64
    """Tokens of a step: long prompts are read in pieces, so that answers under way go on. 0: prompts are read whole."""
    guess: int = 0
    """Tokens guessed ahead from the text itself, and kept where they are right: the same answers, sooner on texts that
    repeat."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What becomes of an answer that must step back for lack of memory: computed again, or put aside in RAM."""
    upstream: UseAppendAction[tuple[str, ...]] = ()
    """The address of a server to forward to, for example http://127.0.0.1:8001. May be given several times: one that
    fails is gone round."""
    upstream_key_file: Path | None = None
    """The key that it asks for, or all of them."""
    metrics: str | None = None
    """HOST:PORT on which /metrics is then found, and nowhere else: so that the API's port can be for everybody."""
    metrics_compat: Literal["none", "vllm"] = "none"
    """Also give common metrics the names that dashboards for vLLM look for."""
    record: Path | None = None
    """Write what the engine does, step by step, to this file: for `atoll sim calibrate`, or to take the run again."""
    json: bool = False
    """One JSON object per event."""

    def __post_init__(self) -> None:
        for flag, value, least, most in (
            ("--port", self.port, 0, 65535),
            ("--max-batch", self.max_batch, 1, 4096),
            ("--max-waiting", self.max_waiting, 1, 1 << 20),
            ("--engines", self.engines, 1, 256),
            ("--chunk", self.chunk, 0, 1 << 20),
            ("--guess", self.guess, 0, 16),
            ("--threads", 1 if self.threads is None else self.threads, 1, 1024),
        ):
            if not least <= value <= most:
                raise InvalidConfig(f"{flag} must be from {least} to {most}, not {value}")
        nbytes(self.kv_memory)
        if self.metrics is not None:
            address(self.metrics)
        if self.engines > 1 and self.upstream:
            raise InvalidConfig("--engines are started here, --upstream are there already: give one of the two")
        if self.record is not None and (self.engines > 1 or self.upstream):
            raise InvalidConfig("--record is of one engine; leave --engines and --upstream out")
        if self.upstream_key_file is not None and not self.upstream:
            raise InvalidConfig("--upstream-key-file is for --upstream: give its address too")


def nbytes(text: str) -> int:
    """ "2GiB" in bytes. InvalidConfig for what is no size."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)?\s*", text)
    if not found:
        raise InvalidConfig(f"--kv-memory is {text!r}; write a size such as 512MiB or 2GiB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def address(text: str) -> tuple[str, int]:
    """ "0.0.0.0:9090", or "[::1]:9090". InvalidConfig for what is none."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidConfig(f"--metrics is {text!r}; write HOST:PORT, for example 127.0.0.1:9090")
    return host.strip("[]"), int(port)


def main(argv: list[str]) -> int:
    """Serve until told to end; then let answers under way end, for a while."""
    settings = parse(
        ServeSettings, argv, prog="atoll serve", description=str(ServeSettings.__doc__), env=os.environ
    ).value
    if settings.record is not None and settings.record.exists():
        raise InvalidConfig(f"--record {settings.record}: is there already; name a new file")
    keys = () if settings.api_key_file is None else read_keys(settings.api_key_file)
    with ExitStack() as open_sockets:
        listener = open_sockets.enter_context(_listening("--host", "--port", settings.host, settings.port))
        apart = None
        if settings.metrics is not None:
            apart = open_sockets.enter_context(_listening("--metrics", "--metrics", *address(settings.metrics)))
        asyncio.run(_serve(settings, keys, listener, apart))
    return 0


async def _serve(
    settings: ServeSettings, keys: tuple[str, ...], listener: socket.socket, apart: socket.socket | None
) -> None:
    """`apart`: where metrics are asked for, if not with the rest."""
    uvicorn = _uvicorn()
    from atoll.cli.serve_behind import behind
    from atoll.endpoint.face import Face

    url = _url(listener)
    _tell(settings, "starting", f"starting {', '.join(settings.upstream) or settings.model}", url=url)
    async with behind(settings) as (endpoint, begin), AsyncExitStack() as ending:
        face = Face(endpoint, keys=keys, vllm_names=settings.metrics_compat == "vllm", metrics_here=apart is None)
        serving = [await ending.enter_async_context(_serving(_server(uvicorn, face.app), listener))]
        if apart is not None:
            serving.append(await ending.enter_async_context(_serving(_server(uvicorn, face.metrics.app), apart)))
        about = await begin()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ended.set)
        names = ", ".join(served.name for served in endpoint.describe()) or "nothing yet"
        locked = "a key is asked for" if keys else "whoever reaches it may ask"
        also = {} if apart is None else {"metrics": f"{_url(apart)}/metrics"}
        where = f"{url}, {locked}" + (f"; metrics at {also['metrics']}" if also else "")
        _tell(settings, "ready", f"serving {names} ({about}) at {where}; Ctrl-C ends it", url=url, about=about, **also)
        await asyncio.wait([*serving, asyncio.ensure_future(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
        face.drain()
        if face.answering:
            _tell(settings, "draining", f"letting {face.answering} calls end; Ctrl-C again ends at once")
        ended.clear()
        stop = loop.time() + DRAIN_S
        while face.answering and loop.time() < stop and not ended.is_set():
            await asyncio.sleep(0.05)
        face.end()
    _tell(settings, "ended", "ended")


@asynccontextmanager
async def _serving(server: Any, listener: socket.socket) -> AsyncGenerator["asyncio.Task[None]", None]:
    """A web server that runs until here, and then for a second at most."""
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield task
    finally:
        server.should_exit = True
        await task


@contextmanager
def _listening(host_flag: str, port_flag: str, host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket, before anything is loaded. Unavailable: somebody else listens there."""
    with ExitStack() as closing:
        try:
            family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            # Named, or asyncio doesn't see that it is TCP and lets answers wait for acknowledgements, 40 ms each.
            listener = closing.enter_context(socket.socket(family, kind, socket.IPPROTO_TCP))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # whoever takes nothing, or has no network any more, is cut off
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * STALL_S))
            listener.bind(where)
            listener.listen(2048)
        except OSError as error:
            flag = port_flag if error.errno in (errno.EADDRINUSE, errno.EACCES) else host_flag
            why = error.strerror or error
            raise Unavailable(f"can't listen on {host}:{port}: {why}; take another {flag}") from error
        yield listener


@contextmanager
def _ours() -> Iterator[None]:
    """In place of uvicorn's own handling of signals."""
    yield


def _tell(settings: ServeSettings, event: str, line: str, **fields: str) -> None:
    say(json.dumps({"event": event, **fields}) if settings.json else f"atoll serve: {line}")


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _server(uvicorn: Any, app: Any) -> Any:
    """A web server for it, that leaves signals to us."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=1, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    server.capture_signals = _ours
    return server


def _uvicorn() -> Any:
    try:
        import uvicorn

        return uvicorn
    except ImportError as error:
        raise InvalidConfig("`atoll serve` needs a web server: pip install 'atoll[serve]'") from error
