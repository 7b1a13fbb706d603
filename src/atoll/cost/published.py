"""Policy: costs that others have measured and published, for machines one doesn't have."""

import math
from typing import Final

from atoll.cost.fitted import UNITS, CostModel, Residuals
from atoll.cost.step import ANSWERS, ENGINE_STEP, PROMPTS, StepCost

_UNKNOWN: Final = Residuals(*(math.nan,) * 6, points=0, held_out=False)
_DISTSERVE: Final = "DistServe (Zhong et al., 2024, arXiv 2401.09670), on A100-80G; from its simulator's profiles"
_OPT_13B: Final = {
    1: ((18.10, 0.10191, 7.122e-6), (19.93, 6.269e-4, 0.03851), (7.166, 5.798e-4, 0.15831)),
    2: ((14.74, 0.06858, 2.450e-6), (13.29, 3.411e-4, 0.06296), (10.64, 3.118e-4, 0.08563)),
    4: ((12.06, 0.03808, 5.226e-7), (10.26, 1.879e-4, 0.03269), (10.48, 1.712e-4, 0.04567)),
}
"""By devices, in ms: prompts a + b * tokens + c * tokens^2; few and many answers a + b * context + c * batch."""
_SPLIT: Final = 95


def opt_13b_on_a100(devices: int) -> StepCost:
    """OPT-13B in tensor parallel on 1, 2 or 4 devices. What answers add to a step with prompts is not published: here
    it is what they add to one another."""
    (a, b, c), few, many = (tuple(ms * 1e-3 for ms in part) for part in _OPT_13B[devices])
    prompts = {"1": a, "prefill_tokens": b - c, "prefill_pairs": 2 * c, "batch": few[2], "context_tokens": few[1]}
    small, large = (_part(ANSWERS, _answers(*part)) for part in (few, many))
    return StepCost.of(_part(PROMPTS, prompts), small, large, _SPLIT)


def _answers(fixed_s: float, context_s: float, batch_s: float) -> dict[str, float]:
    return {"1": fixed_s, "batch": batch_s, "context_tokens": context_s}


def _part(features: tuple[str, ...], prices: dict[str, float]) -> CostModel:
    """`prefill_pairs` are tokens * (tokens + 1) / 2, so that the square is twice those less the tokens."""
    return CostModel(
        kind=ENGINE_STEP,
        coefficients=prices,
        units={f: UNITS[f] for f in features},
        fingerprint=_DISTSERVE,
        fitted_on="2024",
        fitted_range={f: (0.0, math.inf) for f in features if f != "1"},
        residuals=_UNKNOWN,
    )
