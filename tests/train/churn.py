"""Training runs whose peers crash, freeze and arrive at random moments, in virtual time.

python -m tests.train.churn 17           # replay one seed
python -m tests.train.churn 0 500        # a range
"""

import random
import sys
import tempfile
import time
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from atoll.errors import Deadlock, Expelled, Unfit
from atoll.train.checkpoint import load_newest
from atoll.train.settings import ONCE, ModelSettings, TrainSettings
from tests.train.tiny import Run, check_agreement, folders_in, tiny

THREE_LAYERS = ModelSettings(width=16, layers=3, heads=2, context=16)


def strategy(dice: random.Random) -> dict[str, Any]:
    """Any of them, with settings that make sense."""
    name = dice.choice(["ddp", "local-sgd", "slowmo", "diloco", "streaming", "streaming", "eager", "co2"])
    about: dict[str, Any] = {"strategy": name, "every": dice.choice([2, 3, 5])}
    match name:
        case "ddp":
            about["delay"] = dice.choice([0, 1])
        case "diloco":
            about["delay"] = dice.randrange(about["every"])
        case "eager":
            about |= {"naive": dice.random() < 0.3, "consensus": dice.choice([0, 1, 2, 3])}
            about |= {"most_every": dice.choice([0, 10])}
        case "co2":
            about |= {"first": dice.choice(["waits", "holds"]), "outer_momentum": dice.choice([0.0, 0.5])}
            about |= {"penalty": dice.choice([None, None, 1.0, 3.0]), "outer_clip": dice.choice([0.3, 1.0])}
            about |= {"shards": dice.choice([1, 2, 3])}
            about |= {"most_every": dice.choice([0, 10]) if about["shards"] == 1 else 0}
        case "streaming":
            fragments, apart = dice.choice([2, 3]), dice.choice([1, 2, 3])
            about |= {"every": fragments * apart, "fragments": fragments, "delay": dice.randrange(apart)}
            about |= {"mix": dice.choice([0.0, 0.5, 1.0]), "model": THREE_LAYERS}
    return about | {"on_abort": dice.choice(["again", "reset"])}


def build(seed: int, folder: Path) -> Run:
    """The run of one seed, with its faults planned."""
    dice = random.Random(seed)
    about = strategy(dice)
    codec = dice.choice(["none", "none", "uint8", "e3m0", "e3m0"]) if about.get("shards", 1) == 1 else "none"
    settings = tiny(
        **about,
        steps=dice.randint(10, 40),
        codec=codec,
        error_feedback=codec in ONCE and dice.random() < 0.5,
        rounding=dice.choice(["nearest", "random"]),
        save_every=dice.choice([0, 4, 7]),
    )
    run = Run(
        settings,
        seed,
        latency_s=dice.choice([50e-6, 5e-3]),
        bytes_per_s=dice.choice([1e6, 1e9]),
        jitter=dice.choice([0.0, 1.0, 5.0]),
        tie_break=seed,
    )
    n, lasts_s = dice.randint(2, 4), 0.012 * settings.steps

    def own() -> TrainSettings:
        return replace(settings, delay=dice.randrange(settings.schedule.apart)) if settings.own else settings

    for i in range(n):
        run.start(delay_s=dice.random() * 1e-3, min_world=n, folder=folder / str(i), settings=own())
    for i in range(dice.randint(0, 3)):
        run.start(delay_s=dice.random() * lasts_s, folder=folder / f"late-{i}", settings=own())
    for peer in dice.sample(run.peers, dice.randint(0, n - 1)):
        at = 0.05 + dice.random() * lasts_s  # once all that wait for each other have begun
        if dice.random() < 0.6:
            run.at(at, peer.process.crash)
        else:
            run.at(at, peer.process.freeze)
            run.at(at + dice.choice([0.001, 0.05, 3.5, 4.0]), peer.process.thaw)
    return run


def check(run: Run, folder: Path) -> None:
    """Who lives has finished, with the state of those it finished with, and some one has saved it."""
    check_agreement(run.peers)
    ends: dict[int, set[str]] = {}
    savers: dict[int, int] = {}
    for i, peer in enumerate(run.peers):
        if peer.process.dead:
            continue
        if not peer.events("joined") and (isinstance(peer.error, Expelled) or (not peer.error and peer.awaits > 1)):
            continue  # frozen before it was ever let in, or it waits for some who are gone: that is for its user
        if isinstance(peer.error, Unfit) and begun_anew(run):
            continue  # its run was over when it thawed, and it met another that is not as far: that is for its user too
        assert peer.error is None, f"peer-{i}: {peer.error!r}"
        assert peer.done, f"peer-{i} did not finish: {peer.log[-1]}"
        epoch = peer.last("synced")["epoch"]
        ends.setdefault(epoch, set()).add(peer.last("done")["hash"])
        if peer.events("saved") and peer.last("saved")["step"] == run.settings.steps:
            savers[epoch] = i
            name = Path(peer.last("saved")["path"]).parent.name
            tensors, _ = load_newest(folders_in(folder / name).checkpoint)
            assert tensors["parameters"].equal(peer.parameters)
    assert all(len(hashes) == 1 for hashes in ends.values()), f"final states differ: {ends}"
    assert bool(savers) == bool(ends), "nobody saved the end"
    assert not run.world.master.votes.ballots


def begun_anew(run: Run) -> bool:
    """Did somebody come when the first run was over, find nobody, and begin another?"""
    over = min((peer.last("done")["at"] for peer in run.peers if peer.done), default=inf)
    first = [peer.events("synced")[0] for peer in run.peers if peer.events("synced")]
    return any(met["at"] > over and not met["revision"] for met in first)


def replay(seed: int) -> Run:
    """Run one seed; the error says how to replay it."""
    with tempfile.TemporaryDirectory() as folder:
        run = build(seed, Path(folder))
        try:
            try:
                run.run()
            except Deadlock:
                if any(p.events("joined") and not p.done and not p.process.dead for p in run.peers):
                    raise
            check(run, Path(folder))
        except Exception as error:
            raise AssertionError(
                f"seed {seed}: {type(error).__name__}: {error}\nreplay: python -m tests.train.churn {seed}"
            ) from error
    return run


def main() -> None:
    first = int(sys.argv[1])
    last = int(sys.argv[2]) if len(sys.argv) > 2 else first + 1
    began, bad, crashes, expelled, joined = time.perf_counter(), 0, 0, 0, 0
    for seed in range(first, last):
        try:
            run = replay(seed)
        except AssertionError as error:
            bad += 1
            print(str(error)[:1500])
            if last - first == 1:
                raise
            continue
        crashes += sum(p.process.dead for p in run.peers)
        expelled += sum(len(p.events("expelled")) for p in run.peers)
        joined += sum(len(p.events("joined")) for p in run.peers)
    took = time.perf_counter() - began
    print(f"{last - first} runs, {bad} bad, {crashes} crashes, {expelled} expelled, {joined} joined, {took:.1f} s")


if __name__ == "__main__":
    main()
