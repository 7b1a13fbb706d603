"""The strategies against their published pseudo-code, written out with ordinary modules, optimisers and loops."""

from dataclasses import replace
from functools import cache
from math import cos, pi

import numpy as np
import pytest
import torch

from atoll.model.transformer import Transformer, TransformerConfig
from atoll.train.shards import Shards, batch, count_windows
from tests.train.tiny import check_agreement, corpus, group_of, tiny

TEXT = corpus()
S = tiny()
CLOSE = {"rtol": 1e-4, "atol": 1e-6}  # sums of three in another order


def model() -> Transformer:
    made = Transformer(TransformerConfig(width=16, layers=1, heads=2, context=16))
    made.initialise(S.seed)
    return made


def learning_rate(step: int) -> float:
    if step < S.warm_up:
        return S.lr * (step + 1) / S.warm_up
    return S.lr * (0.1 + 0.9 * (1 + cos(pi * (step - S.warm_up) / (S.steps - S.warm_up))) / 2)


def flat(tensors) -> torch.Tensor:
    """Matrices first, as the strategies hold them."""
    return torch.cat([t.detach().reshape(-1) for t in sorted(tensors, key=lambda t: t.dim() < 2)])


class AdamW:
    """torch's, with the learning rate of a step and the gradient clipped to norm 1."""

    def __init__(self, parameters) -> None:
        self.parameters = list(parameters)
        groups = [
            {"params": [p for p in self.parameters if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in self.parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.torchs = torch.optim.AdamW(groups, betas=(0.9, 0.95))

    def step(self, gradients, step: int) -> None:
        scale = torch.clamp(1.0 / (torch.linalg.vector_norm(flat(gradients)) + 1e-6), max=1.0)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient * scale
        for group in self.torchs.param_groups:
            group["lr"] = learning_rate(step)
        self.torchs.step()


def batches(step: int, world: int) -> list[torch.Tensor]:
    shards = Shards(count_windows(TEXT.train, 16), S.seed)
    return [batch(TEXT.train, shards.indices(step * world * 2, r, world, 2), 16) for r in range(world)]


def gradients(of: Transformer, tokens: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(of.loss(tokens), list(of.parameters())))


def mean(lists: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [sum(same[1:], start=same[0]) / len(same) for same in zip(*lists, strict=True)]


def data_parallel(world: int, delay: int = 0) -> torch.Tensor:
    trained = model()
    optimiser = AdamW(trained.parameters())
    late: list[list[torch.Tensor]] = []
    for step in range(S.steps):
        late.append(mean([gradients(trained, tokens) for tokens in batches(step, world)]))
        if len(late) > delay:
            optimiser.step(late.pop(0), step)
    if late:
        optimiser.step(late.pop(0), S.steps)
    return flat(trained.parameters())


def diloco(world: int, every: int, delay: int = 0, outer_lr: float = 0.7, momentum: float = 0.9) -> torch.Tensor:
    """Algorithm 1 of Douillard et al. 2023; with a delay, the outer step uses the mean of the round before."""
    shared = model()
    outer = torch.optim.SGD(shared.parameters(), lr=outer_lr, momentum=momentum, nesterov=momentum > 0)
    replicas = [model() for _ in range(world)]
    inner = [AdamW(replica.parameters()) for replica in replicas]
    late: list[list[torch.Tensor]] = []

    def step_outer() -> None:
        for parameter, gradient in zip(shared.parameters(), late.pop(0), strict=True):
            parameter.grad = gradient
        outer.step()

    for begin in range(0, S.steps, every):
        began = [p.detach().clone() for p in shared.parameters()]
        for replica in replicas:
            replica.load_state_dict(shared.state_dict())
        for step in range(begin, min(begin + every, S.steps)):
            for replica, optimiser, tokens in zip(replicas, inner, batches(step, world), strict=True):
                optimiser.step(gradients(replica, tokens), step)
        late.append(mean([[b - p.detach() for b, p in zip(began, r.parameters(), strict=True)] for r in replicas]))
        if len(late) > delay:
            step_outer()
    if late:
        step_outer()
    return flat(shared.parameters())


@cache
def trained(world: int, **changes) -> torch.Tensor:
    """The shared parameters after a run; they are those of every peer, and of its model."""
    run = group_of(world, tiny(**changes), text=TEXT).run()
    check_agreement(run.peers)
    assert all(peer.done for peer in run.peers), [peer.error for peer in run.peers]
    for peer in run.peers:
        assert torch.equal(peer.parameters, run.peers[0].parameters)
        assert torch.equal(flat(peer.trainer.model.parameters()), peer.parameters)
    return run.peers[0].parameters


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("world", [1, 2])
def test_ddp_is_adamw_on_the_mean_gradient_bit_for_bit(world, delay):
    assert torch.equal(trained(world, strategy="ddp", delay=delay), data_parallel(world, delay))


@pytest.mark.parametrize("delay", [0, 1])
def test_ddp_of_three_is_adamw_on_the_mean_gradient(delay):
    torch.testing.assert_close(trained(3, strategy="ddp", delay=delay), data_parallel(3, delay), **CLOSE)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("world", [1, 2])
def test_diloco_is_its_algorithm_bit_for_bit(world, delay):
    assert torch.equal(trained(world, delay=delay), diloco(world, every=4, delay=delay))


@pytest.mark.parametrize("delay", [0, 1])
def test_diloco_of_three_is_its_algorithm(delay):
    torch.testing.assert_close(trained(3, delay=delay), diloco(3, every=4, delay=delay), **CLOSE)


@pytest.mark.parametrize("delay", [0, 1])
def test_a_short_last_round_is_exchanged_too(delay):
    assert torch.equal(trained(2, every=5, delay=delay), diloco(2, every=5, delay=delay))


def test_diloco_after_every_step_follows_its_algorithm():
    assert torch.equal(trained(2, every=1), diloco(2, every=1))


def test_local_sgd_is_diloco_whose_outer_step_takes_the_mean_as_it_is():
    """Averaging the models: outer learning rate 1, no momentum."""
    models = trained(2, outer_lr=1.0, outer_momentum=0.0)
    assert torch.equal(models, diloco(2, every=4, outer_lr=1.0, momentum=0.0))


@pytest.mark.parametrize("delay", [0, 1])
def test_alone_with_outer_steps_of_one_diloco_is_adamw_itself(delay):
    """Without delay. With one, rounds alternate between two lines of descent, so it is not."""
    models = trained(1, outer_lr=1.0, outer_momentum=0.0, delay=delay)
    close = torch.allclose(models, data_parallel(1), **CLOSE)
    assert close == (delay == 0)


@pytest.mark.parametrize("codec", ["bf16", "uint8"])
@pytest.mark.parametrize("strategy", ["ddp", "diloco"])
@pytest.mark.parametrize("delay", [0, 1])
def test_codecs_keep_all_peers_equal_and_near_to_the_exact_run(codec, strategy, delay):
    exact = trained(3, strategy=strategy, delay=delay)
    coded = trained(3, strategy=strategy, delay=delay, codec=codec)
    assert not torch.equal(coded, exact)
    moved = torch.linalg.vector_norm(exact - flat(model().parameters()))
    assert torch.linalg.vector_norm(coded - exact) < 0.5 * moved


def test_training_lowers_the_loss():
    settings = tiny(steps=100, every=10, lr=1e-2)
    for strategy in ("ddp", "diloco"):
        [peer] = group_of(1, replace(settings, strategy=strategy), text=TEXT).run().peers
        before, after = (e["loss"] for e in peer.events("evaluated"))
        assert before == pytest.approx(np.log(256), rel=0.02)
        assert after < 4.0


def test_a_delayed_exchange_hides_behind_the_steps_that_follow():
    """On links on which an exchange takes longer than half a round and less than one."""

    def waits(delay: int) -> float:
        run = group_of(2, tiny(delay=delay), text=TEXT, bytes_per_s=1e6).run()
        return sum(e["waited"] for e in run.peers[0].events("step"))

    assert waits(0) > 0.02
    assert waits(1) == 0.0


def test_the_same_seed_gives_the_same_run_and_another_another():
    def parameters(seed: int) -> torch.Tensor:
        return group_of(2, tiny(seed=seed), text=TEXT).run().peers[0].parameters

    assert torch.equal(parameters(1), parameters(1))
    assert not torch.equal(parameters(1), parameters(2))
