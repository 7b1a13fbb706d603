"""Driver: traces that are odd or broken, and the same bytes for the same seed. (BurstGPT, "Done when" 7.)"""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path

from atoll.errors import InvalidData
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.commands import atoll
from atoll.workload.trace.files import TraceFile

HEADER = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
ODD = f"""\ufeff{HEADER}5,s,1,m,9,9,18,Conversation log
4,,1,m,9,9,18,API log
6,,1,m,-9,9,0,API log
7,,1,m,0,0,0,API log
8,,1,m,9,0,9,API log
9,,1,m,9,9,18,Conversation log
"""
COUNTED = {
    "negative length": 1,
    "out of order": 1,
    "failed, without input": 1,
    "failed": 1,
    "a conversation without a session": 1,
}
BROKEN = {
    HEADER.replace("Request tokens", "Input"): "line 1: column 'Request tokens' missing (found: ",
    HEADER + "1,,1,m,9\n": "line 2: column 'Response tokens' missing (found: 1,,1,m,9)",
    HEADER + "1,,1,m,x,9,9,API log\n": "line 2: column 'Request tokens': 'x' is no number of tokens",
}
MODEL = """{"format": "atoll-workload", "version": 1, "streams": [{"service": "api",
"arrivals": {"kind": "gamma", "rate_per_s": 5, "cv": 3}, "prompt": {"kind": "zipf", "a": 1.1, "high": 1024},
"output": {"kind": "log-normal", "median": 100, "sigma": 1}, "failures": {"base": 0.02, "burst": 0.05}}]}"""


def reading(say: Say) -> Iterator[Line]:
    """What is odd is counted, what is broken is named; plain and packed."""
    say("odd and broken traces")
    right = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "odd.csv")
        for data in (ODD.encode(), gzip.compress(ODD.encode())):
            path.write_bytes(data)
            trace = TraceFile(path)
            n, tally = len(list(trace)), trace.tally
            adds_up = tally.read == tally.emitted + tally.dropped.total() == 6 and tally.emitted == n
            right += adds_up and {**tally.dropped, **tally.odd} == COUNTED
        yield Line(
            "7a",
            "BOM, negative length, unsorted time, 0/0, failed, no session; plain and gz: counted by reason, adding up",
            "both",
            f"{right} of 2",
            judged(right == 2),
        )
        path, named = Path(folder, "broken.csv"), []
        for text, complaint in BROKEN.items():
            path.write_text(text, "utf-8")
            try:
                list(TraceFile(path))
            except InvalidData as error:
                named += [str(error)] if complaint in str(error) else []
    measured = f"{len(named)} of {len(BROKEN)}, e.g. {named[-1].partition(': ')[2]}" if named else "none"
    yield Line("7b", "a broken file: line and column are named", "all", measured, judged(len(named) == len(BROKEN)))


def same_bytes(seed: int, say: Say) -> Iterator[Line]:
    """Two processes with other hashes of strings."""
    say("the same seed in two processes")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.json")
        model.write_text(MODEL, "utf-8")
        written = [_converted(model, Path(folder, f"{i}.jsonl"), seed, str(i)) for i in range(2)]
    same = written[0] == written[1]
    measured = f"{len(written[0]):,} bytes, {'the same' if same else 'others'}"
    yield Line("7c", "the same seed, in two processes: 5,000 requests as JSON lines", "same", measured, judged(same))


def _converted(model: Path, out: Path, seed: int, string_hash: str) -> bytes:
    words = ("workload", "convert", str(model), str(out), "--requests", "5000", "--seed", str(seed))
    atoll(*words, env={"PYTHONHASHSEED": string_hash})
    return out.read_bytes()
