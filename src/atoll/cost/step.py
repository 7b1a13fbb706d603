"""Policy: what a step of a serving engine costs: prompts are bound by arithmetic, a few answers by memory.

The latency model of DistServe (Zhong et al., 2024, arXiv 2401.09670): a + b * tokens + c * tokens^2 for prompts, and
a + b * context + c * batch for answers, with other prices for large batches. Here a step may pass parts of prompts and
answers together: the square becomes the pairs of a token and one it attends to, and the answers' prices are added.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from atoll.cost.fitted import UNITS, CostModel, Fitted, Op, Residuals, Sample, hold_out, residuals_of
from atoll.errors import InvalidData

ENGINE_STEP: Final = "engine_step"
ANSWERS: Final = ("1", "batch", "context_tokens")
PROMPTS: Final = ("1", "prefill_tokens", "prefill_pairs", "batch", "context_tokens")


@dataclass(frozen=True, kw_only=True)
class StepCost(Fitted):
    """Steps with something of a prompt, and those of answers alone: `few`, up to `split` of them, or `many`."""

    prompts: CostModel
    few: CostModel
    many: CostModel
    split: int

    def __post_init__(self) -> None:
        for part, features in ((self.prompts, PROMPTS), (self.few, ANSWERS), (self.many, ANSWERS)):
            if part.kind != self.kind or set(part.coefficients) != set(features):
                raise InvalidData(f"the parts of a step's cost are about {self.kind!r} and have {', '.join(features)}")

    @classmethod
    def fit(cls, samples: Sequence[Sample], *, fingerprint: str = "", fitted_on: str = "") -> "StepCost":
        """Each part by the least sum of squared relative errors; `split` where that is least.

        A quarter of the operations judges and is not fitted. Raises `InvalidData` where the steps are too much alike.
        """

        seen, judges = hold_out(samples)

        def fitted(features: Sequence[str], of: Callable[[Op], bool]) -> CostModel:
            some, held_out = ([s for s in part if of(s.op)] for part in (seen, judges))
            return CostModel.fit(
                ENGINE_STEP, features, some, held_out=held_out, fingerprint=fingerprint, fitted_on=fitted_on
            )

        def squares(model: CostModel, of: Callable[[Op], bool]) -> float:
            return sum((model.seconds(s.op) / s.seconds - 1) ** 2 for s in seen if of(s.op))

        prompts = fitted(PROMPTS, lambda op: op.prefill_tokens > 0)
        whole = fitted(ANSWERS, lambda op: not op.prefill_tokens)
        few, many, split = whole, whole, int(max(s.op.batch for s in seen))
        least = squares(whole, lambda op: not op.prefill_tokens)
        for at in sorted({int(s.op.batch) for s in seen if not s.op.prefill_tokens}):

            def is_low(op: Op, at: int = at) -> bool:
                return not op.prefill_tokens and op.batch <= at

            def is_high(op: Op, at: int = at) -> bool:
                return not op.prefill_tokens and op.batch > at

            try:
                low, high = fitted(ANSWERS, is_low), fitted(ANSWERS, is_high)
            except InvalidData:  # one side has batches of one size, or none
                continue
            if (both := squares(low, is_low) + squares(high, is_high)) < least:
                few, many, split, least = low, high, at, both
        return cls.of(prompts, few, many, split, judges)

    @classmethod
    def of(
        cls, prompts: CostModel, few: CostModel, many: CostModel, split: int, judges: Sequence[Sample] = ()
    ) -> "StepCost":
        """Of its parts, with the errors on `judges`; those of `prompts` where there are none."""
        ranges = [part.fitted_range for part in (prompts, few, many)]
        made = cls(
            kind=prompts.kind,
            units={feature: UNITS[feature] for feature in PROMPTS},
            fingerprint=prompts.fingerprint,
            fitted_on=prompts.fitted_on,
            fitted_range={
                f: (min(r[f][0] for r in ranges if f in r), max(r[f][1] for r in ranges if f in r))
                for f in PROMPTS
                if f != "1"
            },
            residuals=prompts.residuals,
            prompts=prompts,
            few=few,
            many=many,
            split=split,
        )
        return replace(made, residuals=made.errors_on(judges)) if judges else made

    def seconds(self, op: Op) -> float:
        return self._part(op).seconds(op)

    def errors_on(self, judges: Sequence[Sample]) -> Residuals:
        """How far off it is on samples that it wasn't fitted to."""
        return residuals_of(np.array([self.seconds(s.op) / s.seconds for s in judges]), held_out=True)

    def _part(self, op: Op) -> CostModel:
        if op.prefill_tokens:
            return self.prompts
        return self.few if op.batch <= self.split else self.many

    def _outside(self, op: Op) -> list[str]:
        return self._part(op)._outside(op)
