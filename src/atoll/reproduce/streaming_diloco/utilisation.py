"""Driver: what share of the time devices compute, by bandwidth, from the fragment schedule itself. (Streaming DiLoCo,
"Done when" 6.)

A step of a model of N parameters takes 6 N tokens / (FLOP/s x utilisation of the device), as long as the paper's. A
ring all-reduce of M peers moves 2 (M - 1) / M of the data over each link.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from atoll.reproduce.api import Line, Say, judged
from atoll.train.schedule import FragmentSchedule, Start

PEERS, EVERY_STEPS = 2, 5
"""Of fragments: every so many steps one goes out, as in the paper's figure for H of about 100."""
BF16_BITS, E3M0_BITS = 16.0, 4.125
LATENCY_S = 1e-3
TARGET = 0.95


@dataclass(frozen=True)
class Model:
    """Blocks of three layers are a fragment."""

    name: str
    parameters: float
    layers: int
    tokens_per_step: float
    """Of one peer, a cluster."""
    flops: float
    """Of the cluster, used."""

    @property
    def step_s(self) -> float:
        """Computing alone."""
        return 6 * self.parameters * self.tokens_per_step / self.flops


MODELS = (
    Model("1B", 1e9, 24, 0.5e6, 3e16),
    Model("10B", 1e10, 48, 2e6, 1.5e17),
    Model("100B", 1e11, 108, 4e6, 4.9e17),
)


def utilisation(say: Say) -> Iterator[Line]:
    """The bandwidth at which devices compute for 95 % of the time."""
    say("bandwidth for 95 % of computing")
    for number, model in zip("abc", MODELS, strict=True):
        fragments = model.layers // 3
        every = fragments * EVERY_STEPS
        parallel = FragmentSchedule()
        diloco = FragmentSchedule(every)
        streaming = FragmentSchedule(every, fragments, EVERY_STEPS - 1)
        needs = {
            "data-parallel": _bandwidth(model, parallel, BF16_BITS),
            "DiLoCo": _bandwidth(model, diloco, BF16_BITS),
            "streaming": _bandwidth(model, streaming, E3M0_BITS),
        }
        ratio = needs["data-parallel"] / needs["streaming"]
        yield Line(
            f"6{number}",
            f"{model.name}, steps of {model.step_s:.2f} s, H={every}, P={fragments}, delay {EVERY_STEPS - 1}, E3M0: "
            "bandwidth for 95 % of computing",
            ">= 50x lower than data-parallel",
            ", ".join(f"{name} {need / 1e9:.2g} Gbit/s" for name, need in needs.items()) + f": {ratio:.0f}x",
            judged(ratio >= 50),
            "simulated",
        )


def share(model: Model, schedule: FragmentSchedule, bits: float, bits_per_s: float) -> float:
    """Of the time of two rounds in which devices compute: a transfer goes on while steps are taken, until somebody
    waits for it; one at a time."""
    volume = 2 * (PEERS - 1) / PEERS * model.parameters / schedule.fragments * bits
    clock = free_s = 0.0
    arrives: dict[int, float] = {}
    steps = 2 * schedule.every
    for step in range(steps):
        clock += model.step_s
        for action in schedule.at(step):
            if isinstance(action, Start):
                free_s = arrives[action.fragment] = max(clock, free_s) + LATENCY_S + volume / bits_per_s
            else:
                clock = max(clock, arrives.pop(action.fragment))
    return steps * model.step_s / clock


def _bandwidth(model: Model, schedule: FragmentSchedule, bits: float) -> float:
    """The least at which the share is reached, within 1 %; infinite where latency alone forbids it."""
    low, high = 1e3, 1e15
    if share(model, schedule, bits, high) < TARGET:
        return float("inf")
    while high / low > 1.01:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if share(model, schedule, bits, middle) >= TARGET else (middle, high)
    return high
