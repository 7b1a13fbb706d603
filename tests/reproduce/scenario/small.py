"""Scenarios so small that they run in a fraction of a second, as text and as files; the shipped ones at that size."""

from pathlib import Path
from typing import Any

from atoll.reproduce.scenario.reading import load
from atoll.reproduce.scenario.settings import Scenario

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "examples" / "scenarios"

TRAIN = """
[fabric]
kind = "star"
hosts = 3
bytes_per_s = 1e8

[job]
kind = "train"
steps = 8
every = 4
batch = 1
text_bytes = 20000

[job.model]
width = 8
layers = 1
heads = 1
context = 8

[cost.seconds.train_step]
"1" = 0.5
"""

COLLECTIVE = """
[fabric]
kind = "leaf_spine"
hosts = 8
leaves = 2
spines = 1
bytes_per_s = 1e9

[job]
kind = "collective"
nbytes = 8000000
"""

QUICK: dict[str, dict[str, Any]] = {
    "diloco-wan": {
        "job.steps": 20, "job.every": 10, "job.batch": 1, "job.text_bytes": 40000, "job.model.width": 8,
        "job.model.layers": 1, "job.model.heads": 1, "job.model.context": 8, "faults.0.up.mean_s": 300,
    },
    "allreduce-1024": {"fabric.hosts": 32, "fabric.leaves": 4, "fabric.spines": 2, "job.nbytes": 1 << 26},
    "churn-day": {
        "until_s": 1500, "job.text_bytes": 40000, "job.batch": 1, "job.model.width": 8, "job.model.heads": 1,
        "job.model.context": 8, "job.every": 4, "job.stands_for.tokens_per_step": 1 << 22,
    },
}  # fmt: skip
"""What makes the shipped ones small: keys and values."""


def written(folder: Path, text: str, name: str = "case.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def scenario(folder: Path, text: str, **changes: Any) -> Scenario:
    return load(written(folder, text), {key.replace("__", "."): value for key, value in changes.items()})


def shipped(name: str, **changes: Any) -> Scenario:
    """A shipped scenario at a quick size."""
    return load(SHIPPED / f"{name}.toml", {**QUICK[name], **changes})
