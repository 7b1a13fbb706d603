"""The heap of events and the baton: order, time, cancelling, deadlocks, crashes."""

import threading
from collections.abc import Callable

import pytest

from atoll.errors import Deadlock
from atoll.sim.loop import Crash, Loop, Program


def sleeper(loop: Loop, name: str, body: Callable[[Callable[[float], None]], object]) -> Program:
    """A program that gets a `sleep`; it starts at once."""

    def sleep(seconds: float) -> None:
        loop.post(round(seconds * 1e9), program.resume)
        program.park(f"the end of {seconds} s")

    program = Program(loop, name, lambda: body(sleep))
    loop.post(0, program.resume)
    return program


def test_events_run_in_the_order_of_their_time() -> None:
    loop, seen = Loop(), []
    for delay in (30, 10, 20):
        loop.post(delay, lambda d: seen.append((d, loop.now_ns)), delay)
    loop.run()
    assert seen == [(10, 10), (20, 20), (30, 30)]
    assert loop.count == 3


def test_equal_times_go_first_come_first_served() -> None:
    loop, seen = Loop(), []
    for i in range(50):
        loop.post(5, seen.append, i)
    loop.run()
    assert seen == list(range(50))


def test_a_tie_break_permutes_equal_times_only_and_by_its_seed() -> None:
    def order(seed: int) -> list[tuple[int, int]]:
        loop, seen = Loop(seed), []
        for i in range(20):
            for when in (1, 2):
                loop.post(when, seen.append, (when, i))
        loop.run()
        return seen

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert [when for when, _ in order(1)] == [1] * 20 + [2] * 20
    assert sorted(order(1)) == [(when, i) for when in (1, 2) for i in range(20)]


def test_an_event_may_post_another_for_the_same_moment() -> None:
    loop, seen = Loop(), []
    loop.post(1, lambda: loop.post(0, seen.append, "later"))
    loop.post(1, seen.append, "first")
    loop.run()
    assert seen == ["first", "later"]
    assert loop.now_ns == 1


def test_an_event_in_the_past_is_refused() -> None:
    with pytest.raises(ValueError, match="7 ns in the past"):
        Loop().post(-7, print)


def test_a_cancelled_event_neither_runs_nor_moves_the_clock() -> None:
    loop, seen = Loop(), []
    loop.post(10, seen.append, "kept")
    token = loop.post(1000, seen.append, "cancelled")
    assert loop.pending() == 2
    loop.cancel(token)
    assert loop.pending() == 1
    loop.run()
    assert (seen, loop.now_ns, loop.count, loop.pending()) == (["kept"], 10, 1, 0)


def test_run_until_leaves_later_events_for_later() -> None:
    loop, seen = Loop(), []
    loop.post(10, seen.append, 1)
    loop.post(20, seen.append, 2)
    loop.run(until_ns=15)
    assert seen == [1]
    loop.run()
    assert seen == [1, 2]


def test_programs_run_one_at_a_time_in_the_order_of_the_heap() -> None:
    loop, seen, running = Loop(), [], []

    def body(name: str, naps: list[float]) -> Callable[[Callable[[float], None]], str]:
        def main(sleep: Callable[[float], None]) -> str:
            for nap in naps:
                running.append(name)
                assert running == [name], "two programs hold the baton"
                seen.append((name, loop.now_ns))
                running.clear()
                sleep(nap)
            return name.upper()

        return main

    one, two = sleeper(loop, "a", body("a", [3e-9, 3e-9])), sleeper(loop, "b", body("b", [1e-9, 1e-9]))
    loop.run()
    assert seen == [("a", 0), ("b", 0), ("b", 1), ("a", 3)]
    assert (one.result, two.result, one.ended, two.ended) == ("A", "B", True, True)
    assert loop.now_ns == 6


def test_a_programs_error_comes_out_of_the_loop() -> None:
    loop = Loop()
    program = sleeper(loop, "p", lambda sleep: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert program.ended


def test_a_deadlock_names_the_programs_and_what_they_wait_for() -> None:
    loop = Loop()
    programs: list[Program] = []

    def wait_for(what: str) -> None:
        program = Program(loop, f"waiter of {what}", lambda: program.park(what))
        loop.post(1_500_000, program.resume)
        programs.append(program)

    wait_for("rain")
    wait_for("snow")
    sleeper(loop, "idler", lambda sleep: None)
    with pytest.raises(Deadlock, match=r"0\.001500 s") as error:
        loop.run()
    assert "waiter of rain waits for rain; waiter of snow waits for snow" in str(error.value)
    assert "idler" not in str(error.value)
    loop.close()
    assert all(p.ended for p in programs)


def test_a_crash_unwinds_through_finally_blocks_but_not_through_except_exception() -> None:
    loop, seen = Loop(), []

    def body(sleep: Callable[[float], None]) -> None:
        try:
            try:
                sleep(10)
            except Exception:
                seen.append("swallowed")
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            seen.append("finally")
        seen.append("went on")

    program = sleeper(loop, "victim", body)
    loop.post(5, program.crash)
    loop.run()
    assert seen == [Crash, "finally"]
    assert program.ended
    assert program.result is None


def test_one_that_swallows_its_crash_gets_it_again_at_its_next_wait() -> None:
    loop, seen = Loop(), []

    def body(sleep: Callable[[float], None]) -> None:
        for _ in range(2):
            try:
                sleep(10)
            except Crash:
                seen.append(loop.now_ns)
        seen.append("end")

    program = sleeper(loop, "stubborn", body)
    loop.post(5, program.crash)
    loop.post(6, program.crash)
    loop.run()
    assert seen == [5, 6, "end"]


def test_a_program_crashed_before_its_start_never_begins() -> None:
    loop, seen = Loop(), []
    program = Program(loop, "unborn", lambda: seen.append("ran"))
    program.crash()
    program.resume()
    loop.run()
    assert seen == []
    assert program.ended


def test_close_leaves_no_thread_behind() -> None:
    loop = Loop()
    before = threading.active_count()
    for i in range(5):
        sleeper(loop, f"p{i}", lambda sleep: sleep(1e9))
    loop.run(until_ns=1)
    assert threading.active_count() == before + 5
    loop.close()
    for program in loop.programs:
        program._thread.join(5)
    assert threading.active_count() == before


def test_the_same_seed_gives_the_same_run() -> None:
    def trace(seed: int) -> tuple[int, list[tuple[str, int]]]:
        loop, seen = Loop(seed), []

        def body(name: str) -> Callable[[Callable[[float], None]], None]:
            def main(sleep: Callable[[float], None]) -> None:
                for _ in range(10):
                    seen.append((name, loop.now_ns))
                    sleep(1e-9)

            return main

        for name in "abcd":
            sleeper(loop, name, body(name))
        loop.run()
        return loop.count, seen

    assert trace(3) == trace(3)
    assert trace(3)[0] == trace(4)[0] == 44
    assert trace(3)[1] != trace(4)[1]
