"""Driver: the tables of `atoll workload`."""

import math
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from atoll.workload.api import Tally
from atoll.workload.fit.describe import Description, Sizes
from atoll.workload.fit.held_out import ArrivalsRow, LengthsRow
from atoll.workload.fit.model import Model, Stream
from atoll.workload.generate.processes import AnyProcess, Seasonal, Windows


def of_descriptions(title: str, parts: Sequence[Description]) -> Table:
    """One column per service."""
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for part in parts:
        table.add_column(part.service, justify="right")
    rows = {
        "requests": [f"{part.requests:,}" for part in parts],
        "over": [_span(part.span_s) for part in parts],
        "failed": [f"{part.failed_share:.2%}" for part in parts],
        "rate": [f"{part.arrivals.rate_per_s:.3g}/s" if part.arrivals else "" for part in parts],
        "cv of all gaps": [_number(part.arrivals.gap_cv) if part.arrivals else "" for part in parts],
        "cv in windows, p10/50/90": [_window_cv(part) for part in parts],
        "gamma by likelihood": [
            f"alpha {part.arrivals.alpha:.3g}, theta {part.arrivals.theta_s:.3g} s" if part.arrivals else ""
            for part in parts
        ],
        "prompts, mean/p50/p95/p99": [_sizes(part.prompt) for part in parts],
        "answers, mean/p50/p95/p99": [_sizes(part.output) for part in parts],
        "rank correlation of both": [_number(part.spearman) for part in parts],
    }
    if any(part.talks for part in parts):
        rows |= {
            "sessions": [f"{part.talks.sessions:,}" if part.talks else "" for part in parts],
            "turns, mean/most": [
                f"{part.talks.turns_mean:.3g}/{part.talks.turns_max}" if part.talks else "" for part in parts
            ],
            "time to think, p50/p90": [
                f"{part.talks.think_p50_s:.3g}/{part.talks.think_p90_s:.3g} s" if part.talks else "" for part in parts
            ],
            "turns that repeat the past": [f"{part.talks.grows:.0%}" if part.talks else "" for part in parts],
        }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def rows_text(tally: Tally) -> str:
    """What became of the rows of a file."""
    dropped = "".join(f", {n:,} dropped ({why})" for why, n in sorted(tally.dropped.items()))
    odd = "".join(f", {n:,} {why}" for why, n in sorted(tally.odd.items()))
    these = f"; of these {odd[2:]}" if odd else ""
    return f"{tally.format}: {tally.read:,} rows read, {tally.emitted:,} taken{dropped}{these}"


def of_held_out(title: str, window_s: float, arrivals: Sequence[ArrivalsRow], lengths: Sequence[LengthsRow]) -> Group:
    """Laws against what they have not seen."""
    first = Table(
        title=Text(f"{title}: arrivals of every second window of {window_s:g} s, against the others"),
        title_justify="left", box=None, pad_edge=False,
    )  # fmt: skip
    for column in ("law", "distance of gaps", "cv in windows, p10/50/90", "cv of counts"):
        first.add_column(column, justify="left" if column == "law" else "right")
    for row in arrivals:
        first.add_row(row.law, _number(row.gap_ks), _triple(row.window_cv), _number(row.count_cv))
    second = Table(title=Text("lengths, likewise"), title_justify="left", box=None, pad_edge=False)
    for column in ("law", "distance of prompts", "of answers", "rank correlation"):
        second.add_column(column, justify="left" if column == "law" else "right")
    for line in lengths:
        second.add_row(line.law, _number(line.prompt_ks), _number(line.output_ks), _number(line.spearman))
    return Group(first, Text(), second, Text())


def of_model(model: Model) -> Group:
    """One line per service."""
    return Group(*(Text(f"{part.service}: {_stream(part)}") for part in model.streams))


def _stream(part: Stream) -> str:
    said = [_process(part.arrivals)]
    if part.talk:
        said[0] += " of sessions"
        said += [f"turns {_law(part.talk.turns)}", f"think {part.talk.think}"]
    said += [f"prompts {_law(part.prompt)}", f"answers {_law(part.output)}"]
    if part.failures.base or part.failures.burst:
        said.append(
            f"failures {part.failures.base:.2%}, and {part.failures.burst:.2%} for each mean rate above the mean"
        )
    return ", ".join(said)


def _process(process: AnyProcess) -> str:
    if isinstance(process, Windows):
        return f"{len(process.rates_per_s)} windows of {process.window_s:g} s at {process.mean_rate_per_s:.3g}/s"
    if isinstance(process, Seasonal):
        return f"{len(process.weights)} hours of the week over {process.base}"
    return str(process)


def _law(law: object) -> str:
    text = str(law)
    return text if len(text) < 80 else type(law).__name__.lower()


def _window_cv(part: Description) -> str:
    if not part.arrivals:
        return ""
    return f"{_triple(part.arrivals.window_cv)} ({part.arrivals.window_s:g} s)"


def _triple(values: tuple[float, float, float]) -> str:
    return "/".join(map(_number, values))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _sizes(sizes: Sizes | None) -> str:
    return f"{sizes.mean:.0f}/{sizes.p50:.0f}/{sizes.p95:.0f}/{sizes.p99:.0f}" if sizes else "-"


def _span(span_s: float) -> str:
    for unit_s, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if span_s >= 2 * unit_s:
            return f"{span_s / unit_s:.3g} {unit}"
    return f"{span_s:.3g} s"
