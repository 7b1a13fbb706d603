"""All-reduce of atoll against torch's gloo on this machine: same processes, same run, interleaved, one thread each.

    python benchmarks/all_reduce.py [--quick | --full] [--json] [--world 2 4]

atoll's times include the votes (a master in a process of its own); gloo has no votes, no master and survives no loss.
"TCP" is the same group without shared memory. Prints a row per size and way: median and min-max in milliseconds, and
the ratio gloo / this (above 1: faster than gloo).
"""

import argparse
import json
import os
import platform
import statistics
from datetime import date
from typing import Any

from atoll.reproduce.crew import crew
from atoll.reproduce.rivals import Settings, Spec, Task, Times, Way, compare

ROUNDS = {"quick": 5, "full": 20}
SIZES = {
    "quick": {4 << 10: 200, 256 << 10: 60, 64 << 20: 3},
    "full": {4 << 10: 250, 256 << 10: 100, 4 << 20: 20, 64 << 20: 4, 256 << 20: 2},
}
"""Bytes and operations per round."""
WAYS = (
    Way("atoll", "near"),
    Way("atoll in place", "near", in_place=True),
    Way("atoll TCP", "far"),
    Way("TCP in place", "far", in_place=True),
    Way("gloo"),
)


def measure(world: int, mode: str) -> list[Times]:
    """One world: every size in every way."""
    with crew() as peers:
        near, far = (peers.master(name) for name in ("near", "far"))
        tasks = tuple(
            Task(nbytes, ROUNDS[mode], repeat, WAYS + ((Way("gather_bytes", "near", gather=True),) if first else ()))
            for first, (nbytes, repeat) in zip((True, *[False] * 9), SIZES[mode].items(), strict=False)
        )
        groups = {"near": Settings(near), "far": Settings(far, shared_memory=False)}
        return compare(peers, Spec(world, groups, tasks), timeout_s=1800.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more sizes and rounds")
    parser.add_argument("--quick", action="store_true", help="the default")
    parser.add_argument("--json", action="store_true", help="one object per measurement, the last a summary")
    parser.add_argument("--world", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args()
    mode = "full" if options.full else "quick"
    ratios: dict[str, float] = {}
    if not options.json:
        print(f"{date.today()}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
        print(f"{'W':>2} {'bytes':>10} {'what':<15} {'median ms':>10} {'min-max':>20} {'p99':>9} {'gloo/this':>10}")
    for world in options.world:
        found = measure(world, mode)
        for times in found:
            gloo = next(t for t in found if t.nbytes == times.nbytes and t.way == "gloo")
            row = {"world": world, "bytes": times.nbytes, "what": times.way, **summary(times.seconds)}
            ratio = round(gloo.median_s / times.median_s, 3)
            ratios[f"{times.way}, world {world}, {times.nbytes} bytes"] = ratio
            if options.json:
                print(json.dumps({**row, "gloo_over_this": ratio}))
            else:
                spread = f"{row['min_ms']:.3f}-{row['max_ms']:.3f}"
                print(
                    f"{world:>2} {times.nbytes:>10} {times.way:<15} {row['median_ms']:>10.3f} {spread:>20} "
                    f"{row['p99_ms']:>9.3f} {ratio:>10.2f}"
                )
    if options.json:
        machine = {"cores": os.cpu_count(), "machine": platform.machine(), "date": str(date.today())}
        print(json.dumps({"summary": "gloo / this, medians", "ratios": ratios, **machine}))


def summary(seconds: list[float]) -> dict[str, Any]:
    ms = sorted(1e3 * s for s in seconds)
    return {
        "median_ms": round(statistics.median(ms), 4),
        "min_ms": round(ms[0], 4),
        "max_ms": round(ms[-1], 4),
        "p99_ms": round(ms[min(len(ms) - 1, int(len(ms) * 0.99))], 4),
        "n": len(ms),
    }


if __name__ == "__main__":
    main()
