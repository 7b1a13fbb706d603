"""Policy: from what was measured to cost models and a host's costs; which points are held out, and how far off each is.

Every second size between the smallest and the largest is held out, of everything. Of whole all-reduces the fit sees
those of two peers only, and of these the other half.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atoll.cost import CostCurve, CostModel, Op, Sample, hold_out
from atoll.errors import InvalidData
from atoll.reproduce.api import Kind
from atoll.reproduce.calibration.api import (
    BYTE_WORK,
    MEDIAN_BOUND,
    RECOVERY_BOUND,
    WAN_BOUND,
    WORST_BOUND,
    Calibration,
    Control,
    HostCosts,
    Measured,
    Point,
    Reduced,
)

EVERY = 2
_SEEN_WORLD = 2
_FRAMES_OF_A_MESSAGE = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: errors of points that no fit has seen."""

    what: str
    points: int
    median: float
    p90: float
    worst: float
    kind: Kind = "real"

    @property
    def median_bound(self) -> float:
        """How far the median may be off."""
        return RECOVERY_BOUND if self.what.startswith("recovery") else MEDIAN_BOUND

    @property
    def worst_bound(self) -> float:
        """And any one of them."""
        if self.what.startswith("transfer"):
            return WAN_BOUND
        return RECOVERY_BOUND if self.what.startswith("recovery") else WORST_BOUND

    @property
    def within(self) -> bool:
        """Are both?"""
        return self.median <= self.median_bound and self.worst <= self.worst_bound


def samples(kind: str, amounts: Iterable[tuple[float, float]], quantity: str = "bytes") -> list[Sample]:
    """(amount, seconds) as the cost models take them."""
    return [Sample(Op(kind, **{quantity: amount}), seconds) for amount, seconds in amounts]


def held_out_sizes(sizes: Iterable[int]) -> set[int]:
    """Those that no fit sees."""
    try:
        _, judges = hold_out(samples("size", [(n, 1.0) for n in sizes]), EVERY)
    except InvalidData:  # two sizes or fewer: nothing lies between
        return set()
    return {int(sample.op.bytes) for sample in judges}


def seen(reduced: Sequence[Reduced]) -> list[Reduced]:
    """All-reduces by which the costs of a host may be scaled."""
    out = held_out_sizes({point.nbytes for point in reduced})
    return [point for point in reduced if point.world == _SEEN_WORLD and point.nbytes not in out]


def curve(kind: str, amounts: Iterable[tuple[float, float]], fingerprint: str, today: str) -> CostCurve:
    """Of bytes, judged by those held out."""
    fitted, judges = _split(samples(kind, amounts))
    return CostCurve.fit(kind, "bytes", fitted, held_out=judges, fingerprint=fingerprint, fitted_on=today)


def model(kind: str, quantity: str, amounts: Iterable[tuple[float, float]], fingerprint: str, today: str) -> CostModel:
    """alpha + beta * amount, judged by those held out."""
    fitted, judges = _split(samples(kind, amounts, quantity))
    return CostModel.fit(kind, ("1", quantity), fitted, held_out=judges, fingerprint=fingerprint, fitted_on=today)


def host_costs(measured: Measured, fingerprint: str, today: str) -> HostCosts:
    """What follows from small things alone; `wake_s` and `dial_s` are 0 until the virtual group has
    told what is missing."""
    control = control_costs(measured.control)
    exits = model("exit", "bytes", measured.exits, fingerprint, today).coefficients
    return HostCosts(
        launch_s=control["launch_s"],
        vote_s=control["vote_s"],
        turn_s=control["turn_s"],
        message_s=control["message_s"],
        frame_s=control["frame_s"],
        master_turn_s=control["master_turn_s"],
        master_s=control["master_s"],
        wake_s=0.0,
        dial_s=0.0,
        exit_s=exits["1"],
        exit_byte_s=exits["bytes"],
        cores=measured.cores,
        memory=measured.cores / max(1.0, measured.together),
        bytes={work: curve(work, measured.bytes[work].items(), fingerprint, today) for work in BYTE_WORK},
    )


def control_costs(control: Control) -> dict[str, float]:
    """A vote is the program's part, a turn and two messages; what goes between two is the program's part, three turns
    of both together, and three frames each. At the master a vote of two is two turns and four messages.

    A message is what a frame of several costs, so neither more nor less than some part of what was seen of a vote.
    """
    vote = max(control.vote_core_s - control.vote_alone_core_s, control.vote_core_s / 10)
    message_s = min(max(control.frame_core_s, vote / 20), vote * 0.45)
    turn_s = vote - 2 * message_s
    frames_s = control.message_core_s - control.reduce_alone_core_s - 1.5 * turn_s
    master = control.master_core_s / (2 * vote)
    return {
        "launch_s": control.reduce_alone_core_s,
        "vote_s": control.vote_alone_core_s,
        "turn_s": turn_s,
        "message_s": message_s,
        "frame_s": max(message_s, frames_s / _FRAMES_OF_A_MESSAGE),
        "master_turn_s": master * turn_s,
        "master_s": master * message_s,
    }


def models(measured: Measured, fingerprint: str, today: str) -> dict[str, CostModel]:
    """What is straight."""
    return {
        "matmul": model("matmul", "flops", measured.matmul, fingerprint, today),
        "disk": model("disk", "bytes", measured.disk, fingerprint, today),
    }


def curves(measured: Measured, fingerprint: str, today: str) -> dict[str, CostCurve]:
    """What is not."""
    found = {"loopback": curve("loopback", measured.bytes["loopback"].items(), fingerprint, today)}
    found["shared memory"] = curve("shared memory", measured.bytes["read"].items(), fingerprint, today)
    by_what: dict[str, dict[int, float]] = {}
    for point in measured.reduced:
        by_what.setdefault(point.what, {})[point.nbytes] = point.seconds
    for what, amounts in by_what.items():
        found[what] = curve(what, amounts.items(), fingerprint, today)
    return found


def table(calibration: Calibration) -> list[Row]:
    """Errors on what was held out."""
    fitted: Mapping[str, CostModel | CostCurve] = {**calibration.models, **calibration.curves}
    rows = []
    for name, each in fitted.items():
        r = each.residuals
        if r.held_out:
            what = f"{name}, curve over its sizes" if name.startswith("all-reduce") else name
            rows.append(Row(what, r.points, r.median, r.p90, r.worst))
    for name, engine in calibration.engines.items():
        step = engine.step
        parts = {"some of a prompt": step.prompts, f"{step.split} answers at most": step.few}
        if step.many != step.few:
            parts["more answers"] = step.many
        for what, part in parts.items():
            r = part.residuals
            rows.append(Row(f"step of {name} with {what}", r.points, r.median, r.p90, r.worst))
    groups: dict[tuple[str, Kind], list[float]] = {}
    for point in calibration.points:
        if not point.fitted:
            groups.setdefault((point.what, point.kind), []).append(point.error)
    return rows + [_row(what, kind, errors) for (what, kind), errors in groups.items()]


def _row(what: str, kind: Kind, errors: Sequence[float]) -> Row:
    median, p90, worst = (float(q) for q in np.percentile(errors, [50, 90, 100]))
    return Row(what, len(errors), median, p90, worst, kind)


def points(reduced: Sequence[Reduced], predicted: Sequence[float], suffix: str, all_held_out: bool) -> list[Point]:
    """Each all-reduce beside what was said of it."""
    known = set() if all_held_out else set(seen(reduced))
    return [
        Point(f"{r.what}, {suffix}", r.nbytes, r.seconds, p, fitted=r in known, kind="simulated")
        for r, p in zip(reduced, predicted, strict=True)
    ]


def _split(all_samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    try:
        return hold_out(all_samples, EVERY)
    except InvalidData:
        return all_samples, []
