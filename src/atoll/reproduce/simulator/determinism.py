"""Driver: `atoll sim run` gives the same run each time, in any process, however strings hash and equal times are
ordered. (Simulator, "Done when" 5.)"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.commands import atoll

SCENARIO: Final = """
until_s = 120
[fabric]
kind = "wan"
hosts = 4
bytes_per_s = 1.25e7
rtt_s = 0.05
[job]
kind = "train"
steps = 60
every = 10
batch = 2
[cost.seconds.train_step]
flops = 1e-9
[[faults]]
when = "repeatedly"
kind = "crash"
up = { law = "exponential", mean_s = 20 }
down = { law = "lognormal", mean_s = 3, sigma = 0.5 }
"""
_OUTCOME: Final = ("steps", "loss", "crashes")
_TIES: Final = (1, 2, 3)


def determinism(say: Say) -> Iterator[Line]:
    """Training of four islands, which crash and come back."""
    say("the same run again")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "islands.toml"
        file.write_text(SCENARIO)
        first, again = (run(file, {"PYTHONHASHSEED": hashes}, "--seed", "1") for hashes in ("1", "2"))
        other = run(file, {}, "--seed", "2")
        ok = first["hash"] == again["hash"] != other["hash"]
        measured = f"{first['hash'][:12]}, {again['hash'][:12]}; another seed: {other['hash'][:12]}"
        claim = "hash of the event log, two processes, two PYTHONHASHSEED"
        yield Line("5a", claim, "equal; another seed's differs", measured, judged(ok), "simulated")

        say("equal times in another order")
        outcomes = [outcome(first), *(outcome(run(file, {}, "--seed", "1", "--set", f"tie_break={t}")) for t in _TIES)]
        ok = all(found == outcomes[0] for found in outcomes)
        claim = "what training comes to where events of the same moment change places"
        measured = "; ".join(f"{steps} steps, loss {loss:.6f}, {crashes} crashes" for steps, loss, crashes in outcomes)
        yield Line("5b", claim, "the same", measured, judged(ok), "simulated")


def run(file: Path, env: dict[str, str], *words: str) -> dict[str, Any]:
    """What the command says of its only run. AtollError: it failed."""
    return atoll("sim", "run", str(file), *words, env=env, folder=file.parent)[0]


def outcome(found: dict[str, Any]) -> tuple[Any, ...]:
    """What must not hang on luck."""
    return tuple(found[name] for name in _OUTCOME)
