"""Thousands of seeded fault schedules: no deadlock, one sequence of outcomes for all, each request answered once.

A failing seed prints the command that replays it. The harnesses are `fuzz.py` (policies only) and `churn.py` (the whole
stack in virtual time).
"""

import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.group import churn, fuzz


def _replay_all(module: str, first: int, last: int) -> int:
    """Runs in a process of its own; returns how many epochs there were."""
    replay: Callable[[int], object] = {"fuzz": fuzz.replay, "churn": churn.replay}[module]
    gc.disable()  # which looks far oftener than there is much to find, and takes an eighth of the time
    epochs = 0
    for seed in range(first, last):
        epochs += replay(seed).master.epoch  # type: ignore[attr-defined]
        if seed % 50 == 0:
            gc.collect()
    return epochs


def run_seeds(module: str, first: int, last: int) -> int:
    """All seeds of the range, on two cores."""
    step = max(1, (last - first) // 20)
    parts = [(module, at, min(at + step, last)) for at in range(first, last, step)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(_replay_all, *zip(*parts, strict=True)))


@pytest.mark.timeout(600)  # some 15 s, where nothing else runs
def test_policies_survive_two_thousand_schedules() -> None:
    assert run_seeds("fuzz", 0, 2_000) > 2_000


def test_the_whole_stack_survives_three_hundred_schedules() -> None:
    assert run_seeds("churn", 0, 300) > 300


@pytest.mark.parametrize(
    ("module", "seed"),
    [
        pytest.param("fuzz", 1_016_529, id="a new master gave a number that one had whom nobody there knew"),
        pytest.param("fuzz", 1_028_684, id="two masters went on: with one who lacked a view, and with the others"),
        pytest.param("churn", 1_002_606, id="one came back to a group that had begun anew, and was expelled for ever"),
    ],
)
def test_what_went_wrong_once_goes_well(module: str, seed: int) -> None:
    assert _replay_all(module, seed, seed + 1) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_policies_survive_a_hundred_thousand_schedules() -> None:
    assert run_seeds("fuzz", 2_000, 102_000) > 100_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_stack_survives_five_thousand_schedules() -> None:
    assert run_seeds("churn", 300, 5_300) > 5_000


def test_the_same_seed_gives_the_same_run() -> None:
    one, two = churn.replay(3), churn.replay(3)
    assert one.loop.count == two.loop.count
    assert one.loop.now_ns == two.loop.now_ns
    assert one.said == two.said
