"""Driver: a run of vLLM that others have published, predicted from kernels they have profiled. (Simulator, "Done
when" 7.)

Nothing is fitted: what a step takes is the sum of its kernels, as LLMServingSim (Cho et al., 2024, arXiv 2408.05499)
has published them, for the layers there are; the decisions are our scheduler's.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from atoll.cost import Op
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.simulator.tables import table
from atoll.serve.scheduler import Limits
from atoll.serve.virtual import VirtualEngine
from atoll.sim.loop import Loop
from atoll.workload.api import Arrival, Demand, Outcome

LAYERS: Final = 32
"""Of Llama-3.1-8B."""
_STEP_TOKENS: Final = 2048
_ONCE: Final = ("embedding", "final_layernorm")
_TWICE: Final = ("layernorm",)
"""In each layer; other kernels of tokens once in each."""
_BY_SEQUENCES: Final = ("lm_head", "sampler")
BOUNDS: Final = {"TTFT": 0.10, "TPOT": 0.05, "latency": 0.06}
_FIGURES: Final = ("mean", "P50", "P99")
_JUDGED: Final = ("mean", "P99")


class Machine(NamedTuple):
    """`batch` and `pages` of the vLLM that ran there."""

    name: str
    file: str
    batch: int
    pages: int


MACHINES: Final = (
    Machine("one RTX PRO 6000", "rtx-pro-6000", 128, 33_000),  # more pages than were ever used
    Machine("one RTX 4090", "rtx-4090", 256, 2588),
)


class Request(NamedTuple):
    """As vLLM saw it. Seconds since the first came."""

    input_tokens: int
    output_tokens: int
    queued_s: float
    first_token_s: float
    last_token_s: float


def others(say: Say) -> Iterator[Line]:
    """300 requests to Llama-3.1-8B, more than it can take, on two GPUs."""
    for letter, machine in zip("ab", MACHINES, strict=True):
        say(f"what others measured on {machine.name}")
        requests = published_requests(machine)
        outcomes, preempted = predicted(machine, requests)
        errors = errors_of(requests, outcomes)
        figures = (f"{name} " + ", ".join(f"{f} {e:+.1%}" for f, e in row.items()) for name, row in errors.items())
        yield Line(
            f"7{letter}",
            f"{len(requests)} requests to vLLM with Llama-3.1-8B on {machine.name}, from profiles of its kernels alone",
            "mean and P99: TPOT <= 5 %, latency <= 6 %, TTFT <= 10 %",
            f"{'; '.join(figures)}; {preempted} answers stepped back",
            judged(all(abs(errors[name][figure]) <= bound for name, bound in BOUNDS.items() for figure in _JUDGED)),
            "simulated",
        )


def predicted(machine: Machine, requests: Sequence[Request]) -> tuple[list[Outcome], int]:
    """How each ends in virtual time, and how often an answer steps back."""
    loop, outcomes = Loop(), list[Outcome]()
    limits = Limits(batch=machine.batch, step_tokens=_STEP_TOKENS, waiting=len(requests))
    engine = VirtualEngine(loop, Kernels(machine), machine.pages, limits, outcomes.append)
    for number, request in enumerate(requests):
        arrival = Arrival(number, request.queued_s, request.input_tokens, str(number))
        demand = Demand(arrival, request.output_tokens)
        loop.post(round(request.queued_s * 1e9), engine.ask, demand, request.queued_s)
    loop.run()
    return sorted(outcomes, key=lambda outcome: outcome.number), engine.preempted


def errors_of(requests: Sequence[Request], outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """By measure and figure, relative to the real ones, with signs."""
    pairs = {
        "TTFT": ([r.first_token_s - r.queued_s for r in requests], [o.ttft_s for o in outcomes]),
        "TPOT": (
            [(r.last_token_s - r.first_token_s) / (r.output_tokens - 1) for r in requests],
            [o.tpot_s for o in outcomes],
        ),
        "latency": ([r.last_token_s - r.queued_s for r in requests], [o.latency_s for o in outcomes]),
    }
    return {
        name: {
            figure: simulated / real - 1 for figure, real, simulated in zip(_FIGURES, *map(_spread, both), strict=True)
        }
        for name, both in pairs.items()
    }


class Kernels:
    """What a step takes: its kernels by tokens and by sequences, and attention by (tokens of prompts, those before
    them, answers, their mean context), each straight between what was profiled."""

    def __init__(self, machine: Machine) -> None:
        layers: dict[str, dict[float, float]] = {}
        for kernel, n, us in table(f"{machine.file}-layers"):
            layers.setdefault(kernel, {})[float(n)] = float(us) * 1e-6
        at = np.arange(_STEP_TOKENS + 1)
        self._tokens_s, self._sequences_s = np.zeros(len(at)), np.zeros(len(at))
        for kernel, points in layers.items():
            if kernel in _BY_SEQUENCES:
                self._sequences_s += np.interp(at, list(points), list(points.values()))
            elif kernel != "layer":
                times = 1 if kernel in _ONCE else LAYERS * (2 if kernel in _TWICE else 1)
                self._tokens_s += times * np.interp(at, list(points), list(points.values()))
        self._axes, self._attention_s = _grid(f"{machine.file}-attention")

    def seconds(self, op: Op) -> float:
        """Of a step."""
        prompts, answers = op.prefill_tokens, op.batch
        context = op.context_tokens / answers if answers else 0.0
        before, parts = 0.0, 1.0
        if prompts:
            alone = prompts * (prompts + 1) / 2
            before = max(0.0, op.prefill_pairs - alone) / prompts
            parts = max(1.0, alone / op.prefill_pairs)
        attention_s = self._attention(prompts, before, answers, context)
        if parts > 1:  # several prompts attend to less than one of the same length
            attention_s -= self._attention(prompts, 0, 0, 0) * (1 - 1 / parts)
        sequences = int(answers) + (prompts > 0)
        tokens = int(prompts + answers)
        return float(self._tokens_s[tokens] + self._sequences_s[sequences] + LAYERS * attention_s)

    def _attention(self, *at: float) -> float:
        cells = [_cell(axis, x) for axis, x in zip(self._axes, at, strict=True)]
        corners = product(*(((i, 1 - part), (i + 1, part)) if part else ((i, 1.0),) for i, part in cells))
        return sum(
            prod(weight for _, weight in corner) * float(self._attention_s[tuple(i for i, _ in corner)])
            for corner in corners
        )


def published_requests(machine: Machine) -> list[Request]:
    """Those to vLLM, in the order in which they came."""
    return [Request(int(i), int(o), *map(float, times)) for i, o, *times in table(f"{machine.file}-requests")]


def _grid(name: str) -> tuple[list[list[float]], NDArray[Any]]:
    """Axes, and seconds at their points. Of nothing it takes nothing; who has no tokens has no context."""
    rows = [tuple(map(float, row)) for row in table(name)]
    axes = [sorted({0.0, *(row[i] for row in rows)}) for i in range(4)]
    seconds = np.full([len(axis) for axis in axes], np.nan)
    for *at, us in rows:
        seconds[tuple(axis.index(x) for axis, x in zip(axes, at, strict=True))] = us * 1e-6
    seconds[0, :, 0, :] = 0.0
    seconds[0] = seconds[0, :1]
    seconds[:, :, 0] = seconds[:, :, 0, :1]
    seconds[:, :, 1:, 0] = seconds[:, :, 1:, 1]
    return axes, seconds


def _cell(axis: Sequence[float], x: float) -> tuple[int, float]:
    """Between which two points, and what part of the way; beyond the last as there."""
    i = int(np.searchsorted(axis, x, side="right")) - 1
    return (i, 0.0) if i == len(axis) - 1 else (i, (x - axis[i]) / (axis[i + 1] - axis[i]))


def _errors(real: Sequence[float], simulated: Sequence[float]) -> dict[str, float]:
    both = zip(_FIGURES, _spread(real), _spread(simulated), strict=True)
    return {figure: s / r - 1 for figure, r, s in both}


def _spread(values: Sequence[float]) -> list[float]:
    """As `_FIGURES`."""
    return [float(np.mean(values)), *(float(np.percentile(values, p)) for p in (50, 99))]
