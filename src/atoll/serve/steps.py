"""Policy: what an engine did, step by step: who came when, what passed the model, how long it took.

`atoll serve --record` writes it (`step_log`). From it the cost of a step is fitted, and a run is taken again in virtual
time. Times are nanoseconds of a machine's monotonic clock, the same in all its processes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

import msgspec

from atoll.cost import ENGINE_STEP, Op, Sample
from atoll.serve.scheduler import Limits


class Taken(msgspec.Struct, frozen=True, tag="step", tag_field="kind"):
    """A step, up to the moment at which the next could begin. `passed`: tokens, by request."""

    began_ns: int
    ended_ns: int
    passed: tuple[tuple[str, int], ...]
    op: Op

    @property
    def seconds(self) -> float:
        return (self.ended_ns - self.began_ns) * 1e-9


class Came(msgspec.Struct, frozen=True, tag="came", tag_field="kind"):
    """A request, between two steps."""

    at_ns: int
    id: str
    prompt_tokens: int


class Ended(msgspec.Struct, frozen=True, tag="ended", tag_field="kind"):
    """An answer, in the step that began then; or, between two steps, nobody wanted the rest of it."""

    at_ns: int
    id: str
    output_tokens: int
    dropped: bool


class Begun(msgspec.Struct, frozen=True, tag="begun", tag_field="kind"):
    """The first thing of all. `kernel`: what computes, in words."""

    pages: int
    context: int
    limits: Limits
    kernel: str


Entry = Begun | Came | Taken | Ended


@dataclass(frozen=True)
class Steps:
    """All that one engine did."""

    begun: Begun
    came: tuple[Came, ...]
    taken: tuple[Taken, ...]
    ended: dict[str, Ended]

    def samples(self) -> Iterator[Sample]:
        """What steps took: those in a row that differ in nothing but the context are one, the mean of them."""
        for (prefill, batch), several in groupby(self.taken, lambda step: (step.op.prefill_tokens, step.op.batch)):
            steps = list(several)
            pairs, context = (
                fmean(getattr(step.op, name) for step in steps) for name in ("prefill_pairs", "context_tokens")
            )
            op = Op(ENGINE_STEP, prefill_tokens=prefill, prefill_pairs=pairs, batch=batch, context_tokens=context)
            yield Sample(op, fmean(step.seconds for step in steps))
