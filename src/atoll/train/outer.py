"""Program: the outer loop: one strategy of which the published ones are settings (`strategies.py`).

    every step        learn locally
    Start(fragment)   what this peer has to tell of the fragment goes out
    Finish(fragment)  the mean comes back; the outer optimiser applies it to the parameters all peers share

After Douillard et al. 2025 (Streaming DiLoCo, arXiv 2501.18512), whose cases are DiLoCo (2311.08105), SlowMo
(1910.00643) and Local SGD; Kale et al. 2025 (eager, 2502.12996); Sun et al. 2024 (CO2, 2401.16265). What peers must
agree on follows from the same bytes by the same arithmetic, so shared states stay equal bit for bit; each model may run
on by itself.
"""

from dataclasses import replace
from math import isfinite
from typing import Any

import torch

from atoll.cost import Op
from atoll.errors import Diverged, InvalidData
from atoll.group.facade import Group
from atoll.runtime.api import here
from atoll.train.api import Drained, StepInfo
from atoll.train.exchange import Exchange, Exchanged
from atoll.train.flat import FlatModel
from atoll.train.learners import Learner
from atoll.train.momentum import Outer
from atoll.train.pace import Pace, agreed
from atoll.train.schedule import Advance, Await, Finish, FragmentSchedule, Start, Swap


class OuterLoop:
    """A `Strategy`. `seed`: what travels is rounded at random, by this. `pace`: of late exchanges, which changes how
    many steps a round has."""

    def __init__(
        self, model: FlatModel, learner: Learner, outer: Outer, schedule: FragmentSchedule, exchange: Exchange,
        seed: int | None = None, pace: Pace | None = None,
    ) -> None:  # fmt: skip
        self.model, self.learner, self.outer, self.schedule = model, learner, outer, schedule
        self.exchange, self.seed, self.pace = exchange, seed, pace
        self.steps = torch.zeros(1, dtype=torch.int64)
        """Steps taken; part of what is shared."""
        self.planned = schedule.every
        self.rounds = torch.tensor([schedule.every, schedule.since])
        """Steps of a round, and since when; shared where there is a pace."""
        self._step_s = 0.0
        """What a step took, by itself."""
        self.learner.restart()

    def enter(self, group: Group) -> None:
        """Train with this group from now on. What was in flight in another one is dropped."""
        self.exchange.enter(group)
        self._settle()

    def meet(self, group: Group) -> None:
        """Somebody has come or gone. InvalidData: a peer has a delay that can't be."""
        self.exchange.meet()
        delays = [int.from_bytes(said) for said in group.gather_bytes(self.schedule.delay.to_bytes(4))]
        if max(delays) >= self.schedule.apart:
            raise InvalidData(f"a peer has a delay of {max(delays)} steps here: all need the same atoll")
        self.schedule = replace(self.schedule, longest=max(delays))

    def step(self, batch: torch.Tensor) -> StepInfo:
        """Learn from `batch`, then do what the schedule says. Diverged: the loss is not a number; nothing was
        changed."""
        began, tokens = here().now(), batch.shape[0] * (batch.shape[1] - 1)
        op = Op("train_step", flops=6.0 * self.model.parameters.numel() * tokens, tokens=tokens)
        loss = here().compute(op, lambda: self._gradient(batch))
        step = int(self.steps)
        if not isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {step}: lower --lr, or look at the text of this peer")
        self.learner.learn(step)
        if self.pace is not None:
            self._step_s = here().now() - began
            if self.exchange.under_way and self.exchange.landed():
                self.pace.landed(step + 1)
        actions, done = self.schedule.at(step), []
        for action in actions:
            match action:
                case Start(fragment):
                    self._start(fragment)
                case Finish(fragment):
                    done += self._finish(fragment)
                case Swap(fragment):
                    done += self._swap(fragment)
                case Await(fragment):
                    done += self._await(fragment)
                case Advance(_):
                    self.exchange.advance()
        if any(not isinstance(action, Advance) for action in actions):
            self._settle()
        self.steps += 1
        return StepInfo(
            loss,
            tokens,
            sum(d.bytes_sent for d in done),
            sum(d.waited_s for d in done),
            tuple(lost for d in done for lost in d.losses),
            tuple(sorted({rank for d in done for rank in d.refused})),
            boundary=self.schedule.settles(step),
        )

    def drain(self) -> Drained:
        """Finish what is in flight before its time. All must do it after the same step."""
        done = [d for fragment in self.exchange.under_way for d in self._finish(fragment)]
        if done:
            self._settle()
        return Drained(tuple(lost for d in done for lost in d.losses), sum(d.bytes_sent for d in done))

    def collect(self) -> None:
        """What is split among peers, for a checkpoint."""
        self.exchange.collect()

    def shared(self) -> dict[str, torch.Tensor]:
        """Parameters, the outer optimiser's memory, the step."""
        paced = {} if self.pace is None else {"rounds": self.rounds}
        return {"parameters": self.outer.parameters, "steps": self.steps, **paced, **self.outer.memory("outer.")}

    def local(self) -> dict[str, Any]:
        """The learner's memory, and of the outer optimiser what is not shared."""
        return {**self.learner.memory(), **self.exchange.memory("outer.")}

    def load_local(self, state: dict[str, Any]) -> None:
        """The reverse of `local`."""
        for name, tensor in self.local().items():
            tensor.copy_(state[name])

    def reload(self) -> None:
        """Go on from shared tensors that were written from outside."""
        every, since = self.rounds.tolist()
        self._go_by(replace(self.schedule, every=every, since=since))
        self.learner.restart()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _gradient(self, batch: torch.Tensor) -> float:
        loss = self.model.module.loss(batch)  # type: ignore[operator]
        self.model.backward(loss)
        return float(loss.detach())

    def _start(self, fragment: int) -> None:
        part = self.model.fragments[fragment]
        self.outer.measured(part)
        self._send(fragment, self.learner.contribution(part))

    def _send(self, fragment: int, vector: torch.Tensor) -> None:
        note = b""
        if self.pace is not None:
            note = self.pace.note()
            self.pace.started(int(self.steps) + 1)
        if not self.exchange.start(fragment, vector, self._seed(fragment), note):
            self.learner.forget()

    def _finish(self, fragment: int) -> list[Exchanged]:
        """Empty: it was finished before its time."""
        if fragment not in self.exchange.under_way:
            return []
        part = self.model.fragments[fragment]
        done = self.exchange.finish(fragment, lambda vector: self.learner.again(part, vector))
        self._waited(done)
        if done.mean is not None:
            self.outer.step(part, done.mean, int(self.steps))
        self.learner.took(part, done)
        if not done.fit:
            self.learner.forget()
        return [done]

    def _swap(self, fragment: int) -> list[Exchanged]:
        """What starts was measured before the outer step that what is finished leads to."""
        if fragment not in self.exchange.under_way:
            self._start(fragment)
            return []
        vector = self.learner.contribution(self.model.fragments[fragment])
        done = self._finish(fragment)
        if self.pace is not None:
            self._go_by(agreed(self.schedule, int(self.steps) + 1, done[0].notes, self.pace.most))
        self._send(fragment, vector)
        return done

    def _waited(self, done: Exchanged) -> None:
        if self.pace is not None:
            self.pace.waited(int(self.steps) + 1, done.waited_s, self._step_s)

    def _go_by(self, schedule: FragmentSchedule) -> None:
        self.schedule, self.outer.span = schedule, schedule.every / self.planned
        self.rounds.copy_(torch.tensor([schedule.every, schedule.since]))

    def _await(self, fragment: int) -> list[Exchanged]:
        part = self.model.fragments[fragment]
        done = self.exchange.wait(fragment, lambda vector: self.learner.again(part, vector))
        self._waited(done)
        if done.mean is not None:
            self.outer.move(part, done.mean)
        if not done.fit:
            self.learner.forget()
        return [done]

    def _settle(self) -> None:
        self.learner.settle(bool(self.exchange.under_way), self.exchange.world)

    def _seed(self, fragment: int) -> int | None:
        """Of this step's rounding on this peer."""
        if self.seed is None:
            return None
        return ((self.seed << 32 | int(self.steps)) << 16 | self.exchange.rank) << 8 | fragment
