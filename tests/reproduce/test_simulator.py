"""The quick parts of the simulator's demonstration pass, and fail where what they look at is broken."""

import sys
from typing import Any

import pytest

from atoll.reproduce.simulator.laws import laws
from atoll.reproduce.simulator.queues import Fit, erlang_c_wait, even, fcfs
from atoll.reproduce.simulator.refusals import refusals
from atoll.reproduce.simulator.shares import shares


def quiet(text: str) -> None:
    """Says nothing."""


def test_shares_laws_and_refusals_pass() -> None:
    lines = [*shares(1, quiet), *laws(False, 1, quiet), *refusals(quiet)]
    assert {line.number: line.verdict for line in lines} == {line.number: "pass" for line in lines}
    assert len(lines) == 15
    assert {line.kind for line in lines} == {"simulated"}


def test_unfair_shares_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = sys.modules["atoll.reproduce.simulator.shares"]
    rates = module.rates

    def greedy(*problem: Any) -> list[float]:
        first, *others = rates(*problem)
        return [first * 1.01, *others]

    monkeypatch.setattr(module, "rates", greedy)
    verdicts = {line.number: line.verdict for line in shares(1, quiet)}
    assert verdicts["2a"] == verdicts["2b"] == verdicts["2c"] == "fail"


def test_a_queue_that_waits_too_long_is_seen() -> None:
    assert Fit("", [1.0, 1.01, 0.99] * 7, 1.0).ok
    assert not Fit("", [1.1, 1.11, 1.09] * 7, 1.0).ok
    assert not Fit("", [0.1, 2.0, 5.0] * 7, 1.0).ok, "an interval that wide says nothing"


def test_a_line_of_a_queue_says_what_was_found_beside_theory() -> None:
    wait, _ = fcfs(0.5, 1, even, 2000, 1)
    assert wait == pytest.approx(0.5, rel=0.3)
    assert erlang_c_wait(0.5, 1) == pytest.approx(1.0)
