"""Driver: `atoll doctor`."""

import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util

import psutil
from rich.table import Table
from rich.text import Text

from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.version import VERSION


@dataclass(frozen=True)
class DoctorSettings:
    """What this machine can do for atoll, and what it would need to do more. Takes some seconds: speeds are measured.

    Exits with 1 if something that atoll can't do without is missing.
    """

    json: bool = False
    """One JSON object per line of the table."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state`: good, less (atoll goes another way, slower) or bad (atoll can't work)."""

    what: str
    found: str
    state: str = "good"
    remedy: str = ""


def main(argv: list[str]) -> int:
    """Look and print."""
    settings = parse(
        DoctorSettings, argv, prog="atoll doctor", description=str(DoctorSettings.__doc__), env=os.environ
    ).value
    findings = []
    table = Table(box=None, pad_edge=False, show_header=False)
    signs = {"good": Text("ok", "green"), "less": Text("less", "yellow"), "bad": Text("bad", "bold red")}
    for finding in look():
        findings.append(finding)
        if settings.json:
            say(json.dumps(asdict(finding)))
        table.add_row(
            signs[finding.state], finding.what, finding.found + (f"; {finding.remedy}" * bool(finding.remedy))
        )
    if not settings.json:
        wide_console().print(table)
    return 1 if any(finding.state == "bad" for finding in findings) else 0


def look() -> Iterator[Finding]:
    """All there is to say."""
    yield Finding("atoll", f"{VERSION}, Python {platform.python_version()}, {platform.platform()}")
    yield Finding("machine", f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.1f} GiB of memory")
    yield from _packages()
    yield from _network()
    yield from _one_machine()
    yield from _survival()
    yield from _serving()


def _packages() -> Iterator[Finding]:
    try:
        yield Finding("torch", metadata.version("torch"))
    except metadata.PackageNotFoundError:
        yield Finding(
            "torch", "missing", "less", "`import atoll` works with NumPy; `atoll train` needs pip install torch"
        )
    plots = util.find_spec("matplotlib") is not None
    yield Finding("plots", "matplotlib" if plots else "none", *(() if plots else ("less", "pip install 'atoll[plot]'")))


def _network() -> Iterator[Finding]:
    from atoll.net import capabilities

    found = capabilities.addresses()
    names = ", ".join(f"{address} ({interface})" for interface, address in found)
    outside = [address for _, address in found if not address.startswith(("127.", "::1", "fe80:"))]
    yield Finding("addresses", names or "none", *(() if outside else ("less", "only peers of this machine can join")))
    for host, name in (("0.0.0.0", "listening, IPv4"), ("::", "listening, IPv6")):
        why = capabilities.can_listen(host)
        state = "good" if not why else "bad" if host == "0.0.0.0" else "less"
        yield Finding(name, why or "any free port", state)
    control = capabilities.congestion_control()
    yield Finding("congestion control", control or "not told", remedy=_ADVICE.get(control, ""))
    yield Finding("TCP through loopback", f"{capabilities.loopback_bytes_per_s() / 1e9:.1f} GB/s, one connection")


def _one_machine() -> Iterator[Finding]:
    from atoll.net import capabilities

    why = capabilities.shared_memory()
    yield Finding("shared memory", why or "memfd, nothing in /dev/shm", "less" if why else "good")
    why = capabilities.direct_reads()
    yield Finding("direct reads", why or "allowed", "less" if why else "good")
    if not why:
        shard = capabilities.best_shard_bytes()
        speed = capabilities.read_bytes_per_s(shard) / 1e9
        yield Finding("shard size", f"{shard >> 10} KiB read and added at once, calibrated: {speed:.1f} GB/s")
    yield Finding("adding float32", f"{capabilities.add_bytes_per_s() / 1e9:.1f} GB/s, one thread")


def _survival() -> Iterator[Finding]:
    from atoll.net import capabilities, lab

    if sys.platform == "linux":
        yield Finding("stopped processes", "noticed (/proc)")
        yield Finding("children", "end with their parent, kill -9 included")
    else:
        told = "noticed (ps)" if sys.platform == "darwin" else "not noticed"
        yield Finding("stopped processes", told, "good" if sys.platform == "darwin" else "less")
        yield Finding("children", "end with a parent that exits; after kill -9 they see a closed pipe", "less")
    free = capabilities.free_disk_bytes()
    yield Finding(
        "disk", f"{free / 2**30:.1f} GiB free here", *(() if free >= 2**30 else ("less", "a run may find no room"))
    )
    back_ends = lab.available()
    usable = [name for name, why in back_ends.items() if not why]
    reasons = "; ".join(f"{name}: {why}" for name, why in back_ends.items() if why)
    yield Finding("network lab", ", ".join(usable) or "none", "good" if usable else "less", reasons)


_ADVICE = {
    "cubic": "on long, lossy links atoll stripes over 8 connections, which this one gains most from",
    "reno": "on long, lossy links atoll stripes over 8 connections, which this one gains most from",
    "bbr": "fills long links by itself; stripes gain little",
}


def _serving() -> Iterator[Finding]:
    """What computes where a model is served."""
    missing = [name for name in ("starlette", "uvicorn", "httpx", "tokenizers") if util.find_spec(name) is None]
    if missing:
        yield Finding("serving", f"no {missing[0]}", "less", "`atoll serve` needs pip install 'atoll[serve]'")
    if util.find_spec("torch") is None:
        return
    from atoll.errors import Unavailable
    from atoll.model import kernel

    try:
        wide = kernel.library().atoll_vectors()
        yield Finding("model kernel", "compiled, with AVX2" if wide else "compiled, without AVX2")
    except Unavailable as error:
        yield Finding("model kernel", str(error), "less", "models are served by PyTorch, several times slower")
