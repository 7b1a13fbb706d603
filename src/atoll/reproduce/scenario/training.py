"""Driver: a training job in virtual time: the programs of `atoll train` with real tensors, charged by a cost model."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, TypeVar

import numpy as np

import atoll
from atoll.cost import Op
from atoll.errors import DeadlineExceeded, Expelled, MasterLost
from atoll.group.api import HasPorts, Port
from atoll.group.facade import Group
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.record import Record
from atoll.reproduce.scenario.api import Check, Curve, Figure, Say, duration, share, volume
from atoll.reproduce.scenario.chronicle import Chronicle
from atoll.reproduce.scenario.fabrics import checked
from atoll.reproduce.scenario.fleet import Fleet
from atoll.reproduce.scenario.meters import MeteredWorld
from atoll.reproduce.scenario.pricing import Prices, prices
from atoll.reproduce.scenario.sampling import LinkSampler, Progress
from atoll.reproduce.scenario.settings import Scenario, TrainJob
from atoll.reproduce.scenario.striking import stream_of
from atoll.reproduce.scenario.timeline import State, Timeline
from atoll.runtime.api import Node, here, settle
from atoll.sim.injector import Injector
from atoll.train.loop import Trainer
from atoll.train.settings import TrainSettings
from atoll.train.text import Corpus

T = TypeVar("T")
EVALUATIONS: Final = 40
"""Points of the loss curve, about."""
TIME: Final = "simulated time, s"


class Training:
    """A group that trains on the hosts of a fabric while things go wrong."""

    def __init__(self, scenario: Scenario, job: TrainJob, record_for: Callable[[Callable[[], float]], Record]) -> None:
        self.scenario, self.job = scenario, job
        fabric = checked(scenario.fabric)
        self.hosts = fabric.hosts[: job.peers]
        self.settings = TrainSettings(**{f.name: getattr(job, f.name) for f in fields(TrainSettings)})
        self.corpus = Corpus.read(job.text or None, job.text_bytes)
        self.prices: Prices = prices(scenario.cost, scenario.seed)
        self.world = MeteredWorld(
            scenario.seed, fabric=fabric, tcp=scenario.fabric.tcp, tie_break=scenario.tie_break, volume=self._volume()
        )
        self.record = record_for(lambda: self.world.loop.now_s)
        self.chronicle = Chronicle(lambda: self.world.loop.now_ns, self.record)
        self.world.said = self.chronicle.heard()
        self.timeline = Timeline(self.hosts, self._span)
        self.fleet = Fleet(self.world, self.hosts, self._main, self.chronicle, job.restart_s)
        self.fleet.crashed = lambda host: self.timeline.ended(host, "down", self.world.loop.now_ns)
        self.fleet.restarted = lambda host: self.timeline.becomes(host, "joining", self.world.loop.now_ns)
        self.injector = Injector(self.world.loop, self.fleet)
        self.losses: list[tuple[float, float]] = []
        self.steps = 0
        self._looked_s = 0.0
        self.ended_ns: int | None = None
        self._states: dict[tuple[int, int], str] = {}
        self._unequal: list[str] = []

    def run(self, say: Say) -> None:
        """To the end, or until the scenario says so."""
        until_s = self.scenario.until_s
        sampler = LinkSampler(self.world.network, self.record)
        progress = Progress(say, until_s)

        def ticked() -> None:
            if self.record.heard:
                sampler.look()
            progress.look(self.world.loop.now_s, f"step {self.steps} of {self.job.steps}")

        self.world.ticked = ticked
        for i, host in enumerate(self.hosts):
            self.fleet.start(host, i * self.job.start_every_s)
        self.injector.play(stream_of(self.scenario.faults, self.world.network.fabric, self.scenario.seed))
        try:
            self.world.run(until_s)
        finally:
            self.world.loop.close()
        if self.ended_ns is None:
            until_ns = self.world.loop.now_ns if until_s is None else round(until_s * 1e9)
            self.ended_ns = min(self.world.loop.now_ns, until_ns)
        self.timeline.close(self.ended_ns)

    # -- in the program's thread ---------------------------------------------------------------------------------------

    def _main(self, host: str, incarnation: int) -> None:
        node = _Timed(self, here(), host)
        settle(node)
        trainer: Trainer | None = None

        def report(event: str, **about: Any) -> None:
            self.chronicle.tell(event, host, **about)
            if "hash" in about and "epoch" in about:
                self._compare(about)
            if event == "step" and "hash" in about:
                self._shared(host, about, trainer)
            if event == "evaluated":
                self.losses.append((here().now(), about["loss"]))
            if event == "done":
                self._done(host)

        def enter() -> Group:
            first = incarnation == 1 and not self.fleet.crashes
            return atoll.join("the master:1", name=host, min_world=len(self.hosts) if first else 1, timeout_s=None)

        try:
            trainer = Trainer(self.settings, self.corpus, report)
            trainer.run(enter)
        except (Expelled, MasterLost, DeadlineExceeded) as error:
            self.chronicle.mark("failed", host, message=str(error))
            self.timeline.ended(host, "down", self.world.loop.now_ns)
            self.fleet.start_again(host)

    def _shared(self, host: str, about: dict[str, Any], trainer: Trainer | None) -> None:
        """What this host has learnt, all have."""
        self.timeline.shared(host, about["revision"], self.world.loop.now_ns)
        before, self.steps = self.steps, max(self.steps, about["revision"])
        every, now_s = max(1, self.job.steps // EVALUATIONS), here().now()
        late = self.scenario.until_s is not None and now_s >= self._looked_s + self.scenario.until_s / EVALUATIONS
        if (late or self.steps // every > before // every) and trainer is not None and self.steps < self.job.steps:
            self._looked_s = now_s
            self.losses.append((now_s, trainer.evaluate()))

    def _compare(self, about: dict[str, Any]) -> None:
        key = about["epoch"], about["revision"]
        if self._states.setdefault(key, about["hash"]) != about["hash"]:
            self._unequal.append(f"revision {key[1]} of epoch {key[0]}")

    def _done(self, host: str) -> None:
        self.injector.stop()
        self.timeline.ended(host, "done", self.world.loop.now_ns)
        if not any(self.fleet.runs(h) and self.timeline.state(h) in ("computing", "waiting") for h in self.hosts):
            self.world.over = True
            self.ended_ns = self.world.loop.now_ns

    @property
    def events(self) -> int:
        """Of the run."""
        return self.world.loop.count

    # -- what it came to -----------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, Figure]:
        """The table's columns."""
        assert self.ended_ns is not None
        ns = self.timeline.total()
        hosts_ns = sum(ns.values()) - ns["done"] or 1
        figures = {
            "steps": Figure(self.steps, f"{self.steps:,}"),
            "time": Figure(self.ended_ns / 1e9, duration(self.ended_ns / 1e9)),
        }
        if self.losses:
            figures["loss"] = Figure(self.losses[-1][1], f"{self.losses[-1][1]:.3f}")
        for name, states in {
            "goodput": ("kept",), "waiting": ("waiting",), "redone": ("lost",), "away": ("down", "joining"),
        }.items():  # fmt: skip
            part = sum(ns[state] for state in states) / hosts_ns
            figures[name] = Figure(part, share(part))
        gap_s = self.timeline.worst_gap_ns(self.ended_ns) / 1e9
        sent = self.world.meter.sent
        return figures | {
            "worst gap": Figure(gap_s, duration(gap_s)),
            "crashes": Figure(self.fleet.crashes, str(self.fleet.crashes)),
            "sent": Figure(sent, volume(sent)),
        }

    def curves(self) -> tuple[Curve, ...]:
        """Loss, progress and members over time."""
        assert self.ended_ns is not None
        curves = [Curve("loss", TIME, "held-out loss, nats per byte", *_columns(self.losses))]
        steps = [(ns / 1e9, float(step)) for ns, step in [(0, 0), *self.timeline.boundaries]]
        curves.append(Curve("steps", TIME, "steps of the group", *_columns(steps)))
        if self.fleet.crashes:
            members: list[tuple[float, float]] = [(0.0, 0.0)]
            for ns, n in [*self.timeline.members, (self.ended_ns, self.timeline.members[-1][1])]:
                members += [(ns / 1e9, members[-1][1]), (ns / 1e9, float(n))]
            curves.append(Curve("members", TIME, "hosts that train", *_columns(members)))
        return tuple(curves)

    def checks(self) -> tuple[Check, ...]:
        """The laws."""
        assert self.ended_ns is not None
        spent, all_ns = sum(self.timeline.total().values()), len(self.hosts) * self.ended_ns
        unequal = ", ".join(self._unequal[:3])
        return (
            Check(
                "hosts' time adds up",
                spent == all_ns,
                f"{len(self.hosts)} x {duration(self.ended_ns / 1e9)} in {duration(spent / 1e9)} of states",
            ),
            Check(
                "the same bits on all peers",
                not self._unequal,
                unequal or f"{len(self._states)} states compared",
            ),
            *self.world.checks(),
        )

    # -- inside --------------------------------------------------------------------------------------------------------

    def charge(self, op: Op, host: str) -> float:
        """Seconds that `op` takes there."""
        if self.job.stands_for is not None:
            tokens = self.job.stands_for.tokens_per_step
            op = Op(op.kind, flops=6 * self.job.stands_for.parameters * tokens, tokens=tokens)
        return self.prices.seconds(op, host) * self.fleet.slowness(host)

    def _volume(self) -> float:
        """As how many bytes one of a tensor counts."""
        if self.job.stands_for is None:
            return 1.0
        s = self.settings.model
        tiny = Transformer(TransformerConfig(width=s.width, layers=s.layers, heads=s.heads, context=s.context))
        return self.job.stands_for.parameters / sum(p.numel() for p in tiny.parameters())

    def _span(self, host: str, state: State, start_ns: int, end_ns: int) -> None:
        self.chronicle.tell(state, host, since=start_ns, until=end_ns)
        self.record.span(f"{host}/program", state, start_ns / 1e9, end_ns / 1e9)


class _Timed:
    """The `Node` of a host's program: what it computes takes the time that the cost model says."""

    def __init__(self, training: Training, process: Node, host: str) -> None:
        self._training, self._process, self._host = training, process, host

    def now(self) -> float:
        return self._process.now()

    def sleep(self, seconds: float) -> None:
        self._process.sleep(seconds)

    def rng(self, *names: str | int) -> np.random.Generator:
        return self._process.rng(*names)

    def compute(self, op: Op, fn: Callable[[], T]) -> T:
        training, host = self._training, self._host
        value, loop = fn(), training.world.loop
        training.timeline.becomes(host, "computing", loop.now_ns)
        self.sleep(training.charge(op, host))
        training.timeline.becomes(host, "waiting", loop.now_ns)
        return value

    def open_port(self, address: str) -> Port:
        assert isinstance(self._process, HasPorts)
        return self._process.open_port(address)


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
