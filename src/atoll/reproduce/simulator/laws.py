"""Driver: known laws of pipelines, checkpoints and devices, in virtual time. (Simulator, "Done when" 4.)"""

import math
from collections.abc import Iterator
from statistics import mean
from typing import Final

from atoll.reproduce.api import Line, Say, judged
from atoll.sim.clocks import Exponential, Fixed
from atoll.sim.device import Device, Spec, waves
from atoll.sim.faults import Crash, each
from atoll.sim.fluid import Fluid
from atoll.sim.loop import Loop
from atoll.sim.stream import Event, Kernel

_SMS: Final = 8
_PEAK: Final = 1e6
"""Flops of one SM per second."""
_MS: Final = 1e3
"""Flops that take one SM a millisecond."""
_HBM: Final = 4e6


def laws(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Bubble, best interval, waves. (Little's law is checked in every queue of line 1.)"""
    say("pipelines, checkpoints, waves")
    cases = [(2, 2), (4, 4), (4, 16), (8, 11)]
    bubbles = [(bubble(p, m), (p - 1) / (m + p - 1)) for p, m in cases]
    measured = "; ".join(f"p={p}, m={m}: {b:.4f}" for (p, m), (b, _) in zip(cases, bubbles, strict=True))
    ok = all(math.isclose(found, theory, rel_tol=1e-3) for found, theory in bubbles)
    yield Line(
        "4a", "1F1B: share of a stage's time it idles", "(p - 1) / (m + p - 1)", measured, judged(ok), "simulated"
    )

    cost_s, mtbf_s = 30.0, 7200.0
    best_s = math.sqrt(2 * cost_s * mtbf_s)
    runs = 400 if full else 60
    at = {
        factor: mean(lost(factor * best_s, cost_s, mtbf_s, seed + i) for i in range(runs))
        for factor in (0.33, 1.0, 3.0)
    }
    claim = "time lost to checkpoints of 30 s and failures every 2 h, by interval"
    measured = "; ".join(f"{factor:g} of it: {share:.1%}" for factor, share in at.items())
    yield Line(
        "4b", claim, f"least near sqrt(2 delta MTBF) = {best_s:.0f} s", measured,
        judged(at[1.0] < min(at[0.33], at[3.0])), "simulated",
    )  # fmt: skip

    steps = {ctas: kernel_ms(ctas) for ctas in (1, _SMS, _SMS + 1, 2 * _SMS, 2 * _SMS + 1, 100)}
    ok = all(math.isclose(ms, math.ceil(ctas / _SMS), rel_tol=1e-6) for ctas, ms in steps.items())
    measured = "; ".join(f"{ctas} CTAs: {ms:g} ms" for ctas, ms in steps.items())
    claim = f"a kernel of 1 ms per CTA on {_SMS} SMs"
    yield Line("4c", claim, "steps at multiples of the SMs", measured, judged(ok), "simulated")


def bubble(stages: int, microbatches: int, tie_break: int | None = None) -> float:
    """Share of its time that a stage of a 1F1B pipeline idles; backward takes twice as long as forward."""
    loop = Loop(tie_break)
    fluid = Fluid(loop)
    ends = {(s, w, i): Event() for s in range(stages) for w in "fb" for i in range(microbatches)}
    kernels = {"f": Kernel("f", _SMS, _MS), "b": Kernel("b", _SMS, 2 * _MS)}
    for stage in range(stages):
        stream = Device(fluid, f"gpu{stage}", Spec(_SMS, _PEAK, _HBM), waves).stream("main")
        for what, i in _one_forward_one_backward(stage, stages, microbatches):
            neighbour = stage - 1 if what == "f" else stage + 1
            needed = [ends[neighbour, what, i]] if 0 <= neighbour < stages else []
            stream.launch(kernels[what], after=needed).then(ends[stage, what, i].set)
    loop.run()
    return 1 - 3 * microbatches / (loop.now_ns / 1e6)


def _one_forward_one_backward(stage: int, stages: int, microbatches: int) -> Iterator[tuple[str, int]]:
    """The order of one stage (PipeDream-Flush): warm up, alternate, drain."""
    warm_up = min(stages - stage - 1, microbatches)
    yield from (("f", i) for i in range(warm_up))
    for i in range(microbatches):
        if warm_up + i < microbatches:
            yield "f", warm_up + i
        yield "b", i


def lost(interval_s: float, cost_s: float, mtbf_s: float, seed: int, useful_s: float = 100_000.0) -> float:
    """Share of a run's time that is not useful work, where work since the last checkpoint dies with each failure."""
    failures = (timed.at_s for timed in each([Crash("node")], Exponential(mtbf_s), Fixed(0.0), seed, str(interval_s)))
    now_s = saved_s = 0.0
    fails_s = next(failures)
    while saved_s < useful_s:
        step_s = min(interval_s, useful_s - saved_s)
        if now_s + step_s + cost_s <= fails_s:
            now_s += step_s + cost_s
            saved_s += step_s
        else:
            now_s = fails_s
            fails_s = next(failures)
    return 1 - useful_s / now_s


def kernel_ms(ctas: int) -> float:
    """How long a kernel of so many CTAs, each a millisecond of an SM, takes alone."""
    loop = Loop()
    device = Device(Fluid(loop), "gpu", Spec(_SMS, _PEAK, _HBM), waves)
    device.stream("main").launch(Kernel("k", ctas, _MS))
    loop.run()
    return loop.now_ns / 1e6
