"""An engine in a process of its own: answers, refusals, clients that go, an engine that dies."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest
import torch

from atoll.endpoint.api import Conversation, Delta, Request, Sampling, Text, Tokens
from atoll.errors import (
    ContextExceeded,
    DeadlinePassed,
    Draining,
    EngineLost,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestFailed,
    Unavailable,
)
from atoll.model import torch_int4
from atoll.model.api import Loaded
from atoll.model.loading import load
from atoll.model.packed import Packed
from atoll.model.paged import Slice
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.runtime.processes import popen
from atoll.serve import instance as driver
from atoll.serve import process, restarts
from atoll.serve.instance import Instance, whole
from atoll.serve.messages import LARGEST, Add, Drop, Ready, Setup, Unpacker, packed
from atoll.serve.pulse import LOOKS, Pulse
from tests.model.test_paged import packed_as
from tests.serve.bytes_model import model

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "model"
    save_model(path, model(), ByteTokenizer())
    return path


def setup_of(folder: Path, **changed: object) -> Setup:
    options = {"path": str(folder), "pages": 40, "kernel": "torch", "threads": 1, "batch": 4, "step_tokens": 32}
    return Setup(**{**options, "waiting": 8, "preemption": "recompute", "guesses": 0, **changed})


@asynccontextmanager
async def running(folder: Path, **changed: object) -> AsyncIterator[Instance]:
    served = Instance("small", load(folder), setup_of(folder, **changed))
    await served.start()
    try:
        yield served
    finally:
        await served.close()


def asked(id: str, text: str = "once", **options: object) -> Request:
    return Request(
        **{"id": id, "model": "small", "prompt": Text(text), "max_tokens": 12, "sampling": GREEDY, **options}
    )


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


async def quiet(served: Instance) -> None:
    """Until nothing runs and nothing waits. An answer more makes the engine tell."""
    while True:
        await whole(served.generate(asked(f"look {id(object())} {asyncio.get_running_loop().time()}", max_tokens=1)))
        load = served.load()
        if load.free_pages == load.pages:
            return


def test_answers_come_and_are_the_same_beside_each_other(folder):
    async def work():
        async with running(folder) as served:
            assert [each.name for each in served.describe()] == ["small"]
            assert (served.load().free_pages, served.load().counts["preemptions"]) == (40, 0), "known before any asks"
            alone = await whole(served.generate(asked("a")))
            assert len(alone.tokens) == 12
            assert alone.finish == "length"
            assert alone.prompt_tokens == 4
            crowd = await asyncio.gather(*(whole(served.generate(asked(f"{i}"))) for i in range(6)))
            assert {each.text for each in crowd} == {alone.text}

    run(work)


def test_what_can_not_be_answered_is_refused_by_its_name(folder):
    async def work():
        async with running(folder) as served:
            for request, error in (
                (asked("a", model="large"), NotServed),
                (asked("b", "x" * 300), ContextExceeded),
                (asked("long", "x" * (257 << 8)), ContextExceeded),
                (asked("c", prompt=Tokens((999,))), InvalidRequest),
                (asked("d", prompt=Conversation(({"role": "user", "content": "hi"},))), InvalidRequest),
                (asked("e", prompt=Text("\ud800")), InvalidRequest),
                (asked("f", deadline_s=0.0), DeadlinePassed),
                (asked("h", sampling=Sampling(bias={999: 1.0})), InvalidRequest),
                (asked("i", grammar="{nonsense"), RequestFailed),
            ):
                with pytest.raises(error):
                    await whole(served.generate(request))
            assert (await whole(served.generate(asked("g")))).finish == "length"
            assert served.restarts == 0, "a request brought the engine down"

    run(work)


def test_too_many_are_told_to_come_back(folder):
    async def work():
        async with running(folder, batch=1, waiting=2) as served:
            answers = await asyncio.gather(
                *(whole(served.generate(asked(f"{i}", max_tokens=60))) for i in range(12)), return_exceptions=True
            )
            assert any(isinstance(answer, Overloaded) for answer in answers)
            assert {type(answer) for answer in answers} <= {Delta, Overloaded}

    run(work)


def test_who_goes_away_frees_all_it_held(folder):
    async def work():
        async with running(folder) as served:
            async with aclosing(served.generate(asked("a", max_tokens=240))) as stream:
                async for delta in stream:
                    assert delta.finish is None
                    break
            await quiet(served)
            steps = served.load().counts["engine_steps"]
            await whole(served.generate(asked("b", max_tokens=3)))
            assert served.load().counts["engine_steps"] <= steps + 4, "it went on for nobody"

    run(work)


def test_an_engine_that_dies_is_said_and_started_again(folder, monkeypatch):
    monkeypatch.setattr(restarts, "AGAIN_S", (0.0,))

    async def work():
        async with running(folder) as served:
            stream = served.generate(asked("a", max_tokens=240))
            await anext(stream)
            assert served._engine is not None
            os.kill(served._engine.process.pid, signal.SIGKILL)
            with pytest.raises(EngineLost, match="started again"):
                async for _ in stream:
                    pass
            assert not served.describe() or served.restarts
            if not served.describe():
                with pytest.raises(Draining, match="not ready"):
                    await whole(served.generate(asked("c")))
                assert served.load().instances == {"starting": 1}
            while not served.describe():
                await asyncio.sleep(0.01)
            assert served.restarts == 1
            assert (await whole(served.generate(asked("b")))).finish == "length"

    run(work)


@pytest.fixture
def silent(monkeypatch):
    """Instead of engines: processes that say they are ready, and no more."""
    monkeypatch.setattr(restarts, "AGAIN_S", (0.0,))
    says = f"import os, time; os.write(1, {packed(Ready('none'))!r}); time.sleep(100)"
    monkeypatch.setattr(driver, "popen", lambda argv, **options: popen([sys.executable, "-S", "-c", says], **options))


def test_an_engine_that_is_stuck_is_given_up_and_no_deadline_waits_for_it(folder, silent, monkeypatch):
    monkeypatch.setattr(driver, "LOOK_S", 0.02)

    async def work():
        async with running(folder) as served:
            with pytest.raises(DeadlinePassed):
                await whole(served.generate(asked("a", deadline_s=0.01)))
            with pytest.raises(EngineLost, match="stopped or stuck"):
                await whole(served.generate(asked("b")))
            while not served.restarts or not served.describe():
                await asyncio.sleep(0.01)

    run(work)


@pytest.mark.parametrize("broken", ["start", "connect", "hear"])
def test_an_engine_is_started_until_it_can_be(folder, silent, monkeypatch, broken):
    """Where there are no descriptors left, say."""
    error = ValueError("no message") if broken == "hear" else OSError("too many open files")
    times = iter([None, error, error])

    def failing(work):
        def now_and_then(*args, **options):
            if error := next(times, None):
                raise error
            return work(*args, **options)

        return now_and_then

    where, name = {
        "start": (driver, "popen"), "connect": (driver, "_connected"), "hear": (Unpacker, "of_engine")
    }[broken]  # fmt: skip
    monkeypatch.setattr(where, name, failing(getattr(where, name)))

    async def work():
        async with running(folder) as served:
            assert served._engine is not None
            served._engine.process.kill()
            while served.restarts < 3 or not served.describe():
                await asyncio.sleep(0.01)

    run(work)


def test_an_engine_that_can_not_be_started_says_why(folder, monkeypatch):
    def none(*args, **options):
        raise OSError("too many open files")

    monkeypatch.setattr(driver, "popen", none)

    async def work():
        with pytest.raises(EngineLost, match="too many open files"):
            async with running(folder):
                pass

    run(work)


def test_who_uses_a_processor_lives_however_long_it_is_silent():
    pulse = Pulse()
    assert not any(pulse.lost(used_s) for used_s in range(5 * LOOKS))
    assert [pulse.lost(5.0 * LOOKS) for _ in range(LOOKS + 1)] == [False] * LOOKS + [True]
    pulse.heard()
    assert not pulse.lost(5.0 * LOOKS)


def test_an_engine_that_can_not_begin_says_why(folder, tmp_path):
    async def work():
        with pytest.raises(EngineLost, match="nothing"):
            async with running(folder, path=str(tmp_path / "nothing")):
                pass

    run(work)


def test_no_process_is_left(folder):
    async def work():
        async with running(folder) as served:
            assert served._engine is not None
            pid = served._engine.process.pid
        assert not psutil.pid_exists(pid)

    run(work)


@pytest.mark.parametrize(
    ("kernel", "packing", "words"),
    [
        ("exact", "Q4_1", "PyTorch, float32 (no compiler)"),
        ("fast", "Q4_1", "PyTorch, 4-bit weights, bfloat16 activations (no compiler)"),
        ("fast", "Q8_0", "PyTorch, float32 (no compiler)"),
    ],
)
def test_without_a_compiler_pytorch_computes(folder, monkeypatch, kernel, packing, words):
    def none(*args, **options):
        raise Unavailable("no compiler")

    monkeypatch.setattr(process, "KernelModel", none)
    weights = packed_as(packing, Packed.of(model()))
    if not torch_int4.can(packed_as("Q4_1", Packed.of(model()))):
        words = "PyTorch, float32 (no compiler)"
    threads = torch.get_num_threads()
    try:
        loaded = Loaded("small", weights, ByteTokenizer(), None)
        paged, said = process.open_model(loaded, setup_of(folder, kernel=kernel))
    finally:
        torch.set_num_threads(threads)
    assert said == words
    assert paged.forward([Slice([1, 2], 0, [0])]).shape == (1, 256)


# -- messages ----------------------------------------------------------------------------------------------------------


def test_messages_come_whole_however_they_are_cut():
    sent = [Add(asked("a")), Drop("a"), Drop("b" * 300)]
    data = b"".join(map(packed, sent))
    for size in (1, 3, 7, 1000):
        unpacker, found = Unpacker.to_engine(), []
        for at in range(0, len(data), size):
            found += unpacker.push(data[at : at + size])
        assert found == sent


@pytest.mark.parametrize(
    "data", [(LARGEST + 1).to_bytes(4, "little"), b"\x01\x00\x00\x00\xc1", b"\x01\x00\x00\x00\x01"]
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 (msgspec's own are such)
        Unpacker.to_engine().push(data)
