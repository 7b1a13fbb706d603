"""The quick parts of the simulator's demonstration pass, and fail where what they look at is broken."""

import sys
from itertools import islice
from typing import Any

import pytest

from atoll.cost import Op
from atoll.reproduce.calibration.api import Calibration, Point
from atoll.reproduce.simulator.laws import laws
from atoll.reproduce.simulator.nearness import nearness
from atoll.reproduce.simulator.nvlink import nvlink
from atoll.reproduce.simulator.others import MACHINES, Kernels, others
from atoll.reproduce.simulator.queues import Fit, erlang_c_wait, even, fcfs
from atoll.reproduce.simulator.refusals import refusals
from atoll.reproduce.simulator.serving import errors_of, told
from atoll.reproduce.simulator.shares import shares
from atoll.reproduce.simulator.tables import table


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


def test_what_others_measured_is_predicted_from_their_kernels() -> None:
    lines = [*nvlink(quiet), *islice(others(quiet), 1)]
    assert {line.number: line.verdict for line in lines} == {"7a": "pass", "7c": "pass"}


def test_predictions_are_marked_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point("all-reduce, N=2, TCP, virtual group", 1 << 20, 1.0, 1.3, kind="simulated")
    found = Calibration(fingerprint="f", machine={}, fitted_on="d", points=(point,))
    monkeypatch.setattr(sys.modules[nearness.__module__], "calibrate", lambda amount, say: found)
    first, rest = nearness(False, quiet)
    assert (first.kind, first.verdict) == ("simulated", "fail")
    assert (rest.kind, rest.verdict) == ("-", "not yet")


def test_kernels_add_up() -> None:
    """By the published numbers themselves: 32 layers of the kernels at points that were profiled."""
    kernels = Kernels(MACHINES[0])
    decode = kernels.seconds(Op("engine_step", batch=16, context_tokens=16 * 512))
    rows = {(name, float(n)): float(us) for name, n, us in table("rtx-pro-6000-layers")}
    each = ("qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj", "layernorm", "layernorm")
    once = ("embedding", "final_layernorm", "lm_head", "sampler")
    attention = {tuple(map(float, row[:4])): float(row[4]) for row in table("rtx-pro-6000-attention")}
    us = 32 * (sum(rows[name, 16.0] for name in each) + attention[0.0, 0.0, 16.0, 512.0])
    assert decode == pytest.approx(1e-6 * (us + sum(rows[name, 16.0] for name in once)), rel=1e-9)
    one = Op("engine_step", prefill_tokens=1024, prefill_pairs=1024 * 1025 // 2)
    four = Op("engine_step", prefill_tokens=1024, prefill_pairs=4 * 256 * 257 // 2)
    assert kernels.seconds(four) < kernels.seconds(one)


def test_errors_of_two_reports_are_told_with_their_signs() -> None:
    real = {name: {"mean": 2.0, "p50": 1.0, "p99": 4.0} for name in ("ttft_s", "tpot_s", "latency_s")}
    simulated = {**real, "tpot_s": {"mean": 1.9, "p50": 1.0, "p99": 5.0}}
    errors = errors_of(real, simulated)
    assert errors["TPOT", "mean"] == pytest.approx(-0.05)
    assert errors["TPOT", "p99"] == pytest.approx(0.25)
    assert errors["TTFT", "p50"] == 0
    assert "TPOT mean -5.0%, p50 +0.0%, p99 +25.0%" in told(errors)
