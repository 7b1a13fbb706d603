"""Whole runs of a server and its workers in virtual time: the sums, unequal workers, crashes, silence, restarts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from atoll import cost as costs
from atoll.errors import InvalidConfig, InvalidData, MasterLost
from atoll.net.streams import Streams
from atoll.runtime.api import Runtime
from atoll.sim import sockets
from atoll.sim.actors import Process, World
from atoll.train.asynchronous.local import Local
from atoll.train.asynchronous.server import Server
from atoll.train.asynchronous.worker import Worker
from atoll.train.checkpoint import load_newest
from atoll.train.settings import TrainSettings
from atoll.train.tasks import task_for
from tests.train.test_delayed_nesterov import Reference
from tests.train.tiny import STEP_S, corpus, folders_in, tiny

TEXT = corpus()


def settings(**changes: Any) -> TrainSettings:
    return tiny(strategy="diloco-server", **changes)


class Run:
    """One server, any number of workers."""

    def __init__(
        self, changed: TrainSettings | None = None, seed: int = 0, step_s: float = STEP_S, latency_s: float = 1e-4,
        outer_step_s: float = 0.0, **world: Any,
    ) -> None:  # fmt: skip
        def cost(op: costs.Op) -> float:
            return {"train_step": step_s, "outer_step": outer_step_s}.get(op.kind, 0.0)

        torch.set_num_threads(1)
        self.settings = changed or settings()
        self.world = World(Streams(), seed, cost=cost, latency_s=latency_s, **world)
        self.told: list[dict[str, Any]] = []
        self.servers: list[Server] = []

    def teller(self, name: str) -> Any:
        def report(event: str, **about: Any) -> None:
            self.told.append({"event": event, "peer": name, "at": self.world.heap.now_s, **about})

        return report

    def events(self, kind: str, peer: str | None = None) -> list[dict[str, Any]]:
        return [e for e in self.told if e["event"] == kind and peer in (None, e["peer"])]

    def serve(self, folder: Path | None = None, delay_s: float = 0.0, resume: bool = False) -> Process:
        async def main(runtime: Runtime) -> bool:
            report = self.teller("server")
            folders = folders_in(folder) if folder else None
            server = Server(runtime, self.settings, task_for(self.settings, TEXT), report, folders)
            self.servers.append(server)
            if resume:
                assert folders is not None
                server.resume(folders.checkpoint)
            return await server.run("server:48148")

        return self.world.start("server" if not delay_s else "server again", main, host="server", delay_s=delay_s)

    def work(self, name: str, min_world: int = 1, **options: Any) -> Process:
        changed = options.pop("settings", self.settings)
        reconnect_s = options.pop("reconnect_s", 30.0)

        async def main(runtime: Runtime) -> bool:
            worker = Worker(
                runtime, changed, task_for(changed, TEXT), self.teller(name), name=name, min_world=min_world,
                reconnect_s=reconnect_s,
            )  # fmt: skip
            return await worker.run("server:48148")

        return self.world.start(name, main, **options)

    def run(self) -> "Run":
        self.world.run(3600.0)
        return self

    @property
    def parameters(self) -> torch.Tensor:
        return self.servers[-1].outer.parameters

    def steps(self, peer: str | None = None) -> int:
        return len(self.events("step", peer))


def run_of(count: int, changed: TrainSettings | None = None, **world: Any) -> Run:
    run = Run(changed, **world)
    run.serve()
    for i in range(count):
        run.work(f"w{i}", count)
    return run


def alone(s: TrainSettings) -> np.ndarray[Any, Any]:
    """One worker, no network: rounds of local steps, then the paper's sums."""
    local = Local(s, task_for(s, TEXT))
    reference = Reference(local.model.parameters.numpy().astype(np.float64), *s.outer)
    for at in range(0, s.steps, s.every):
        theta = reference.x.astype("<f4")
        local.begin(memoryview(theta.tobytes()))
        for step in range(at, min(at + s.every, s.steps)):
            local.step(step * s.batch, step)
        reference.push(theta - local.model.parameters.numpy(), 1)
    return reference.x


def test_one_worker_takes_the_steps_it_would_take_without_a_network() -> None:
    s = settings(steps=10)
    run = run_of(1, s).run()
    np.testing.assert_allclose(run.parameters.numpy(), alone(s), rtol=1e-4, atol=1e-5)
    assert [e["step"] for e in run.events("step")] == list(range(1, 11))
    assert run.events("evaluated")[0]["loss"] > run.events("evaluated")[-1]["loss"]


def test_pushes_of_a_moment_are_the_rounds_of_diloco() -> None:
    """Equal workers, all merged: each round is one Nesterov step on the mean, as for whoever waits for all."""
    s = settings(grace=0.005)
    run = run_of(3, s).run()
    locals_ = [Local(s, task_for(s, TEXT)) for _ in range(3)]
    x = locals_[0].model.parameters.numpy().astype(np.float64)
    v, window = np.zeros_like(x), 0
    for at in range(0, s.steps, s.every):
        theta, deltas = x.astype("<f4"), []
        for local in locals_:
            local.begin(memoryview(theta.tobytes()))
            for i in range(s.every):
                local.step(window, at + i)
                window += s.batch
            deltas.append(theta - local.model.parameters.numpy().astype(np.float64))
        mean = np.mean(deltas, axis=0)
        v = s.outer.momentum * v + mean
        x = x - s.outer.rate * (mean + s.outer.momentum * v)
    np.testing.assert_allclose(run.parameters.numpy(), x, rtol=1e-3, atol=1e-4)
    assert {e["staleness"] for e in run.events("applied")} == {0}


def test_all_workers_hear_of_the_end_and_each_step_is_told() -> None:
    run = run_of(3).run()
    assert [len(run.events("done", name)) for name in ("w0", "w1", "w2", "server")] == [1, 1, 1, 1]
    assert run.steps() == 3 * run.settings.steps
    assert all(e["world"] == 3 for e in run.events("step"))
    assert {e["staleness"] for e in run.events("applied")} <= set(range(3))


@pytest.mark.parametrize("codec", ["bf16", "e3m0"])
def test_pushes_may_travel_by_a_codec(codec: str) -> None:
    run, plain = (run_of(2, settings(steps=24, codec=name)).run() for name in (codec, "none"))
    mine, theirs = run.events("evaluated")[-1]["loss"], plain.events("evaluated")[-1]["loss"]
    assert mine < run.events("evaluated")[0]["loss"]
    assert mine == pytest.approx(theirs, rel=0.1)
    a_push = [sum(e["sent"] for e in each.events("done")) / len(each.events("applied")) for each in (run, plain)]
    n = run.parameters.numel()
    assert a_push[1] == pytest.approx(8 * n, rel=0.01), "as much up as down"
    assert a_push[0] == pytest.approx(4 * n + {"bf16": 2, "e3m0": 4.125 / 8}[codec] * n, rel=0.02)


def test_nobody_waits_for_a_slower_one() -> None:
    run = Run(settings(steps=24, every=6))
    run.serve()
    run.work("quick", 2)
    run.work("slow", 2, slow=3.0)
    run.run()
    assert run.steps() == 48
    end = max(e["at"] for e in run.events("step"))
    together = 48 * STEP_S / (1 + 1 / 3)  # both busy all the time
    assert end < 1.15 * together < 24 * 3 * STEP_S * 0.6, "synchronous rounds take as long as the slow one does alone"
    assert run.steps("quick") > 2 * run.steps("slow")


def test_a_killed_worker_costs_the_others_no_pause() -> None:
    run = Run(settings(steps=60))
    run.serve()
    run.work("a", 3)
    victim = run.work("b", 3)
    run.work("c", 3)
    run.world.at(0.2, victim.crash)
    run.run()
    for name in ("a", "c"):
        moments = [e["at"] for e in run.events("step", name)]
        assert max(np.diff(moments)) < 1.5 * STEP_S
    assert "b" in run.events("went", "server")[0]["message"]
    assert run.events("step")[-1]["world"] == 2


def test_a_frozen_worker_is_lost_and_comes_back() -> None:
    run = Run(settings(steps=120, every=10, max_staleness=1000), step_s=0.1)
    run.serve()
    run.work("a", 2)
    sleeper = run.work("b", 2)
    run.world.at(2.003, sleeper.freeze)
    run.world.at(8.0, sleeper.thaw)
    run.run()
    changes = [(e["event"], e["message"]) for e in run.told if e["event"] in ("went", "came")]
    assert [kind for kind, _ in changes] == ["came", "came", "went", "came"]
    assert "is back" in changes[-1][1]
    old = max(e["staleness"] for e in run.events("applied") if e["who"] == "b")
    assert old >= 4
    assert run.events("done", "b")


def test_what_it_learnt_before_it_slept_is_dropped_when_that_is_too_old() -> None:
    run = Run(settings(steps=120, every=10, max_staleness=2), step_s=0.1)
    run.serve()
    run.work("a", 2)
    sleeper = run.work("b", 2)
    run.world.at(2.003, sleeper.freeze)
    run.world.at(8.0, sleeper.thaw)
    run.run()
    (dropped,) = run.events("dropped")
    assert dropped["who"] == "b"
    assert run.events("done", "b")


def test_equal_workers_take_equal_steps() -> None:
    run = run_of(3, settings(steps=40)).run()
    assert {e["steps"] for e in run.events("applied")} == {4}, "what clocks read is rounded, and no difference"


def test_a_worker_waits_too_while_a_slow_link_takes_what_it_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """However much of that its system takes at once."""
    waits = []
    for most in (1 << 20, 1 << 10):
        monkeypatch.setattr(sockets, "MOST_UNREAD", most)
        run = run_of(1, settings(steps=40), bytes_per_s=1e6).run()
        waits.append(sum(e["waited"] for e in run.events("step")))
    assert waits[1] == pytest.approx(waits[0], rel=0.01)
    assert waits[0] > 19 * 4 * run.parameters.numel() / 1e6, "10 there, 9 back"


def test_a_late_worker_takes_part() -> None:
    run = Run(settings(steps=100))
    run.serve()
    run.work("a")
    run.work("b", delay_s=0.3)
    run.run()
    assert run.steps("b") > 10
    assert run.events("step", "a")[0]["world"] == 1
    assert run.events("step", "a")[-1]["world"] == 2


def test_a_cut_network_is_as_a_lost_worker_and_its_return_as_a_new_one() -> None:
    run = Run(settings(steps=150, every=10, max_staleness=1000), step_s=0.1)
    run.serve()
    run.work("a", 2)
    run.work("b", 2)
    run.world.at(2.0, lambda: run.world.sockets.cut("b"))
    run.world.at(9.0, lambda: run.world.sockets.mend("b"))
    run.run()
    assert run.events("alone", "b")
    assert len(run.events("joined", "b")) == 2
    assert run.events("done", "b")
    assert max(np.diff([e["at"] for e in run.events("step", "a")])) < 0.15


def test_a_killed_server_goes_on_from_its_checkpoint_and_its_workers_find_it(tmp_path: Path) -> None:
    run = Run(settings(steps=120, every=5, save_every=10), step_s=0.05)
    server = run.serve(tmp_path)
    run.work("a", 2)
    run.work("b", 2)
    run.world.at(3.0, server.crash)
    run.serve(tmp_path, delay_s=6.0, resume=True)
    run.run()
    (resumed,) = run.events("resumed")
    assert 40 <= resumed["step"] < 60
    assert [len(run.events("alone", name)) for name in "ab"] == [1, 1]
    assert [len(run.events("done", name)) for name in "ab"] == [1, 1]
    before = [e["epoch"] for e in run.events("step") if e["at"] < 3.0]
    after = [e["epoch"] for e in run.events("step") if e["at"] > 7.0]
    assert max(before) < min(after)
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert run.events("evaluated")[-1]["loss"] < run.events("evaluated")[0]["loss"]


@pytest.mark.parametrize("at", [0.300, 0.301, 0.305])
def test_a_server_told_to_leave_saves_what_it_has_applied_and_no_more(at: float, tmp_path: Path) -> None:
    """Two workers' pushes; each takes 20 ms to apply, so that some are always waiting for that."""
    run = Run(settings(steps=100), outer_step_s=0.02)
    server = run.serve(tmp_path)
    run.work("a", 2)
    run.work("b", 2, slow=1.3)
    run.world.at(at, lambda: run.servers[0].leave())
    run.world.run(5.0)
    assert server.result is False
    tensors, about = load_newest(tmp_path / "checkpoint")
    assert about["desk"]["version"] == len(run.events("applied"))
    assert int(tensors["outer.counts"][0]) == about["desk"]["version"] % 2


def test_a_worker_that_finds_no_server_says_what_to_start() -> None:
    run = Run()
    run.work("a", reconnect_s=2.0)
    with pytest.raises(MasterLost, match="--strategy diloco-server --peers 0"):
        run.run()
    assert run.world.heap.now_s == pytest.approx(2.0, abs=0.5)


def test_who_trains_something_else_is_told_what_differs() -> None:
    run = Run()
    run.serve()
    run.work("other", settings=settings(lr=0.5))
    with pytest.raises(InvalidConfig, match=r"lr 0.002 there, 0.5 here"):
        run.run()


def test_what_is_no_number_is_refused_by_name_and_everybody_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(2, settings(steps=20))
    honest, calls = Local.contribution, []

    def sometimes(self: Local, first: int) -> Any:
        calls.append(first)
        if len(calls) == 3:
            self.model.parameters[0] = float("nan")
        return honest(self, first)

    monkeypatch.setattr(Local, "contribution", sometimes)
    run.run()
    (refused,) = run.events("refused")
    assert refused["who"] in ("w0", "w1")
    assert torch.isfinite(run.parameters).all()
    assert all(run.events("done", name) for name in ("w0", "w1"))


def test_a_checkpoint_of_another_run_or_of_another_strategy_is_refused(tmp_path: Path) -> None:
    run = Run(settings(steps=8, save_every=4))
    run.serve(tmp_path)
    run.work("a")
    run.run()
    for changed, error in ((settings(steps=8, save_every=4, seed=1), InvalidConfig), (run.settings, None)):
        again = Run(changed)
        again.serve(tmp_path, resume=True)
        if error is None:
            again.world.run(1.0)
            assert again.events("resumed")[0]["step"] == 8
        else:
            with pytest.raises(error, match="seed 0 there, 1 here"):
                again.world.run(1.0)
    lost = Run()
    lost.serve(tmp_path / "nowhere", resume=True)
    with pytest.raises(InvalidData, match="holds no checkpoint"):
        lost.world.run(1.0)


def test_the_same_seed_gives_the_same_run() -> None:
    def once() -> tuple[list[dict[str, Any]], torch.Tensor]:
        run = Run(settings(steps=40), tie_break=5)
        run.serve()
        run.work("a", 2)
        victim = run.work("b", 2, slow=1.7)
        run.work("c", delay_s=0.2)
        run.world.at(0.3, victim.crash)
        run.run()
        return run.told, run.parameters

    (told, parameters), (again, others) = once(), once()
    assert told == again
    assert torch.equal(parameters, others)


@pytest.mark.parametrize(
    ("field", "changes"),
    [("grace", {"grace": -1.0}), ("grace", {"grace": float("inf")}), ("max-staleness", {"max_staleness": 0}),
     ("down", {"codec": "int4", "down": "bf16"}), ("delay", {"delay": 1})],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=f"--{field}"):
        settings(**changes)
