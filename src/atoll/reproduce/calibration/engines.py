"""Policy: what it takes to serve a model on some machine: a step of its engine, and the way there and back; measured
here (`atoll sim calibrate --engine`), or published elsewhere."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from atoll.cost import StepCost
from atoll.cost.published import opt_13b_on_a100
from atoll.errors import InvalidData
from atoll.model.paged import PAGE_TOKENS
from atoll.serve.steps import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """Of an engine that died. Seconds."""

    ready_s: float
    """From its death until the new one has loaded its model, without the wait before that is started
    (`serve.restarts`)."""
    cold_s: float
    """How much longer the first step takes than later ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """Of one model on one machine. Seconds."""

    about: str
    """Which, in words."""
    step: StepCost
    ask_s: float
    """From a client's call until an idle engine begins."""
    answer_s: float
    """From a step's end until a client has what came of it."""
    pages: int
    """Of keys and values."""
    context: int
    """The most tokens of prompt and answer."""
    restart: Restart | None = None
    """None: nobody measured it."""

    @property
    def errors(self) -> str:
        """How far off a step is, in words."""
        r = self.step.residuals
        if not r.points:
            return "error not known here"
        return f"median error of a step {r.median:.1%}, P90 {r.p90:.1%}, of {r.points} held out"


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer as a client had it, by the clock of the engine's steps."""

    sent_ns: int
    first_ns: int
    last_ns: int


def engine_costs(
    about: str, steps: Steps, alone: Sequence[Heard], *, fingerprint: str = "", fitted_on: str = ""
) -> EngineCosts:
    """From what an engine did; those who came first, one after the other, heard `alone`."""
    last_ns = {id: step.ended_ns for step in steps.taken for id, _ in step.passed}
    if len(steps.came) < len(alone) or not alone:
        raise InvalidData(f"{len(steps.came)} requests came to the engine, of {len(alone)} that were asked alone")
    pairs = list(zip(alone, steps.came, strict=False))
    return EngineCosts(
        about=f"{about}, {steps.begun.kernel}",
        step=StepCost.fit(list(steps.samples()), fingerprint=fingerprint, fitted_on=fitted_on),
        ask_s=max(0.0, 1e-9 * statistics.median(came.at_ns - heard.sent_ns for heard, came in pairs)),
        answer_s=max(0.0, 1e-9 * statistics.median(heard.last_ns - last_ns[came.id] for heard, came in pairs)),
        pages=steps.begun.pages,
        context=steps.begun.context,
    )


_GPU_BYTES: Final = 0.9 * 80e9
_OPT_13B_BYTES: Final = 25.7e9
_OPT_13B_TOKEN_BYTES: Final = 2 * 40 * 5120 * 2


def _opt_13b(devices: int) -> EngineCosts:
    """DistServe's dispatch overhead is 2 ms and little by token; 90 % of the memory less the weights hold keys and
    values."""
    return EngineCosts(
        about=f"OPT-13B on {devices} A100-80G, published by DistServe",
        step=opt_13b_on_a100(devices),
        ask_s=0.002,
        answer_s=0.0,
        pages=int((devices * _GPU_BYTES - _OPT_13B_BYTES) / _OPT_13B_TOKEN_BYTES) // PAGE_TOKENS,
        context=2048,
    )


PUBLISHED: Final = {
    "opt-13b-a100": _opt_13b(1),
    "opt-13b-a100-tp2": _opt_13b(2),
    "opt-13b-a100-tp4": _opt_13b(4),
}
"""By name."""
