"""Driver: a tiny model and Streaming DiLoCo on it in one process, written out with NumPy: what the real thing is held
against. Shares no code with it but the model."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from atoll.rng import stream

WIDTH, BLOCKS = 8, 4
Arrays = dict[str, NDArray[np.float32]]


class Tower(nn.Module):
    """An embedding, blocks, a head."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 1)
        for name, parameter in self.named_parameters():
            drawn = stream(seed, "tower", name).normal(0, 0.2, tuple(parameter.shape)).astype(np.float32)
            parameter.data.copy_(torch.from_numpy(drawn))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Of rows of numbers, each with its target behind it."""
        x = self.embed(batch[:, :-1])
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return nn.functional.mse_loss(self.head(x), batch[:, -1:])


def batch_of(seed: int, step: int, rank: int) -> torch.Tensor:
    """What a worker sees at that step."""
    x = stream(seed, "batch", step, rank).normal(0, 1, (16, WIDTH + 1)).astype(np.float32)
    x[:, -1] = np.sin(x[:, :-1].sum(axis=1))
    return torch.from_numpy(x)


def fragment_of(name: str, fragments: int) -> int:
    """Of a parameter, strided."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) % fragments
    return 0 if name.startswith("embed.") else fragments - 1


def data_parallel(seed: int, world: int, steps: int, rate: float) -> list[Arrays]:
    """Synchronous gradient descent: all parameters after each step."""
    model, history = Tower(seed), []
    for step in range(steps):
        each = [gradients_of(model, batch_of(seed, step, rank)) for rank in range(world)]
        for name, parameter in model.named_parameters():
            mean = np.sum([g[name] for g in each], axis=0) / np.float32(world)
            parameter.data.sub_(torch.from_numpy(mean), alpha=rate)
        history.append(_values(model))
    return history


def streaming(
    seed: int, world: int, steps: int, rate: float, *, every: int, fragments: int, delay: int, mix: float,
    outer_rate: float, momentum: float, told: Callable[[int, Arrays], None],
) -> None:  # fmt: skip
    """The paper's loop; `told` what all share after each step at which a fragment was finished."""
    models = [Tower(seed) for _ in range(world)]
    shared = _values(models[0])
    speed: Arrays = {name: np.zeros_like(x) for name, x in shared.items()}
    of = {p: [name for name in shared if fragment_of(name, fragments) == p] for p in range(fragments)}
    travelling: dict[int, Arrays] = {}

    def start(p: int) -> None:
        mine = [_values(model) for model in models]
        travelling[p] = {n: np.sum([shared[n] - m[n] for m in mine], axis=0) / np.float32(world) for n in of[p]}

    def finish(p: int) -> None:
        for name, delta in travelling.pop(p).items():
            speed[name] *= np.float32(momentum)
            speed[name] += delta
            step = np.float32(outer_rate) * (delta + np.float32(momentum) * speed[name])
            shared[name] = np.subtract(shared[name], step)
            for model in models:
                x = model.get_parameter(name).data.numpy()
                x[...] = np.float32(mix) * x + np.float32(1 - mix) * shared[name] if mix else shared[name]

    for t in range(1, steps + 1):
        for rank, model in enumerate(models):
            for name, gradient in gradients_of(model, batch_of(seed, t - 1, rank)).items():
                model.get_parameter(name).data.sub_(torch.from_numpy(gradient), alpha=rate)
        done = [p for p in travelling if t == steps or (t - p * every // fragments - delay) % every == 0]
        for p in done:
            finish(p)
        for p in range(fragments):
            if t == steps or (t - p * every // fragments) % every == 0:
                start(p)
        for p in list(travelling) if t == steps or delay == 0 else []:
            finish(p)
            done.append(p)
        if done:
            told(t, dict(shared))


def gradients_of(model: nn.Module, batch: torch.Tensor) -> Arrays:
    """By name."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(model.loss(batch), list(named.values()))  # type: ignore[operator]
    return {name: g.numpy() for name, g in zip(named, found, strict=True)}


def _values(model: nn.Module) -> Arrays:
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
