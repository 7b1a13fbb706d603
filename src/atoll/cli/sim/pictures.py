"""Driver: the curves of simulated runs as pictures; those of one kind stand in one, and say that they are simulated."""

from dataclasses import replace
from pathlib import Path

from atoll.cli.sim.table import labels, title
from atoll.plot import lines
from atoll.reproduce.scenario.api import Curve, Result
from atoll.reproduce.scenario.training import TIME


def draw(folder: Path, name: str, results: list[Result]) -> list[Path]:
    """Those that were made. AtollError: matplotlib is missing, or the folder can't be written."""
    plots: dict[str, dict[str, Curve]] = {}
    for label, result in zip(labels(results), results, strict=True):
        for curve in result.curves:
            plots.setdefault(curve.plot, {})[label] = curve
    drawn = []
    for plot, curves in {**plots, **_over_the_sweep(results)}.items():
        first = next(iter(curves.values()))
        scale, unit = _unit(max((x for curve in curves.values() for x in curve.xs), default=0.0))
        timed = first.xlabel == TIME
        drawn.append(folder / f"{plot}.png")
        lines(
            drawn[-1],
            {label: ([x / scale for x in c.xs] if timed else c.xs, c.ys) for label, c in curves.items()},
            title=title(name, results) if len(title(name, results)) < 90 else f"{name} (simulated)",
            xlabel=f"simulated time, {unit}" if timed else first.xlabel,
            ylabel=first.ylabel,
        )
    return drawn


def _over_the_sweep(results: list[Result]) -> dict[str, dict[str, Curve]]:
    """The time over the one key that was swept through numbers; a curve for each combination of the others."""
    axes = {
        key: values
        for key in results[0].changes
        if len(values := {r.changes[key] for r in results if _is_number(r.changes[key])}) > 1
        and all(_is_number(r.changes[key]) for r in results)
    }
    if len(axes) != 1:
        return {}
    (key,) = axes
    curves: dict[str, Curve] = {}
    for result in sorted(results, key=lambda r: float(r.changes[key])):
        others = replace(result, changes={k: v for k, v in result.changes.items() if k != key})
        curve = curves.setdefault(labels([others])[0], Curve("sweep", key, "simulated time, s", [], []))
        curve.xs.append(float(result.changes[key]))
        curve.ys.append(result.seconds)
    return {"sweep": curves}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unit(longest_s: float) -> tuple[float, str]:
    for seconds, unit in ((2 * 86400.0, "days"), (7200.0, "hours"), (120.0, "minutes"), (1.0, "s")):
        if longest_s >= seconds:
            return {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "s": 1.0}[unit], unit
    return 1e-3, "ms"
