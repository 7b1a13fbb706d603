"""Driver: `atoll workload run --virtual`: the workload against virtual engines."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from atoll.cli.workload_run import TELL_S, Ended, Heard, tell_progress
from atoll.cli.workload_settings import RunSettings
from atoll.cost import Op, StepCost
from atoll.errors import InvalidConfig, InvalidData
from atoll.reproduce.calibration.api import Calibration
from atoll.reproduce.calibration.engines import PUBLISHED, EngineCosts
from atoll.route.balance import BALANCES
from atoll.route.dispatch import Dispatch
from atoll.serve.scheduler import Limits
from atoll.serve.virtual import VirtualDrive, VirtualEngine
from atoll.sim.loop import Loop
from atoll.workload.api import Arrival, Outcome, Workload


def simulate(settings: RunSettings, workload: Workload, heard: Heard) -> Ended:
    """The same as a real run, in virtual time."""
    costs = engine_costs(settings.cost, settings.model)
    loop, cost = Loop(), _Watched(costs.step)
    limits = Limits(settings.max_batch, settings.chunk or None, settings.max_waiting, settings.preemption)
    progress = _Progress(loop, heard, settings.seconds)
    drive = VirtualDrive(
        [VirtualEngine(loop, cost, costs.pages, limits) for _ in range(settings.engines)],
        Dispatch([str(number) for number in range(settings.engines)], BALANCES[settings.balance]()),
        workload,
        progress.told if sys.stderr.isatty() else heard.told,
        heard.offered,
        until_s=settings.seconds,
        patience_s=settings.patience,
        most_tokens=costs.context,
        ask_s=costs.ask_s,
        answer_s=costs.answer_s,
    )
    drive.run()
    engines = f"{settings.engines} virtual engine{'s' if settings.engines > 1 else ''}"
    who = f"{engines} of {costs.about} (simulated, {costs.errors})"
    return Ended(who, loop.now_s, drive.cut, simulated=True, warnings=cost.warnings)


def engine_costs(name: str, model: str | None) -> EngineCosts:
    """Published ones by name, or those of a calibration. InvalidConfig, InvalidData: there are none."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    try:
        engines = Calibration.from_json(Path(name).read_bytes()).engines
    except OSError as error:
        raise InvalidConfig(
            f"--cost {name}: can't be read ({error.strerror}); make it by `atoll sim calibrate --engine MODEL`, "
            f"or take one of {', '.join(PUBLISHED)}"
        ) from error
    except InvalidData as error:
        raise InvalidData(f"--cost {name}: {error}") from error
    if not engines or (model is not None and model not in engines):
        wanted = f"--engine {model}" if model else "--engine MODEL"
        raise InvalidConfig(
            f"--cost {name} knows {', '.join(engines) or 'no engine'}; "
            f"`atoll sim calibrate {wanted} --out {name}` adds one"
        )
    return engines[model or next(iter(engines))]


class _Watched:
    """A step's cost, and the most that it was asked for."""

    def __init__(self, step: StepCost) -> None:
        self._step = step
        self._prefill = self._batch = self._context = 0.0

    def seconds(self, op: Op) -> float:
        if op.prefill_tokens > self._prefill:
            self._prefill = op.prefill_tokens
        if op.batch > self._batch:
            self._batch = op.batch
        if op.context_tokens > self._context:
            self._context = op.context_tokens
        return self._step.seconds(op)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where it went beyond what was measured."""
        asked = {"prefill_tokens": self._prefill, "batch": self._batch, "context_tokens": self._context}
        return tuple(
            f"steps had {name} up to {most:g}, measured were up to {self._step.fitted_range[name][1]:g}: extrapolated"
            for name, most in asked.items()
            if most > self._step.fitted_range[name][1]
        )


@dataclass
class _Progress:
    """Tells now and then how far it is."""

    loop: Loop
    heard: Heard
    seconds: float
    _told: float = 0.0

    def told(self, arrival: Arrival, outcome: Outcome) -> None:
        self.heard.told(arrival, outcome)
        if time.monotonic() - self._told > TELL_S:
            self._told = time.monotonic()
            tell_progress(self.heard, self.loop.now_s, self.seconds)
