"""Driver: the two traces of Azure's language models of 2023 against the numbers known of them, and requests made from
fits against the traces. (BurstGPT, "Done when" 2 and 3.)

The traces are not shipped: `ATOLL_TRACES` names a folder with them.
"""

import os
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Final

import numpy as np

from atoll.reproduce.api import Line, Say, judged, missing
from atoll.rng import stream
from atoll.workload.fit.arrivals import cv_percentiles
from atoll.workload.fit.columns import Columns, columns
from atoll.workload.fit.describe import Description, describe
from atoll.workload.fit.held_out import laws_of_arrivals, sampled
from atoll.workload.fit.lengths import fit_empirical, fit_joint, fit_zipf
from atoll.workload.fit.stats import ks_distance, spearman
from atoll.workload.generate.lengths import Zipf
from atoll.workload.generate.processes import AnyProcess
from atoll.workload.trace.files import TraceFile

FOLDER: Final = "ATOLL_TRACES"
FILES: Final = {
    "code": ("AzureLLMInferenceTrace_code.csv", "azure-llm-2023-code.csv"),
    "chat": ("AzureLLMInferenceTrace_conv.csv", "azure-llm-2023-conv.csv"),
}
KNOWN: Final = {  # as printed there: right to the last digit given, or within 2 %
    "code": "8819 3436 2.57 13.2 .231 1.68 1.04 3.18 6.45 2048 1469 7436 28 13 251 -.02",
    "chat": "19366 3502 5.53 1.09 .87 .208 .96 1.02 1.09 1155 1020 4142 211 129 601 .07",
}
WINDOW_S: Final = 60.0
ROUNDS: Final = 8
SAMPLE: Final = 50_000


def fits(seed: int, say: Say) -> Iterator[Line]:
    """What the traces are like, and how bursty what each law makes of the code trace is."""
    for letter, name in (("a", "code"), ("b", "chat")):
        say(f"the {name} trace of Azure, 2023")
        claim = f"Azure 2023, {name}: requests, span, rate, cv, gamma, cv of 60-s windows, lengths, rank correlation"
        if (found := _trace(name)) is None:
            yield _missing(f"2{letter}", claim, "as known, +- 2 %", name)
            continue
        numbers, known = _numbers(describe(found, WINDOW_S)[0]), KNOWN[name].split()
        off = [
            f"{number:.4g} for {text}" for number, text in zip(numbers, known, strict=True) if not _near(number, text)
        ]
        measured = "; ".join(off) or f"all {len(known)}: " + " ".join(f"{number:.4g}" for number in numbers)
        yield Line(f"2{letter}", claim, "as known, +- 2 %", measured, judged(not off))
    claim = "code trace: median cv of 60-s windows of what each law makes, moments per window within 20 % of the source"
    if (code := _trace("code")) is None:
        yield _missing("2c", claim, "within 20 %", "code")
        return
    say("what each law makes of the code trace")
    source = cv_percentiles(code.at_s, WINDOW_S)[1]
    made = {
        law: _median_cv(process, float(code.at_s[-1]), seed) for law, process in laws_of_arrivals(code.at_s, WINDOW_S)
    }
    table = ", ".join(f"{law} {cv:.2f}" for law, cv in made.items())
    ratio = made["gamma per window, moments"] / source
    yield Line("2c", claim, "0.8x to 1.2x", f"source {source:.2f}; {table}", judged(0.8 <= ratio <= 1.2))


def lengths(seed: int, say: Say) -> Iterator[Line]:
    """Laws of lengths against the traces they were fitted to."""
    say("lengths")
    expected = {
        "3a": ("<= 0.03", "empirical lengths: distance of prompts and of answers from the source"),
        "3b": ("reported", "Zipf's law: the same"),
        "3c": ("+- 0.05", "joint lengths: rank correlation of prompts and answers"),
    }
    traces = {name: found for name in FILES if (found := _trace(name)) is not None}
    if not traces:
        for number, (bound, claim) in expected.items():
            yield _missing(number, claim, bound, "code")
    else:
        said: dict[str, list[str]] = {number: [] for number in expected}
        good = dict.fromkeys(expected, True)
        for name, found in traces.items():
            prompts, outputs = sampled(fit_empirical(found.prompt), fit_empirical(found.output), SAMPLE, seed)
            distances = ks_distance(prompts, found.prompt), ks_distance(outputs, found.output)
            said["3a"].append(f"{name} {distances[0]:.3f} and {distances[1]:.3f}")
            good["3a"] &= max(distances) <= 0.03
            laws = fit_zipf(found.prompt), fit_zipf(found.output)
            prompts, outputs = sampled(*laws, SAMPLE, seed)
            distances = ks_distance(prompts, found.prompt), ks_distance(outputs, found.output)
            said["3b"].append(
                f"{name} {distances[0]:.2f} and {distances[1]:.2f} (a {laws[0].a:.4g} and {laws[1].a:.4g})"
            )
            joint = sampled(fit_empirical(found.prompt), fit_joint(found.prompt, found.output), SAMPLE, seed)
            ranks = spearman(*joint), spearman(found.prompt, found.output)
            said["3c"].append(f"{name} {ranks[0]:.3f}, the source {ranks[1]:.3f}")
            good["3c"] &= abs(ranks[0] - ranks[1]) <= 0.05
        for number, (bound, claim) in expected.items():
            yield Line(number, claim, bound, "; ".join(said[number]), judged(good[number]))
    rng, small = stream(seed, "small"), Zipf(1.1, 2)
    drawn = {small.draw(rng) for _ in range(100_000)}
    yield Line("3d", "100,000 lengths cut at 2", "ends, in 1..2", f"ended, {sorted(drawn)}", judged(drawn == {1, 2}))


@cache
def _trace(name: str) -> Columns | None:
    folder = os.environ.get(FOLDER)
    paths = [Path(folder) / file for file in FILES[name]] if folder else []
    return next((columns(TraceFile(path)) for path in paths if path.is_file()), None)


def _missing(number: str, claim: str, expected: str, name: str) -> Line:
    needs = f"{FILES[name][0]} of github.com/Azure/AzurePublicDataset in the folder {FOLDER} names"
    return missing(number, claim, expected, needs)


def _numbers(found: Description) -> list[float]:
    arrivals, prompt, output = found.arrivals, found.prompt, found.output
    assert arrivals
    assert prompt
    assert output
    return [
        found.requests, found.span_s, arrivals.rate_per_s, arrivals.gap_cv, arrivals.alpha, arrivals.theta_s,
        *arrivals.window_cv, prompt.mean, prompt.p50, prompt.p99, output.mean, output.p50, output.p99, found.spearman,
    ]  # fmt: skip


def _near(number: float, text: str) -> bool:
    """Within 2 % of what is printed, or what would be printed so."""
    digits = len(text.partition(".")[2])
    return abs(number - float(text)) <= max(0.02 * abs(float(text)), 0.5 / 10.0**digits)


def _median_cv(process: AnyProcess, span_s: float, seed: int) -> float:
    """Of the windows of some traces made by it."""
    found = []
    for i in range(ROUNDS):
        times = process.times(stream(seed, "made", i))
        found.append(cv_percentiles(np.array(list(takewhile(lambda at_s: at_s < span_s, times))), WINDOW_S)[1])
    return float(np.mean(found))
