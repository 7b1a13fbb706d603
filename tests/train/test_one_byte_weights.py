"""Parameters that move along noise: there and back to the bit, as plain NumPy has it, on any number of threads."""

import numpy as np
import pytest
import torch

from atoll.rng import normal
from atoll.train.one_byte import weights as module
from atoll.train.one_byte.weights import LAWS, Move, Weights

EPSILON = 1e-3
SHAPES = {"a": (300, 70), "b": (70,), "c": (1000, 70)}


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    found = {name: torch.from_numpy(rng.normal(0, 0.02, shape).astype(np.float32)) for name, shape in SHAPES.items()}
    found["b"] = torch.ones(70)
    return found


def test_moves_are_those_of_plain_numpy() -> None:
    given = tensors()
    before = {name: t.numpy().copy().ravel() for name, t in given.items()}
    moves = [Move((1, "z"), EPSILON), Move((1, "y"), -3e-4), Move((1, "z"), EPSILON, -2)]
    Weights(given, EPSILON).perturb(moves)
    at = 0
    for name, flat in before.items():
        grid = 2.0 ** (np.floor(np.log2(max(np.abs(flat).max(), 8 * EPSILON))) + 1 - 22)
        expected = np.rint(flat / np.float32(grid)).astype(np.float64)
        for move in moves:
            noise = normal(move.noise, flat.size, offset=at)
            expected += move.times * np.rint(noise * np.float32(move.size / grid))
        np.testing.assert_array_equal(given[name].numpy().ravel(), (expected * grid).astype(np.float32))
        at += flat.size


def test_there_and_back_is_the_same_to_the_bit() -> None:
    weights = Weights(tensors(), EPSILON)
    before = weights.digest()
    for i in range(50):
        weights.perturb([Move((i, "z"), EPSILON)])
        weights.perturb([Move((i, "z"), EPSILON, -2)])
        weights.perturb([Move((i, "z"), EPSILON)])
    assert weights.digest() == before


def test_taking_back_with_an_update_is_the_same_as_one_after_the_other() -> None:
    one, other = Weights(tensors(), EPSILON), Weights(tensors(), EPSILON)
    one.perturb([Move((0, "z"), EPSILON)])
    one.update([Move((0, "z"), EPSILON, -1)], [Move((0, "z"), 1e-4), Move((0, "y"), 1e-4)])
    other.update([], [Move((0, "z"), 1e-4), Move((0, "y"), 1e-4)])
    assert one.digest() == other.digest()


@pytest.mark.parametrize("block", [1 << 10, 1 << 14, 1 << 18])
@pytest.mark.parametrize("law", LAWS)
def test_blocks_change_no_bit(block: int, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> bytes:
        weights = Weights(tensors(), EPSILON, law)
        weights.update([Move((1, "y"), EPSILON, 3)], [Move((1, "z"), 2e-3), Move((1, "y"), -1e-3)])
        return weights.digest()

    expected = moved()
    monkeypatch.setattr(module, "BLOCK", block)
    assert moved() == expected


def test_where_parameters_grow_the_grid_grows_and_the_way_back_stays_exact() -> None:
    weights = Weights({"a": torch.zeros(1000)}, EPSILON)
    fine = float(weights.grids[0])
    for i in range(20):
        weights.update([], [Move((i, "z"), 1.0)])
        before = weights.digest()
        weights.perturb([Move((i, "y"), EPSILON)])
        weights.perturb([Move((i, "y"), EPSILON, -2)])
        weights.perturb([Move((i, "y"), EPSILON)])
        assert weights.digest() == before
    largest = float(weights.tensors["a"].abs().max())
    assert 2**22 * weights.grids[0] < largest <= 2**23 * weights.grids[0]
    assert weights.grids[0] > fine


def test_zeros_can_be_moved() -> None:
    weights = Weights({"bias": torch.zeros(1000)}, EPSILON)
    weights.perturb([Move((0, "z"), EPSILON)])
    assert weights.tensors["bias"].std() == pytest.approx(EPSILON, rel=0.1)


def test_the_grid_is_fine() -> None:
    given = tensors()
    before = {name: t.clone() for name, t in given.items()}
    Weights(given, EPSILON)
    assert all((given[name] - before[name]).abs().max() <= before[name].abs().max() * 2**-22 for name in given)
