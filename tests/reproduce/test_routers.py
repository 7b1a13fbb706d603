"""What is said of real and simulated routers and recoveries is what was found; slow: with real engines."""

import math
from pathlib import Path

import pytest

from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.reproduce.calibration.asking import QUICK
from atoll.reproduce.calibration.calibrate import calibrate_engine
from atoll.reproduce.calibration.engines import PUBLISHED
from atoll.reproduce.simulator.routers import (
    SHORT,
    Questions,
    Recovery,
    before,
    distinct,
    ranked,
    ranking,
    recovery,
    simulated,
)
from atoll.workload.api import Outcome
from tests.serve.bytes_model import model


def test_policies_differ_where_every_round_says_so() -> None:
    real = [{"fewest": 2.0, "turns": 3.0, "prefix": 2.5}, {"fewest": 2.1, "turns": 3.3, "prefix": 2.0}]
    assert sorted(distinct(real)) == [("fewest", "turns"), ("prefix", "turns")]
    assert before(("fewest", "turns"), [{"fewest": 1.0, "turns": 1.1, "prefix": 9.0}])
    assert not before(("prefix", "turns"), [{"fewest": 1.0, "turns": 1.1, "prefix": 9.0}])
    assert ranked(real) == "fewest 2.05 s, prefix 2.25 s, turns 3.15 s"


def test_questions_about_a_document_are_of_one_session_and_begin_alike() -> None:
    some = Questions(documents=3).asked(5.0, 20.0, 1)
    assert some == Questions(documents=3).asked(5.0, 20.0, 1)
    assert len({demand.arrival.session for demand in some}) == 3
    assert {demand.arrival.session: demand.arrival.hash_ids for demand in some} == {
        f"document {i}": (i,) for i in range(3)
    }
    assert all(demand.arrival.prompt_tokens > 512 for demand in some)
    assert max(demand.arrival.prompt_tokens for demand in SHORT.asked(5.0, 20.0, 1)) <= 16


def test_in_virtual_time_who_has_the_document_answers_sooner() -> None:
    """12 documents, of which an engine holds 8: with prefixes each engine keeps six and reads none twice."""
    costs, some = PUBLISHED["opt-13b-a100"], Questions().asked(3.0, 60.0, 1)
    means = {name: simulated(costs, 2, name, some, pages=8 * 32).ttft_s.mean for name in ("turns", "fewest", "prefix")}
    assert means["prefix"] < 0.9 * min(means["turns"], means["fewest"])


def test_recovery_is_the_first_token_of_who_asked_after_the_kill() -> None:
    heard = [
        Outcome(0, 1.0, 1.0, "answered", 1.5, 9.0),
        Outcome(1, 2.0, 2.0, "aborted", 2.5, 3.0),
        Outcome(2, 3.5, 3.5, "refused"),
        Outcome(3, 4.0, 4.0, "answered", 4.75, 5.0),
        Outcome(4, 4.1, 4.1, "answered", 4.8, 5.0),
    ]
    assert Recovery.of(heard, 3.0) == Recovery(3.0, 1.75, 2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_engines_are_ranked_and_killed(tmp_path: Path) -> None:
    """That the demonstration runs, not what it finds: of a tiny model, in few seconds."""
    save_model(tmp_path / "tiny", model(context=1024), ByteTokenizer())
    name = str(tmp_path / "tiny")
    costs = calibrate_engine(name, QUICK, flags=("--threads", "1")).engines[name]
    assert costs.restart is not None
    assert 0.1 < costs.restart.ready_s < 60
    assert costs.restart.cold_s >= 0
    lines = [ranking(name, costs, 1, print, seconds=3.0), recovery(name, costs, 1, print, killed_s=2.0)]
    assert [line.number for line in lines] == ["8r", "8k"]
    assert "pairs that really differ" in lines[0].measured
    assert math.isfinite(float(lines[1].measured.split("%")[0]))
