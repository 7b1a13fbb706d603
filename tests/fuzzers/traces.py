"""Traces and models of workloads as somebody else wrote them: read, or refused by an error of atoll's, in one line.

What is read adds up, is in order, and comes back from our own format as it was.
"""

import gzip
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Final

from atoll.errors import AtollError
from atoll.rng import stream
from atoll.workload.api import Tally
from atoll.workload.fit.model import decode, encode
from atoll.workload.trace import adapters
from atoll.workload.trace.files import TraceFile
from atoll.workload.trace.lines import write
from tests.fuzzers.choices import Choices

SOURCES: Final = ("", "atoll", "azure", "burstgpt", "mooncake")
TEXT, FILE, PACKED, MODEL = range(4)
SAMPLES: Final[Mapping[str, str]] = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2024-05-10 00:00:00Z,2,5\n",
    "burstgpt": "\ufeffTimestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.0,s,43,GPT-4,906,446,1352,Conversation log\n6,,1,m,3,0,3,API log\n4,s,,m,9,9,9,Conversation log\n",
    "mooncake": '{"timestamp": 3000, "input_length": 9, "output_length": 2, "hash_ids": [0, 7]}\n'
    '{"timestamp": 0, "input_length": 0, "output_length": 0}\n',
    "atoll": '{"format":"atoll-trace","version":1,"begins_s":0.5}\n'
    '{"at_s":0.0,"prompt_tokens":7,"output_tokens":3,"session":"a","turn":3,"service":"conversation","elapsed_s":2.5}\n'
    '{"at_s":0.3,"prompt_tokens":8,"output_tokens":0,"session":"d","failed":true,"hash_ids":[1]}\n',
}
MODELS: Final = (
    b'{"format":"atoll-workload","version":1,"streams":[{"service":"api","arrivals":{"kind":"gamma","rate_per_s":5,'
    b'"cv":2},"prompt":{"kind":"log-normal","median":400,"sigma":0.9},"output":{"kind":"zipf","a":1.1,"high":99}}]}',
    b'{"format":"atoll-workload","version":1,"streams":[{"service":"conversation","arrivals":{"kind":"windows",'
    b'"window_s":60,"rates_per_s":[1,0,3],"cvs":[1,1,2]},"prompt":{"kind":"empirical","values":[1]},"output":{"kind":'
    b'"joint","starts":[1,9],"answers":[{"kind":"empirical","values":[2]},{"kind":"geometric","mean":3}]},"talk":'
    b'{"turns":{"kind":"geometric","mean":3},"think":{"kind":"gamma","mean_s":20,"cv":2},"first":{"kind":"zipf",'
    b'"a":1.1,"high":900},"more":{"kind":"empirical","values":[9]},"output":{"kind":"empirical","values":[5]}}}]}',
    b'{"format":"atoll-workload","version":1,"streams":[{"service":"api","arrivals":{"kind":"seasonal","base":{"kind":'
    b'"poisson","rate_per_s":1},"weights":[0,2,1]},"prompt":{"kind":"empirical","values":[1]},"output":{"kind":'
    b'"empirical","values":[1]},"failures":{"base":0.1,"burst":0.2,"mean_rate_per_s":2}}]}',
)


@cache
def folder() -> Path:
    """One for all runs, gone with the process."""
    made = tempfile.TemporaryDirectory(prefix="atoll-fuzz-")
    _kept.append(made)
    return Path(made.name)


_kept: list[Any] = []


@contextmanager
def short_errors() -> Iterator[None]:
    """Lets errors of atoll's pass that a person can read."""
    try:
        yield
    except AtollError as error:
        if len(str(error)) > 2000:
            raise AssertionError("an error is one line") from error


def fuzz(data: bytes) -> None:
    choices = Choices(data)
    what, source = choices.number() % 4, choices.pick(SOURCES)
    body = choices.rest()
    with short_errors():
        match what:
            case 0:
                read_text(body.decode("utf-8", "replace"), source)
            case 1 | 2:
                path = folder() / "trace"
                path.write_bytes(gzip.compress(body) if what == PACKED else body)
                for _ in TraceFile(path, source):
                    pass
            case _:
                read_model(body)


def read_text(text: str, source: str) -> None:
    tally = Tally()
    demands = list(adapters.read(text.split("\n"), tally, source))
    assert tally.read == tally.emitted + sum(tally.dropped.values())
    assert tally.emitted == len(demands)
    assert all(a.arrival.at_s <= b.arrival.at_s for a, b in pairwise(demands))
    assert [d.arrival.number for d in demands] == list(range(len(demands)))
    assert all(d.failed or min(d.arrival.prompt_tokens, d.output_tokens) > 0 for d in demands)
    written = b"".join(write(demands, lambda: tally.begins_s))
    again = Tally()
    assert list(adapters.read(written.decode().split("\n"), again)) == demands
    assert again.begins_s == tally.begins_s


def read_model(data: bytes) -> None:
    model = decode(data)
    assert decode(encode(model)) == model
    for part in model.streams:
        assert all(law.draw(stream(0)) >= 1 for law in (part.prompt, *([] if part.talk is None else [part.talk.first])))
        with suppress(OverflowError):
            assert all(a <= b for a, b in pairwise(islice(part.arrivals.times(stream(0)), 5)))


def seeds() -> list[bytes]:
    made = [bytes([what, 0]) + text.encode() for text in SAMPLES.values() for what in (TEXT, FILE, PACKED)]
    made += [bytes([TEXT, SOURCES.index(name)]) + text.encode() for name, text in SAMPLES.items()]
    made += [bytes([MODEL, 0]) + model for model in MODELS]
    return [
        *made,
        bytes([FILE, 0]) + gzip.compress(SAMPLES["azure"].encode())[:-4],
        bytes([TEXT, 0]) + b"[" * 3000,
        bytes([MODEL, 0]) + b'{"streams":' * 2000,
    ]
