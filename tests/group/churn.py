"""The whole stack in virtual time: real programs on the public API, while processes crash, freeze and arrive, the
master is killed and another takes over, and some can't reach each other.

python -m tests.group.churn 17           # replay one seed
python -m tests.group.churn 0 5000       # a range
"""

import random
import sys
import time
from typing import Any

import numpy as np

import atoll
from atoll.errors import DeadlineExceeded, Expelled, PeerLost, Unfit
from atoll.group.facade import Group
from atoll.group.messages import Verdict, View
from atoll.group.virtual import World
from atoll.group.work import Work
from atoll.runtime.api import here

Traces = dict[int, list[tuple[Any, ...]]]


class Run:
    """One program: state, traces, the loop a user would write, with some operations left in flight over steps."""

    def __init__(self, seed: int, steps: int, min_world: int, traces: Traces) -> None:
        self.seed, self.steps, self.min_world, self.traces = seed, steps, min_world, traces
        self.begin()
        self.joined = 0
        self.late: Work | None = None

    def begin(self) -> None:
        self.values = np.zeros(3)
        self.state = atoll.SharedState({"values": self.values})

    def main(self) -> None:
        while self.state.revision < self.steps:
            self.late = None
            try:
                with atoll.join("master:1", min_world=self.min_world) as group:
                    self.traces[group.id] = []
                    self.joined += 1
                    self.train(group)
            except Unfit:
                assert self.joined > 1, "its first group has no other revisions than its own"
                self.begin()  # the others have ended, and another group has begun: take what that has
            except Expelled:
                continue  # thawed too late: join again
            except DeadlineExceeded:
                assert self.min_world > 1  # alone, and told not to go on alone
                return

    def train(self, group: Group) -> None:
        seen = -1
        while self.state.revision < self.steps:
            try:
                if group.peers_pending() or group.epoch != seen:
                    self.settle(group)
                if group.peers_pending():
                    self.note(group, "topology", group.update_topology)
                if group.epoch != seen:
                    self.note(group, "sync", lambda: group.sync(self.state))
                    seen = group.epoch
                    continue
                self.step(group)
                self.state.revision += 1
                digest = self.state.digest()
                self.traces[group.id].append((group.epoch, "state", self.state.revision, digest))
            except PeerLost:
                try:
                    self.settle(group)
                except PeerLost:
                    pass
        if self.late:
            try:
                self.settle(group)
            except PeerLost:
                pass

    def settle(self, group: Group) -> None:
        work, self.late = self.late, None
        if work is not None:
            self.note(group, "late", work.wait)

    def step(self, group: Group) -> None:
        together = random.Random(f"{self.seed} {self.state.revision}")
        alone = random.Random(f"{self.seed} {group.id} {self.state.revision}")
        here().sleep(alone.choice([0.0, 1e-3, 1e-3, 30e-3]) * alone.random())  # sometimes through several epochs
        x = np.full(together.choice([1, 2, 5, 40]), float(group.rank + 1) + self.values[1])
        gain, what = 0.0, together.random()
        if what < 0.4:
            self.note(group, "reduce", lambda: group.all_reduce(x, "sum"))
            gain = float(x[0])
        elif what < 0.6:
            outs = [np.empty_like(x) for _ in range(3)]
            works = [group.all_reduce_async(x * (t + 1), "sum", tag=t + 1, out=outs[t]) for t in range(3)]
            errors = []
            for work in works:  # all are awaited, whatever becomes of the first
                try:
                    self.note(group, f"tag {work.ticket.tag}", work.wait)
                except PeerLost as error:
                    errors.append(error)
            if errors:
                raise errors[0]
            gain = float(outs[2][0])
        elif what < 0.8:
            gain = sum(b[0] for b in self.note(group, "gather", lambda: group.gather_bytes(bytes([group.rank]))))
        elif self.late is None:
            self.late = group.all_reduce_async(x.copy(), "sum", tag=9)
        if self.late and together.random() < 0.5:
            self.settle(group)
        self.values[1] = (self.values[1] + gain) % 1000
        self.values[0] += 1

    def note(self, group: Group, kind: str, call: Any) -> Any:
        epoch, trace = group.epoch, self.traces[group.id]
        try:
            value = call()
        except PeerLost as error:
            trace.append((epoch, kind, str(error), group.epoch, group.peers_pending()))
            raise
        trace.append((epoch, kind, "ok", group.epoch, group.peers_pending()))
        return value


def build(seed: int) -> tuple[World, Traces]:
    """The world of one seed, with its faults planned."""
    dice = random.Random(seed)
    world = World(
        seed,
        latency_s=dice.choice([50e-6, 500e-6]),
        bytes_per_s=dice.choice([1e6, 1e9]),
        jitter=dice.choice([0.0, 1.0, 5.0]),
        tie_break=seed,
        one_machine=dice.random() < 0.5,  # else the master has links measured
    )
    traces: Traces = {}
    n, steps, min_world = dice.randint(2, 5), dice.randint(3, 20), dice.choice([1, 1, 2])

    def start(name: str, delay_s: float) -> None:
        world.start(name, lambda: Run(seed, steps, min_world, traces).main(), delay_s)

    for i in range(n):
        start(f"peer-{i}", dice.random() * 1e-3)
    for i in range(dice.randint(0, 3)):
        start(f"late-{i}", dice.random() * 0.04)
    for process in dice.sample(world.processes[1:], dice.randint(0, n - 1)):
        at = int(dice.random() * 0.04e9)
        if dice.random() < 0.7:
            world.loop.post(at, process.crash)
        else:
            world.loop.post(at, process.freeze)
            world.loop.post(at + dice.choice([1_000_000, 50_000_000, 4_000_000_000]), process.thaw)
    for _ in range(dice.choice([0, 0, 1, 3])):
        at = int(dice.random() * 0.05e9)
        world.loop.post(at, world.kill_master)
        world.loop.post(at + dice.choice([1, 3_000_000, 300_000_000]), world.start_master)
    if dice.random() < 0.3:  # some pairs can't reach each other, one way or both
        names = [process.name for process in world.processes]
        world.walls = {(dice.choice(names), dice.choice(names)) for _ in range(dice.randint(1, 3))}
    return world, traces


def check(world: World, traces: Traces) -> None:
    """All who lived through an epoch saw the same outcomes in it; states of one revision have one digest."""
    by_epoch: dict[int, list[list[tuple[Any, ...]]]] = {}
    alone = {
        loss.id for _, said in world.said if isinstance(said, View) for loss in said.lost if "come back" in str(loss)
    }
    for member, trace in traces.items():
        if member in alone:  # the old master may have told its last view and verdicts to this one alone
            trace = [t for t in trace if trace[-1][0] not in (t[0], t[3])]
        for epoch in dict.fromkeys(t[0] for t in trace):
            by_epoch.setdefault(epoch, []).append([t for t in trace if t[0] == epoch])
    for epoch, seen in by_epoch.items():
        longest = max(seen, key=len)
        for trace in seen:
            assert trace == longest[: len(trace)], f"epoch {epoch}: outcomes differ\n{trace}\n{longest}"
    assert not world.master.votes.ballots


def replay(seed: int) -> World:
    """Run one seed; the error says how to replay it."""
    world, traces = build(seed)
    try:
        world.run()
        check(world, traces)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error}\nreplay: python -m tests.group.churn {seed}") from error
    return world


def main() -> None:
    first = int(sys.argv[1])
    last = int(sys.argv[2]) if len(sys.argv) > 2 else first + 1
    began, events, crashes, epochs, verdicts, bad = time.perf_counter(), 0, 0, 0, 0, 0
    for seed in range(first, last):
        try:
            world = replay(seed)
        except AssertionError as error:
            bad += 1
            print(str(error)[:1500])
            if last - first == 1:
                raise
            if bad > 4:
                break
            continue
        events += world.loop.count
        crashes += sum(p.dead for p in world.processes)
        epochs += world.master.epoch
        verdicts += sum(isinstance(message, Verdict) for _, message in world.said)
    took = time.perf_counter() - began
    print(
        f"{seed - first + 1} schedules, {bad} bad, {crashes} crashes, {epochs} epochs, {verdicts} verdicts, "
        f"{events} events, {events / took:.0f} events/s, {took:.1f} s"
    )


if __name__ == "__main__":
    main()
