"""Driver: results as pictures in a file, drawn by matplotlib without a screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from atoll.errors import AtollError, InvalidData, SaveFailed

Points = Sequence[float]


def lines(
    path: Path,
    series: Mapping[str, tuple[Points, Points]],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, float] = {},
) -> None:
    """Save a PNG with one line per series (its xs and ys) and a labelled vertical line at each x of `marks`.

    Raises `InvalidData` where xs and ys differ in length, `SaveFailed` where `path` can't be written, `AtollError`
    where matplotlib is not installed.
    """
    for name, (xs, ys) in series.items():
        if len(xs) != len(ys):
            raise InvalidData(f"series {name!r} has {len(xs)} xs and {len(ys)} ys; it needs as many of each")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise AtollError("plots need matplotlib: pip install 'atoll[plot]'") from error

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name, (xs, ys) in series.items():
        axes.plot(xs, ys, label=name, linewidth=1.8)
    for name, x in marks.items():
        axes.axvline(x, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            name,
            (x, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(3, -3),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize="small",
            color="0.4",
        )
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise SaveFailed(f"can't write {path}: {error.strerror}; choose another folder") from error
