from collections.abc import Callable

import pytest

from atoll.reproduce.calibration.hosts import Machine, Thread, Work
from atoll.sim.loop import Loop

MS = Work(1e-3)


class Company:
    """Threads of one machine, and what they do when."""

    def __init__(self, cores: int = 2, memory: float = 2.0, wake_s: float = 0.0, turn_s: float = 0.0) -> None:
        self.loop = Loop()
        self.machine = Machine(self.loop, cores, memory)
        self.wake_s, self.turn_s = wake_s, turn_s
        self.did: dict[str, float] = {}

    def thread(self) -> Thread:
        return Thread(self.machine, self.wake_s, self.turn_s)

    def note(self, name: str) -> Callable[[], None]:
        def noted() -> None:
            self.did[name] = round(self.loop.now_s * 1e3, 6)

        return noted


def test_a_thread_does_one_thing_after_another() -> None:
    company = Company()
    thread = company.thread()
    for name in "abc":
        thread.hear(MS, company.note(name))
    company.loop.run()
    assert company.did == {"a": 1, "b": 2, "c": 3}


def test_what_a_handler_sends_goes_before_what_waits() -> None:
    company = Company()
    thread = company.thread()

    def handle() -> None:
        thread.send(MS, company.note("first"))
        thread.send(MS, company.note("second"))

    thread.hear(MS, handle)
    thread.hear(MS, company.note("waited"))
    company.loop.run()
    assert company.did == {"first": 2, "second": 3, "waited": 4}


@pytest.mark.parametrize(("cores", "ends_ms"), [(1, 3), (2, 1.5), (3, 1)])
def test_threads_share_the_cores(cores: int, ends_ms: float) -> None:
    company = Company(cores, memory=cores)
    for name in "abc":
        company.thread().hear(MS, company.note(name))
    company.loop.run()
    assert set(company.did.values()) == {ends_ms}


def test_only_work_on_bytes_waits_for_memory() -> None:
    company = Company(cores=2, memory=1.25)
    company.thread().hear(Work.of(0.0, 1e-3), company.note("a"))
    company.thread().hear(Work.of(0.0, 1e-3), company.note("b"))
    company.loop.run()
    assert company.did == pytest.approx({"a": 1.6, "b": 1.6})
    company = Company(cores=2, memory=1.25)
    company.thread().hear(Work.of(0.0, 1e-3), company.note("a"))
    company.thread().hear(MS, company.note("b"))
    company.loop.run()
    assert company.did == pytest.approx({"a": 1.0, "b": 1.0})


def test_waking_up_is_paid_once_for_all_that_waits() -> None:
    company = Company(wake_s=1e-3, turn_s=2e-3)
    thread = company.thread()
    thread.hear(MS, company.note("a"))
    thread.hear(MS, company.note("b"))
    company.loop.run()
    assert company.did == {"a": 4, "b": 5}
    thread.hear(MS, company.note("later"))
    company.loop.run()
    assert company.did["later"] == 9


def test_a_thread_that_has_ended_does_nothing_more() -> None:
    company = Company()
    thread = company.thread()
    thread.hear(MS, company.note("a"))
    thread.hear(MS, company.note("b"))
    company.loop.post(1_500_000, thread.end)
    company.loop.run()
    assert company.did == {"a": 1}
    assert thread.ended
