"""Driver: a peer is killed while an average travels; settings that make no sense, numbers that are none. (CO2, "Done
when" 8.)"""

from collections.abc import Callable, Iterator

import torch

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.co2.late import late_loop
from atoll.reproduce.streaming_diloco.faults import kill_one_of_three
from atoll.reproduce.streaming_diloco.reference import Tower, batch_of
from atoll.reproduce.streaming_diloco.refusals import refused
from atoll.reproduce.threads import run_peers
from atoll.train.learners import Late
from atoll.train.schedule import FragmentSchedule
from atoll.train.settings import TrainSettings

EVERY, STEPS = 16, 800


class _Sick(Late):
    """Something breaks in the step after which a round ends."""

    def learn(self, step: int) -> None:
        super().learn(step)
        if step == 5:
            self.model.parameters[3] = float("nan")


def killed(seed: int, say: Say) -> Iterator[Line]:
    """SIGKILL to one of three in the middle of a round."""
    say("three peers; one is killed while an average travels")
    flags = ["--strategy", "co2", "--every", str(EVERY), "--steps", str(STEPS), "--batch", "4", "--seed", str(seed)]
    flags += ["--model.width", "64", "--model.context", "64", "--save-every", "0"]
    told = kill_one_of_three(flags, 3 * EVERY + 1, say)
    ends = told.how_many("done", "bcd")
    lost = told.how_many("lost", "bc")
    differ = sum(len(some) > 1 for some in told.hashes.values())
    yield Line(
        "8a",
        "SIGKILL to one of three while an average travels, and a joiner: all end, equal at every round",
        "3 end; 0 differ; one final hash",
        f"killed after step {told.at} (the average of step {told.at - told.at % EVERY} travelled); {lost} of 2 "
        f"exchanged it again; {ends} of 3 ended; {differ} of {len(told.hashes)} rounds differ; {len(told.finals)} hash",
        judged(ends == 3 and lost == 2 and differ == 0 and len(told.finals) == 1 and told.at % EVERY != 0),
    )


def refusals(seed: int, say: Say) -> Iterator[Line]:
    """Each names the setting, or the rank."""
    say("settings that make no sense")
    cases: dict[str, Callable[[], object]] = {
        "outer-clip": lambda: TrainSettings(strategy="co2", outer_clip=0.0),
        "every": lambda: TrainSettings(strategy="co2", every=0),
        "outer-momentum": lambda: TrainSettings(strategy="co2", outer_momentum=1.0),
        "penalty": lambda: TrainSettings(strategy="co2", penalty=0.5),
    }
    said = {field: refused(make) for field, make in cases.items()}
    right = sum(text.startswith(f"--{field} ") for field, text in said.items())
    yield Line(
        "8b",
        "clip 0; rounds of 0 steps; momentum 1; penalty 0.5",
        "each refused, naming the setting",
        f"{right} of {len(cases)}: {'; '.join(said.values())}",
        judged(right == len(cases)),
    )

    def body(group: atoll.Group) -> tuple[set[int], bool]:
        schedule, learner = FragmentSchedule(2, steps=12, late=True, first_waits=True), (Late, _Sick)[group.rank == 1]
        loop = late_loop(group, Tower(seed), schedule, 0.05, momentum=0.5, clip=0.1, learner=learner)
        told = set[int]()
        for step in range(12):
            told |= set(loop.step(batch_of(seed, step, group.rank)).refused)
        return told, bool(torch.isfinite(loop.outer.parameters).all())

    say("parameters that are no numbers")
    all_done = run_peers(3, body)
    ranks = {rank for told, _ in all_done for rank in told}
    yield Line(
        "8c",
        "NaN among one worker's parameters when a round ends: it is named by rank and left out; the rest goes on",
        "rank 1, on all; all finite at the end",
        f"refused: {', '.join(map(str, ranks))}, told by {sum(told == {1} for told, _ in all_done)} of 3; "
        f"{sum(finite for _, finite in all_done)} of 3 finite",
        judged(all(told == {1} and finite for told, finite in all_done)),
    )
