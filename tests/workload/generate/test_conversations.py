"""Conversations grow by what was said, share their prefixes, and go on when answered."""

import math
from itertools import islice, pairwise

import numpy as np
import pytest

from atoll.errors import InvalidConfig
from atoll.rng import stream
from atoll.workload.api import Arrival, Demand
from atoll.workload.generate.conversations import (
    BLOCK_TOKENS,
    AnswerTime,
    Conversations,
    GammaTime,
    LogNormalTime,
    Talk,
    block_ids,
)
from atoll.workload.generate.failures import Failures, failing
from atoll.workload.generate.lengths import Empirical, Geometric, LogNormal
from atoll.workload.generate.loops import unrolled
from atoll.workload.generate.processes import Poisson
from atoll.workload.generate.transcripts import Transcripts

TALK = Talk(
    turns=Geometric(3.0),
    think=LogNormalTime(20.0, 1.0),
    first=LogNormal(300, 1.0),
    more=LogNormal(60, 1.0),
    output=LogNormal(200, 0.8),
)


def sessions(n: int, talk: Talk = TALK, seed: int = 0) -> dict[str, list[Demand]]:
    """So many whole sessions."""
    world = Conversations(Poisson(1.0), talk, seed)
    found: dict[str, list[Demand]] = {}
    for demand in islice(world.start(), n):
        own = found[demand.arrival.session] = [demand]
        while followers := world.handle(own[-1].arrival, own[-1].arrival.at_s + 3.0):
            own += followers
    return found


def test_each_turn_holds_all_that_was_said_before() -> None:
    for own in sessions(300).values():
        for before, after in pairwise(own):
            assert after.arrival.prompt_tokens > before.arrival.prompt_tokens + before.output_tokens
            assert after.arrival.turn == before.arrival.turn + 1
            assert after.arrival.at_s > before.arrival.at_s + 3.0


def test_turns_have_their_mean_and_a_long_tail() -> None:
    counts = np.array([len(own) for own in sessions(3000).values()])
    assert counts.mean() == pytest.approx(3.0, rel=0.1)
    assert counts.max() > 12


def test_blocks_of_the_past_keep_their_names_and_others_get_new_ones() -> None:
    seen: dict[int, str] = {}
    for session, own in sessions(200).items():
        for before, after in pairwise(own):
            whole = before.arrival.prompt_tokens // BLOCK_TOKENS
            assert after.arrival.hash_ids[:whole] == before.arrival.hash_ids[:whole]
            assert not set(after.arrival.hash_ids[whole:]) & set(before.arrival.hash_ids)
            assert len(after.arrival.hash_ids) == math.ceil(after.arrival.prompt_tokens / BLOCK_TOKENS)
        for demand in own:
            assert all(seen.setdefault(block, session) == session for block in demand.arrival.hash_ids)
    assert all(0 <= block < 1 << 53 for block in seen)


def test_names_of_blocks_differ_by_seed() -> None:
    assert block_ids(1, "a", 0, 1000) != block_ids(2, "a", 0, 1000)
    assert len({*block_ids(1, "a", 0, 5000), *block_ids(1, "b", 0, 5000)}) == 20


def test_a_session_ends_where_its_context_would() -> None:
    talk = Talk(Empirical([50]), GammaTime(1.0, 1.0), Empirical([100]), Empirical([100]), Empirical([100]), 1000)
    (own,) = sessions(1, talk).values()
    assert [d.arrival.prompt_tokens for d in own] == [100, 300, 500, 700, 900]


def test_what_is_said_does_not_hang_on_when_it_is_answered() -> None:
    def texts(delay_s: float) -> dict[str, list[tuple[int, int]]]:
        said: dict[str, list[tuple[int, int]]] = {}
        for d in islice(unrolled(Conversations(Poisson(2.0), TALK, 5), lambda d: delay_s), 400):
            said.setdefault(d.arrival.session, []).append((d.arrival.prompt_tokens, d.output_tokens))
        return said

    quick, slow = texts(0.1), texts(50.0)
    for session in quick.keys() & slow.keys():
        shared = min(len(quick[session]), len(slow[session]))
        assert quick[session][:shared] == slow[session][:shared]


def test_who_is_not_answered_does_not_go_on_and_nobody_goes_on_twice() -> None:
    world = Conversations(Poisson(1.0), Talk(Empirical([2]), *[GammaTime(1, 1)], *[Empirical([9])] * 3), 0)
    demand = next(world.start())
    assert len(world.handle(demand.arrival, 1.0)) == 1
    assert world.handle(demand.arrival, 1.0) == ()
    assert world.handle(Arrival(0, 0.0, 1, "stranger"), 1.0) == ()


def test_prompts_begin_with_exactly_what_was_said_however_long_answers_were() -> None:
    words, rng = Transcripts(1000, seed=3), stream(0, "answers")
    turns = 0
    for session, own in sessions(200).items():
        said = np.empty(0, np.int64)
        for demand in own:
            prompt = words.prompt(demand.arrival)
            assert len(prompt) == demand.arrival.prompt_tokens
            assert (prompt[: len(said)] == said).all()
            answer = rng.integers(1000, size=rng.integers(1, demand.output_tokens + 1))
            words.answered(demand.arrival, answer)
            said = np.concatenate([prompt, answer])
            turns += len(said) > 0
        words.forget(session)
    assert turns > 400
    assert not words._said


def test_the_same_seed_says_the_same_words() -> None:
    arrival = Arrival(0, 0.0, 50, "a")
    first, again, other = (Transcripts(500, seed).prompt(arrival).tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert all(0 <= token < 500 for token in first)


def test_times_to_think_have_their_laws() -> None:
    rng = stream(0, "think")
    gamma = np.array([GammaTime(30.0, 2.0).draw(rng) for _ in range(20_000)])
    assert gamma.mean() == pytest.approx(30, rel=0.06)
    assert gamma.std() / gamma.mean() == pytest.approx(2.0, rel=0.1)
    log_normal = np.array([LogNormalTime(30.0, 1.5).draw(rng) for _ in range(20_000)])
    assert np.median(log_normal) == pytest.approx(30, rel=0.05)


def test_failures_rise_in_bursts() -> None:
    demands = [
        Demand(Arrival(i, t, 5, str(i)), 7) for i, t in enumerate([*np.arange(0, 60, 0.1), *np.arange(60, 120, 0.01)])
    ]
    failures = Failures(base=0.02, burst=0.05, mean_rate_per_s=20.0)
    got = list(failing(demands, failures, seed=0))
    assert [d.arrival for d in got] == [d.arrival for d in demands]
    assert all((d.output_tokens == 0) == d.failed for d in got)
    calm, busy = got[:600], got[600:]
    assert sum(d.failed for d in calm) / 600 == pytest.approx(0.02, abs=0.02)
    assert sum(d.failed for d in busy) / 6000 == pytest.approx(0.02 + 0.05 * 4, abs=0.02)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LogNormalTime(0, 1),
        lambda: LogNormalTime(1, -1),
        lambda: GammaTime(1, 0),
        lambda: AnswerTime(0),
        lambda: AnswerTime(1, -1),
        lambda: Failures(1.1),
        lambda: Failures(0.1, -0.1),
        lambda: Transcripts(0, 0),
    ],
)
def test_impossible_settings_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidConfig):
        wrong()  # type: ignore[operator]
