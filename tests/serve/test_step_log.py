"""What an engine did can be read again, and taken again in virtual time with the same decisions."""

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from atoll.cost import Op
from atoll.endpoint.api import Request, Sampling, Tokens
from atoll.errors import InvalidData
from atoll.reproduce.simulator.replay import decisions, replayed
from atoll.serve.engine import Engine
from atoll.serve.scheduler import Limits
from atoll.serve.step_log import StepLog, read_steps
from atoll.serve.steps import Begun, Steps, Taken
from tests.serve.bytes_model import Bytes
from tests.serve.page_model import PageModel


def played(path: Path, seed: int) -> Engine:
    """As the engine's process does it: 30 requests that come between steps, some of which nobody wants any more."""
    rng = np.random.default_rng(seed)
    engine = Engine(PageModel(pages=30), Bytes(), Limits(batch=5, step_tokens=40))
    log = StepLog(path, engine, "pages of memory")
    coming = [f"r{i}" for i in range(30)]
    under_way: list[str] = []
    while coming or engine.busy:
        log.mark()
        for id in [coming.pop(0) for _ in range(min(len(coming), int(rng.integers(0, 3))))]:
            tokens = tuple(rng.integers(1, 255, size=int(rng.integers(1, 120))).tolist())
            request = Request(
                id=id, model="m", prompt=Tokens(tokens), ignore_end=True, max_tokens=int(rng.integers(1, 60)),
                sampling=Sampling(temperature=0),
            )  # fmt: skip
            engine.add(request)
            log.came(request)
            under_way.append(id)
        if under_way and rng.random() < 0.05:
            id = under_way.pop(int(rng.integers(len(under_way))))
            engine.drop(id)
            log.dropped(id)
        log.said(engine.step() if engine.busy else [])
        if not engine.busy:
            log.mark()
    return engine


@pytest.mark.parametrize("seed", range(3))
def test_a_recorded_run_is_taken_again_with_the_same_decisions(seed: int, tmp_path: Path) -> None:
    engine = played(tmp_path / "steps", seed)
    steps = read_steps(tmp_path / "steps")
    assert len(steps.came) == len(steps.ended) == 30
    assert any(ended.dropped for ended in steps.ended.values())
    assert len(steps.taken) == engine.counts.engine_steps
    assert sum(n for step in steps.taken for _, n in step.passed) == engine.counts.iteration_tokens
    again, preempted = replayed(steps)
    assert again == decisions(steps)
    assert preempted == engine.counts.preemptions > 0


def test_another_decision_is_seen(tmp_path: Path) -> None:
    played(tmp_path / "steps", 0)
    steps = read_steps(tmp_path / "steps")
    longer = replace(steps.came[0], prompt_tokens=steps.came[0].prompt_tokens + 1)
    other = Steps(steps.begun, (longer, *steps.came[1:]), steps.taken, steps.ended)
    assert replayed(other)[0] != decisions(other)


def test_steps_in_a_row_that_differ_in_their_context_alone_are_one_sample() -> None:
    def step(began_ns: int, ended_ns: int, batch: int, context: int) -> Taken:
        return Taken(began_ns, ended_ns, (), Op("engine_step", batch=batch, context_tokens=context))

    taken = (step(0, 10, 2, 100), step(10, 30, 2, 102), step(30, 40, 1, 60), step(40, 50, 2, 200))
    steps = Steps(Begun(9, 99, Limits(), ""), (), taken, {})
    samples = list(steps.samples())
    assert [(s.op.batch, s.op.context_tokens) for s in samples] == [(2, 101), (1, 60), (2, 200)]
    assert [s.seconds for s in samples] == pytest.approx([15e-9, 10e-9, 10e-9])


def test_what_is_no_record_of_one_engine_is_refused(tmp_path: Path) -> None:
    for text in ('{"a": 1}\n', ""):
        (tmp_path / "other").write_text(text)
        with pytest.raises(InvalidData, match="other"):
            read_steps(tmp_path / "other")
    with pytest.raises(InvalidData, match="can't read"):
        read_steps(tmp_path / "none")
