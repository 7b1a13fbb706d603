"""Driver: one peer of a demonstration in a process of its own: the training loop on a small model, an event per line.

python -m atoll.reproduce.one_byte.peer ADDRESS --steps N [--name X] [--folder F] [--corrupt-at N] [--other-base] ...
"""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import atoll
from atoll.errors import AtollError
from atoll.train.loop import Folders, Trainer
from atoll.train.one_byte.settings import OneByteSettings
from atoll.train.one_byte.strategy import OneByte
from atoll.train.settings import ModelSettings, TrainSettings
from atoll.train.text import Corpus

TEXT_BYTES: Final = 1 << 18


def settings(steps: int, seed: int = 1, **changes: Any) -> TrainSettings:
    """Of a small transformer over bytes."""
    one_byte = OneByteSettings(**{"lr": 2e-4, **changes})
    model = ModelSettings(width=32, layers=2, heads=2, context=32)
    return TrainSettings(
        strategy="one-byte", steps=steps, batch=8, save_every=50, seed=seed, model=model, one_byte=one_byte
    )


def trainer(about: TrainSettings, report: Any, folder: Path | None = None) -> Trainer:
    """One who trains so on Python's own library."""
    folders = Folders(folder / "checkpoint", folder / "model") if folder else None
    return Trainer(about, Corpus.read(None, TEXT_BYTES), report, folders)


def strategy_of(trainer: Trainer) -> OneByte:
    """Its strategy."""
    assert isinstance(trainer.strategy, OneByte)
    return trainer.strategy


def sha256(strategy: OneByte) -> str:
    """Of all parameters' bytes."""
    digest = hashlib.sha256()
    for tensor in strategy.weights.tensors.values():
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def main() -> None:
    """Train as told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name", default="")
    parser.add_argument("--min-world", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--hash-every", type=int, default=64)
    parser.add_argument("--catch-up", default="auto")
    parser.add_argument("--corrupt-at", type=int, default=0, help="spoil a parameter after so many rounds")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds of rest after each round")
    parser.add_argument("--other-base", action="store_true", help="begin with other weights than all others")
    options = parser.parse_args()
    about: dict[str, Any] = {n: getattr(options, n) for n in ("samples", "hash_every", "catch_up")}

    def report(event: str, **fields: Any) -> None:
        _say(event=event, **fields)
        if event == "step" and fields["step"] == options.corrupt_at:
            _spoil(strategy_of(training))
        if event == "step":
            time.sleep(options.pace)

    training = trainer(settings(options.steps, options.seed, **about), report, options.folder)
    if options.other_base:
        _spoil(strategy_of(training))
        strategy_of(training).base = sha256(strategy_of(training))[:32]
    try:
        training.run(
            lambda: atoll.join(options.address, name=options.name, min_world=options.min_world, timeout_s=None)
        )
    except AtollError as error:
        _say(event="failed", error=type(error).__name__, message=str(error))
        raise SystemExit(1) from None
    _say(event="ended", sha256=sha256(strategy_of(training)), rounds=len(strategy_of(training).rounds))


def _spoil(strategy: OneByte) -> None:
    next(iter(strategy.weights.tensors.values())).view(-1)[7] += 0.25


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
