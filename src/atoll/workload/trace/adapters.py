"""Policy: published traces, read by the names of their columns, which have moved between releases before.

BurstGPT (github.com/HPMLL/BurstGPT), Azure's language-model traces of 2023 and 2024 (Azure/AzurePublicDataset),
Mooncake (kvcache-ai/Mooncake). Whatever is damaged is an error naming line and column; whatever is whole and odd is
counted in the `Tally`.
"""

import csv
import heapq
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

import msgspec

from atoll.errors import InvalidConfig, InvalidData
from atoll.workload.api import Arrival, Demand, Service, Tally
from atoll.workload.trace import lines as ours

MOST_TOKENS: Final = 1 << 30
MOST_SECONDS: Final = 10**10
HELD_ROWS: Final = 1024
"""Rows may stand so many places from where their time belongs."""
KEPT_SESSIONS: Final = 1 << 20
"""Of so many sessions, those seen last, the turns are counted."""
WEEK_NS: Final = 7 * 86400 * 10**9
_STAMP: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):?(\d\d))?", re.ASCII
)


class Row(NamedTuple):
    """One request as its source wrote it down."""

    at_ns: int
    prompt_tokens: int
    output_tokens: int
    service: Service = "api"
    model: str = ""
    session: str = ""
    elapsed_s: float | None = None
    hash_ids: tuple[int, ...] = ()


Cells = Sequence[str]
Parse = Callable[[Cells], Row]


def read(lines: Iterable[str], tally: Tally, source: str = "") -> Iterator[Demand]:
    """The requests of a trace in any format known here, in order of time, the first at 0; `tally` is kept up to date.

    `source`: atoll, azure, burstgpt or mooncake; "": told by the first line. Raises `InvalidData`.
    """
    if source not in ("", *SOURCES):
        raise InvalidConfig(f"there is no trace format {source!r}; choose from {', '.join(SOURCES)}")
    numbered = enumerate(lines, start=1)
    number, first = next(
        ((n, line.removeprefix("\ufeff")) for n, line in numbered if line.strip("\ufeff \r\n")), (1, "")
    )
    if not first:
        raise InvalidData("the trace is empty")
    rest = (line for _, line in numbered)
    tally.format = source or _told(first)
    if tally.format == "atoll":
        return ours.read(first, rest, number, tally)
    if tally.format == "mooncake":
        return _settled(_mooncake(first, rest, number), tally)
    return _settled(_table(first, rest, number, SOURCES[tally.format]), tally)


def _told(first: str) -> str:
    if first.lstrip().startswith("{"):
        return "atoll" if ours.FORMAT in first else "mooncake"
    names = set(_names(first))
    return max(("burstgpt", "azure"), key=lambda source: len(names.intersection(SOURCES[source])))


def _names(header: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([header]), [])]
    except csv.Error as error:
        raise InvalidData(f"the header is no line of a CSV: {error}") from error


def _table(first: str, rest: Iterable[str], number: int, columns: Sequence[str]) -> Iterator[Row]:
    """Rows of a CSV. Raises `InvalidData` for a column that is missing, in the header or in a row."""
    names = _names(first)
    for column in columns:
        if column not in names:
            raise InvalidData(f"line {number}: column {column!r} missing (found: {', '.join(names)[:200]})")
    parse = _burstgpt(names) if columns is SOURCES["burstgpt"] else _azure(names)
    rows = csv.reader(rest)
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise InvalidData(f"line {number + rows.line_num}: {error}") from error
        if cells is None:
            return
        if not cells:
            continue
        try:
            yield parse(cells)
        except IndexError as error:
            missing = next(name for i, name in enumerate(names) if i >= len(cells))
            where = f"line {number + rows.line_num}: column {missing!r} missing"
            raise InvalidData(f"{where} (found: {','.join(cells)[:200]})") from error
        except ValueError as error:
            raise InvalidData(f"line {number + rows.line_num}: {error}") from error


def _burstgpt(names: Sequence[str]) -> Parse:
    at, model, prompt, output, log = (names.index(name) for name in SOURCES["burstgpt"])
    session = names.index("Session ID") if "Session ID" in names else -1
    elapsed = names.index("Elapsed time") if "Elapsed time" in names else -1

    def parse(cells: Cells) -> Row:
        service: Service = "conversation" if cells[log].startswith("Conversation") else "api"
        took_s = _seconds(cells, elapsed, names) if elapsed >= 0 and cells[elapsed] else -1.0
        return Row(
            round(_seconds(cells, at, names) * 1e9),
            _tokens(cells, prompt, names),
            _tokens(cells, output, names),
            service,
            cells[model],
            cells[session] if session >= 0 else "",
            took_s if took_s >= 0 else None,
        )

    return parse


def _azure(names: Sequence[str]) -> Parse:
    at, prompt, output = (names.index(name) for name in SOURCES["azure"])

    def parse(cells: Cells) -> Row:
        return Row(_stamp_ns(cells[at]), _tokens(cells, prompt, names), _tokens(cells, output, names))

    return parse


class _Mooncake(msgspec.Struct):
    timestamp: int | float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def _mooncake(first: str, rest: Iterable[str], number: int) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(_Mooncake)
    for at, line in enumerate(chain([first], rest), start=number):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
            at_ns = round(_checked_seconds(row.timestamp / 1000, "timestamp") * 1e9)
            prompt, output = _checked_tokens(row.input_length), _checked_tokens(row.output_length)
            yield Row(at_ns, prompt, output, hash_ids=row.hash_ids)
        except (ValueError, RecursionError, OverflowError) as error:
            raise InvalidData(f"line {at}: {error} (found: {line.strip()[:80]})") from error


def _settled(rows: Iterable[Row], tally: Tally) -> Iterator[Demand]:
    """Demands in order of time, numbered, with their turns."""
    turns: OrderedDict[str, int] = OrderedDict()
    begin_ns = None
    for row in _in_order(rows, tally):
        if begin_ns is None:
            begin_ns, tally.begins_s = row.at_ns, row.at_ns % WEEK_NS / 1e9
        if row.service == "conversation" and not row.session:
            tally.odd["a conversation without a session"] += 1
        failed = row.output_tokens == 0
        if failed:
            tally.odd["failed, without input" if row.prompt_tokens == 0 else "failed"] += 1
        turn = turns[row.session] = turns.pop(row.session, -1) + 1 if row.session else 0
        if len(turns) > KEPT_SESSIONS:
            turns.popitem(last=False)
        session = row.session or f"#{tally.emitted}"
        at_s = (row.at_ns - begin_ns) / 1e9
        arrival = Arrival(tally.emitted, at_s, row.prompt_tokens, session, row.hash_ids, turn, row.service, row.model)
        tally.emitted += 1
        yield Demand(arrival, row.output_tokens, failed, row.elapsed_s)


def _in_order(rows: Iterable[Row], tally: Tally) -> Iterator[Row]:
    """Without rows that are none, sorted as far as `HELD_ROWS` reach. A row is read once it is given or dropped."""
    held: list[tuple[int, int, Row]] = []
    newest_ns = given_ns = -(1 << 200)
    for number, row in enumerate(rows):
        if why := _no_request(row, given_ns):
            tally.dropped[why] += 1
            tally.read += 1
            continue
        if row.at_ns < newest_ns:
            tally.odd["out of order"] += 1
        newest_ns = max(newest_ns, row.at_ns)
        heapq.heappush(held, (row.at_ns, number, row))
        if len(held) > HELD_ROWS:
            given_ns, _, ready = heapq.heappop(held)
            tally.read += 1
            yield ready
    while held:
        tally.read += 1
        yield heapq.heappop(held)[2]


def _no_request(row: Row, given_ns: int) -> str:
    """Why; "" where it is one."""
    if row.prompt_tokens < 0 or row.output_tokens < 0:
        return "negative length"
    if row.prompt_tokens == 0 < row.output_tokens:
        return "an answer to an empty prompt"
    return "too far out of order" if row.at_ns < given_ns else ""


def _seconds(cells: Cells, at: int, names: Sequence[str]) -> float:
    text = cells[at]
    try:
        return _checked_seconds(float(text), "")
    except ValueError as error:
        raise InvalidData(f"column {names[at]!r}: {text[:40]!r} is no time in seconds") from error


def _checked_seconds(seconds: float, name: str) -> float:
    if not -MOST_SECONDS <= seconds <= MOST_SECONDS:
        raise ValueError(f"column {name!r}: {seconds} is no time")
    return seconds


def _tokens(cells: Cells, at: int, names: Sequence[str]) -> int:
    text = cells[at]
    try:
        return _checked_tokens(int(text))
    except ValueError as error:
        raise InvalidData(f"column {names[at]!r}: {text[:40]!r} is no number of tokens") from error


def _checked_tokens(tokens: int) -> int:
    if not -MOST_TOKENS <= tokens <= MOST_TOKENS:
        raise ValueError(f"{tokens} is no number of tokens")
    return tokens


def _stamp_ns(text: str) -> int:
    """Nanoseconds since a Monday."""
    found = _STAMP.fullmatch(text.strip())
    if not found:
        raise InvalidData(f"column 'TIMESTAMP': {text[:40]!r} is no time such as 2023-11-16 18:17:03.9799600")
    year, month, day, hour, minute, second, fraction, sign, zone_h, zone_min = found.groups()
    zone_s = (int(zone_h) * 3600 + int(zone_min) * 60) * (-1 if sign == "-" else 1) if sign else 0
    clock_s = int(hour) * 3600 + int(minute) * 60 + int(second) - zone_s
    return (_days(year, month, day) * 86400 + clock_s) * 10**9 + int((fraction or "0").ljust(9, "0"))


@lru_cache(maxsize=64)
def _days(year: str, month: str, day: str) -> int:
    return date(int(year), int(month), int(day)).toordinal() - 1  # day 1 was a Monday


SOURCES: Final[dict[str, tuple[str, ...]]] = {
    "atoll": (),
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type"),
    "mooncake": ("timestamp", "input_length", "output_length"),
}
"""The formats known, and the columns each can't do without."""
