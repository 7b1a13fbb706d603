"""Asyncio in virtual time: the same primitives, exact and repeatable time, no way out into the real world."""

import asyncio
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from atoll.errors import Deadlock, RealIoInVirtualTime
from atoll.sim.aio import VirtualEventLoop, run
from atoll.sim.loop import Loop, Program

YEAR_S = 365 * 24 * 3600


def now() -> float:
    return asyncio.get_running_loop().time()


def test_time_starts_at_zero_and_passes_only_by_waiting() -> None:
    async def main() -> list[float]:
        times = [now()]
        time.sleep(0.001)  # what callbacks cost in reality is charged to nobody
        times.append(now())
        await asyncio.sleep(0.1)
        times.append(now())
        await asyncio.sleep(0)
        times.append(now())
        return times

    assert run(main()) == pytest.approx([0, 0, 0.1, 0.1], abs=1e-12)


def test_sleeps_add_up_to_the_nanosecond() -> None:
    heap = Loop()

    async def main() -> None:
        for _ in range(1000):
            await asyncio.sleep(0.1)

    run(main(), heap=heap)
    assert heap.now_ns == 100 * 10**9


def test_an_idle_year_takes_no_time_and_short_waits_still_work_after_it() -> None:
    async def main() -> tuple[float, float]:
        await asyncio.sleep(YEAR_S)
        year = now()
        async with asyncio.timeout(1e-6):
            await asyncio.sleep(1e-7)
        for _ in range(100):
            await asyncio.sleep(1e-9)
        return year, now() - year

    start = time.monotonic()
    year, rest = run(main())
    assert time.monotonic() - start < 1
    assert year == pytest.approx(YEAR_S, abs=1e-8)
    assert rest == pytest.approx(2e-7, abs=2e-8)


def test_equal_times_run_in_the_order_they_were_asked_for() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        loop = asyncio.get_running_loop()
        for i in range(50):
            loop.call_later(1, order.append, i)
        loop.call_at(0, order.append, -1)  # the past is now
        await asyncio.sleep(2)
        return order

    assert run(main()) == [-1, *range(50)]


def test_models_and_tasks_share_the_heap() -> None:
    heap = Loop()

    async def main() -> float:
        arrived = asyncio.get_running_loop().create_future()
        heap.post(3 * 10**9, arrived.set_result, None)
        await arrived
        return now()

    assert run(main(), heap=heap) == 3
    assert run(asyncio.sleep(1, "later"), heap=heap) == "later"
    assert heap.now_s == 4


def test_a_cancelled_timer_moves_no_clock() -> None:
    heap = Loop()

    async def main() -> None:
        asyncio.get_running_loop().call_later(100, print).cancel()
        async with asyncio.timeout(1000):
            await asyncio.sleep(1)

    run(main(), heap=heap)
    heap.run()
    assert heap.now_s == 1


def test_a_timer_may_be_cancelled_after_it_ran() -> None:
    heap = Loop()

    async def main() -> None:
        timer = asyncio.get_running_loop().call_later(1, lambda: None)
        await asyncio.sleep(2)
        timer.cancel()
        await asyncio.sleep(1)

    run(main(), heap=heap)
    assert heap.now_s == 3
    assert heap.pending() == 0


def test_timeouts_cancel_what_they_guard() -> None:
    async def main() -> list[float]:
        times = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await asyncio.sleep(5)
        times.append(now())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 3)
        times.append(now())
        return times

    assert run(main()) == [2, 5]


def test_a_bounded_queue_holds_its_producer_back() -> None:
    async def main() -> list[tuple[float, int]]:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        taken = []

        async def produce() -> None:
            for i in range(3):
                await queue.put(i)

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            for _ in range(3):
                await asyncio.sleep(1)
                taken.append((now(), await queue.get()))
        return taken

    assert run(main()) == [(1, 0), (2, 1), (3, 2)]


def test_an_event_wakes_all_who_wait() -> None:
    async def main() -> list[float]:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(7, event.set)

        async def wait() -> float:
            await event.wait()
            return now()

        return await asyncio.gather(*(wait() for _ in range(3)))

    assert run(main()) == [7, 7, 7]


def test_wait_returns_those_that_are_done() -> None:
    async def main() -> tuple[float, set[str], set[str]]:
        tasks = [asyncio.create_task(asyncio.sleep(s), name=str(s)) for s in (3, 1, 2)]
        done, pending = await asyncio.wait(tasks, timeout=2.5)
        return now(), {t.get_name() for t in done}, {t.get_name() for t in pending}

    assert run(main()) == (2.5, {"1", "2"}, {"3"})


def test_a_failing_member_cancels_its_task_group() -> None:
    ended: list[tuple[str, float]] = []

    async def member(name: str) -> None:
        try:
            await asyncio.sleep(100)
        finally:
            ended.append((name, now()))

    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError("on purpose")

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for name in "abc":
                group.create_task(member(name))
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        run(main())
    assert caught.group_contains(LookupError)
    assert ended == [("a", 1), ("b", 1), ("c", 1)]


def test_what_still_runs_at_the_end_is_cancelled_in_the_order_of_creation() -> None:
    ended: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def service(i: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            ended.append(i)

    async def main() -> str:
        tasks.extend(asyncio.create_task(service(i)) for i in range(20))
        await asyncio.sleep(0)
        return "result"

    assert run(main()) == "result"
    assert ended == list(range(20))
    assert all(task.cancelled() for task in tasks)


def test_an_abandoned_async_generator_is_closed() -> None:
    closed = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(1)
            closed.append(now())

    generator = numbers()

    async def main() -> int:
        return await anext(generator)

    assert run(main()) == 1
    assert closed == [1]


def test_the_programs_error_comes_out() -> None:
    async def main() -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError):
        run(main())


def test_an_error_of_a_model_comes_out() -> None:
    heap = Loop()
    heap.post(1, int, "not a number")
    with pytest.raises(ValueError, match="not a number"):
        run(asyncio.sleep(1), heap=heap)


async def mm1(jobs: int, arrivals_per_s: float, services_per_s: float, seed: int) -> list[float]:
    """The seconds each job waits in a queue with random arrivals and one server."""
    rng = random.Random(seed)
    queue: asyncio.Queue[float] = asyncio.Queue()
    waits: list[float] = []

    async def serve() -> None:
        while len(waits) < jobs:
            waits.append(-(await queue.get()) + now())
            await asyncio.sleep(rng.expovariate(services_per_s))

    server = asyncio.create_task(serve())
    for _ in range(jobs):
        await asyncio.sleep(rng.expovariate(arrivals_per_s))
        queue.put_nowait(now())
    await server
    return waits


def test_a_queue_waits_as_theory_says() -> None:
    arrivals, services = 0.5, 1.0
    expected = (arrivals / services) / (services - arrivals)
    waits = run(mm1(20_000, arrivals, services, seed=1))
    assert sum(waits) / len(waits) == pytest.approx(expected, rel=0.1)


def test_two_runs_give_the_same_trace() -> None:
    assert run(mm1(500, 0.9, 1.0, seed=2)) == run(mm1(500, 0.9, 1.0, seed=2))
    assert run(mm1(500, 0.9, 1.0, seed=2)) != run(mm1(500, 0.9, 1.0, seed=3))


CROWD = """
import asyncio
from atoll.sim.aio import run
from atoll.sim.loop import Loop

trace = []

async def member(i):
    try:
        await asyncio.sleep(i % 7)
        trace.append((i, "slept"))
        await asyncio.Event().wait()
    finally:
        trace.append((i, asyncio.current_task().get_name(), asyncio.get_running_loop().time()))

async def fail():
    await asyncio.sleep(5)
    raise LookupError

async def main():
    try:
        async with asyncio.TaskGroup() as group:
            for i in range(300):
                group.create_task(member(i))
            group.create_task(fail())
    except* LookupError:
        pass
    tasks = {asyncio.create_task(asyncio.sleep(1, i)) for i in range(300)}
    done, _ = await asyncio.wait(tasks)
    trace.extend(task.result() for task in done)

padding = [object() for _ in range(PADDING)]
run(main())
print(trace)
"""


def test_the_order_hangs_neither_on_string_hashes_nor_on_addresses() -> None:
    def trace(hash_seed: int) -> str:
        code = CROWD.replace("PADDING", str(hash_seed * 1001))
        env = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout

    assert len(trace(1)) > 10_000
    assert trace(1) == trace(2)


def test_a_fuzzed_tie_break_permutes_only_equal_times() -> None:
    async def main() -> list[int]:
        order: list[int] = []
        for i in range(20):
            asyncio.get_running_loop().call_later(1 + i // 10, order.append, i)
        await asyncio.sleep(5)
        return order

    fuzzed = run(main(), heap=Loop(tie_break=3))
    assert fuzzed == run(main(), heap=Loop(tie_break=3))
    assert fuzzed != list(range(20))
    assert [sorted(fuzzed[:10]), sorted(fuzzed[10:])] == [list(range(10)), list(range(10, 20))]


def test_a_deadlock_names_who_waits_where() -> None:
    async def consume(queue: asyncio.Queue[int]) -> None:
        await queue.get()

    async def main() -> None:
        task = asyncio.create_task(consume(asyncio.Queue()), name="consumer")
        await asyncio.sleep(2)
        await task

    with pytest.raises(Deadlock) as caught:
        run(main())
    message = str(caught.value)
    assert "at 2.000000 s" in message
    assert "consumer waits in " in message
    assert "consume (" in message
    assert "test_aio.py:" in message
    assert "Queue.get (" in message


def test_a_deadlock_names_programs_too() -> None:
    heap = Loop()
    program = Program(heap, "trainer", lambda: program.park("its turn"))
    heap.post(0, program.resume)
    with pytest.raises(Deadlock, match="trainer waits for its turn"):
        run(asyncio.Event().wait(), heap=heap)
    heap.close()


def test_tasks_are_cancelled_after_a_deadlock() -> None:
    ended = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(Deadlock):
        run(main())
    assert ended == [True]


def test_a_program_and_a_task_talk_to_each_other() -> None:
    heap = Loop()

    def body() -> str:
        loop.call_soon_threadsafe(asked.set_result, "question")
        program.park("the answer")
        return f"answered at {heap.now_s}"

    loop = VirtualEventLoop(heap)
    asked = loop.create_future()
    program = Program(heap, "asker", body)
    heap.post(0, program.resume)

    async def main() -> None:
        assert await asked == "question"
        await asyncio.sleep(1)
        heap.post(0, program.resume)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    loop.close()
    assert program.result == "answered at 1.0"


REAL: dict[str, Callable[[], Awaitable[Any]]] = {
    "open_connection": lambda: asyncio.open_connection("127.0.0.1", 9),
    "start_server": lambda: asyncio.start_server(lambda *_: None, "127.0.0.1", 0),
    "to_thread": lambda: asyncio.to_thread(print),
    "subprocess": lambda: asyncio.create_subprocess_exec(sys.executable, "-c", ""),
    "datagram": lambda: asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol),
    "getaddrinfo": lambda: asyncio.get_running_loop().getaddrinfo("localhost", 80),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_world_is_refused(name: str) -> None:
    async def main() -> None:
        await REAL[name]()

    with pytest.raises(RealIoInVirtualTime, match="virtual time"):
        run(main())


@pytest.mark.parametrize(
    "name", [n for n in dir(asyncio.AbstractEventLoop) if n.startswith(("sock_", "add_", "create_unix"))]
)
def test_so_is_every_way_to_a_file_descriptor(name: str) -> None:
    loop = VirtualEventLoop(Loop())
    with pytest.raises(RealIoInVirtualTime, match=name):
        getattr(loop, name)()
    loop.close()


@pytest.mark.parametrize("seconds", [math.nan, math.inf])
def test_a_wait_that_is_no_time_is_an_error(seconds: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        run(asyncio.sleep(seconds))
