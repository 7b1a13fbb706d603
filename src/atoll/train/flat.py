"""Program: a model's parameters and gradients as views of two flat tensors, so that a step is one call and what is
exchanged together lies together."""

import torch
from torch import nn

from atoll.train.fragments import FragmentPlan


class FlatModel:
    """`parameters` and `gradient` are 1-d; the module's own tensors are views of them.

    Each fragment of `plan` (by default there is one) is one slice; in it come matrices, which decay, then vectors.
    """

    def __init__(self, module: nn.Module, plan: FragmentPlan | None = None) -> None:
        self.module = module
        plan = plan or FragmentPlan.of(module)
        plan.check(module)
        named = dict(module.named_parameters(remove_duplicate=False))
        owned = [sorted((named[n] for n in names), key=lambda p: p.dim() < 2) for names in plan.fragments]  # stable
        self.parameters = torch.cat([p.detach().reshape(-1) for fragment in owned for p in fragment])
        self.gradient = torch.zeros_like(self.parameters)
        self.fragments: list[slice] = []
        self.matrices: list[slice] = []
        """Where parameters of two dimensions and more lie."""
        self.vectors: list[slice] = []
        end = 0
        for fragment in owned:
            start, sizes = end, {True: 0, False: 0}
            for parameter in fragment:
                part = slice(end, end + parameter.numel())
                parameter.data = self.parameters[part].view_as(parameter)
                parameter.grad = self.gradient[part].view_as(parameter)
                sizes[parameter.dim() >= 2] += parameter.numel()
                end = part.stop
            middle = start + sizes[True]
            self.fragments.append(slice(start, end))
            self.matrices += [slice(start, middle)] if middle > start else []
            self.vectors += [slice(middle, end)] if end > middle else []

    def backward(self, loss: torch.Tensor) -> None:
        """Fill `gradient` anew."""
        self.gradient.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
