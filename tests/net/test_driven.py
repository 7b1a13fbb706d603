"""Who turns the loop: its own thread while no program waits, the program's thread while it does; never two at once."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from atoll.net.driven import PARK_S, DrivenLoop
from atoll.net.loop import SocketLoop
from atoll.net.preamble import Greeting


class Failures(list[Exception]):
    """What a loop reported."""


@pytest.fixture
def failures() -> Failures:
    return Failures()


@pytest.fixture
def loop(failures: Failures) -> Iterator[DrivenLoop]:
    driven = DrivenLoop(SocketLoop(Greeting("test")), "test-loop", failures.append)
    driven.start()
    yield driven
    driven.close(lambda: None)


def soon(loop: DrivenLoop, fn: Callable[[], object], seconds: float = 0.0) -> None:
    loop.call(lambda: loop.net.after(seconds, fn))


def test_a_call_runs_at_once_in_the_callers_thread(loop: DrivenLoop) -> None:
    ran: list[threading.Thread] = []
    loop.call(lambda: ran.append(threading.current_thread()))
    assert ran == [threading.current_thread()]


def test_while_no_program_waits_the_loops_thread_turns_it(loop: DrivenLoop) -> None:
    ran: list[str] = []
    done = threading.Event()
    soon(loop, lambda: (ran.append(threading.current_thread().name), done.set()))
    assert done.wait(5.0)
    assert ran == ["test-loop"]


def test_a_program_that_waits_turns_it_itself(loop: DrivenLoop) -> None:
    ran: list[threading.Thread] = []
    loop.call(lambda: loop.net.after(0.05, lambda: ran.append(threading.current_thread())))
    assert loop.drive(lambda: bool(ran), 5.0)
    assert ran == [threading.current_thread()]


def test_afterwards_the_loops_thread_takes_over_again(loop: DrivenLoop) -> None:
    for drove_s in (0.0, 0.05):  # a short wait hands over by itself, a long one says so
        assert loop.drive(lambda: False, drove_s)
        done = threading.Event()
        began = time.monotonic()
        loop.call(lambda done=done: loop.net.after(0.0, done.set))
        assert done.wait(5.0)
        assert time.monotonic() - began < 1.0


def test_after_a_long_wait_the_loops_thread_does_not_sleep_on(
    loop: DrivenLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It parks ever longer while one program drives on; that patience must not outlast the drive."""
    parked: list[tuple[float, bool]] = []
    wait = threading.Event.wait

    def record(event: threading.Event, timeout: float | None = None) -> bool:
        woken = wait(event, timeout)
        if threading.current_thread().name == "test-loop":
            parked.append((timeout or 0.0, woken))
        return woken

    monkeypatch.setattr(threading.Event, "wait", record)
    loop.drive(lambda: False, 0.2)
    parked.clear()
    done = threading.Event()
    soon(loop, done.set)
    assert done.wait(5.0)
    assert not [park_s for park_s, woken in parked if park_s > PARK_S and not woken]


def test_a_wait_ends_when_its_time_is_up(loop: DrivenLoop) -> None:
    began = time.monotonic()
    assert loop.drive(lambda: False, 0.05)
    assert 0.05 <= time.monotonic() - began < 2.0


def test_only_one_program_thread_turns_it(loop: DrivenLoop) -> None:
    entered, leave = threading.Event(), threading.Event()

    def waits() -> bool:
        entered.set()
        return leave.is_set()

    first = threading.Thread(target=loop.drive, args=(waits, 10.0))
    first.start()
    assert entered.wait(5.0)
    assert not loop.drive(lambda: False, 10.0)  # at once: the other one does it
    leave.set()
    loop.net.ring()
    first.join(5.0)
    assert not first.is_alive()


def test_callbacks_never_overlap(loop: DrivenLoop) -> None:
    inside, overlaps, count = [0], [0], [0]

    def callback() -> None:
        inside[0] += 1
        overlaps[0] += inside[0] > 1
        time.sleep(0.0005)
        inside[0] -= 1
        count[0] += 1

    def program() -> None:
        for _ in range(50):
            loop.call(callback)
            soon(loop, callback)
            loop.drive(lambda: False, 0.002)

    threads = [threading.Thread(target=program) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    loop.drive(lambda: count[0] >= 300, 10.0)
    assert count[0] == 300
    assert overlaps[0] == 0


def test_a_callback_that_raises_ends_the_loop_once_and_nobody_hangs(loop: DrivenLoop, failures: Failures) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    soon(loop, fail)
    assert not loop.drive(lambda: False, 5.0) or loop.closed
    assert [str(f) for f in failures] == ["a bug"]
    assert not loop.drive(lambda: False, 5.0)


def test_an_idle_loop_takes_no_cpu(loop: DrivenLoop) -> None:
    loop.drive(lambda: False, 0.001)
    began, used = time.monotonic(), time.process_time()
    threading.Event().wait(1.0)
    assert time.process_time() - used < 0.02 * (time.monotonic() - began)
