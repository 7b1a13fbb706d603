"""Interface: how many seconds an operation takes, by models fitted to measurements."""

from atoll.cost.fitted import (
    QUANTITIES,
    UNITS,
    CostCurve,
    CostModel,
    Costs,
    Estimate,
    Fitted,
    Op,
    Residuals,
    Sample,
    free,
    from_json,
    hold_out,
    seconds_by,
)
from atoll.cost.step import ENGINE_STEP, StepCost

__all__ = [
    "ENGINE_STEP",
    "QUANTITIES",
    "UNITS",
    "CostCurve",
    "CostModel",
    "Costs",
    "Estimate",
    "Fitted",
    "Op",
    "Residuals",
    "Sample",
    "StepCost",
    "free",
    "from_json",
    "hold_out",
    "seconds_by",
]
