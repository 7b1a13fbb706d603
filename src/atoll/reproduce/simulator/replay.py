"""Driver: a real serving run, recorded, taken again in virtual time: the same decisions. (Simulator, "Done when" 6.)"""

import tempfile
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Final

from atoll.cost import Op
from atoll.model.paged import PAGE_TOKENS
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.server import serving, workload_run
from atoll.serve import engine, virtual
from atoll.serve.pool import KvPool
from atoll.serve.scheduler import Scheduler
from atoll.serve.step_log import read_steps
from atoll.serve.steps import Steps
from atoll.serve.virtual import Logged, VirtualEngine
from atoll.sim.loop import Loop
from atoll.workload.api import Arrival, Demand

_FLAGS: Final = ("--kv-memory", "512KiB", "--chunk", "32", "--max-batch", "8", "--threads", "1")
"""So little memory that answers have to step back."""
_LOAD: Final = ("--generate", "bursty", "--rate", "30", "--seconds", "6", "--prompt", "60", "--output", "40")


def replay(seed: int, say: Say) -> Iterator[Line]:
    """A small model behind a real server, asked in bursts."""
    say("a real run, and the same again in virtual time")
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "steps.jsonl"
        save_model(Path(folder) / "model", _small(seed), ByteTokenizer())
        with serving(f"{folder}/model", "--record", str(record), *_FLAGS) as server:
            workload_run(server.url, "--seed", str(seed), *_LOAD)
        steps = read_steps(record)
    real, (again, preempted) = decisions(steps), replayed(steps)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(real, again, strict=False)))
    shown = sum(len(passed) for _, passed in real)
    yield Line(
        "6a",
        f"{len(steps.came)} requests to a real server, recorded, its step times and arrivals replayed in virtual time",
        "identical decisions, to the nanosecond",
        f"{same} of {len(real)} steps, which passed {shown} slices, are the same; {preempted} answers stepped back",
        judged(real == again and bool(real)),
    )
    shared = all(
        vars(engine)[policy.__name__] is vars(virtual)[policy.__name__] is policy for policy in (Scheduler, KvPool)
    )
    yield Line(
        "6b",
        "real and virtual engines have the scheduler and the pool in common",
        "the same objects",
        f"Scheduler and KvPool are{'' if shared else ' not'}",
        judged(shared),
    )


def decisions(steps: Steps) -> list[Logged]:
    """What the real engine did: requests by their order, times from the first that came."""
    number = {came.id: str(i) for i, came in enumerate(steps.came)}
    began_ns = steps.came[0].at_ns
    return [(t.began_ns - began_ns, tuple((number[id], n) for id, n in t.passed)) for t in steps.taken]


def replayed(steps: Steps) -> tuple[list[Logged], int]:
    """What a virtual engine does, whose steps take as long, of the same arrivals; how often an answer stepped back."""
    loop, log = Loop(), list[Logged]()
    engine = VirtualEngine(loop, _Recorded(steps), steps.begun.pages, steps.begun.limits, log=log, leaps=False)
    began_ns = steps.came[0].at_ns
    for number, came in enumerate(steps.came):
        arrival = Arrival(number, 0.0, came.prompt_tokens, came.id)
        ended = steps.ended.get(came.id)
        room = steps.begun.pages * PAGE_TOKENS - came.prompt_tokens
        tokens = ended.output_tokens if ended and not ended.dropped else room
        loop.post(came.at_ns - began_ns, engine.ask, Demand(arrival, tokens), 0.0)
        if ended and ended.dropped:
            loop.post(ended.at_ns - began_ns, engine.drop, number)
    loop.run(steps.taken[-1].ended_ns - began_ns)
    return log, engine.preempted


class _Recorded:
    """Each step takes what it took; what is begun after the last is of no interest."""

    def __init__(self, steps: Steps) -> None:
        self._seconds = (step.seconds for step in steps.taken)

    def seconds(self, op: Op) -> float:
        return next(self._seconds, 1.0)


def _small(seed: int) -> Transformer:
    """Two layers of random numbers: what it says is of no interest."""
    model = Transformer(TransformerConfig(width=64, layers=2, heads=4, kv_heads=2, context=256))
    model.initialise(seed)
    return model
