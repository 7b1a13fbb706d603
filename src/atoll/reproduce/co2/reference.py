"""Driver: averaging now and then, at once and a round late, of a tiny model in one process, each published loop written
out with NumPy: what the real thing is held against. Shares no code with it but the model."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.reproduce.streaming_diloco.reference import Tower, batch_of, data_parallel, gradients_of

Vector = NDArray[np.float64]


class Workers:
    """`world` of them, who train from one vector of parameters by plain descent."""

    def __init__(self, seed: int, world: int, rate: float, every: int) -> None:
        self.seed, self.world, self.rate, self.every = seed, world, rate, every
        self.model = Tower(seed)
        self.start = self._get()

    def round(self, x: Vector, number: int) -> list[Vector]:
        """Where each comes to from `x`."""
        ends = []
        for rank in range(self.world):
            self._set(x)
            for step in range(number * self.every, (number + 1) * self.every):
                found = gradients_of(self.model, batch_of(self.seed, step, rank))
                for name, parameter in self.model.named_parameters():
                    parameter.data.sub_(torch.from_numpy(found[name]), alpha=self.rate)
            ends.append(self._get())
        return ends

    def _get(self) -> Vector:
        return np.concatenate([p.detach().numpy().reshape(-1) for p in self.model.parameters()]).astype(np.float64)

    def _set(self, x: Vector) -> None:
        at = 0
        for parameter in self.model.parameters():
            values = x[at : at + parameter.numel()].astype(np.float32).reshape(tuple(parameter.shape))
            parameter.data.copy_(torch.from_numpy(values))
            at += parameter.numel()


Loop = Callable[[Workers, int], list[Vector]]
"""So many rounds; what all share after each."""


def local_sgd(workers: Workers, rounds: int) -> list[Vector]:
    """All go on from the mean of their models."""
    x, history = workers.start, []
    for t in range(rounds):
        x = np.mean(workers.round(x, t), axis=0)
        history.append(x)
    return history


def parallel_sgd(workers: Workers, rounds: int) -> list[Vector]:
    """One model that descends along the mean gradient."""
    steps = data_parallel(workers.seed, workers.world, rounds, workers.rate)
    return [np.concatenate([a.reshape(-1) for a in arrays.values()]).astype(np.float64) for arrays in steps]


def slowmo(workers: Workers, rounds: int, beta: float) -> list[Vector]:
    """Wang et al. 2020 (1910.00643), without its scaling by the learning rate, which is constant here."""
    x, u, history = workers.start, np.zeros_like(workers.start), []
    for t in range(rounds):
        u = beta * u + (x - np.mean(workers.round(x, t), axis=0))
        x = x - u
        history.append(x)
    return history


def late_nesterov(workers: Workers, rounds: int, eta: float, mu: float) -> list[Vector]:
    """DiLoCo whose outer gradients come a round late; the last one at the end."""
    x, v, history = workers.start, np.zeros_like(workers.start), []
    late: list[Vector] = []
    for t in range(rounds):
        late.append(x - np.mean(workers.round(x, t), axis=0))
        while len(late) > (t + 1 < rounds):
            delta = late.pop(0)
            v = mu * v + delta
            x = x - eta * (delta + mu * v)
        history.append(x)
    return history


def co2(workers: Workers, rounds: int, alpha: float, beta: float, phi: float) -> list[Vector]:
    """Sun et al. 2024, line by line."""
    x_prev, x_cur, m = workers.start, workers.start, np.zeros_like(workers.start)
    mean_prev, history = workers.start, []

    def step() -> Vector:
        nonlocal m
        delta = x_prev - mean_prev
        stale = min(1 + float(np.linalg.norm(x_cur - x_prev)) / float(np.linalg.norm(delta)), 10.0)
        m = np.clip(beta * m + delta / stale, -phi, phi)
        return np.asarray(x_cur - alpha * m)

    for t in range(rounds):
        mean = np.mean(workers.round(x_cur, t), axis=0)
        x_new = mean if t == 0 else step()
        x_prev, x_cur, mean_prev = x_cur, x_new, mean
        if t == rounds - 1:
            x_cur = step()
        history.append(x_cur)
    return history
