"""Driver: how near virtual engines come to real servers on this machine. (Simulator, "Done when" 8, serving.)"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from atoll.config import atomic_write
from atoll.errors import AtollError
from atoll.model.store import find
from atoll.reproduce import server
from atoll.reproduce.api import Line, Say, judged, missing
from atoll.reproduce.calibration.api import Calibration
from atoll.reproduce.calibration.calibrate import calibrate_engine
from atoll.reproduce.simulator.routers import ranking, recovery

MODEL: Final = "smollm2"
SHARES: Final = (0.3, 0.6, 0.85)
"""Of what a virtual engine can take."""
SECONDS: Final = 120
"""The median of fewer answers hangs on two or three of them."""
BOUNDS: Final = {"mean": 0.10, "p50": 0.10, "p99": 0.20}
_MEASURES: Final = {"TTFT": "ttft_s", "TPOT": "tpot_s", "latency": "latency_s"}
_CLAIM: Final = "latencies of a real server against virtual engines"
_EXPECTED: Final = "mean and P50 within 10 %, P99 within 20 %"


def serving(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Calibrate, then the same requests to both, at three loads: more than two minutes each; then routers and kills."""
    why = "--full" if not full else _missing()
    if why:
        yield missing("8s", f"{_CLAIM}, at three loads", _EXPECTED, why)
        yield missing("8r", "two engines: real and simulated routers rank alike", "the same ranking", why)
        yield missing("8k", "from kill -9 of an engine to the first token again", "<= 20 %", why)
        return
    calibration = calibrate_engine(MODEL, say=say)
    yield from _at_three_loads(calibration, seed, say)
    alone = calibrate_engine(MODEL, say=say, flags=("--threads", "1"))
    yield ranking(MODEL, alone.engines[MODEL], seed, say)
    yield recovery(MODEL, calibration.engines[MODEL], seed, say)


def _at_three_loads(calibration: Calibration, seed: int, say: Say) -> Iterator[Line]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calib.json"
        atomic_write(file, calibration.to_json().encode())
        r = calibration.engines[MODEL].step.residuals
        yield Line(
            "8s",
            f"steps of {MODEL}, held out",
            "median error <= 10 %",
            f"median {r.median:.1%}, p90 {r.p90:.1%}, worst {r.worst:.1%} of {r.points}",
            judged(r.median <= 0.10),
        )
        virtual = ("--virtual", "--cost", str(file), "--seed", str(seed))
        full = server.workload_run(
            *virtual, "--rate", "100", "--seconds", "5", "--patience", "100000", "--max-waiting", "9999"
        )
        most_per_s = full["answered"] / full["span_s"]
        for number, share in enumerate(SHARES, start=1):
            load = ("--rate", f"{share * most_per_s:.3f}", "--seconds", str(SECONDS))
            say(f"{MODEL} at {share:.0%} of what it can take, {share * most_per_s:.2f} requests/s")
            with server.serving(MODEL) as there:
                real = server.workload_run(there.url, "--seed", str(seed), *load)
            errors = errors_of(real, server.workload_run(*virtual, *load))
            yield Line(
                f"8s{number}",
                f"{_CLAIM}: {real['offered']} requests at {share:.0%} of what it can take",
                _EXPECTED,
                told(errors),
                judged(all(abs(error) <= BOUNDS[figure] for (_, figure), error in errors.items())),
                "simulated",
            )


def errors_of(real: Mapping[str, Any], simulated: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Of two reports, by measure and figure, relative to the real one, with signs."""
    return {
        (name, figure): simulated[key][figure] / real[key][figure] - 1
        for name, key in _MEASURES.items()
        for figure in BOUNDS
    }


def told(errors: Mapping[tuple[str, str], float]) -> str:
    """In a line."""
    return "; ".join(
        f"{name} " + ", ".join(f"{figure} {errors[name, figure]:+.1%}" for figure in BOUNDS) for name in _MEASURES
    )


def _missing() -> str:
    """What has to be there first."""
    try:
        find(MODEL)
    except AtollError as error:
        return f"`atoll model pull {MODEL}`: {error}"
    return ""
