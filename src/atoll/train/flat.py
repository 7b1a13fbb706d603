"""Program: a model's parameters and gradients as views of two flat tensors, so that a step and an exchange are one
call."""

import torch
from torch import nn


class FlatModel:
    """`parameters` and `gradient` are 1-d; the module's own tensors are views of them. Matrices first: they decay."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        owned = sorted(module.parameters(), key=lambda p: p.dim() < 2)  # stable: matrices, then vectors
        self.parameters = torch.cat([p.detach().reshape(-1) for p in owned])
        self.gradient = torch.zeros_like(self.parameters)
        at = 0
        for parameter in owned:
            part = slice(at, at + parameter.numel())
            parameter.data = self.parameters[part].view_as(parameter)
            parameter.grad = self.gradient[part].view_as(parameter)
            at += parameter.numel()
        self.matrices = sum(p.numel() for p in owned if p.dim() >= 2)
        """How many elements, from the first on, belong to matrices."""

    def backward(self, loss: torch.Tensor) -> None:
        """Fill `gradient` anew."""
        self.gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
