"""Driver: what share of the time devices compute, by bandwidth, from the fragment schedule itself. (Streaming DiLoCo,
"Done when" 6.)

A step of a model of N parameters takes 6 N tokens / (FLOP/s x utilisation of the device), as long as the paper's. The
rest is what `atoll strategies` tells of any model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from atoll.reproduce.api import Line, Say, judged
from atoll.train.forecast import Forecast, Link, exchange, forecast, needed
from atoll.train.schedule import FragmentSchedule

PEERS, EVERY_STEPS = 2, 5
"""Of fragments: every so many steps one goes out, as in the paper's figure for H of about 100."""
TRIP_S = 1e-3
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
            "data-parallel": _bandwidth(model, parallel, "bf16"),
            "DiLoCo": _bandwidth(model, diloco, "bf16"),
            "streaming": _bandwidth(model, streaming, "e3m0"),
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


def cost(model: Model, schedule: FragmentSchedule, codec: str, link: Link) -> Forecast:
    """On that link."""
    part = exchange(round(model.parameters / schedule.fragments), PEERS, link, codec)
    return forecast(schedule, model.step_s, [part] * schedule.fragments)


def _bandwidth(model: Model, schedule: FragmentSchedule, codec: str) -> float:
    """Bits per second."""
    return 8 * needed(lambda link: cost(model, schedule, codec, link), TRIP_S, TARGET)
