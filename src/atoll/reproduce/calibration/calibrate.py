"""Driver: all of a calibration in its order: measure, fit, ask the virtual group what is missing, predict, compare."""

from dataclasses import replace
from datetime import date
from pathlib import Path

from atoll.reproduce.api import Say
from atoll.reproduce.calibration import fit, predict, recovery, wan
from atoll.reproduce.calibration.api import Calibration, Measured
from atoll.reproduce.calibration.measure import FULL, Amount, fingerprint, measure

ALONE = "virtual group, from small things"
TUNED = "virtual group, scaled"


def calibrate(amount: Amount = FULL, say: Say = lambda text: None, folder: Path | None = None) -> Calibration:
    """Measure this machine and fit. `folder`: on the disk to be measured."""
    return calibration_of(measure(amount, say, folder), str(date.today()), say)


def with_faults_and_distance(found: Calibration, say: Say = lambda text: None) -> Calibration:
    """And what takes minutes: kills in large all-reduces, and transfers in the network lab, where there is one."""
    assert found.costs is not None
    say("kills in all-reduces")
    more = [recovery.point(found.costs)]
    if why := wan.unavailable():
        say(f"no transfers over shaped links: {why}")
    else:
        say("transfers over shaped links")
        more += wan.points(say)
    return replace(found, points=(*found.points, *more))


def calibration_of(measured: Measured, today: str, say: Say = lambda text: None) -> Calibration:
    """What was measured, as models and predictions."""
    mark = fingerprint(measured.machine)
    say("predicting all-reduces")
    costs = predict.with_latencies(fit.host_costs(measured, mark, today), measured.control)
    alone = [predict.predicted(costs, reduced) for reduced in measured.reduced]
    say("scaling two costs to half of the all-reduces of two peers")
    seen = fit.seen(measured.reduced)
    scaled, _, _ = predict.tuned(costs, seen)
    after = [predict.predicted(scaled, reduced) for reduced in measured.reduced]
    return Calibration(
        fingerprint=mark,
        machine=measured.machine,
        fitted_on=today,
        quick=measured.quick,
        models=fit.models(measured, mark, today),
        curves=fit.curves(measured, mark, today),
        costs=scaled,
        points=(
            *fit.points(measured.reduced, alone, ALONE, all_held_out=True),
            *fit.points(measured.reduced, after, TUNED, all_held_out=False),
        ),
    )
