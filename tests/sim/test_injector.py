"""Faults strike and end at their times, processes come back as new incarnations, and known laws of failure hold."""

import math
from collections.abc import Callable

import pytest

from atoll.errors import InvalidData
from atoll.rng import stream
from atoll.sim.clocks import Exponential, Fixed
from atoll.sim.faults import Crash, Fault, Hang, LinkDown, Preempt, Slow, Timed, Trigger, by_clock, each, repeated
from atoll.sim.injector import Injector
from atoll.sim.loop import Loop


class Diary:
    """A target that writes down what it suffers."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.lines: list[tuple[float, str, object]] = []

    def apply(self, fault: Fault) -> None:
        self.lines.append((self.loop.now_s, "apply", fault))

    def lift(self, fault: Fault) -> None:
        self.lines.append((self.loop.now_s, "lift", fault))

    def restart(self, node: str, incarnation: int) -> None:
        self.lines.append((self.loop.now_s, "restart", (node, incarnation)))


def played(*faults: Timed, until_s: float = math.inf) -> list[tuple[float, str, object]]:
    loop = Loop()
    diary = Diary(loop)
    Injector(loop, diary).play(faults, until_s)
    loop.run()
    return diary.lines


def test_what_lasts_is_lifted_and_what_crashed_restarts_as_another_incarnation() -> None:
    slow, crash = Slow("a", 2), Crash("b")
    assert played(Timed(1, slow, 5), Timed(2, crash, 1), Timed(4, crash, 1), Timed(9, crash)) == [
        (1, "apply", slow),
        (2, "apply", crash),
        (3, "restart", ("b", 2)),
        (4, "apply", crash),
        (5, "restart", ("b", 3)),
        (6, "lift", slow),
        (9, "apply", crash),
    ]


def test_what_hits_a_process_that_is_down_does_nothing() -> None:
    crash = Crash("a")
    faults = [Timed(1, crash, 9), Timed(2, crash, 1), Timed(3, Hang("a"), 1), Timed(4, Preempt("a", 1), 1)]
    assert played(*faults) == [(1, "apply", crash), (10, "restart", ("a", 2))]


def test_notice_comes_before_the_crash() -> None:
    notice = Preempt("a", notice_s=30)
    assert played(Timed(10, notice, for_s=100)) == [
        (10, "apply", notice),
        (40, "apply", Crash("a")),
        (140, "restart", ("a", 2)),
    ]


def test_a_process_that_crashed_after_its_notice_is_not_taken_away_again() -> None:
    notice = Preempt("a", notice_s=30)
    lines = played(Timed(10, notice, for_s=100), Timed(20, Crash("a"), for_s=5))
    assert lines == [(10, "apply", notice), (20, "apply", Crash("a")), (25, "restart", ("a", 2))]


def test_the_hang_of_a_process_ends_with_the_process() -> None:
    hang = Hang("a")
    down = [(1, "apply", hang), (2, "apply", Crash("a"))]
    assert played(Timed(1, hang, for_s=5), Timed(2, Crash("a"))) == down
    assert played(Timed(1, hang, for_s=5), Timed(2, Crash("a"), for_s=1)) == [*down, (3, "restart", ("a", 2))]
    assert played(Timed(1, hang, for_s=5)) == [(1, "apply", hang), (6, "lift", hang)]


def test_an_endless_stream_stops_where_it_should() -> None:
    faults = by_clock(LinkDown("l"), Fixed(2), Fixed(1), stream(0, "x"))
    assert [when for when, _, _ in played(*repeated(Timed(2, LinkDown("l"), 1), 3, 3))] == [2, 3, 5, 6, 8, 9]
    loop = Loop()
    diary = Diary(loop)
    Injector(loop, diary).play(faults, until_s=8.5)
    loop.run()
    assert [when for when, _, _ in diary.lines] == [2, 3, 5, 6, 8, 9]


def test_stopping_leaves_nothing_behind() -> None:
    loop = Loop()
    diary = Diary(loop)
    injector = Injector(loop, diary)
    injector.play([Timed(1, Slow("a", 2), 5), Timed(3, Crash("a"))])
    injector.watch(Trigger("send", Crash("b")))
    loop.run(until_ns=2 * 10**9)
    injector.stop()
    injector.saw("send")
    loop.run()
    assert (len(diary.lines), loop.now_s) == (1, 1)


def test_faults_out_of_order_are_refused() -> None:
    with pytest.raises(InvalidData, match=r"Crash\(node='a'.*sort"):
        played(Timed(2, Crash("b")), Timed(1, Crash("a")))


def test_a_trigger_strikes_before_the_world_goes_on() -> None:
    loop = Loop()
    diary = Diary(loop)
    injector = Injector(loop, diary)
    injector.watch(Trigger("send", Crash("rank2"), where={"step": 7, "rank": 2}, nth=3, for_s=1))
    for i in range(5):
        injector.saw("send", step=7, rank=1)
        injector.saw("send", step=7, rank=2)
        assert ("rank2" in injector.down) == (i >= 2)
    loop.run()
    assert diary.lines == [(0, "apply", Crash("rank2")), (1, "restart", ("rank2", 2))]
    assert injector.incarnation["rank2"] == 2


class Job:
    """Works in intervals, each followed by a checkpoint; a crash throws it back to the last one."""

    def __init__(self, loop: Loop, interval_s: float, write_s: float, intervals: int, done: Callable[[], None]) -> None:
        self.loop, self.left, self.done = loop, intervals, done
        self.turn_ns = round((interval_s + write_s) * 1e9)
        self._start()

    def _start(self) -> None:
        self.token = self.loop.post(self.turn_ns, self._saved)

    def _saved(self) -> None:
        self.left -= 1
        if self.left:
            self._start()
        else:
            self.done()

    def apply(self, fault: Fault) -> None:
        self.loop.cancel(self.token)

    def lift(self, fault: Fault) -> None:
        raise AssertionError

    def restart(self, node: str, incarnation: int) -> None:
        self._start()


def seconds_to_work(work_s: float, interval_s: float, write_s: float, mtbf_s: float, down_s: float, seed: int) -> float:
    loop, intervals = Loop(), math.ceil(work_s / interval_s)
    job = Job(loop, interval_s, write_s, intervals, done=lambda: injector.stop())
    injector = Injector(loop, job)
    injector.play(each([Crash("job")], Exponential(mtbf_s), Fixed(down_s), seed))
    loop.run()
    return loop.now_s * work_s / (intervals * interval_s)


def daly(work_s: float, interval_s: float, write_s: float, mtbf_s: float, down_s: float) -> float:
    """The expected time, exact for exponential failures (Daly, 2006), if none strikes while it is down."""
    turns = work_s / interval_s
    return turns * (mtbf_s + down_s) * math.expm1((interval_s + write_s) / mtbf_s)


def test_the_time_of_a_job_with_checkpoints_is_dalys() -> None:
    for interval_s in (30.0, 120.0, 500.0):
        setting = (200_000.0, interval_s, 10.0, 700.0, 20.0)
        assert seconds_to_work(*setting, seed=0) == pytest.approx(daly(*setting), rel=0.06)


@pytest.mark.parametrize(("write_s", "mtbf_s"), [(10, 4000), (2, 1000), (60, 20_000)])
def test_the_best_interval_between_checkpoints_is_youngs(write_s: float, mtbf_s: float) -> None:
    young = math.sqrt(2 * write_s * mtbf_s)
    grid = [young * 2 ** (i / 4) for i in range(-8, 9)]
    times = [seconds_to_work(8000 * young, tau, write_s, mtbf_s, 0, seed=0) for tau in grid]
    best = grid[times.index(min(times))]
    assert young / 1.5 < best < young * 1.5
    assert min(times) < 0.95 * min(times[0], times[-1])
