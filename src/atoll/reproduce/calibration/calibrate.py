"""Driver: all of a calibration in its order: measure, fit, ask the virtual group what is missing, predict, compare."""

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from atoll.reproduce.api import Say
from atoll.reproduce.calibration import asking, engines, fit, predict, recovery, restarts, wan
from atoll.reproduce.calibration.api import Calibration, Measured
from atoll.reproduce.calibration.measure import FULL, Amount, fingerprint, machine, measure
from atoll.reproduce.server import serving
from atoll.serve.step_log import read_steps

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


def calibrate_engine(
    model: str, rounds: asking.Rounds = asking.FULL, say: Say = lambda text: None, flags: Sequence[str] = ()
) -> Calibration:
    """What `atoll serve MODEL` with those flags takes here, a step and the way to it."""
    of = machine()
    mark, today = fingerprint(of), str(date.today())
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "steps.jsonl"
        say(f"starting {model}")
        with serving(model, "--record", str(record), *flags) as there:
            alone = asyncio.run(asking.ask(there, rounds, say))
        costs = engines.engine_costs(model, read_steps(record), alone, fingerprint=mark, fitted_on=today)
    costs = replace(costs, restart=restarts.restart(model, flags, say))
    return Calibration(
        fingerprint=mark, machine=of, fitted_on=today, quick=rounds is not asking.FULL, engines={model: costs}
    )


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
