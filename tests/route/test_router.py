"""Several servers as one endpoint: real ones that fail are gone round, and nobody is asked again who has been heard."""

import asyncio
import socket
from contextlib import AsyncExitStack

import httpx
import msgspec
import pytest

from atoll.endpoint.api import Conversation, Delta, Load, Request, Served, Text, Times, Tokens
from atoll.endpoint.upstream import Upstream
from atoll.errors import DeadlinePassed, Draining, EngineLost, InvalidRequest, NotServed, Overloaded, RequestFailed
from atoll.route.balance import Fewest, Turns
from atoll.route.router import Router, key_of
from atoll.sim.aio import VirtualRuntime, run
from atoll.sim.loop import Loop
from tests.endpoint.scripted import Scripted, served

ASK = Request(id="a", model="parrot", prompt=Text("hi"), max_tokens=9)


class Fails(Scripted):
    """Raises what it is given before so many pieces, or doesn't if there is nothing."""

    def __init__(self, failure: Exception | None = None, after: int = 0, name: str = "parrot") -> None:
        super().__init__(lambda request: "said")
        self.failure, self.after, self.name = failure, after, name

        async def before(request: Request, i: int) -> None:
            if self.failure is not None and i == self.after:
                raise self.failure

        self.before = before

    def describe(self) -> tuple[Served, ...]:
        return tuple(msgspec.structs.replace(served, name=self.name) for served in super().describe())


async def listen(endpoint, heard: list[str], request: Request = ASK) -> None:
    async for delta in endpoint.generate(request):
        heard.append(delta.text)


async def text(endpoint, request: Request = ASK) -> str:
    heard: list[str] = []
    await listen(endpoint, heard, request)
    return "".join(heard)


def routed(*endpoints: Scripted, work, balance=Fewest):
    """What `work(router)` gives, in virtual time."""

    heap = Loop()

    async def main():
        runtime = VirtualRuntime(heap, 1, lambda op: 0.0)
        return await work(Router(runtime, {f"{i}": each for i, each in enumerate(endpoints)}, balance()))

    return run(main(), heap=heap)


@pytest.mark.parametrize("failure", [EngineLost("died"), Draining("soon"), Overloaded("full")])
def test_a_request_of_which_nothing_was_heard_goes_to_the_next(failure):
    first, second = Fails(failure), Fails()

    async def work(router):
        return await text(router), router.load()

    said, load = routed(first, second, work=work)
    assert said == "said"
    assert [len(each.asked) for each in (first, second)] == [1, 1]
    assert [load.engines[name].counts["routed_failures"] for name in "01"] == [1, 0]
    assert load.counts["routed_requests"] == 2


def test_once_something_was_heard_nobody_else_is_asked():
    first, second = Fails(EngineLost("died in the middle"), after=2), Fails()
    heard = []

    async def work(router):
        with pytest.raises(EngineLost, match="in the middle"):
            await listen(router, heard)
        return router.load()

    load = routed(first, second, work=work)
    assert heard == ["s", "a"]
    assert not second.asked
    assert load.running == 0
    assert load.engines["0"].counts["routed_failures"] == 1


@pytest.mark.parametrize("failure", [RequestFailed("odd"), NotServed("gone"), DeadlinePassed("late")])
def test_what_another_would_do_no_better_is_said_at_once(failure):
    first, second = Fails(failure), Fails()

    async def work(router):
        with pytest.raises(type(failure)):
            await text(router)

    routed(first, second, work=work)
    assert not second.asked


@pytest.mark.parametrize("refusal", [InvalidRequest("n", "too many"), NotServed("gone")])
def test_who_refuses_a_request_is_there_again(refusal):
    alone = Fails(EngineLost("died"))

    async def work(router):
        for failure, wait_s in ((Draining, 1.0), (type(refusal), 0.0)):
            with pytest.raises(failure):
                await text(router)
            alone.failure = refusal
            await asyncio.sleep(wait_s)
        alone.failure = None
        return await text(router)

    assert routed(alone, work=work) == "said"


def test_none_left_says_when_to_come_back_and_one_tries_after_a_while():
    first, second = Fails(EngineLost("x")), Fails(EngineLost("y"))

    async def work(router):
        with pytest.raises(Draining, match=r"none of 2 .* y") as failed:
            await text(router)
        assert failed.value.retry_s == 1.0
        with pytest.raises(Draining):
            await text(router)
        assert [len(each.asked) for each in (first, second)] == [1, 1], "they are left alone"
        await asyncio.sleep(0.5)
        first.failure = None
        assert await text(router) == "said"
        assert await text(router) == "said"
        assert [len(each.asked) for each in (first, second)] == [3, 1]

    routed(first, second, work=work)


def test_all_have_too_many_is_told_as_such():
    async def work(router):
        with pytest.raises(Overloaded) as failed:
            await text(router)
        assert not isinstance(failed.value, Draining)

    routed(Fails(Overloaded("full")), Fails(Overloaded("full")), work=work)


def test_each_model_is_asked_for_where_it_is():
    parrot, other = Fails(), Fails(name="other")

    async def work(router):
        assert await text(router) == "said"
        assert [each.name for each in router.describe()] == ["parrot", "other"]
        with pytest.raises(NotServed, match="parrot, other"):
            await text(router, msgspec.structs.replace(ASK, model="third"))
        other.ready = False
        with pytest.raises(Draining):  # it may have it
            await text(router, msgspec.structs.replace(ASK, model="third"))
        with pytest.raises(Draining):
            router.tokenizer("other")
        assert router.tokenizer("parrot").encode("a") == [97]

    routed(parrot, other, work=work)
    assert not other.asked


def test_a_deadline_is_for_all_tries_together():
    async def slow(request: Request, i: int) -> None:
        await asyncio.sleep(3)
        raise EngineLost("late")

    first, second, third = Scripted(), Scripted(), Scripted()
    first.before = second.before = slow

    async def work(router):
        with pytest.raises(DeadlinePassed, match=r"within 5\.0 s"):
            await text(router, msgspec.structs.replace(ASK, deadline_s=5.0))

    routed(first, second, third, work=work)
    assert [each.asked[0].deadline_s for each in (first, second)] == [5.0, 2.0]
    assert not third.asked


def test_who_goes_is_with_nobody_any_more():
    parrot = Scripted()

    async def work(router):
        answer = router.generate(ASK)
        await anext(answer)
        assert router.dispatch.open == [1, 0]
        await answer.aclose()
        assert router.dispatch.open == [0, 0]

    routed(parrot, Scripted(), work=work)
    assert parrot.gone == ["a"]


def test_loads_add_up_and_are_told_apart():
    class Told(Scripted):
        async def generate(self, request):
            yield Delta(finish="stop", times=Times(1.0, 2.0, 3.0))

        def load(self) -> Load:
            return Load(running=2, waiting=1, pages=10, free_pages=4, counts={"c": 5}, instances={"ready": 1})

    async def work(router):
        (delta,) = [delta async for delta in router.generate(ASK)]
        return delta, router.load()

    delta, load = routed(Told(), Told(), work=work)
    assert delta.times.engine == "0"
    assert (load.running, load.waiting, load.pages, load.free_pages) == (4, 2, 20, 8)
    assert load.counts == {"c": 10, "routed_requests": 1, "routed_failures": 0}
    assert load.instances == {"ready": 2}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"session": "s"}, {"session": "s", "prompt": Text("else")}, True),
        ({"prompt": Text("a" * 256 + "b")}, {"prompt": Text("a" * 256 + "c")}, True),
        ({"prompt": Text("a")}, {"prompt": Text("b")}, False),
        ({"prompt": Tokens((1,) * 64 + (2,))}, {"prompt": Tokens((1,) * 64 + (3,))}, True),
        ({"prompt": Tokens((1, 2))}, {"prompt": Tokens((1, 3))}, False),
        ({"prompt": Text("\ud800")}, {"prompt": Text("\ud801")}, False),
    ],
)
def test_prompts_that_begin_alike_have_one_key(one, other, same):
    keys = [key_of(msgspec.structs.replace(ASK, **each)) for each in (one, other)]
    assert (keys[0] == keys[1]) is same


def test_a_conversation_keeps_its_key_as_it_grows():
    said = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "and?"},
    ]
    keys = [key_of(msgspec.structs.replace(ASK, prompt=Conversation(tuple(said[:n])))) for n in (2, 4)]
    assert keys[0] == keys[1]
    said[1] = {"role": "user", "content": "another"}
    assert key_of(msgspec.structs.replace(ASK, prompt=Conversation(tuple(said)))) != keys[0]


class Clock:
    """Time as the test sets it."""

    seconds = 7.0

    def now(self) -> float:
        return self.seconds


def test_a_real_server_that_breaks_is_gone_round_and_the_middle_of_an_answer_is_an_error():
    broken, whole, clock = Fails(EngineLost("the engine died")), Fails(), Clock()

    async def main(*urls: str):
        async with AsyncExitStack() as ending:
            upstreams = {url: Upstream(url) for url in urls}
            for upstream in upstreams.values():
                ending.push_async_callback(upstream.close)
                await upstream.start()
            router = Router(clock, upstreams, Turns())
            assert [await text(router) for _ in range(3)] == ["said"] * 3
            assert [len(each.asked) for each in (broken, whole)] == [1, 3]
            clock.seconds += 1
            broken.after = 2
            heard = []
            with pytest.raises(EngineLost, match="the engine died"):
                await listen(router, heard)
            assert heard == ["s", "a"]
            assert [len(each.asked) for each in (broken, whole)] == [2, 3]

    with served(broken) as (first, _), served(whole) as (second, _):
        asyncio.run(asyncio.wait_for(main(first, second), 60))


def test_a_real_server_that_is_not_there_is_gone_round():
    with socket.socket() as nobody, served(Fails()) as (url, _):
        nobody.bind(("127.0.0.1", 0))
        gone = Upstream(f"http://127.0.0.1:{nobody.getsockname()[1]}")
        gone._served = (Served(name="parrot", context=9, created=1),)  # it was there when it was looked at

        async def main():
            there = Upstream(url)
            try:
                await there.start()
                router = Router(Clock(), {"gone": gone, "there": there}, Turns())
                assert [await text(router) for _ in range(3)] == ["said"] * 3
                assert router.dispatch.asked == [1, 3]
            finally:
                await there.close()
                await gone.close()

        asyncio.run(asyncio.wait_for(main(), 60))


def test_the_api_before_it_answers_503_when_all_are_down_and_tells_of_each():
    fails = [Fails(EngineLost("dead")), Fails(EngineLost("dead too"))]
    router = Router(Clock(), dict(zip(("http://a", "http://b"), fails, strict=True)), Fewest())
    with served(router) as (url, _):
        body = {"model": "parrot", "prompt": "hi", "max_tokens": 9}
        down = httpx.post(f"{url}/v1/completions", json=body)
        assert (down.status_code, down.headers["retry-after"]) == (503, "1")
        assert "dead too" in down.json()["error"]["message"]
        told = httpx.get(f"{url}/metrics").text
        for line in (
            'atoll_routed_requests_total{engine="http://a",model="parrot",role="mixed"} 1.0',
            'atoll_routed_failures_total{engine="http://b",model="parrot",role="mixed"} 1.0',
            'atoll_requests_running{engine="http://b",model="parrot",role="mixed"} 0.0',
            'atoll_instances{model="parrot",role="mixed",state="lost"} 2.0',
        ):
            assert line in told
