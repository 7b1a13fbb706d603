"""The published algorithms in one process: ordinary models, parameters by name, loops over workers, NumPy. Shares with
the strategies only the model, the data and the formulas of the papers."""

from dataclasses import dataclass, field
from math import cos, pi

import numpy as np
import torch

from atoll.model.transformer import Transformer, TransformerConfig
from atoll.train.settings import TrainSettings
from atoll.train.shards import Shards, batch, count_windows
from atoll.train.text import Corpus

Arrays = dict[str, np.ndarray]


def model_of(s: TrainSettings) -> Transformer:
    m = s.model
    made = Transformer(TransformerConfig(width=m.width, layers=m.layers, heads=m.heads, context=m.context))
    made.initialise(s.seed)
    return made


def fragment_of(name: str, s: TrainSettings, fragments: int) -> int:
    """Of a parameter."""
    if ".layers." not in name:
        return 0 if "embed" in name else fragments - 1
    block = int(name.split(".layers.")[1].split(".")[0])
    return block % fragments if s.pattern == "strided" else block * fragments // s.model.layers


class Offline:
    """`world` workers of a run. `rate`: of plain gradient descent inside, in place of AdamW."""

    def __init__(
        self, s: TrainSettings, text: Corpus, world: int, fragments: int = 1, rate: float | None = None
    ) -> None:
        self.s, self.text, self.world, self.fragments, self.rate = s, text, world, fragments, rate
        names = [name for name, _ in model_of(s).named_parameters()]
        dims = {name: p.dim() for name, p in model_of(s).named_parameters()}
        self.order = sorted(names, key=lambda n: (fragment_of(n, s, fragments), dims[n] < 2))
        """As the strategies hold them: by fragment, in each matrices first."""
        self.shards = Shards(count_windows(text.train, s.model.context), s.seed)

    def flat(self, arrays) -> torch.Tensor:
        return torch.cat([torch.as_tensor(arrays[name]).detach().reshape(-1) for name in self.order])

    def batch(self, step: int, worker: int) -> torch.Tensor:
        s = self.s
        indices = self.shards.indices(step * self.world * s.batch, worker, self.world, s.batch)
        return batch(self.text.train, indices, s.model.context)

    def gradients(self, of: Transformer, step: int, worker: int) -> dict[str, torch.Tensor]:
        named = dict(of.named_parameters())
        return dict(
            zip(named, torch.autograd.grad(of.loss(self.batch(step, worker)), list(named.values())), strict=True)
        )

    def learning_rate(self, step: int) -> float:
        s = self.s
        if step < s.warm_up:
            return s.lr * (step + 1) / s.warm_up
        return s.lr * (0.1 + 0.9 * (1 + cos(pi * (step - s.warm_up) / (s.steps - s.warm_up))) / 2)


class Worker:
    """A model and its own optimiser: AdamW with the gradient clipped to norm 1, or descent."""

    def __init__(self, run: Offline) -> None:
        self.run, self.model = run, model_of(run.s)
        self.parameters = dict(self.model.named_parameters())
        decays = [p for p in self.parameters.values() if p.dim() >= 2]
        others = [p for p in self.parameters.values() if p.dim() < 2]
        groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95))

    def learn(self, gradients: dict[str, torch.Tensor], step: int) -> None:
        run = self.run
        if run.rate is not None:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.add_(gradients[name], alpha=-run.rate)
            return
        scale = torch.clamp(1.0 / (torch.linalg.vector_norm(run.flat(gradients)) + 1e-6), max=1.0)
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name] * scale
        for group in self.adamw.param_groups:
            group["lr"] = run.learning_rate(step)
        self.adamw.step()

    def values(self) -> Arrays:
        """Views."""
        return {name: parameter.detach().numpy() for name, parameter in self.parameters.items()}


@dataclass
class Outer:
    """What all share, or one worker's own idea of it."""

    x: Arrays
    rate: float
    momentum: float
    nesterov: bool = True
    v: Arrays = field(default_factory=dict)

    def step(self, deltas: Arrays) -> None:
        mu, eta = np.float32(self.momentum), np.float32(self.rate)
        for name, delta in deltas.items():
            v = self.v[name] = mu * self.v.get(name, np.zeros_like(delta)) + delta
            self.x[name] = self.x[name] - eta * (delta + mu * v if self.nesterov else v)

    def copy(self) -> "Outer":
        return Outer(dict(self.x), self.rate, self.momentum, self.nesterov, dict(self.v))


def mean(of: list[Arrays]) -> Arrays:
    world = np.float32(len(of))
    return {name: sum((o[name] for o in of[1:]), start=of[0][name]) / world for name in of[0]}


def difference(a: Arrays, b: Arrays, names) -> Arrays:
    return {name: a[name] - b[name] for name in names}


def data_parallel(run: Offline, delay: int = 0) -> torch.Tensor:
    """The mean gradient to one optimiser, at once or a step late."""
    trained, late = Worker(run), []
    for step in range(run.s.steps):
        each = [run.gradients(trained.model, step, w) for w in range(run.world)]
        late.append({name: torch.as_tensor(g) for name, g in mean(each).items()} if run.world > 1 else each[0])
        if len(late) > delay:
            trained.learn(late.pop(0), step)
    if late:
        trained.learn(late.pop(0), run.s.steps)
    return run.flat(trained.values())


def streaming(
    run: Offline, *, every: int, delay: int = 0, mix: float = 0.0, rate: float, momentum: float, nesterov: bool = True
) -> dict[int, torch.Tensor]:
    """Douillard et al. 2025: what all share, after each step at which a fragment was finished."""
    s, pieces = run.s, range(run.fragments)
    workers = [Worker(run) for _ in range(run.world)]
    shared = Outer({name: x.copy() for name, x in workers[0].values().items()}, rate, momentum, nesterov)
    members = {p: [n for n in run.order if fragment_of(n, s, run.fragments) == p] for p in pieces}
    travelling: dict[int, Arrays] = {}
    history = {}

    def start(p: int) -> None:
        travelling[p] = mean([difference(shared.x, w.values(), members[p]) for w in workers])

    def finish(p: int) -> None:
        shared.step(travelling.pop(p))
        for worker in workers:
            for name in members[p]:
                mine = worker.values()[name]
                kept = np.float32(mix) * mine + np.float32(1 - mix) * shared.x[name] if delay else shared.x[name]
                mine[...] = kept
        history[t] = run.flat(shared.x)

    for t in range(1, s.steps + 1):
        for w, worker in enumerate(workers):
            worker.learn(run.gradients(worker.model, t - 1, w), t - 1)
        if t == s.steps:
            for p in list(travelling):
                finish(p)
        for p in pieces:
            if t == s.steps or (t - p * every / run.fragments) % every == 0:
                start(p)
        for p in pieces:
            if p in travelling and (t == s.steps or (t - p * every / run.fragments - delay) % every == 0):
                finish(p)
    return history


def late(
    run: Offline, *, every: int, eager: bool, consensus: int = 0, rate: float, momentum: float
) -> dict[int, torch.Tensor]:
    """One round of delay: each worker's outer step uses the last mean, in which an eager one puts its fresh share in
    the place of its stale one (Kale et al. 2025). What all share takes the true means, and is where all meet again."""
    s, world = run.s, np.float32(run.world)
    workers = [Worker(run) for _ in range(run.world)]
    shared = Outer({name: x.copy() for name, x in workers[0].values().items()}, rate, momentum)
    own = [shared.copy() for _ in workers]
    stale: list[Arrays] = []
    history = {}
    for t in range(1, s.steps + 1):
        for w, worker in enumerate(workers):
            worker.learn(run.gradients(worker.model, t - 1, w), t - 1)
        if t % every and t != s.steps:
            continue
        fresh = [difference(o.x, w.values(), run.order) for o, w in zip(own, workers, strict=True)]
        before = mean(stale) if stale else None
        if before is not None:
            shared.step(before)
        if t == s.steps or (consensus and t % (every * consensus) == 0):
            shared.step(mean(fresh))
            own, stale = [shared.copy() for _ in workers], []
        else:
            for w, mine in enumerate(own):
                if not eager:
                    own[w] = shared.copy()
                elif before is None:
                    mine.step({n: d / world for n, d in fresh[w].items()})
                else:
                    mine.step({n: before[n] + (d - stale[w][n]) / world for n, d in fresh[w].items()})
            stale = fresh
        for mine, worker in zip(own, workers, strict=True):
            for name, x in mine.x.items():
                worker.values()[name][...] = x
        history[t] = run.flat(shared.x)
    return history


def co2(
    run: Offline, *, every: int, rate: float = 1.0, momentum: float = 0.0, clip: float = np.inf,
    penalty: float | None = None, first_waits: bool = True,
) -> dict[int, torch.Tensor]:  # fmt: skip
    """Sun et al. 2024: outer steps are one round late, divided by how stale they are, and clipped."""
    s = run.s
    workers = [Worker(run) for _ in range(run.world)]
    x = run.flat(workers[0].values()).numpy()
    m = np.zeros_like(x)
    pending: tuple[np.ndarray, np.ndarray] | None = None
    history = {}

    def take() -> None:
        nonlocal x, m
        assert pending is not None
        x_prev, delta = pending
        stale = 1 + np.linalg.norm(x - x_prev) / np.linalg.norm(delta) if penalty is None else penalty
        m = np.clip(np.float32(momentum) * m + delta / np.float32(min(stale, 10.0)), -clip, clip)
        x = x - np.float32(rate) * m

    for t in range(1, s.steps + 1):
        for w, worker in enumerate(workers):
            worker.learn(run.gradients(worker.model, t - 1, w), t - 1)
        if t % every and t != s.steps:
            continue
        fresh = x, sum(x - run.flat(worker.values()).numpy() for worker in workers) / np.float32(run.world)
        if pending is not None:
            take()
        elif first_waits and t != s.steps:
            x = x - fresh[1]
        pending = fresh
        if t == s.steps:
            take()
        at = 0
        for name in run.order:
            size = workers[0].values()[name].size
            for worker in workers:
                worker.values()[name][...] = x[at : at + size].reshape(worker.values()[name].shape)
            at += size
        history[t] = torch.from_numpy(x.copy())
    return history
