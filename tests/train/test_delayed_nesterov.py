"""Delayed Nesterov and the desk before it, against formulas in NumPy and under thousands of seeded schedules."""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.group.membership.roster import SILENT_S, Gone, Tick
from atoll.group.messages import Beat, Bye
from atoll.train.asynchronous.desk import Accepted, Came, Changed, Desk, Dropped, Finish, Pushed, Save, Work
from atoll.train.asynchronous.nesterov import DelayedNesterov

N = 11


def numbers(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=N).astype(np.float32))


@dataclass
class Reference:
    """The paper's sums, in float64; a mean is of as many pushes as there were workers at the first of them."""

    x: np.ndarray[Any, Any]
    rate: float
    beta: float
    share: float = 0.0
    v: Any = 0.0
    pushes: list[Any] = field(default_factory=list)
    of: int = 0

    def push(self, g: Any, workers: int) -> None:
        if not self.pushes:
            self.of = workers
        self.pushes.append(np.asarray(g, np.float64))
        n = self.of
        c = self.share / n
        if len(self.pushes) == n:
            self.v = self.beta * self.v + sum(self.pushes) / n
            self.x = self.x - self.rate * ((1 - c * n + c) * self.beta * self.v + self.pushes[-1] / n)
            self.pushes = []
        else:
            self.x = self.x - self.rate * (c * self.beta * self.v + self.pushes[-1] / n)


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_n_pushes_of_the_same_are_one_nesterov_step(workers: int) -> None:
    start, g, rate, beta = numbers(0), numbers(1), 0.7, 0.9
    outer = DelayedNesterov(start.clone(), rate, beta)
    for _ in range(workers):
        outer.push(g.clone(), workers)
    torch.testing.assert_close(outer.parameters, start - rate * (1 + beta) * g)
    torch.testing.assert_close(outer.velocity, g)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("workers", [1, 3])
def test_rounds_are_torchs_nesterov_on_the_mean_when_no_momentum_goes_ahead(workers: int, share: float) -> None:
    outer = DelayedNesterov(numbers(0), 0.7, 0.9, share)
    parameter = torch.nn.Parameter(numbers(0))
    torchs = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    for step in range(4):
        some = [numbers(10 * step + i) for i in range(workers)]
        for g in some:
            outer.push(g.clone(), workers)
        parameter.grad = torch.stack(some).mean(0)
        torchs.step()
        torch.testing.assert_close(outer.velocity, torchs.state[parameter]["momentum_buffer"], rtol=1e-5, atol=1e-6)
    if share == 0 or workers == 1:
        torch.testing.assert_close(outer.parameters, parameter.detach(), rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=30), st.floats(0.01, 2), st.floats(0, 0.99), st.floats(0, 1),
    st.integers(0, 1000),
)  # fmt: skip
def test_it_is_its_formula_whoever_comes_and_goes(
    workers: list[int], rate: float, beta: float, share: float, seed: int
) -> None:
    outer = DelayedNesterov(numbers(seed), rate, beta, share)
    reference = Reference(numbers(seed).numpy().astype(np.float64), rate, beta, share)
    for i, there in enumerate(workers):
        outer.push(numbers(seed + i + 1), there)
        reference.push(numbers(seed + i + 1).numpy(), there)
        np.testing.assert_allclose(outer.parameters.numpy(), reference.x, rtol=2e-4, atol=2e-4)


def test_who_holds_the_old_parameters_may_go_on_sending_them() -> None:
    outer = DelayedNesterov(numbers(0), 0.7, 0.9)
    held = outer.parameters
    outer.push(numbers(1), 2)
    assert torch.equal(held, numbers(0))


def test_its_memory_restores_it_in_the_middle_of_a_mean() -> None:
    first, again = (DelayedNesterov(numbers(0), 0.7, 0.9) for _ in range(2))
    for i in range(4):
        first.push(numbers(i), 3)
    again.restore({name: tensor.clone() for name, tensor in first.memory().items()})
    for outer in (first, again):
        for i in range(4, 9):
            outer.push(numbers(i), 3)
    assert torch.equal(first.parameters, again.parameters)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"momentum": 1.0}, {"share": 1.5}, {"share": -0.1}])
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(wrong))):
        DelayedNesterov(numbers(0), **{"rate": 0.7, "momentum": 0.9, **wrong})
    with pytest.raises(ValueError, match="workers"):
        DelayedNesterov(numbers(0), 0.7, 0.9).push(numbers(1), 0)


# -- the desk ----------------------------------------------------------------------------------------------------------


def desk(**changes: Any) -> Desk:
    return Desk(**{"steps": 40, "every": 5, "batch": 2, **changes})


def only(actions: list[Any], kind: type) -> list[Any]:
    return [action for action in actions if isinstance(action, kind)]


def test_nobody_begins_before_enough_are_there() -> None:
    d = desk()
    assert only(d.handle(1, Came("a", 2), 0.0), Work) == []
    works = only(d.handle(2, Came("b", 2), 0.1), Work)
    assert [(w.who, w.steps, w.first, w.rank, w.world) for w in works] == [(1, 5, 0, 0, 2), (2, 5, 10, 1, 2)]
    assert only(d.handle(3, Came("c", 9), 0.2), Work), "who comes later waits for nobody"


def test_slower_workers_take_as_many_steps_as_they_can_meanwhile() -> None:
    d = desk(every=12)
    d.handle(1, Came("a", 2), 0.0)
    d.handle(2, Came("b", 2), 0.0)
    assert only(d.handle(1, Pushed(0, 12, 1.2, "g"), 1.2), Work)[0].steps == 12
    assert only(d.handle(2, Pushed(0, 12, 3.6, "g"), 3.6), Work)[0].steps == 4
    d.handle(3, Came("c"), 3.7)
    assert only(d.handle(1, Pushed(1, 12, 6.0, "g"), 6.0), Work)[0].steps == 7
    assert d.world == 3


def test_the_slowest_takes_one_step_at_least() -> None:
    d = desk()
    for who in (1, 2):
        d.handle(who, Came(str(who), 2), 0.0)
    d.handle(1, Pushed(0, 5, 0.001, "g"), 0.1)
    assert only(d.handle(2, Pushed(0, 5, 500.0, "g"), 500.0), Work)[0].steps == 1


def test_pushes_within_the_grace_are_one_version_and_nobody_pulls_before() -> None:
    d = desk(grace_s=0.5)
    for who in (1, 2, 3):
        d.handle(who, Came(str(who), 3), 0.0)
    assert d.handle(1, Pushed(0, 5, 1.0, "g1"), 1.0) == []
    assert d.due == 1.5
    assert d.handle(2, Pushed(0, 5, 1.3, "g2"), 1.3) == []
    actions = d.handle(0, Tick(), 1.5)
    assert [(a.name, a.gradient, a.version, a.staleness) for a in only(actions, Accepted)] == [
        ("1", "g1", 1, 0), ("2", "g2", 1, 0)
    ]  # fmt: skip
    assert [(w.who, w.version) for w in only(actions, Work)] == [(1, 1), (2, 1)]
    late = d.handle(3, Pushed(0, 5, 2.0, "g3"), 2.0) + d.handle(0, Tick(), 2.5)
    assert only(late, Accepted)[0].staleness == 1
    assert d.version == 2


def test_what_was_pushed_by_who_has_gone_since_counts_under_its_name() -> None:
    d = desk(grace_s=0.5)
    for who, name in ((1, "a"), (2, "b")):
        d.handle(who, Came(name, 2), 0.0)
    d.handle(2, Pushed(0, 5, 1.0, "g"), 1.0)
    d.handle(2, Gone(), 1.1)
    assert [a.name for a in only(d.handle(0, Tick(), 1.5), Accepted)] == ["b"]


@pytest.mark.parametrize("seconds", [0.0, 5e-324, 1e-305, 1e305, float("inf")])
def test_a_worker_whose_clock_says_nonsense_gets_work_and_so_do_the_others(seconds: float) -> None:
    d = desk(steps=1000)
    for who in (1, 2):
        d.handle(who, Came(str(who), 2), 0.0)
    for version in range(2):
        for who in (1, 2):
            (work,) = only(d.handle(who, Pushed(version, 5, seconds if who == 1 else 1.0, "g"), 1.0), Work)
            assert 1 <= work.steps <= 5


def test_a_push_older_than_so_many_rounds_is_dropped_and_its_worker_goes_on() -> None:
    d = desk(steps=1000, max_staleness=2)
    for who in (1, 2):
        d.handle(who, Came(str(who), 2), 0.0)
    for version in range(5):
        d.handle(1, Pushed(version, 5, 1.0, "g"), 1.0)
    actions = d.handle(2, Pushed(0, 5, 9.0, "old"), 1.0)
    assert only(actions, Dropped) == [Dropped("2", 5, refused=False)]
    assert only(actions, Work)[0].version == 5
    assert d.version == 5


def test_what_comes_when_all_is_done_is_not_called_too_old() -> None:
    d = desk(steps=5)
    for who in (1, 2):
        d.handle(who, Came(str(who), 2), 0.0)
    d.handle(1, Beat(1, b"", "running", b""), 1.0)
    d.handle(0, Tick(), 20.0)
    d.handle(1, Pushed(0, 5, 1.0, "g"), 20.1)  # the only one left
    while not d.over:
        d.handle(1, Pushed(d.version, 1, 1.0, "g"), 20.2)
    assert [type(action) for action in d.handle(2, Pushed(0, 5, 1.0, "g"), 20.3)] == [Changed, Finish]


def test_what_is_no_number_is_refused_and_its_worker_goes_on() -> None:
    d = desk()
    d.handle(1, Came("a"), 0.0)
    actions = d.handle(1, Pushed(0, 5, 1.0, None), 1.0)
    assert only(actions, Dropped) == [Dropped("a", 0, refused=True)]
    assert (d.version, d.taken) == (0, 0)
    assert len(only(actions, Work)) == 1


def test_a_silent_worker_is_lost_and_back_with_its_next_word() -> None:
    d = desk(steps=1000)
    for who in (1, 2):
        d.handle(who, Came(f"w{who}", 2), 0.0)
        d.handle(who, Beat(who, b"", "running", b""), 0.0)
    actions = []
    for tenth in range(1, 40):
        d.handle(1, Beat(1, b"", "running", b""), tenth / 10)
        actions += d.handle(0, Tick(), tenth / 10)
    (lost,) = only(actions, Changed)
    assert (lost.went, lost.world, d.world) == (True, 1, 1)
    assert "w2" in lost.what
    actions = d.handle(2, Pushed(0, 5, 4.0, "g"), 4.0)
    assert "back" in only(actions, Changed)[0].what
    assert only(actions, Accepted)[0].workers == 2
    assert d.epoch == 4


def test_what_a_lost_worker_was_at_is_given_to_others() -> None:
    d = desk(steps=5)
    for who in (1, 2):
        d.handle(who, Came(str(who), 2), 0.0)
    assert only(d.handle(1, Pushed(0, 5, 1.0, "g"), 1.0), Work) == [], "the other one has the rest"
    (again,) = only(d.handle(2, Gone(), 1.5), Work)
    assert (again.who, again.first) == (1, 20)
    steps = again.steps
    actions = d.handle(1, Pushed(1, steps, 1.0, "g"), 2.0)
    assert d.over or only(actions, Work)


def test_nothing_is_taken_of_who_was_given_nothing() -> None:
    d = desk()
    d.handle(1, Came("a"), 0.0)
    d.handle(1, Pushed(0, 5, 1.0, "g"), 1.0)
    version = d.version
    assert d.handle(7, Pushed(0, 5, 1.0, "g"), 1.0) == []
    d.handle(2, Came("b"), 1.1)
    d.handle(2, Pushed(1, 1, 1.0, "g"), 1.2)
    assert d.version == version + 1
    d.handle(1, Pushed(1, 1, 1.0, "g"), 1.3)
    once = d.version
    d.handle(3, Came("c"), 99.0)
    assert d.version == once


def test_a_restored_desk_goes_on_and_never_hands_out_a_window_twice() -> None:
    d = desk(steps=400)
    d.handle(1, Came("a"), 0.0)
    for version in range(3):
        d.handle(1, Pushed(version, 5, 1.0, "g"), 1.0)
    kept = d.remembered()
    d.handle(1, Pushed(3, 5, 1.0, "g"), 1.0)
    used, epoch = d.cursor, d.epoch
    again = desk(steps=400)
    again.restore(kept)
    assert again.remembered() == kept
    (change,) = only(again.handle(1, Came("a", used=used, epoch=epoch, holds=True), 0.0), Changed)
    assert change.epoch > epoch
    actions = again.handle(1, Pushed(4, 5, 1.0, "g"), 0.1)
    assert only(actions, Accepted)[0].staleness == 1, "a version that was lost is as far away as one of the past"
    assert only(actions, Work)[0].first >= used
    assert again.taken == Fraction(20)


def test_it_is_saved_every_so_many_steps() -> None:
    d = desk(steps=40, save_every=10)
    d.handle(1, Came("a"), 0.0)
    saves = [bool(only(d.handle(1, Pushed(v, 5, 1.0, "g"), 1.0), Save)) for v in range(8)]
    assert saves == [False, True, False, True, False, True, False, False]


# -- schedules ---------------------------------------------------------------------------------------------------------


class Play:
    """A schedule from a seed: workers of unequal speed that come, vanish, fall silent, come back, push nonsense."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.steps, self.every, self.batch = rng.randint(1, 60), rng.randint(1, 9), rng.randint(1, 3)
        self.grace = rng.choice([0.0, 0.0, 0.05, 0.5])
        self.desk = Desk(
            steps=self.steps, every=self.every, batch=self.batch, grace_s=self.grace,
            max_staleness=rng.choice([1, 3, 10]), save_every=rng.choice([0, 7]),
        )  # fmt: skip
        self.outer = DelayedNesterov(numbers(seed), 0.5, 0.8)
        self.reference = Reference(numbers(seed).numpy().astype(np.float64), 0.5, 0.8)
        self.events: list[tuple[float, int, Any]] = []
        self.count = 0
        self.now = 0.0
        self.seconds: dict[int, float] = {}
        self.silent: set[int] = set()
        self.connected: set[int] = set()
        self.at_work: dict[int, Work] = {}
        self.windows: Counter[int] = Counter()
        self.finished: set[int] = set()
        self.gradients = 0

    def post(self, delay: float, fn: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay, self.count, fn))

    def run(self) -> None:
        first = self.rng.randint(1, 5)
        for who in range(1, first + 1):
            self.post(self.rng.random(), lambda who=who: self.come(who, first))
        for who in range(first + 1, first + 1 + self.rng.randint(0, 3)):
            self.post(self.rng.uniform(0, 20), lambda who=who: self.come(who, 1))
        self.post(0.25, self.tick)
        while self.events and not (self.desk.over and self.connected <= self.finished):
            self.now, _, fn = heapq.heappop(self.events)
            assert self.now < 3000, "it has no end"
            fn()

    def tick(self) -> None:
        for who in sorted(self.connected - self.silent):
            self.tell(who, Beat(who, b"", "running", b""))
        self.tell(0, Tick())
        self.post(0.25, self.tick)

    def come(self, who: int, min_world: int) -> None:
        self.connected.add(who)
        self.seconds[who] = self.rng.choice([0.01, 0.02, 0.1, 0.3])
        self.tell(who, Came(f"w{who}", min_world))
        if who > 1:  # the first one always stays, so that there is an end
            if self.rng.random() < 0.3:
                self.post(self.rng.uniform(1.1, 15), lambda: self.go(who))
            elif self.rng.random() < 0.3:
                self.post(self.rng.uniform(1.1, 10), lambda: self.freeze(who))

    def go(self, who: int) -> None:
        if who in self.connected:
            self.connected.discard(who)
            self.at_work.pop(who, None)
            self.tell(who, self.rng.choice([Gone(), Bye()]))

    def freeze(self, who: int) -> None:
        self.silent.add(who)
        self.post(self.rng.uniform(0.1, 3 * SILENT_S), lambda: self.silent.discard(who))

    def push(self, who: int, work: Work) -> None:
        if self.at_work.get(who) is not work or who not in self.connected:
            return
        if who in self.silent:
            self.post(0.3, lambda: self.push(who, work))
            return
        del self.at_work[who]
        self.gradients += 1
        handle = None if self.rng.random() < 0.05 else self.gradients
        self.tell(who, Pushed(work.version, work.steps, work.steps * self.seconds[who], handle))

    def tell(self, who: int, event: Any) -> None:
        before = self.desk.version
        actions = self.desk.handle(who, event, self.now)
        if self.desk.due is not None:
            self.post(self.desk.due - self.now, lambda: self.tell(0, Tick()))
        accepted = only(actions, Accepted)
        assert self.desk.version - before == (len(accepted) > 0)
        for action in actions:
            match action:
                case Accepted():
                    assert action.version == self.desk.version
                    assert action.staleness <= self.desk.max_staleness * max(1, action.workers) + 8
                    self.outer.push(numbers(action.gradient), action.workers)
                    self.reference.push(numbers(action.gradient).numpy(), action.workers)
                case Work():
                    self.work(action)
                case Finish():
                    assert self.desk.over
                    self.finished.add(action.who)

    def work(self, work: Work) -> None:
        assert work.who in self.connected
        assert work.who not in self.at_work, "nobody has two things to do"
        assert 1 <= work.steps <= self.every
        assert (work.version, work.epoch) == (self.desk.version, self.desk.epoch)
        assert 0 <= work.rank < work.world
        assert work.position < self.steps
        self.windows.update(range(work.first, work.first + work.steps * self.batch))
        self.at_work[work.who] = work
        self.post(work.steps * self.seconds[work.who], lambda: self.push(work.who, work))


def check(seed: int) -> None:
    play = Play(seed)
    try:
        play.run()
    except AssertionError as error:
        error.add_note(f"seed {seed}")
        raise
    assert play.desk.over, f"seed {seed}"
    assert play.connected <= play.finished, f"seed {seed}: somebody waits for ever"
    assert set(play.windows.values()) == {1}, f"seed {seed}: a window was used twice"
    np.testing.assert_allclose(play.outer.parameters.numpy(), play.reference.x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seeds", [range(60)], ids=["60 of them"])
def test_schedules_end_use_each_window_once_and_follow_the_formula(seeds: range) -> None:
    for seed in seeds:
        check(seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("start", range(0, 10_000, 2_500))
def test_thousands_of_schedules(start: int) -> None:
    for seed in range(1000 + start, 1000 + start + 2_500):
        check(seed)
