"""Rounds that are as long as exchanges take."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.train.pace import ROUNDS, Pace, agreed
from atoll.train.schedule import FragmentSchedule
from tests.train.test_loop import check_finished
from tests.train.tiny import STEP_S, Run, check_agreement, folders_in, group_of, tiny

LATE = FragmentSchedule(4, late=True)


def notes(*steps: int) -> list[bytes]:
    return [step.to_bytes(4) for step in steps]


def test_a_round_gets_a_tenth_more_steps_than_its_exchange_took():
    pace = Pace(100)
    assert pace.proposal == 0
    pace.started(20)
    pace.landed(30)
    pace.landed(31)  # known already
    assert pace.proposal == 11
    pace.started(40)
    pace.waited(44, 3.0, 0.5)  # the round's four steps, and six more
    assert pace.proposal == 11
    pace.started(50)
    pace.waited(54, 1000.0, 0.5)
    assert pace.proposal == 100


def test_all_take_the_largest_proposal_and_grow_at_once():
    assert agreed(LATE, 12, notes(3, 9, 5), 50) == replace(LATE, every=9, since=12)
    assert agreed(LATE, 12, notes(3, 90, 5), 50) == replace(LATE, every=50, since=12)
    assert agreed(LATE, 12, notes(0, 0), 50) == LATE


def test_a_round_shrinks_at_first_and_then_seldom():
    shorter = agreed(LATE, 12, notes(3, 2), 50)
    assert shorter == replace(LATE, every=3, since=12)
    assert agreed(shorter, 12 + 3 * (ROUNDS - 1), notes(2, 2), 50) == shorter
    assert agreed(shorter, 12 + 3 * ROUNDS, notes(2, 2), 50) == replace(LATE, every=2, since=12 + 3 * ROUNDS)


@given(st.binary(max_size=9), st.integers(1, 1000))
def test_whatever_a_peer_says_there_is_a_schedule(said, most):
    assert 1 <= agreed(LATE, 40, [said], most).every <= max(most, 4)


@pytest.mark.parametrize("strategy", ["co2", "eager"])
def test_rounds_grow_until_nobody_waits_and_who_comes_goes_along(strategy):
    """An exchange takes seven to eight steps here; rounds of two steps would wait for five of them each time."""
    s = tiny(strategy=strategy, every=2, most_every=40, steps=120, consensus=0, outer_momentum=0.5)
    numbers = sum(p.numel() for p in group_of(1, s).peers[0].trainer.model.parameters())
    run = group_of(2, s, bytes_per_s=4 * numbers / (7.5 * STEP_S))
    late = run.start(delay_s=40 * STEP_S)
    run.run()
    check_finished(run.peers)
    check_agreement(run.peers)
    old = run.peers[0]
    lengths = {p.trainer.strategy.schedule.every for p in run.peers}
    assert len(lengths) == 1
    assert 8 <= lengths.pop() <= 20
    waits = {e["step"]: e["waited"] for e in old.events("step")}
    settled = old.events("synced")[-1]["revision"] + 60
    assert max(waits[t] for t in range(1, 12)) > 2 * STEP_S
    assert max(waits[t] for t in range(settled, 120)) < STEP_S / 2
    assert late.hashes().items() <= old.hashes().items()


def test_who_was_expelled_while_it_waited_takes_its_absence_for_no_exchange():
    """An exchange takes some eight steps; the others take a hundred before it is back."""
    s = tiny(strategy="co2", every=3, most_every=60, steps=200, first="holds")
    numbers = sum(p.numel() for p in group_of(1, s).peers[0].trainer.model.parameters())
    run = group_of(3, s, bytes_per_s=4 * numbers / (4 * STEP_S), latency_s=5e-3)
    run.at(0.1313, run.peers[1].process.freeze)
    run.at(5.0, run.peers[1].process.thaw)
    run.run()
    check_finished(run.peers)
    assert len(run.peers[1].events("expelled")) == 1
    ends = list(run.peers[0].hashes())
    assert max(later - sooner for sooner, later in pairwise(ends)) <= 15


def test_what_was_agreed_is_in_the_checkpoint(tmp_path):
    s = tiny(strategy="co2", every=2, most_every=40, steps=60)
    numbers = sum(p.numel() for p in group_of(1, s).peers[0].trainer.model.parameters())
    run = Run(s, bytes_per_s=4 * numbers / (7.5 * STEP_S))
    for _ in range(2):
        run.start(min_world=2, folder=tmp_path)
    run.run()
    strategy = run.peers[0].trainer.strategy
    assert strategy.schedule.every > 6
    again = Run(s).start(folder=tmp_path).trainer
    assert again.strategy.schedule.every == 2
    again.resume(folders_in(tmp_path).checkpoint)
    assert again.strategy.schedule == replace(strategy.schedule, longest=0)
    assert again.strategy.outer.span == strategy.schedule.every / 2
