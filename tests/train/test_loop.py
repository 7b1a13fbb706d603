"""Whole runs in virtual time, among peers that crash, freeze, arrive, differ or fail to save."""

import errno
import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import atoll
from atoll.errors import Diverged, Expelled, InvalidConfig, InvalidData, SaveFailed
from atoll.model.saved import load_model
from atoll.runtime.api import here
from atoll.train import essentials, loop
from atoll.train.checkpoint import load_newest, save_checkpoint
from atoll.train.settings import ModelSettings
from tests.train.tiny import STEP_S, Peer, Run, check_agreement, corpus, folders_in, group_of, tiny

TWO_LAYERS = ModelSettings(width=16, layers=2, heads=2, context=16)

EVERY = {
    "ddp": {"strategy": "ddp"},
    "ddp, late": {"strategy": "ddp", "delay": 1},
    "slowmo": {"strategy": "slowmo"},
    "diloco": {"strategy": "diloco"},
    "diloco, late": {"strategy": "diloco", "delay": 2},
    "streaming": {"strategy": "streaming", "fragments": 2, "delay": 1, "model": TWO_LAYERS, "codec": "e3m0"},
    "eager": {"strategy": "eager", "consensus": 2},
    "naive": {"strategy": "eager", "naive": True, "consensus": 0},
    "co2": {"strategy": "co2", "outer_momentum": 0.5},
    "co2, sharded": {"strategy": "co2", "outer_momentum": 0.5, "shards": 2},
}


def every_strategy(test):
    """Make it a case of each strategy."""
    return pytest.mark.sampled(3)(pytest.mark.parametrize("how", EVERY.values(), ids=EVERY)(test))


def check_finished(peers: list[Peer]) -> None:
    """All took all steps and ended with the same state, which is their model's."""
    for peer in peers:
        assert peer.error is None, peer.error
        assert peer.done, f"{peer.process.name} did not finish: {peer.log[-1]}"
        assert peer.last("done")["step"] == peer.trainer.settings.steps
        assert peer.last("done")["hash"] == peers[0].last("done")["hash"]
        assert torch.equal(peer.trainer.strategy.model.parameters, peers[0].parameters)


# -- who comes and goes ------------------------------------------------------------------------------------------------


@every_strategy
def test_all_peers_hold_the_same_state_after_each_exchange(how):
    run = group_of(3, tiny(**how)).run()
    check_finished(run.peers)
    hashes = run.peers[0].hashes()
    usual = {"ddp": [*range(1, 13)], "streaming": [3, 5, 7, 9, 11, 12]}
    assert list(hashes) == ([6, 10, 12] if how is EVERY["diloco, late"] else usual.get(how["strategy"], [4, 8, 12]))
    assert len(set(hashes.values())) == len(hashes)
    assert all(peer.hashes() == hashes for peer in run.peers)


@pytest.mark.parametrize("seed", range(4))
@every_strategy
def test_a_run_outlives_a_crash_and_grows_by_a_newcomer(how, seed):
    dice = np.random.default_rng(seed)
    settings = tiny(**how, steps=32)
    run = group_of(3, settings, seed=seed, jitter=2.0, tie_break=seed)
    run.at(dice.uniform(0.02, 0.1), run.peers[seed % 3].process.crash)
    newcomer = run.start(delay_s=dice.uniform(0.02, 0.12))
    run.run()
    survivors = [p for p in run.peers if not p.process.dead]
    check_finished(survivors)
    old = [p for p in survivors if p is not newcomer]
    assert old[0].hashes() == old[1].hashes()
    assert max(old[0].hashes()) == 32
    # The newcomer got the state of the others and took part from there on.
    entered = newcomer.events("synced")[0]
    assert entered["received"] > 0
    assert entered["revision"] > 0
    [met] = [e for e in old[0].events("synced") if e["epoch"] == entered["epoch"]]
    assert entered["hash"] == met["hash"]
    later = {r: h for r, h in old[0].hashes().items() if r > entered["revision"]}
    assert newcomer.hashes() == later != {}
    assert old[0].last("step")["world"] == newcomer.last("step")["world"] == 3
    check_agreement(run.peers)


@every_strategy
def test_the_last_one_left_trains_on_alone(how):
    run = group_of(3, tiny(**how))
    run.at(0.02, run.peers[0].process.crash)
    run.at(0.05, run.peers[2].process.crash)
    run.run()
    check_finished([run.peers[1]])
    assert run.peers[1].last("step")["world"] == 1


@every_strategy
def test_no_window_of_text_is_used_twice_in_a_pass(how):
    """Through a crash, two newcomers, and a peer that freezes, is expelled and comes back."""
    settings = tiny(**how, steps=60)
    run = group_of(3, settings)
    run.start(delay_s=0.03)
    run.start(delay_s=0.11)
    used: list[int] = []
    for peer in run.peers:
        shards = peer.trainer.shards

        def recorded(*args, indices=shards.indices):
            windows = indices(*args)
            used.extend(windows.tolist())
            return windows

        shards.indices = recorded
    run.at(0.07, run.peers[0].process.crash)
    run.at(0.145, run.peers[1].process.freeze)
    run.at(3.7, run.peers[1].process.thaw)
    run.run()
    check_finished(run.peers[1:])
    assert len(run.peers[1].events("expelled")) == 1
    assert [p.last("step")["world"] for p in run.peers[1:]] == [4, 4, 4, 4]
    assert len(used) < 600  # less than one pass
    assert len(used) == len(set(used))


@every_strategy
def test_who_slept_too_long_comes_back_by_itself(how):
    settings = tiny(**how, steps=100)
    run = group_of(3, settings)
    run.at(0.1, run.peers[1].process.freeze)
    run.at(3.7, run.peers[1].process.thaw)
    run.run()
    check_finished(run.peers)
    check_agreement(run.peers)
    sleeper = run.peers[1]
    assert len(sleeper.events("joined")) == 2
    assert len(sleeper.events("expelled")) == 1
    assert sleeper.events("synced")[-1]["received"] > 0
    assert [p.last("step")["world"] for p in run.peers] == [3, 3, 3]


@every_strategy
def test_a_short_nap_costs_nobody_anything(how):
    settings = tiny(**how)
    run = group_of(3, settings)
    run.at(0.05, run.peers[1].process.freeze)
    run.at(1.0, run.peers[1].process.thaw)
    run.run()
    check_finished(run.peers)
    assert all(len(p.events("synced")) == 1 for p in run.peers)
    assert run.peers[0].hashes() == group_of(3, settings).run().peers[0].hashes()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "how", [EVERY[name] for name in ("ddp, late", "streaming", "eager", "naive", "co2", "co2, sharded")], ids=str
)
def test_newcomers_after_a_checkpoint_wait_for_what_the_others_wait_for(how):
    """All drain before a checkpoint, whenever they came; else some would wait in a topology, others in an exchange."""
    for first in (0.02, 0.05, 0.08):
        settings = tiny(**{**how, "fragments": 1}, every=2, steps=40, save_every=6)
        run = group_of(2, settings)
        for i in range(4):
            run.start(delay_s=first + i * 0.07)
        run.run()
        check_finished([p for p in run.peers if p.events("synced")[0]["revision"] > 0 or p in run.peers[:2]])
        check_agreement(run.peers)


def expelled_at_first(run, times):
    """A peer that is expelled so often before it is let in, and when it tried."""
    peer, tries = run.start(), []

    def enter():
        tries.append(here().now())
        if len(tries) <= times:
            raise Expelled("the group went on without this peer")
        return atoll.join("m:1")

    train = peer.trainer.run
    peer.trainer.run = lambda join: train(enter)
    return peer, tries


def test_a_group_that_takes_shape_again_and_again_is_given_time():
    run = Run(tiny())
    peer, tries = expelled_at_first(run, 2)
    run.run()
    check_finished([peer])
    first, second = np.diff(tries)
    assert second > first >= 1.0


def test_who_comes_back_for_nothing_again_and_again_gives_up():
    run = Run(tiny())
    peer, tries = expelled_at_first(run, 99)
    run.run()
    assert isinstance(peer.error, Expelled)
    assert len(tries) == loop.MOST_FRUITLESS


# -- who is told to leave ----------------------------------------------------------------------------------------------


def leave_at(run, seconds, peers):
    for peer in peers:
        run.at(seconds, peer.trainer.leave)


@every_strategy
def test_a_group_told_to_leave_saves_as_of_the_last_exchange_and_can_be_resumed(how, tmp_path):
    settings = tiny(**how, steps=40)
    run = Run(settings)
    for i in range(3):
        run.start(min_world=3, folder=tmp_path / str(i))
    leave_at(run, 0.105, run.peers)
    run.run()
    assert [(p.error, p.to_the_end, p.done) for p in run.peers] == [(None, False, False)] * 3
    taken = run.peers[0].last("step")["step"]
    assert 8 < taken < 12
    tensors, _ = load_newest(folders_in(tmp_path / "0").checkpoint)
    saved = int(tensors["steps"])
    assert saved == max(run.peers[0].hashes())
    again = Run(settings)
    for i in range(3):
        again.start(min_world=3, folder=tmp_path / str(i), resume=i == 0)
    again.run()
    check_finished(again.peers)
    assert all(p.to_the_end for p in again.peers)
    assert all(p.events("step")[0]["step"] == saved + 1 for p in again.peers)
    if how is EVERY["ddp"]:  # nothing is lost: all is as if nobody had left
        assert torch.equal(again.peers[0].parameters, group_of(3, settings).run().peers[0].parameters)


@every_strategy
def test_when_one_is_told_to_leave_the_others_go_on(how, tmp_path):
    run = Run(tiny(**how))
    for i in range(3):
        run.start(min_world=3, folder=tmp_path / str(i))
    leave_at(run, 0.065, run.peers[2:])
    run.run()
    check_finished(run.peers[:2])
    assert (run.peers[2].error, run.peers[2].to_the_end) == (None, False)
    assert run.peers[2].events("saved") == []  # its state is with the others
    assert "left" in run.peers[0].events("lost")[0]["message"]


def test_who_is_not_in_a_group_has_no_step_to_end():
    run = Run(tiny())
    waiting = run.start(min_world=2)
    answers = []
    run.at(0.5, lambda: answers.append(waiting.trainer.leave()))
    run.at(1.0, waiting.process.crash)
    run.run()
    assert answers == [False]


def test_a_newcomer_at_the_very_end_gets_the_state_and_is_done():
    run = group_of(2, tiny())
    late = run.start(delay_s=11 * STEP_S)
    run.run()
    check_finished(run.peers)
    assert late.events("step") == []
    assert late.last("synced")["revision"] == 12


# -- who differs, who fails --------------------------------------------------------------------------------------------


OTHERS = {
    "model": {"settings": tiny(steps=40, model=ModelSettings(width=32, layers=1, heads=2, context=16))},
    "lr": {"settings": tiny(steps=40, lr=0.1)},
    "save_every": {"settings": tiny(steps=40, save_every=7)},
    "text": {"text": corpus(seed=1)},
}


@cache
def hashes_of_two():
    return [peer.hashes() for peer in group_of(2, tiny(steps=40)).run().peers]


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
@pytest.mark.parametrize("what", OTHERS)
def test_who_would_train_something_else_is_told_what_and_the_others_go_on(what, delay_s):
    run = group_of(2, tiny(steps=40))
    other = run.start(delay_s=delay_s, **OTHERS[what])
    run.run()
    assert isinstance(other.error, InvalidConfig)
    message = str(other.error)
    assert f"{what} " in message
    assert "here" in message
    assert all(f"{name} " not in message for name in OTHERS.keys() - {what, "text"})
    assert len(other.events("joined")) == 1
    assert other.events("step") == []
    check_finished(run.peers[:2])
    assert [p.hashes() for p in run.peers[:2]] == hashes_of_two()
    assert all(len(p.events("lost")) <= 1 for p in run.peers[:2])


@every_strategy
def test_a_peer_whose_loss_is_no_number_stops_and_the_others_finish(how):
    run = group_of(3, tiny(**how, steps=24))
    sick = run.peers[1]
    loss = sick.trainer.model.loss
    sick.trainer.model.loss = lambda tokens: loss(tokens) * (float("nan") if sick.trainer.steps == 10 else 1.0)
    run.run()
    assert isinstance(sick.error, Diverged)
    assert "step 10" in str(sick.error)
    assert torch.isfinite(sick.parameters).all()
    check_finished([run.peers[0], run.peers[2]])
    assert run.peers[0].hashes() == run.peers[2].hashes()
    assert run.peers[0].last("step")["world"] == 2


# -- saving and resuming -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["missing", "of another shape"])
def test_a_checkpoint_without_what_the_run_needs_is_refused(change, tmp_path):
    saving = tiny(steps=40, save_every=20)
    Run(saving).start(folder=tmp_path).process.world.run()
    tensors, about = load_newest(folders_in(tmp_path).checkpoint)
    lacking = max(tensors, key=lambda name: tensors[name].numel())
    changed = {name: t for name, t in tensors.items() if name != lacking}
    if change != "missing":
        changed[lacking] = torch.ones(3)
    save_checkpoint(folders_in(tmp_path).checkpoint, 1000, changed, about)
    peer = Run(saving).start(folder=tmp_path, resume=True)
    peer.process.world.run()
    assert isinstance(peer.error, InvalidData)
    assert f"holds no {lacking} of shape" in str(peer.error)


@pytest.mark.parametrize("said", [b"", b"no JSON", b"[1]", b"[" * 4000])
def test_a_peer_that_does_not_say_what_it_trains_is_not_joined(said):
    with pytest.raises(InvalidConfig, match="doesn't say what"):
        essentials.read(said)


@every_strategy
def test_a_resumed_run_is_the_straight_run_bit_for_bit(how, tmp_path):
    settings = tiny(**how, steps=40, save_every=20)

    def stop_at_20(event, **about):
        if event == "saved":
            raise SaveFailed("stop here")

    def one(**about) -> Peer:
        run = Run(settings)
        peer = run.start(**about)
        run.run()
        return peer

    straight = one(folder=tmp_path / "straight")
    first = one(folder=tmp_path / "parts", also=stop_at_20)
    saved = first.trainer.steps  # at the first exchange that is finished by then
    assert (saved, first.done) == (
        {"streaming": 21, "diloco": 20 + how.get("delay", 0)}.get(how["strategy"], 20),
        False,
    )
    second = one(folder=tmp_path / "parts", resume=True)
    assert second.events("resumed")[0]["step"] == saved
    assert first.hashes() | second.hashes() == straight.hashes()
    check_finished([straight, second])
    inner = straight.trainer.strategy.local()
    assert all(torch.equal(tensor, inner[name]) for name, tensor in second.trainer.strategy.local().items())


@pytest.mark.parametrize("what", OTHERS)
def test_resuming_with_other_flags_is_refused_and_says_which(what, tmp_path):
    saving = tiny(steps=40, save_every=20)
    Run(saving).start(folder=tmp_path).process.world.run()
    peer = Run(OTHERS[what].get("settings", saving), text=OTHERS[what].get("text")).start(folder=tmp_path, resume=True)
    peer.process.world.run()
    assert isinstance(peer.error, InvalidConfig)
    assert f"{what} " in str(peer.error)
    assert str(tmp_path) in str(peer.error)
    assert peer.events("joined") == []


@every_strategy
def test_who_resumes_brings_its_state_to_those_who_begin(how, tmp_path):
    settings = tiny(**how, steps=40, save_every=20)

    def stop(event, **about):
        if event == "saved":
            raise SaveFailed("stop here")

    first = Run(settings).start(folder=tmp_path, also=stop)
    first.process.world.run()
    saved = first.trainer.steps
    assert saved >= 20
    run = Run(settings)
    for resume in (False, True, False):
        run.start(folder=tmp_path if resume else None, resume=resume, min_world=3)
    run.run()
    check_finished(run.peers)
    assert all(p.events("synced")[0]["revision"] == saved for p in run.peers)
    assert all(p.events("step")[0]["step"] == saved + 1 for p in run.peers)


def test_a_finished_run_resumed_next_to_a_beginner_is_over_for_both(tmp_path):
    Run(tiny(save_every=4)).start(folder=tmp_path).process.world.run()
    run = Run(tiny(save_every=4))
    run.start(min_world=2)
    run.start(min_world=2, folder=tmp_path, resume=True)
    run.run()
    check_finished(run.peers)
    assert all(p.events("step") == [] for p in run.peers)


def test_only_the_first_saves_and_the_model_saved_is_the_one_all_hold(tmp_path):
    run = Run(tiny(steps=10, save_every=5))  # rounds of 4, so the last is a short one
    for i in range(3):
        run.start(min_world=3, folder=tmp_path / str(i))
    run.run()
    check_finished(run.peers)
    assert [e["step"] for e in run.peers[0].events("saved")] == [8, 10, 10]
    assert [p.name for p in tmp_path.iterdir()] == ["0"]
    tensors, _ = load_newest(tmp_path / "0" / "checkpoint")
    assert torch.equal(tensors["parameters"], run.peers[2].parameters)
    saved, _ = load_model(tmp_path / "0" / "model")
    mine = dict(run.peers[2].trainer.model.named_parameters())
    assert all(torch.equal(p, mine[name]) for name, p in saved.named_parameters())


@every_strategy
def test_when_the_first_is_lost_the_next_saves(how, tmp_path):
    run = Run(tiny(**how, steps=40, save_every=8))
    for i in range(3):
        run.start(min_world=3, folder=tmp_path / str(i))
    run.at(0.2, run.peers[0].process.crash)
    run.run()
    check_finished(run.peers[1:])
    assert run.peers[1].last("saved")["step"] == 40
    assert run.peers[2].events("saved") == []


@every_strategy
def test_when_the_first_is_lost_while_it_saves_the_end_the_next_saves_it(how, tmp_path, monkeypatch):
    run = Run(tiny(**how))
    for i in range(3):
        run.start(min_world=3, folder=tmp_path / str(i))
    save_model = loop.save_model

    def killed(folder, *args):
        if "0" in folder.parts:
            run.at(0.0, run.peers[0].process.crash)
            here().sleep(1.0)
        return save_model(folder, *args)

    monkeypatch.setattr(loop, "save_model", killed)
    run.run()
    check_finished(run.peers[1:])
    saved, _ = load_model(tmp_path / "1" / "model")
    assert torch.equal(saved.lm_head.weight, run.peers[2].trainer.model.lm_head.weight)


@pytest.mark.parametrize("saves", [2, 3])  # the second checkpoint, and the last one
def test_a_full_disk_ends_the_one_that_saves_and_costs_no_checkpoint(saves, tmp_path, monkeypatch):
    run = Run(tiny(save_every=4))
    first = run.start(min_world=2, folder=tmp_path / "0", also=lambda event, **about: fill(event))
    second = run.start(min_world=2, folder=tmp_path / "1")

    def fill(event):
        if event == "saved" and len(first.events("saved")) == saves - 1:
            monkeypatch.setattr(os, "fsync", full)

    def full(descriptor):
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, "No space left on device")

    run.run()
    assert isinstance(first.error, SaveFailed)
    assert "No space left" in str(first.error)
    tensors, _ = load_newest(folders_in(tmp_path / "0").checkpoint)
    assert int(tensors["steps"]) == 4 * (saves - 1)
    check_finished([second])
    assert second.last("saved")["step"] == 12


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_a_step_says_what_data_parallel_training_would_have_sent():
    """Each of W peers sends 2 (W - 1) / W of the gradient's 4-byte numbers, the least there can be."""
    steps, world = 12, 3
    far = {"latency_s": 2e-3}  # on a quick link more bytes in fewer rounds would be worth their while
    ddp = group_of(world, tiny(strategy="ddp"), **far).run().peers
    diloco = group_of(world, tiny(strategy="diloco", every=4), **far).run().peers
    n = ddp[0].parameters.numel()
    formula = steps * (2 * 4 * n * (world - 1) // world)
    assert [p.last("done")["ddp"] for p in ddp + diloco] == [formula] * 6
    for peer in ddp:
        assert peer.last("done")["sent"] == pytest.approx(formula, rel=1e-3)
    for one, other in zip(ddp, diloco, strict=True):
        assert one.last("done")["sent"] == 4 * other.last("done")["sent"]


@pytest.mark.parametrize("strategy", ["eager", "co2"])
def test_what_is_finished_early_for_a_checkpoint_is_counted_too(strategy, tmp_path):
    sent = []
    for save_every in (0, 4):
        run = Run(tiny(strategy=strategy, every=4, steps=24, save_every=save_every))
        for i in range(2):
            run.start(min_world=2, folder=tmp_path / f"{save_every} {i}")
        check_finished(run.run().peers)
        sent.append([peer.last("done")["sent"] for peer in run.peers])
    assert sent[0] == sent[1]
    assert min(sent[0]) > 0


def test_codecs_send_less():
    exact, bf16, uint8 = (
        group_of(3, tiny(codec=codec)).run().peers[0].last("done")["sent"] for codec in ("none", "bf16", "uint8")
    )
    assert bf16 == pytest.approx(exact / 2, rel=0.01)
    assert uint8 == pytest.approx(exact / 4, rel=0.1)


def test_alone_nothing_is_sent():
    [peer] = group_of(1, tiny()).run().peers
    assert (peer.last("done")["sent"], peer.last("done")["ddp"]) == (0, 0)


def test_steps_report_their_time_and_tokens():
    [peer] = group_of(1, replace(tiny(), steps=3)).run().peers
    assert [e["step"] for e in peer.events("step")] == [1, 2, 3]
    assert all(e["tokens"] == 2 * 16 for e in peer.events("step"))
    assert all(e["seconds"] > 0.99 * STEP_S for e in peer.events("step"))
