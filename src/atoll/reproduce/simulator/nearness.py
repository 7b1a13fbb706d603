"""Driver: how near the virtual group comes to the real one on this machine. (Simulator, "Done when" 8.)"""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say, judged, missing
from atoll.reproduce.calibration.calibrate import calibrate, with_faults_and_distance
from atoll.reproduce.calibration.fit import Row, table
from atoll.reproduce.calibration.measure import FULL


def nearness(full: bool, say: Say) -> Iterator[Line]:
    """As `atoll sim calibrate` finds it, on sizes no fit has seen. Kills and shaped links only where all is asked."""
    found = calibrate(FULL, say)
    if full:
        found = with_faults_and_distance(found, say)
    for number, row in enumerate(table(found), start=1):
        yield Line(f"8.{number}", f"held out: {row.what}", _bounds(row), _errors(row), judged(row.within), row.kind)
    if not full:
        yield missing("8", "recovery after a kill, transfers over shaped links", "<= 20 %, <= 10 %", "--full")


def _bounds(row: Row) -> str:
    return f"median error <= {row.median_bound:.0%}, worst <= {row.worst_bound:.0%}"


def _errors(row: Row) -> str:
    return f"median {row.median:.1%}, p90 {row.p90:.1%}, worst {row.worst:.1%} of {row.points}"
