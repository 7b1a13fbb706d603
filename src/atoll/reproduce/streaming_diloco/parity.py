"""Driver: the strategy over real sockets against one process that does the same sums. (Streaming DiLoCo, "Done when"
1.)"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.streaming_diloco.reference import Arrays, Tower, batch_of, data_parallel, streaming
from atoll.reproduce.threads import run_peers
from atoll.train.exchange import Exchange
from atoll.train.flat import FlatModel
from atoll.train.fragments import FragmentPlan
from atoll.train.learners import Runner
from atoll.train.momentum import Momentum
from atoll.train.optimisers import constant, descent
from atoll.train.outer import OuterLoop
from atoll.train.schedule import FragmentSchedule

STEPS, RATE = 50, 0.05


def parity(seed: int, say: Say) -> Iterator[Line]:
    """After every step is data-parallel descent; four fragments are the reference, bit for bit."""
    say("two peers against one process")
    each = _trained(seed, FragmentSchedule(steps=STEPS), 0.0, 1.0, 0.0)
    reference = data_parallel(seed, 2, STEPS, RATE)
    apart = max(float(np.abs(each[t][n] - x).max()) for t in each for n, x in reference[t - 1].items())
    yield Line(
        "1a",
        f"H=1, outer rate 1, no momentum, inner SGD, fp32: {STEPS} steps of two peers against synchronous SGD",
        "<= 1e-6 apart",
        f"{apart:.1e} apart, after each of {len(each)} steps",
        judged(len(each) == STEPS and apart <= 1e-6),
    )
    for number, delay, mix in (("1b", 1, 0.0), ("1c", 2, 0.5)):
        schedule = FragmentSchedule(12, 4, delay, STEPS)
        found = _trained(seed, schedule, mix, 0.4, 0.9)
        told: dict[int, Arrays] = {}
        streaming(
            seed, 2, STEPS, RATE, every=12, fragments=4, delay=delay, mix=mix, outer_rate=0.4, momentum=0.9,
            told=told.__setitem__,
        )  # fmt: skip
        same = sum(_equal(found.get(t, {}), shared) for t, shared in told.items())
        yield Line(
            number,
            f"P=4, H=12, delay {delay}, mix {mix:g}, fp32: what two peers share, at each finish, against the reference",
            "the same bits each time",
            f"{same} of {len(told)} the same",
            judged(same == len(told) and found.keys() == told.keys()),
        )


def _trained(seed: int, schedule: FragmentSchedule, mix: float, rate: float, momentum: float) -> dict[int, Arrays]:
    """What two peers share after each step with a finish; both the same."""

    def body(group: atoll.Group) -> dict[int, Arrays]:
        torch.set_num_threads(1)
        tower = Tower(seed)
        model = FlatModel(tower, FragmentPlan.of(tower, schedule.fragments))
        outer = Momentum(model.parameters.clone(), rate, momentum)
        inner = descent(model.parameters, constant(RATE))
        loop = OuterLoop(model, Runner(model, outer, inner, mix), outer, schedule, Exchange())
        loop.enter(group)
        found = {}
        for step in range(STEPS):
            if loop.step(batch_of(seed, step, group.rank)).boundary:
                found[step + 1] = _named(model, outer.parameters)
        return found

    one, other = run_peers(2, body)
    same = all(_equal(one[t], other[t]) for t in one.keys() | other.keys())
    return one if same else {}


def _named(model: FlatModel, flat: torch.Tensor) -> Arrays:
    """A flat vector as the model's parameters."""
    kept = model.parameters.clone()
    model.parameters.copy_(flat)
    named = {name: p.detach().numpy().copy() for name, p in model.module.named_parameters()}
    model.parameters.copy_(kept)
    return named


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
