"""Requests go out at their times, whatever becomes of the answers; and what becomes of them is told."""

import asyncio

import pytest

from atoll.endpoint.api import Delta
from atoll.endpoint.driving import Drive, Prompts
from atoll.errors import DeadlinePassed, EngineLost, Overloaded
from atoll.runtime.real import AsyncioRuntime
from atoll.sim import aio
from atoll.workload.api import Arrival, Demand
from atoll.workload.generate.lengths import Empirical
from atoll.workload.generate.loops import ClosedLoop, Replay


class Clocked(AsyncioRuntime):
    def now(self) -> float:
        return asyncio.get_running_loop().time()


class Slow:
    """Takes so many seconds for each token; some requests it fails."""

    def __init__(self, token_s: float, fails=None):
        self.token_s, self.fails, self.asked = token_s, fails or {}, []

    async def generate(self, request):
        self.asked.append((asyncio.get_running_loop().time(), request))
        if (error := self.fails.get(request.id)) is not None:
            raise error
        for i in range(request.max_tokens):
            await asyncio.sleep(self.token_s)
            yield Delta(text="x", tokens=(65 + i % 20,), finish="length" if i + 1 == request.max_tokens else None)


def driven(endpoint, workload, **options):
    told = []

    async def work():
        drive = Drive(
            Clocked(), endpoint, "m", workload, Prompts(1), lambda arrival, outcome: told.append(outcome), **options
        )
        return await drive.run()

    pacer = aio.run(work())
    return pacer, sorted(told, key=lambda outcome: outcome.number)


def at(*times: float, output: int = 4) -> Replay:
    return Replay([Demand(Arrival(i, t, 10, f"s{i}"), output) for i, t in enumerate(times)])


def test_nobody_waits_for_the_answers_of_others():
    slow = Slow(token_s=5.0)
    pacer, told = driven(slow, at(0.5, 0.6, 2.0, 2.0))
    assert [when for when, _ in slow.asked] == [0.5, 0.6, 2.0, 2.0]
    assert pacer.lateness_s.max() == 0
    assert [outcome.first_s for outcome in told] == [5.5, 5.6, 7.0, 7.0]
    assert [outcome.last_s for outcome in told] == [20.5, 20.6, 22.0, 22.0]
    assert [outcome.tpot_s for outcome in told] == pytest.approx([5.0] * 4)


def test_how_each_ended_is_told():
    fails = {"load-0": Overloaded("x"), "load-1": DeadlinePassed("x"), "load-2": EngineLost("x")}
    _, told = driven(Slow(3.0, fails), at(0, 1, 2, 3, 4, output=5), patience_s=14.0)
    assert [outcome.end for outcome in told] == ["refused", "timed out", "aborted", "timed out", "timed out"]
    _, told = driven(Slow(3.0, fails), at(0, 1, 2, 3, 4, output=5), patience_s=16.0)
    assert [outcome.end for outcome in told] == ["refused", "timed out", "aborted", "answered", "answered"]


def test_a_mistake_of_the_endpoint_ends_the_run():
    with pytest.raises(ZeroDivisionError):
        driven(Slow(3.0, {"load-1": ZeroDivisionError()}), at(0, 90))


def test_users_who_wait_for_an_answer_ask_again_after_it():
    slow = Slow(1.0)
    workload = ClosedLoop(2, 3.0, Empirical([5]), Empirical([4]), seed=1)
    _, told = driven(slow, workload, until_s=60.0)
    assert len(told) > 6
    ends = sorted(outcome.last_s for outcome in told)
    later = sorted(when for when, _ in slow.asked)[2:]
    assert all(begin > end for begin, end in zip(later, ends, strict=False))


def test_a_turn_begins_with_all_that_was_said_before():
    talk = [
        Demand(Arrival(0, 0.0, 6, "s", turn=0, service="conversation"), 3),
        Demand(Arrival(1, 100.0, 14, "s", turn=1, service="conversation"), 3),
        Demand(Arrival(2, 200.0, 25, "s", turn=2, service="conversation"), 3),
    ]
    slow = Slow(1.0)
    driven(slow, Replay(talk))
    first, second, third = (request.prompt.tokens for _, request in slow.asked)
    assert second[:9] == (*first, 65, 66, 67)
    assert third[:17] == (*second, 65, 66, 67)
    assert (len(first), len(second), len(third)) == (6, 14, 25)


def test_what_is_longer_than_the_context_is_cut_and_counted():
    slow = Slow(0.1)
    told = []

    async def work():
        workload = Replay([Demand(Arrival(0, 0.0, 500, "s"), 90), Demand(Arrival(1, 0.0, 5, "t"), 5)])
        drive = Drive(Clocked(), slow, "m", workload, Prompts(1), lambda a, o: told.append(o), most_tokens=100)
        await drive.run()
        return drive.cut

    assert aio.run(work()) == 1
    (_, long), (_, short) = slow.asked
    assert (len(long.prompt.tokens), long.max_tokens) == (50, 50)
    assert (len(short.prompt.tokens), short.max_tokens) == (5, 5)


def test_the_same_blocks_are_the_same_tokens():
    prompts = Prompts(1)
    one = prompts.of(Arrival(0, 0.0, 600, "a", hash_ids=(3, 4)))
    two = prompts.of(Arrival(1, 0.0, 700, "b", hash_ids=(3, 5)))
    assert one[:512] == two[:512]
    assert one[512:599] != two[512:599]
    assert (len(one), len(two)) == (600, 700)
    small = [prompts.of(Arrival(i, 0.0, 60, "c", hash_ids=(3, last), block_tokens=32)) for i, last in ((2, 4), (3, 5))]
    assert small[0][:32] == small[1][:32]
    assert small[0][32:] != small[1][32:]
