"""The strategies against their published pseudo-code (`offline.py`), in groups in virtual time."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from atoll.train import strategies
from atoll.train.optimisers import constant, descent
from atoll.train.schedule import FragmentSchedule
from atoll.train.settings import ModelSettings, TrainSettings
from tests.train.offline import Offline, co2, data_parallel, late, model_of, streaming
from tests.train.tiny import Run, check_agreement, corpus, group_of, tiny

TEXT = corpus()
CLOSE = {"rtol": 1e-4, "atol": 1e-6}  # sums of three in another order
DEEP = ModelSettings(width=16, layers=4, heads=2, context=16)
DILOCO = {"rate": 0.7, "momentum": 0.9}
STREAMING = {"rate": 0.4, "momentum": 0.9}


def settings(**changes) -> TrainSettings:
    return tiny(**({"model": DEEP} if changes.get("strategy") == "streaming" else {}), **changes)


def offline(world: int, s: TrainSettings | None = None, **more) -> Offline:
    return Offline(s or tiny(), TEXT, world, **more)


def last(history: dict[int, torch.Tensor]) -> torch.Tensor:
    return history[max(history)]


@cache
def finished(world: int, **changes) -> tuple[Run, dict[int, torch.Tensor]]:
    """A run, and by steps taken what all shared then."""
    shared: dict[int, torch.Tensor] = {}
    run = Run(settings(**changes), text=TEXT)

    def remember(event, **about):
        if event == "step" and "hash" in about:
            shared[about["step"]] = run.peers[0].parameters.clone()

    for i in range(world):
        run.start(min_world=world, also=remember if i == 0 else lambda event, **about: None)
    run.run()
    check_agreement(run.peers)
    assert all(peer.done for peer in run.peers), [peer.error for peer in run.peers]
    for peer in run.peers:
        assert torch.equal(peer.parameters, run.peers[0].parameters)
        assert torch.equal(peer.trainer.strategy.model.parameters, peer.parameters)
    return run, shared


def trained(world: int, **changes) -> torch.Tensor:
    """The shared parameters after a run; they are those of every peer, and of its model."""
    return finished(world, **changes)[0].peers[0].parameters


def check_same(found: dict[int, torch.Tensor], reference: dict[int, torch.Tensor]) -> None:
    """At each moment, bit for bit."""
    assert found.keys() == reference.keys()
    for t, x in reference.items():
        assert torch.equal(found[t], x), f"after step {t}: off by {(found[t] - x).abs().max():.3g}"


# -- data-parallel -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("world", [1, 2])
def test_ddp_is_adamw_on_the_mean_gradient_bit_for_bit(world, delay):
    assert torch.equal(trained(world, strategy="ddp", delay=delay), data_parallel(offline(world), delay))


@pytest.mark.parametrize("delay", [0, 1])
def test_ddp_of_three_is_adamw_on_the_mean_gradient(delay):
    torch.testing.assert_close(
        trained(3, strategy="ddp", delay=delay), data_parallel(offline(3), delay), **CLOSE
    )  # fmt: skip


# -- whole rounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_diloco_is_its_algorithm_bit_for_bit(world):
    assert torch.equal(trained(world), last(streaming(offline(world), every=4, **DILOCO)))


def test_diloco_of_three_is_its_algorithm():
    torch.testing.assert_close(trained(3), last(streaming(offline(3), every=4, **DILOCO)), **CLOSE)


def test_a_short_last_round_is_exchanged_too():
    assert torch.equal(trained(2, every=5), last(streaming(offline(2), every=5, **DILOCO)))


def test_diloco_after_every_step_follows_its_algorithm():
    assert torch.equal(trained(2, every=1), last(streaming(offline(2), every=1, **DILOCO)))


@pytest.mark.parametrize("delay", [1, 3])
def test_diloco_whose_exchange_takes_some_steps_mixes_what_comes_back(delay):
    _, found = finished(2, delay=delay, mix=0.25)
    check_same(found, streaming(offline(2), every=4, delay=delay, mix=0.25, **DILOCO))


def test_local_sgd_is_diloco_whose_outer_step_takes_the_mean_as_it_is():
    reference = last(streaming(offline(2), every=4, rate=1.0, momentum=0.0))
    assert torch.equal(trained(2, strategy="local-sgd"), reference)
    assert torch.equal(trained(2, outer_rate=1.0, outer_momentum=0.0), reference)


def test_slowmo_goes_on_along_its_momentum():
    reference = last(streaming(offline(2), every=4, rate=1.0, momentum=0.5, nesterov=False))
    assert torch.equal(trained(2, strategy="slowmo"), reference)
    no_momentum = trained(2, strategy="slowmo", outer_momentum=0.0)
    assert torch.equal(no_momentum, trained(2, strategy="local-sgd"))


def test_alone_with_outer_steps_of_one_diloco_is_adamw_itself():
    torch.testing.assert_close(trained(1, strategy="local-sgd"), data_parallel(offline(1)), **CLOSE)


# -- a round late ------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(("world", "consensus", "steps"), [(2, 0, 22), (2, 2, 22), (1, 0, 12)])
def test_eager_diloco_is_its_algorithm_bit_for_bit(world, consensus, steps, naive):
    changes = {"strategy": "eager", "naive": naive, "consensus": consensus, "steps": steps, "warm_up": 3}
    _, found = finished(world, **changes)
    run = offline(world, tiny(steps=steps))
    check_same(found, late(run, every=4, eager=not naive, consensus=consensus, **DILOCO))


CO2 = {
    "as published": {},
    "a round of nothing first": {"first": "holds"},
    "no penalty": {"penalty": 1.0, "outer_momentum": 0.2},
    "clipped": {"outer_clip": 0.05, "outer_momentum": 0.5},
    "a constant": {"penalty": 2.0, "outer_rate": 0.7, "outer_clip": float("inf")},
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("steps", [22, 4])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("how", CO2.values(), ids=CO2)
def test_co2_is_its_algorithm(how, world, steps):
    s = tiny(strategy="co2", steps=steps, **how)
    _, found = finished(world, strategy="co2", steps=steps, **how)
    reference = co2(
        offline(world, s), every=4, rate=s.outer.rate, momentum=s.outer.momentum, penalty=s.penalty,
        clip=s.outer_clip * s.lr * 4, first_waits=s.first == "waits",
    )  # fmt: skip
    assert found.keys() == reference.keys()
    for t, x in reference.items():
        torch.testing.assert_close(found[t], x, **CLOSE)


def test_co2_that_waits_is_never_stale_and_is_slowmo(monkeypatch):
    monkeypatch.setattr(
        TrainSettings, "schedule", property(lambda s: FragmentSchedule(s.every, steps=s.steps, late=True, consensus=1))
    )
    run = group_of(2, tiny(strategy="co2", outer_momentum=0.5, outer_clip=float("inf")), text=TEXT).run()
    check_agreement(run.peers)
    assert torch.equal(run.peers[0].parameters, trained(2, strategy="slowmo"))


def test_with_consensus_after_each_round_eager_is_diloco():
    assert torch.equal(trained(2, strategy="eager", consensus=1), trained(2))


def test_eager_peers_run_ahead_of_what_they_share_each_by_itself():
    """In the middle of a run their models differ, what they share doesn't, and both are further than a naive one."""
    run = Run(tiny(strategy="eager", consensus=0, steps=40), text=TEXT)
    met = []

    def look(event, **about):
        if event == "step" and about["step"] == 20:
            met.append([p.trainer.strategy.learner.ahead.parameters.clone() for p in run.peers])

    for i in range(2):
        run.start(min_world=2, also=look if i else lambda event, **about: None)
    run.run()
    [(one, other)] = met
    assert not torch.equal(one, other)


# -- fragment by fragment ----------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("pattern", ["strided", "sequential"])
@pytest.mark.parametrize(("fragments", "delay", "mix"), [(4, 0, 0.5), (4, 1, 0.0), (4, 1, 0.5), (2, 3, 1.0)])
def test_streaming_is_its_algorithm_bit_for_bit(fragments, delay, mix, pattern):
    """After each finish of each fragment, through a last round that is a short one."""
    changes = {
        "strategy": "streaming", "every": 8, "fragments": fragments, "delay": delay, "mix": mix, "pattern": pattern,
        "steps": 21,
    }  # fmt: skip
    _, found = finished(2, **changes)
    run = offline(2, settings(**changes), fragments=fragments)
    check_same(found, streaming(run, every=8, delay=delay, mix=mix, **STREAMING))


def test_streaming_of_three_is_its_algorithm():
    changes = {"strategy": "streaming", "every": 8, "fragments": 4, "delay": 1, "steps": 20}
    run = offline(3, settings(**changes), fragments=4)
    reference = last(streaming(run, every=8, delay=1, mix=0.5, **STREAMING))
    torch.testing.assert_close(trained(3, **changes), reference, **CLOSE)


def test_streaming_in_one_fragment_without_delay_is_diloco():
    streamed = trained(2, strategy="streaming", fragments=1, delay=0, **_outer(DILOCO))
    assert torch.equal(streamed, trained(2, model=DEEP))


def _outer(kind):
    return {"outer_rate": kind["rate"], "outer_momentum": kind["momentum"]}


# -- what the paper's claims rest on (its "Done when" 1) ---------------------------------------------------------------


@pytest.fixture
def plain_descent(monkeypatch):
    monkeypatch.setattr(strategies, "adamw", lambda p, matrices, vectors, rate: descent(p, constant(0.1)))


@pytest.mark.usefixtures("plain_descent")
def test_exchanging_after_each_step_of_descent_is_data_parallel_descent():
    """H = 1, outer rate 1, no momentum: 50 steps."""
    s = tiny(strategy="local-sgd", every=1, steps=50)
    diloco = group_of(2, s, text=TEXT).run().peers[0].parameters
    reference = data_parallel(offline(2, s, rate=0.1))
    torch.testing.assert_close(diloco, reference, rtol=0, atol=1e-6)
    assert (diloco - Offline(s, TEXT, 1).flat(dict(model_of(s).named_parameters()))).abs().max() > 1e-2


@pytest.mark.usefixtures("plain_descent")
def test_four_fragments_without_mixing_are_the_reference_bit_for_bit():
    s = settings(strategy="streaming", every=8, fragments=4, delay=1, mix=0.0, steps=50)
    shared = {}
    run = Run(s, text=TEXT)
    run.start(min_world=2, also=lambda event, **a: shared.update({a["step"]: run.peers[0].parameters.clone()})
              if event == "step" and "hash" in a else None)  # fmt: skip
    run.start(min_world=2)
    run.run()
    check_same(shared, streaming(offline(2, s, fragments=4, rate=0.1), every=8, delay=1, mix=0.0, **STREAMING))


# -- codecs, learning, hiding ------------------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("codec", ["bf16", "uint8"])
@pytest.mark.parametrize(
    "how",
    [{"strategy": "ddp"}, {"strategy": "ddp", "delay": 1}, {}, {"delay": 1}, {"strategy": "eager"}],
    ids=str,
)
def test_codecs_keep_all_peers_equal_and_near_to_the_exact_run(codec, how):
    near(how, {"codec": codec})


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "how",
    [{"codec": "e3m0"}, {"codec": "int4"}, {"codec": "e3m0", "down": "bf16"}, {"codec": "int4", "rounding": "random"}],
    ids=str,
)
def test_four_bits_keep_all_peers_equal_and_near_to_the_exact_run(how):
    near({"strategy": "streaming", "fragments": 2, "every": 4, "steps": 16}, how)


def near(how, coded):
    exact, rounded = trained(3, **how), trained(3, **how, **coded)
    assert not torch.equal(rounded, exact)
    run = offline(1, settings(**how), fragments=how.get("fragments", 1))
    moved = torch.linalg.vector_norm(exact - run.flat(dict(model_of(run.s).named_parameters())))
    assert torch.linalg.vector_norm(rounded - exact) < 0.5 * moved


@pytest.mark.sampled(2)
@pytest.mark.parametrize("strategy", ["ddp", "local-sgd", "slowmo", "diloco", "streaming", "eager", "co2"])
def test_training_lowers_the_loss(strategy):
    s = replace(settings(strategy=strategy, fragments=2, every=10, lr=1e-2), steps=100)
    peers = group_of(2, s, text=TEXT).run().peers
    before, after = (e["loss"] for e in peers[0].events("evaluated"))
    assert before == pytest.approx(np.log(256), rel=0.02)
    assert after < 4.2


def test_what_travels_while_steps_go_on_costs_no_wait():
    """On links on which an exchange takes longer than a step and less than two."""

    def waits(**how) -> float:
        run = group_of(2, tiny(**how), text=TEXT, bytes_per_s=2e6).run()
        return sum(e["waited"] for e in run.peers[0].events("step")[:-1])

    assert waits() > 0.02
    assert waits(delay=1) < 0.6 * waits()
    assert waits(delay=3) == 0.0
    assert waits(strategy="eager") == 0.0


def test_the_same_seed_gives_the_same_run_and_another_another():
    def parameters(seed: int) -> torch.Tensor:
        how = {"strategy": "streaming", "fragments": 2, "codec": "e3m0", "rounding": "random"}
        return group_of(2, settings(seed=seed, **how), text=TEXT).run().peers[0].parameters

    assert torch.equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1), parameters(2))
