"""Driver: python -m atoll.reproduce.stress --minutes N --seed S [--json] [--folder PATH]"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from atoll.errors import AtollError
from atoll.reproduce.churn import LONGEST_GAP_S, Churn
from atoll.reproduce.stress.gauges import MOST_BYTES, MOST_DESCRIPTORS
from atoll.reproduce.stress.run import Result, stress

_EVERY_S: Final = 10.0
_SURVIVED: Final = (
    "killed", "stopped", "links stalled", "links cut", "links reset", "links slowed", "silenced", "master cut off",
    "masters killed", "strangers",
)  # fmt: skip


def main() -> int:
    """0: all held; 1: something didn't; 2: it couldn't be tried; 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m atoll.reproduce.stress", description=str(stress.__doc__))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    parser.add_argument("--json", action="store_true", help="one object per line, the last with the result")
    parser.add_argument("--folder", type=Path, help="keep the logs of all processes, and what was done, here")
    options = parser.parse_args()
    seed = int(time.time()) % 100_000 if options.seed is None else options.seed
    line = _json_line if options.json else _line
    _out(f"{options.minutes:g} minutes of stress, seed {seed}", options.json)
    did, heard = _records(options.folder)
    try:
        result = stress(
            60.0 * options.minutes, seed, say=did, progress=_now_and_then(line), heard=heard, folder=options.folder
        )
    except AtollError as error:
        Console(stderr=True).print(f"it couldn't be tried: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        _say(json.dumps({"event": "result", "seed": seed, **summary(result)}))
    else:
        _table(result, seed)
    return 0 if result.ok else 1


def summary(result: Result) -> dict[str, Any]:
    """What it came to, as plain data."""
    report = result.report
    return {
        "ok": result.ok,
        "seconds": round(report.seconds, 1),
        "steps": report.steps,
        "worst_gap_s": round(report.worst_gap_s, 2),
        "done": dict(report.done),
        "hashes_compared": report.compared,
        "differing": report.differing,
        "failures": report.failures,
        "growth": {
            growth.name: {
                "lived_s": round(growth.lived_s),
                "bytes": round(growth.bytes),
                "descriptors": round(growth.descriptors, 1),
                "bytes_at_the_end": round(growth.now_bytes),
                "descriptors_at_the_end": round(growth.now_descriptors),
            }
            for growth in result.growths
        },
        "left_behind": result.left,
    }


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _out(text: str, as_json: bool) -> None:
    _say(json.dumps({"event": "begin", "text": text}) if as_json else text)


def _now_and_then(line: Callable[[Churn], str]) -> Callable[[Churn], None]:
    due, told = _EVERY_S, 0

    def progress(churn: Churn) -> None:
        nonlocal due, told
        for failure in churn.report.failures[told:]:
            sys.stderr.write(f"FAILED: {failure}\n")
        told = len(churn.report.failures)
        if churn.elapsed_s >= due:
            due = churn.elapsed_s + _EVERY_S
            _say(line(churn))

    return progress


def _line(churn: Churn) -> str:
    report = churn.report
    actions = ", ".join(f"{report.done[name]} {name}" for name in ("spawned", *_SURVIVED) if report.done[name])
    return (
        f"{report.seconds / 60:5.1f} min  {report.steps} steps, worst gap {report.worst_gap_s:.1f} s, "
        f"{report.live} live (world {report.world}); {actions}"
        + (f"; {len(report.differing)} hashes DIFFER" if report.differing else "")
    )


def _json_line(churn: Churn) -> str:
    report = churn.report
    return json.dumps(
        {
            "event": "progress",
            "seconds": round(report.seconds, 1),
            "steps": report.steps,
            "worst_gap_s": round(report.worst_gap_s, 2),
            "live": report.live,
            "world": report.world,
            "done": dict(report.done),
            "differing": len(report.differing),
            "failures": len(report.failures),
        }
    )


def _table(result: Result, seed: int) -> None:
    report = result.report
    table = Table(title=f"stress, seed {seed}, {report.seconds / 60:.1f} minutes", title_justify="left")
    table.add_column("what")
    table.add_column("measured")
    table.add_column("must be")
    table.add_column("")

    def row(what: str, measured: str, expected: str, ok: bool) -> None:
        table.add_row(what, measured, expected, "ok" if ok else "FAILED")

    survived = sum(report.done[name] for name in _SURVIVED if name != "strangers")
    row("steps", f"{report.steps}, {report.steps / max(report.seconds, 1e-9):.1f} per second", "", report.steps > 0)
    row("longest gap", f"{report.worst_gap_s:.1f} s", f"<= {LONGEST_GAP_S:g} s", report.worst_gap_s <= LONGEST_GAP_S)
    row("failures survived", f"{survived}", "", True)
    for name in ("spawned", *_SURVIVED, "expelled", "turned away", "lost"):
        if report.done[name]:
            table.add_row(f"  {name}", str(report.done[name]), "", "")
    hashes = f"{report.compared} compared, {len(report.differing)} differ"
    row("hashes at equal revisions", hashes, "0 differ", not report.differing and report.compared > 0)
    row("errors", str(len(report.failures)), "0", not report.failures)
    for growth in result.growths:
        row(
            f"growth of {growth.name} ({growth.lived_s / 60:.1f} min)",
            f"{growth.bytes / 1e6:+.1f} MB to {growth.now_bytes / 1e6:.0f}, "
            f"{growth.descriptors:+.1f} descriptors to {growth.now_descriptors:.0f}",
            f"< {MOST_BYTES / 1e6:.0f} MB, < {MOST_DESCRIPTORS:.0f}",
            growth.ok,
        )
    row("left behind", str(len(result.left)), "0", not result.left)
    console = Console()
    console.print(table)
    for failure in [*report.failures, *result.left]:
        console.print(f"FAILED: {failure}", markup=False, highlight=False)
    if report.differing:
        console.print(f"FAILED: revisions that differ: {report.differing[:20]}", markup=False, highlight=False)


def _records(folder: Path | None) -> tuple[Callable[[str], None], Callable[[str, dict[str, Any]], None]]:
    """Write down what was done, and what peers say but for their steps."""
    if folder is None:
        return lambda text: None, lambda name, said: None
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "events.jsonl").open("w", buffering=1)

    def did(text: str) -> None:
        file.write(json.dumps({"at": time.time(), "did": text}) + "\n")

    def heard(name: str, said: dict[str, Any]) -> None:
        if said["event"] != "step":
            file.write(json.dumps({"name": name, **said}) + "\n")

    return did, heard


if __name__ == "__main__":
    raise SystemExit(main())
