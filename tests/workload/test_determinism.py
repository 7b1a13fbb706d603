"""The same seed makes the same trace, to the byte, in every process and for every hash of strings."""

import os
import subprocess
import sys

SAY = """
import hashlib, itertools, sys
from tests.workload.fit.test_model import HAND_WRITTEN
from atoll.workload.fit.columns import columns
from atoll.workload.fit.model import decode, encode, fit_model
from atoll.workload.trace.lines import write

demands = list(itertools.islice(decode(HAND_WRITTEN).trace(int(sys.argv[1])), 1500))
model = fit_model(columns(demands))
again = itertools.islice(model.trace(int(sys.argv[1]), 2.0), 500)
print(hashlib.sha256(b"".join([*write(demands), encode(model), *write(again)])).hexdigest())
"""


def said(seed: int, string_hash: str) -> str:
    command, environment = [sys.executable, "-c", SAY, str(seed)], os.environ | {"PYTHONHASHSEED": string_hash}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_same_seed_makes_the_same_bytes() -> None:
    first = said(1, "1")
    assert len(first) == 65
    assert said(1, "2") == first
    assert said(2, "1") != first
