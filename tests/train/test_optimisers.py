from math import cos, pi

import pytest
import torch
from torch import nn

from atoll.train.optimisers import adamw, constant, descent, warm_up_then_cosine

N, MATRICES = 23, 16
SLICES = [slice(0, MATRICES)], [slice(MATRICES, N)]


def gradients(n: int = 6, scale: float = 0.1) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(N) * scale for _ in range(n)]


def start() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(N)


def rate(step: int) -> float:
    return 0.01 * (step + 1)


def torchs(optimiser_of, given, clip: float | None = None) -> torch.Tensor:
    """What torch's own optimiser makes of two ordinary parameters."""
    both = [nn.Parameter(start()[:MATRICES].clone()), nn.Parameter(start()[MATRICES:].clone())]
    optimiser = optimiser_of(both)
    for step, gradient in enumerate(given):
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        both[0].grad, both[1].grad = gradient[:MATRICES].clone(), gradient[MATRICES:].clone()
        if clip:
            nn.utils.clip_grad_norm_(both, clip)
        optimiser.step()
    return torch.cat([p.detach() for p in both])


def torch_adamw(parts):
    groups = [{"params": parts[:1], "weight_decay": 0.1}, {"params": parts[1:], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def ours(optimiser, given) -> torch.Tensor:
    for step, gradient in enumerate(given):
        optimiser.step(gradient.clone(), step)
    return optimiser.parameters


def test_adamw_takes_torchs_steps_bit_for_bit():
    assert torch.equal(ours(adamw(start(), *SLICES, rate), gradients()), torchs(torch_adamw, gradients()))


def test_descent_takes_torchs_steps_bit_for_bit():
    assert torch.equal(ours(descent(start(), rate), gradients()), torchs(torch.optim.SGD, gradients()))


def test_the_parts_of_adamw_may_lie_anywhere():
    """Two fragments, each with matrices and vectors: what decays decays, and all else is as in one piece."""
    order = torch.cat([torch.arange(0, 8), torch.arange(16, 20), torch.arange(8, 16), torch.arange(20, 23)])
    slices = [slice(0, 8), slice(12, 20)], [slice(8, 12), slice(20, 23)]
    moved = ours(adamw(start()[order], *slices, rate), [g[order] for g in gradients()])
    assert torch.equal(moved, ours(adamw(start(), *SLICES, rate), gradients())[order])


def test_a_long_gradient_is_clipped_by_the_norm_of_all_of_it():
    long = gradients(scale=10.0)
    torch.testing.assert_close(ours(adamw(start(), *SLICES, rate), long), torchs(torch_adamw, long, clip=1.0))


def test_writing_to_the_memory_restores_it():
    first, again = adamw(start(), *SLICES, rate), adamw(start(), *SLICES, rate)
    assert first.memory("m.").keys() == again.memory("m.").keys() != set()  # before any step
    given = gradients()
    ours(first, given[:3])
    again.parameters.copy_(first.parameters)
    for name, tensor in again.memory("m.").items():
        tensor.copy_(first.memory("m.")[name])
    for optimiser in (first, again):
        for step in (3, 4, 5):
            optimiser.step(given[step].clone(), step)
    assert torch.equal(first.parameters, again.parameters)
    assert all(torch.equal(t, again.memory("")[name]) for name, t in first.memory("").items())


def test_plain_descent_remembers_nothing():
    assert descent(start(), constant(1.0)).memory("") == {}


def test_the_learning_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    schedule = warm_up_then_cosine(2.0, steps=110, warm_up=10)
    assert [schedule(s) for s in range(10)] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    for step in range(10, 111):
        assert schedule(step) == pytest.approx(0.2 + 1.8 * (1 + cos(pi * (step - 10) / 100)) / 2)
    assert schedule(110) == schedule(500) == pytest.approx(0.2)


def test_without_warm_up_the_learning_rate_begins_at_its_peak():
    assert warm_up_then_cosine(2.0, steps=10, warm_up=0)(0) == 2.0
