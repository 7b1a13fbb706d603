"""python -m tests.fuzzers [NAME ...] [--seconds N]: fuzz these targets, or all, one after the other."""

import argparse
import sys

from tests.fuzzers import NAMES
from tests.fuzzers.runner import GUIDED, by_mutation, guided, replay


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzers", description="Fuzz what reads foreign bytes.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of mutation without atheris")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(NAMES)):
        parser.error(f"there is no {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    if not GUIDED:
        print("atheris is not installed (pip install atoll[fuzz]): seeded mutation of the corpus, without coverage")
    broken = False
    for name in options.names or NAMES:
        inputs = replay(name)
        report = guided(name, options.seconds) if GUIDED else by_mutation(name, options.seconds, options.seed)
        edges = f", {report.edges} edges" if report.edges else ""
        print(f"{name}: {inputs} inputs replayed, {report.runs} runs in {report.seconds:.0f} s{edges}", flush=True)
        if report.broken:
            broken = True
            print(f"{name}: BROKEN by {report.broken}: {report.why}", flush=True)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
