import numpy as np
import pytest
import torch

from atoll.train.momentum import LARGEST_PENALTY, Momentum, Whole, norm
from atoll.train.optimisers import adamw, constant

N = 37
ALL, FIRST, REST = slice(0, N), slice(0, 10), slice(10, N)


def numbers(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=N).astype(np.float32))


@pytest.mark.parametrize("kind", ["nesterov", "heavy-ball"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_its_formula_bit_for_bit(kind, momentum):
    outer = Momentum(numbers(0), 0.7, momentum, kind)
    x, v, rate, mu = numbers(0).numpy(), np.zeros(N, np.float32), np.float32(0.7), np.float32(momentum)
    for step in range(1, 6):
        g = numbers(step).numpy()
        v = mu * v + g
        x = x - rate * (g + mu * v if kind == "nesterov" else v)
        outer.step(ALL, numbers(step), step)
        np.testing.assert_array_equal(outer.parameters.numpy(), x)


def test_nesterov_is_torchs():
    outer = Momentum(numbers(0), 0.7, 0.9)
    parameter = torch.nn.Parameter(numbers(0))
    torchs = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for step in range(1, 6):
        outer.step(ALL, numbers(step), step)
        parameter.grad = numbers(step)
        torchs.step()
    torch.testing.assert_close(outer.parameters, parameter.detach())


def test_fragments_have_momentum_of_their_own():
    whole, parts = Momentum(numbers(0), 0.7, 0.9), Momentum(numbers(0), 0.7, 0.9)
    for step in range(1, 4):
        whole.step(ALL, numbers(step), step)
    for part in (REST, FIRST):  # in any order, one long after the other
        for step in range(1, 4):
            parts.step(part, numbers(step)[part], step)
    assert torch.equal(whole.parameters, parts.parameters)


def test_plain_descent_remembers_nothing_and_writing_to_the_memory_restores_it():
    assert Momentum(numbers(0), 1.0).memory("outer.") == {}
    first, again = Momentum(numbers(0), 0.7, 0.9), Momentum(numbers(0), 0.7, 0.9)
    first.step(ALL, numbers(1), 0)
    again.parameters.copy_(first.parameters)
    again.memory("m.")["m.momentum"].copy_(first.memory("m.")["m.momentum"])
    for outer in (first, again):
        outer.step(ALL, numbers(2), 1)
    assert torch.equal(first.parameters, again.parameters)


def test_a_twin_goes_its_own_way_until_it_follows():
    outer = Momentum(numbers(0), 0.7, 0.9)
    outer.step(ALL, numbers(1), 0)
    twin = outer.twin()
    twin.step(ALL, numbers(2), 1)
    assert not torch.equal(twin.parameters, outer.parameters)
    twin.follow(outer)
    for one in (twin, outer):
        one.step(ALL, numbers(3), 1)
    assert torch.equal(twin.parameters, outer.parameters)


def test_an_inner_optimiser_can_be_the_outer_one_of_a_single_fragment():
    whole = Whole(adamw(numbers(0), [FIRST], [REST], constant(0.1)))
    plain = adamw(numbers(0), [FIRST], [REST], constant(0.1))
    whole.step(ALL, numbers(1), 0)
    plain.step(numbers(1), 0)
    assert torch.equal(whole.parameters, plain.parameters)
    assert whole.memory("m.").keys() == plain.memory("m.").keys()


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_a_step_that_is_stale_counts_less(momentum):
    """One that is as long as the way that was gone since it was measured: half."""
    outer = Momentum(numbers(0), 0.7, momentum, "heavy-ball", penalty=None)
    outer.measured(ALL)
    outer.step(ALL, numbers(1), 0)
    x = numbers(0) - 0.7 * numbers(1)
    torch.testing.assert_close(outer.parameters, x)
    outer.step(ALL, 0.7 * numbers(1), 0)
    v = momentum * numbers(1) + 0.7 * numbers(1) / 2
    torch.testing.assert_close(outer.parameters, x - 0.7 * v)
    outer.move(ALL, 1e6 * numbers(2))
    x = outer.parameters.clone()
    outer.step(ALL, numbers(3), 0)
    v = momentum * v + numbers(3) / LARGEST_PENALTY
    torch.testing.assert_close(outer.parameters, x - 0.7 * v)
    outer.measured(ALL)
    x = outer.parameters.clone()
    outer.step(ALL, numbers(4), 0)
    torch.testing.assert_close(outer.parameters, x - 0.7 * (momentum * v + numbers(4)))
    outer.step(ALL, torch.zeros(N), 0)  # nobody has learnt anything: no division by zero
    assert torch.isfinite(outer.parameters).all()


def test_a_clipped_momentum_is_remembered_as_clipped():
    outer = Momentum(numbers(0), 1.0, 0.5, "heavy-ball", clip=0.3)
    outer.step(ALL, numbers(1), 0)
    v = outer.memory("")["momentum"]
    assert torch.equal(v, numbers(1).clamp(-0.3, 0.3))
    assert torch.equal(outer.parameters, numbers(0) - v)
    outer.step(ALL, numbers(2), 1)
    assert torch.equal(v, (0.5 * numbers(1).clamp(-0.3, 0.3) + numbers(2)).clamp(-0.3, 0.3))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 1023, 1024, 1025, 100_003])
def test_a_norm_is_numpys_and_hangs_on_no_number_of_threads(n):
    vector = torch.from_numpy(np.random.default_rng(n).normal(size=n).astype(np.float32))
    found, threads = norm(vector), torch.get_num_threads()
    assert found == pytest.approx(float(np.linalg.norm(vector.numpy().astype(np.float64))), rel=1e-12)
    torch.set_num_threads(threads + 2)
    try:
        assert norm(vector) == found
    finally:
        torch.set_num_threads(threads)
