"""Fragments on their way while peers crash, arrive or come to no numbers; settings that make no sense."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from atoll.errors import InvalidConfig
from atoll.train.exchange import Exchanged
from atoll.train.flat import FlatModel
from atoll.train.learners import Eager
from atoll.train.momentum import Momentum
from atoll.train.optimisers import constant, descent
from atoll.train.settings import ModelSettings, TrainSettings
from tests.train.test_loop import check_finished
from tests.train.tiny import STEP_S, Run, check_agreement, corpus, group_of, tiny

MODEL = ModelSettings(width=16, layers=2, heads=2, context=16)
STREAMING = tiny(strategy="streaming", every=8, fragments=2, delay=2, steps=40, model=MODEL)
SLOW = {"bytes_per_s": 2e6}  # a fragment takes about a step and a half


def finishes(s: TrainSettings) -> list[int]:
    return [t for t in range(1, s.steps + 1) if any("Finish" in repr(a) for a in s.schedule.at(t - 1))]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("on_abort", ["again", "reset"])
@pytest.mark.parametrize("codec", ["none", "e3m0"])
@pytest.mark.parametrize("seed", range(4))
def test_killed_in_mid_flight_the_others_agree_at_every_finish_and_so_does_who_comes(seed, codec, on_abort):
    s = replace(STREAMING, codec=codec, on_abort=on_abort)
    dice = np.random.default_rng(seed)
    run = group_of(3, s, seed=seed, jitter=2.0, tie_break=seed, **SLOW)
    start = 8 * STEP_S * dice.integers(1, 3)
    run.at(start + dice.uniform(0, 0.025), run.peers[seed % 3].process.crash)  # while fragment 0 travels
    late = run.start(delay_s=start + 0.06)
    run.run()
    survivors = [p for p in run.peers if not p.process.dead]
    check_finished(survivors)
    check_agreement(run.peers)
    old = [p for p in survivors if p is not late]
    assert list(old[0].hashes()) == finishes(s)
    assert old[0].hashes() == old[1].hashes()
    entered = late.events("synced")[0]["revision"]
    assert 0 < entered < 40
    assert late.hashes() == {t: h for t, h in old[0].hashes().items() if t > entered}
    assert {len(p.events("lost")) for p in old} == {1}


def test_after_a_loss_a_fragment_is_measured_anew_from_what_all_share_and_nobody_goes_back(monkeypatch):
    asked = []

    def again(learner, part, vector):
        anew = learner.contribution(part)
        assert not torch.equal(anew, vector)  # steps went on meanwhile
        assert torch.equal(anew, learner.outer.parameters[part] - learner.model.parameters[part])
        asked.append(part)
        return anew

    monkeypatch.setattr("atoll.train.learners.Runner.again", again)
    run = group_of(3, STREAMING, **SLOW)
    run.at(4 * STEP_S + 0.015, run.peers[1].process.crash)
    run.run()
    check_finished([run.peers[0], run.peers[2]])
    assert len(asked) == 2
    assert asked[0] == asked[1] == run.peers[0].trainer.strategy.model.fragments[1]


def test_reset_drops_what_was_learnt_on_that_fragment_only():
    """The fragment's part of what all share stays as it was before."""
    states = {}

    def look(event, **about):
        if event == "step":
            strategy = run.peers[0].trainer.strategy
            both = strategy.outer.parameters, strategy.model.parameters
            states[about["step"]] = tuple(x.clone() for x in both)

    run = Run(replace(STREAMING, on_abort="reset"), **SLOW)
    for i in range(3):
        run.start(min_world=3, also=look if i == 0 else lambda event, **about: None)
    run.at(4 * STEP_S + 0.015, run.peers[1].process.crash)
    run.run()
    check_finished([run.peers[0], run.peers[2]])
    part = run.peers[0].trainer.strategy.model.fragments[1]
    (shared, _), (later, mine) = states[5], states[6]
    assert torch.equal(shared, later)
    assert torch.equal(mine[part], later[part])
    other = run.peers[0].trainer.strategy.model.fragments[0]
    assert not torch.equal(mine[other], later[other])


def test_a_joiner_begins_at_what_all_share_and_the_others_stay_where_they_are():
    began = {}

    def look(event, **about):
        if event == "synced":
            for i, peer in enumerate(run.peers):
                strategy = peer.trainer.strategy
                began[i] = float((strategy.model.parameters - strategy.outer.parameters).abs().max())

    run = Run(STREAMING)
    for _ in range(2):
        run.start(min_world=2)
    run.start(delay_s=9 * STEP_S, also=look)
    run.run()
    check_finished(run.peers)
    assert began[2] == 0.0
    assert min(began[0], began[1]) > 0.0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("seed", range(6))
def test_each_peer_takes_a_result_after_its_own_delay_and_all_come_to_the_same(seed):
    """One is killed in mid-flight, and one comes, with a delay of its own too."""
    delays = 0, 1, 3, 2
    s = replace(STREAMING, codec="e3m0", error_feedback=True)
    run = Run(s, seed=seed, jitter=2.0, tie_break=seed, **SLOW)
    taken = []

    def looking(i):
        def look(event, **about):
            strategy = run.peers[i].trainer.strategy
            if event == "step" and about["step"] <= 12:
                taken.append((i, about["step"], strategy.outer.parameters[strategy.model.fragments[1]].clone()))

        return look

    for i in range(3):
        run.start(min_world=3, settings=replace(s, delay=delays[i]), also=looking(i))
    late = run.start(delay_s=15 * STEP_S, settings=replace(s, delay=delays[3]))
    run.at(20.5 * STEP_S, run.peers[seed % 3].process.crash)
    run.run()
    survivors = [p for p in run.peers if not p.process.dead]
    check_finished(survivors)
    check_agreement(run.peers)
    for i in range(3):
        first, *_ = (step for peer, step, now in taken if peer == i and not torch.equal(now, taken[0][2]))
        assert first == 4 + delays[i]  # fragment 1 leaves after step 4
    old = [p for p in survivors if p is not late]
    assert old[0].hashes() == old[1].hashes()
    assert late.hashes().items() <= old[0].hashes().items()


# -- no numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("codec", ["none", "e3m0"])
@pytest.mark.parametrize(
    "how",
    [
        {"strategy": "ddp"},
        {"strategy": "ddp", "delay": 1},
        {"strategy": "diloco", "every": 4},
        {"strategy": "streaming", "every": 4, "fragments": 2, "delay": 1, "model": MODEL},
        {"strategy": "eager", "every": 4},
        {"strategy": "eager", "every": 4, "naive": True},
        {"strategy": "co2", "every": 4},
    ],
    ids=str,
)
def test_who_comes_to_no_numbers_is_left_out_by_rank_and_goes_on(how, codec):
    """A gradient overflows in the step before an exchange."""
    run = group_of(3, tiny(**how, codec=codec, steps=24))
    sick = run.peers[1].trainer
    backward = sick.strategy.model.backward

    def overflow(loss):
        backward(loss)
        if sick.steps == 11:
            sick.strategy.model.gradient[5] = float("inf")

    sick.strategy.model.backward = overflow
    run.run()
    check_finished(run.peers)
    check_agreement(run.peers)
    rank = run.peers[1].last("step")["rank"]
    for peer in run.peers:
        told = peer.events("refused")
        assert [e["who"] for e in told] == [rank]
        assert told[0]["step"] >= 12
        assert torch.isfinite(peer.parameters).all()
        assert peer.last("step")["world"] == 3


def test_the_mean_is_that_of_the_rest():
    """As if the sick one had not been there: one exchange of three equals one of the two others."""
    text = corpus()
    s = tiny(strategy="local-sgd", every=4, steps=4)
    run = group_of(3, s, text=text)
    for peer in run.peers[1:2]:
        model = peer.trainer.strategy.model
        model.backward = lambda loss, model=model: model.gradient.fill_(float("nan"))
    moved = {}

    def contribution(peer, given):
        def kept(part):
            moved[peer] = given(part)
            return moved[peer].clone()

        return kept

    for i in (0, 2):
        learner = run.peers[i].trainer.strategy.learner
        learner.contribution = contribution(i, learner.contribution)
    began = run.peers[0].parameters.clone()
    sick = run.peers[1].trainer.model
    loss = sick.loss
    sick.loss = lambda tokens: loss(tokens).nan_to_num(1.0)  # it doesn't notice
    run.run()
    check_finished(run.peers)
    torch.testing.assert_close(run.peers[0].parameters, began - (moved[0] + moved[2]) / 2, rtol=1e-6, atol=1e-7)


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"strategy": "streaming", "every": 20, "fragments": 4, "delay": 5}, "--delay must be from 0 to 4 steps"),
        ({"strategy": "streaming", "every": 20, "fragments": 3}, "--every must be a multiple of fragments"),
        ({"strategy": "streaming", "fragments": 5}, "--fragments must be from 1 to 4, the model's layers, not 5"),
        ({"strategy": "streaming", "fragments": 0}, "--fragments must be at least 1"),
        ({"strategy": "diloco", "delay": 20}, "--delay must be from 0 to 19"),
        ({"strategy": "diloco", "delay": -1}, "--delay must be from 0 to 19"),
        ({"strategy": "ddp", "delay": 2}, "--delay must be 0 or 1 for ddp"),
        ({"strategy": "slowmo", "delay": 1}, "--delay must be 0 for slowmo"),
        ({"strategy": "eager", "delay": 1}, "--delay must be 0 for eager"),
        ({"strategy": "co2", "delay": 1}, "--delay must be 0 for co2"),
        ({"penalty": 0.5}, "--penalty must be at least 1, not 0.5"),
        ({"penalty": float("nan")}, "--penalty must be at least 1, not nan"),
        ({"outer_clip": 0.0}, "--outer-clip must be above 0, not 0"),
        ({"strategy": "eager", "consensus": -1}, "--consensus must be at least 0"),
        ({"mix": 1.5}, "--mix must be from 0 to 1, not 1.5"),
        ({"mix": -0.1}, "--mix must be from 0 to 1"),
        ({"mix": float("nan")}, "--mix must be from 0 to 1"),
        ({"outer_momentum": 1.0}, "--outer-momentum must be at least 0 and less than 1"),
        ({"outer_rate": 0.0}, "--outer-rate must be above 0"),
        ({"down": "bf16"}, "--down bf16 is for what travels by a codec"),
        ({"error_feedback": True}, "--error-feedback is for means that travel by --codec int4 or e3m0"),
        ({"error_feedback": True, "codec": "uint8"}, "not for diloco with --codec uint8"),
        ({"error_feedback": True, "codec": "e3m0", "strategy": "one-byte"}, "not for one-byte with --codec e3m0"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(changes, says):
    with pytest.raises(InvalidConfig, match=says):
        TrainSettings(**{"every": 20, **changes})


@pytest.mark.parametrize(("every", "fragments", "delay"), [(20, 4, 1), (4, 4, 0), (8, 2, 1)])
def test_by_default_a_streamed_fragment_has_a_step_to_travel_where_there_is_one(every, fragments, delay):
    assert TrainSettings(strategy="streaming", every=every, fragments=fragments).schedule.delay == delay


@pytest.mark.parametrize("refused", [(), (2,), (1, 2)])
def test_eager_puts_its_fresh_share_in_the_place_of_the_one_that_is_in_the_mean(refused):
    """Of three, whose last vectors were 1, 2 and 3; those of some were refused, so the mean is of the others."""
    model = FlatModel(torch.nn.Linear(1, 1, bias=False))
    model.parameters.zero_()
    learner = Eager(model, Momentum(torch.zeros(1), 1.0), descent(model.parameters, constant(0.1)))
    part, last = slice(0, 1), [[1.0, 2.0, 3.0][rank] for rank in range(3) if rank not in refused]
    model.parameters.fill_(-1.0)
    learner.contribution(part)
    learner.settle(True, 3)
    ahead = float(model.parameters)
    model.parameters.sub_(7.0)
    learner.contribution(part)
    mean = torch.tensor([sum(last) / len(last)])
    learner.took(part, Exchanged(mean, 3, 0, 0.0, refused=refused))
    learner.settle(True, 3)
    expected = sum([7.0, *last[1:]]) / len(last)
    assert float(model.parameters) == pytest.approx(ahead - expected)
