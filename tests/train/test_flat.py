import torch
from torch import nn

from atoll.train.flat import FlatModel


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def test_flattening_changes_no_value_and_puts_matrices_first():
    plain, flat = module(), FlatModel(module())
    for (name, before), (_, after) in zip(plain.named_parameters(), flat.module.named_parameters(), strict=True):
        assert torch.equal(before, after), name
    matrices = [p.detach().reshape(-1) for p in plain.parameters() if p.dim() >= 2]
    assert flat.matrices == [slice(0, 3 * 4 + 4 * 2)]
    assert flat.vectors == [slice(3 * 4 + 4 * 2, flat.parameters.numel())]
    assert flat.fragments == [slice(0, flat.parameters.numel())]
    assert torch.equal(flat.parameters[flat.matrices[0]], torch.cat(matrices))


def test_writing_to_the_flat_tensor_writes_to_the_module():
    flat = FlatModel(module())
    flat.parameters.fill_(0.5)
    assert all((p == 0.5).all() for p in flat.module.parameters())


def test_the_flat_gradient_is_that_of_the_plain_module():
    plain, flat, x = module(), FlatModel(module()), torch.randn(5, 3)
    for _ in range(2):  # the second finds the gradient of the first, and does not add to it
        flat.backward(flat.module(x).square().sum())
    plain(x).square().sum().backward()
    owned = sorted(plain.parameters(), key=lambda p: p.dim() < 2)
    assert torch.equal(flat.gradient, torch.cat([p.grad.reshape(-1) for p in owned]))


def test_a_parameter_used_twice_is_held_once():
    shared = nn.Linear(3, 3, bias=False)
    flat = FlatModel(nn.Sequential(shared, shared))
    assert flat.parameters.numel() == 9
