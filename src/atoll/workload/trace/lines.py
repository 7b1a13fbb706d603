"""Policy: atoll's own format of traces: a line that says so, then one JSON object per request, in order of time.

What has its usual value is left out. The version stands in docs/compatibility.md.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import msgspec

from atoll.errors import InvalidData
from atoll.workload.api import BLOCK_TOKENS, Arrival, Demand, Service, Tally

FORMAT: Final = "atoll-trace"
VERSION: Final = 1
MOST_TOKENS: Final = 1 << 30


class Header(msgspec.Struct):
    """`begins_s`: the time of the week at 0, from Monday 0:00."""

    format: str
    version: int
    begins_s: float = 0.0


class _Line(msgspec.Struct, omit_defaults=True):
    at_s: float
    prompt_tokens: int
    output_tokens: int
    session: str
    turn: int = 0
    service: Service = "api"
    model: str = ""
    failed: bool = False
    elapsed_s: float | None = None
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = BLOCK_TOKENS


def write(demands: Iterable[Demand], begins_s: Callable[[], float] = float) -> Iterator[bytes]:
    """Lines, with their ends. `begins_s` is asked once the first demand was taken: a trace that is read knows then."""
    encoder = msgspec.json.Encoder()
    begun = False
    for demand in demands:
        if not begun:
            yield _header(encoder, begins_s)
            begun = True
        a = demand.arrival
        yield encoder.encode(
            _Line(
                a.at_s, a.prompt_tokens, demand.output_tokens, a.session, a.turn, a.service, a.model,
                demand.failed, demand.elapsed_s, a.hash_ids, a.block_tokens,
            )
        ) + b"\n"  # fmt: skip
    if not begun:
        yield _header(encoder, begins_s)


def read(first: str, rest: Iterable[str], number: int, tally: Tally) -> Iterator[Demand]:
    """The inverse of `write`. Raises `InvalidData` naming the line that is wrong."""
    try:
        header = msgspec.json.decode(first, type=Header)
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"line {number}: {error}") from error
    if header.format != FORMAT or header.version != VERSION:
        raise InvalidData(f"line {number}: this is {header.format} {header.version}; atoll reads {FORMAT} {VERSION}")
    if not 0 <= header.begins_s < math.inf:
        raise InvalidData(f"line {number}: begins_s={header.begins_s} must be at least 0")
    tally.begins_s = header.begins_s
    return _demands(rest, number, tally)


def _demands(rest: Iterable[str], number: int, tally: Tally) -> Iterator[Demand]:
    decoder = msgspec.json.Decoder(_Line)
    before_s = 0.0
    for at, text in enumerate(rest, start=number + 1):
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
            _check(line, before_s)
        except (ValueError, RecursionError) as error:
            raise InvalidData(f"line {at}: {error} (found: {text.strip()[:80]})") from error
        before_s = line.at_s
        tally.read += 1
        if line.failed:
            tally.odd["failed"] += 1
        arrival = Arrival(
            tally.emitted, line.at_s, line.prompt_tokens, line.session, line.hash_ids, line.turn, line.service,
            line.model, line.block_tokens,
        )  # fmt: skip
        tally.emitted += 1
        yield Demand(arrival, line.output_tokens, line.failed, line.elapsed_s)


def _check(line: _Line, before_s: float) -> None:
    if not before_s <= line.at_s < math.inf:
        raise ValueError(f"column 'at_s': {line.at_s} is earlier than the line before; sort them")
    least = 0 if line.failed else 1
    for name, tokens in (("prompt_tokens", line.prompt_tokens), ("output_tokens", line.output_tokens)):
        if not least <= tokens <= MOST_TOKENS:
            raise ValueError(f"column {name!r}: {tokens} tokens must be {MOST_TOKENS} at most, 1 at least if answered")
    if not 1 <= line.block_tokens <= MOST_TOKENS:
        raise ValueError(f"column 'block_tokens': {line.block_tokens} must be at least 1")
    if line.turn < 0 or not 0 <= (line.elapsed_s or 0) < math.inf:
        raise ValueError("columns 'turn' and 'elapsed_s' must be at least 0")


def _header(encoder: msgspec.json.Encoder, begins_s: Callable[[], float]) -> bytes:
    return encoder.encode(Header(FORMAT, VERSION, begins_s())) + b"\n"
