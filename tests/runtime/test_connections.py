"""What actors may rely on when they speak with each other: each behaviour holds over TCP and in virtual time."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from atoll.errors import ConnectionLost, DeadlineExceeded, InvalidConfig, Refused, Unavailable
from atoll.net.guard import Guard
from atoll.net.session import Session
from atoll.net.streams import MOST_STRANGERS, UNREAD_MESSAGES, Link, Streams
from atoll.runtime.api import Connection, Runtime
from atoll.runtime.real import RealRuntime
from atoll.sim.actors import World
from atoll.sim.sockets import MOST_UNREAD
from tests.net.certified import certified

Act = Callable[[Runtime], Coroutine[Any, Any, Any]]
GUARD, OTHER = Guard("the token of this group"), Guard("the token of another group")
DATA = np.random.default_rng(0).normal(size=300_000)
ALL = DATA.nbytes


@dataclass
class Stage:
    """A listener at `address` which runs `serve`, and an actor elsewhere."""

    virtual: bool
    guard: Guard = GUARD
    largest: int = ALL
    address: str = ""
    heard: list[Any] = field(default_factory=list)

    def run(
        self, serve: Callable[[Connection], Coroutine[Any, Any, None]], act: Act, guard: Guard | None = None
    ) -> Any:
        async def listening(runtime: Runtime) -> None:
            place = "server:7" if self.virtual else "127.0.0.1:0"
            listener = await runtime.listen(place, "test", serve, largest=self.largest)
            self.address = listener.address
            with contextlib.suppress(asyncio.CancelledError):
                await runtime.sleep(3600)
            listener.close()

        theirs = Streams(guard or self.guard)
        if self.virtual:
            world = World(Streams(self.guard), latency_s=1e-3)
            server = world.start("server", listening)

            async def then(runtime: Runtime) -> Any:
                try:
                    return await act(runtime)
                finally:
                    world.loop.cancel_all_in(server)

            client = world.start("client", then, delay_s=0.01, reach=theirs)
            world.run(60.0)
            return client.result

        async def both() -> Any:
            runtime = RealRuntime(network=Streams(self.guard))
            task = runtime.spawn(listening(runtime), name="server")
            while not self.address:
                await asyncio.sleep(0)
            try:
                return await asyncio.wait_for(act(RealRuntime(network=theirs)), 20)
            finally:
                task.cancel()
                await task

        return asyncio.run(both())


@pytest.fixture(params=["real", "virtual"])
def stage(request: pytest.FixtureRequest) -> Stage:
    return Stage(request.param == "virtual")


async def echo(connection: Connection) -> None:
    while True:
        message = await connection.receive(timeout_s=5.0)
        await connection.send(message.head, message.data, timeout_s=5.0)


async def nothing(connection: Connection) -> None:
    await asyncio.sleep(30)


def dial(stage: Stage, runtime: Runtime, **options: Any) -> Coroutine[Any, Any, Connection]:
    return runtime.connect(stage.address, "test", **{"largest": ALL, "timeout_s": 5.0, **options})


def test_messages_arrive_whole_and_in_order(stage: Stage) -> None:
    sent = [(b"", b""), (b"head", b""), (b"", b"data"), (b"large", DATA.data), (bytes(5000), bytes(70_000))]

    async def act(runtime: Runtime) -> list[tuple[bytes, bytes]]:
        connection = await dial(stage, runtime)
        for head, data in sent:
            await connection.send(head, data, timeout_s=5.0)
        back = [await connection.receive(timeout_s=5.0) for _ in sent]
        return [(message.head, bytes(message.data)) for message in back]

    assert stage.run(echo, act) == [(head, bytes(data)) for head, data in sent]


def test_what_was_sent_may_be_overwritten(stage: Stage) -> None:
    async def act(runtime: Runtime) -> bytes:
        connection = await dial(stage, runtime)
        mine = DATA.copy()
        await connection.send(b"", mine.data, timeout_s=5.0)
        mine[:] = 0
        return bytes((await connection.receive(timeout_s=5.0)).data)

    assert stage.run(echo, act) == DATA.tobytes()


def test_two_who_send_at_once_do_not_mix(stage: Stage) -> None:
    async def act(runtime: Runtime) -> set[bytes]:
        connection = await dial(stage, runtime)
        tasks = [
            runtime.spawn(connection.send(bytes([i]), bytes([i]) * 400_000, timeout_s=5.0), name=f"send {i}")
            for i in range(4)
        ]
        found = {bytes(message.head) for message in [await connection.receive(timeout_s=5.0) for _ in tasks]
                 if set(message.data[:: 1000]) == set(message.head)}  # fmt: skip
        await asyncio.gather(*tasks)
        return found

    assert stage.run(echo, act) == {bytes([i]) for i in range(4)}


def test_a_wait_ends_with_its_deadline_and_may_be_repeated(stage: Stage) -> None:
    async def late(connection: Connection) -> None:
        await connection.receive(timeout_s=5.0)
        await connection.send(b"late", timeout_s=5.0)
        await nothing(connection)

    async def act(runtime: Runtime) -> bytes:
        connection = await dial(stage, runtime)
        with pytest.raises(DeadlineExceeded, match="said nothing"):
            await connection.receive(timeout_s=0.02)
        await connection.send(b"now", timeout_s=5.0)
        return (await connection.receive(timeout_s=5.0)).head

    assert stage.run(late, act) == b"late"


def test_the_end_of_the_other_side_ends_a_wait_but_loses_nothing_that_came(stage: Stage) -> None:
    async def short(connection: Connection) -> None:
        for _ in range(3):
            await connection.send(b"last words", timeout_s=5.0)

    async def act(runtime: Runtime) -> int:
        connection = await dial(stage, runtime)
        for _ in range(3):
            assert (await connection.receive(timeout_s=5.0)).head == b"last words"
        with pytest.raises(ConnectionLost):
            await connection.receive(timeout_s=5.0)
        with pytest.raises(ConnectionLost):
            await connection.send(b"hello?", timeout_s=5.0)
        return 1

    assert stage.run(short, act) == 1


def test_closing_ends_our_own_waits(stage: Stage) -> None:
    async def act(runtime: Runtime) -> str:
        connection = await dial(stage, runtime)
        waiting = runtime.spawn(connection.receive(timeout_s=5.0), name="waiting")
        await runtime.sleep(0.01)
        connection.close()
        with pytest.raises(ConnectionLost, match="closed here"):
            await waiting
        return "over"

    assert stage.run(nothing, act) == "over"


def test_who_reads_nothing_stops_who_writes_and_is_lost(stage: Stage) -> None:
    async def act(runtime: Runtime) -> int:
        connection = await dial(stage, runtime)
        sent = 0
        try:
            while sent < 1000:
                await connection.send(b"", DATA.data, timeout_s=0.1)
                sent += 1
        except ConnectionLost as error:
            return sent if "took nothing" in str(error) else -1
        return -1

    assert 0 < stage.run(nothing, act) < 100


def test_many_small_messages_wait_for_who_receives_slowly(stage: Stage) -> None:
    async def act(runtime: Runtime) -> int:
        connection = await dial(stage, runtime)
        count = 5 * UNREAD_MESSAGES
        for i in range(count):
            await connection.send(b"%d" % i, timeout_s=5.0)
        await runtime.sleep(0.02)
        for i in range(count):
            assert (await connection.receive(timeout_s=5.0)).head == b"%d" % i
        return count

    assert stage.run(echo, act) == 5 * UNREAD_MESSAGES


def test_a_message_larger_than_expected_costs_the_connection(stage: Stage) -> None:
    stage.largest = ALL - 8

    async def act(runtime: Runtime) -> int:
        connection = await dial(stage, runtime)
        with contextlib.suppress(ConnectionLost):  # it may be noticed while we write
            await connection.send(b"", DATA.data, timeout_s=5.0)
        with pytest.raises(ConnectionLost):
            await connection.receive(timeout_s=5.0)
        return 1

    assert stage.run(echo, act) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [(GUARD, OTHER, "another token"), (GUARD, Guard(), "wants a token"), (Guard(), GUARD, "has no token")],
)
def test_another_token_stays_outside(stage: Stage, ours: Guard, theirs: Guard, why: str) -> None:
    stage.guard = ours

    async def act(runtime: Runtime) -> int:
        with pytest.raises(Refused, match=why):
            await dial(stage, runtime)
        return 1

    assert stage.run(echo, act, theirs) == 1


def test_who_speaks_something_else_is_told_so(stage: Stage) -> None:
    async def act(runtime: Runtime) -> int:
        with pytest.raises(Refused, match=r"'gossip'.*test"):
            await runtime.connect(stage.address, "gossip", timeout_s=5.0)
        return 1

    assert stage.run(echo, act) == 1


def test_nobody_there_is_said_at_once(stage: Stage) -> None:
    async def act(runtime: Runtime) -> int:
        host, _, port = stage.address.rpartition(":")
        with pytest.raises(ConnectionLost, match="nothing listens there"):
            await runtime.connect(f"{host}:{int(port) ^ 1}", "test", timeout_s=5.0)
        return 1

    assert stage.run(echo, act) == 1


def test_an_address_in_use_is_an_error_to_act_on(stage: Stage) -> None:
    async def act(runtime: Runtime) -> int:
        with pytest.raises(InvalidConfig, match="can't listen on"):
            await runtime.listen(stage.address, "test", echo)
        return 1

    assert stage.run(echo, act) == 1


def test_strangers_are_bounded_and_sent_away(stage: Stage) -> None:
    closed: list[int] = []

    class Silent(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            closed.append(1)

    async def act(runtime: Runtime) -> int:
        host, _, port = stage.address.rpartition(":")
        loop = asyncio.get_running_loop()
        for _ in range(MOST_STRANGERS + 5):
            await loop.create_connection(Silent, host, int(port))
        connection = await dial(stage, runtime)
        await connection.send(b"still here", timeout_s=5.0)
        return len((await connection.receive(timeout_s=5.0)).head)

    assert stage.run(echo, act) == len(b"still here")
    assert len(closed) >= 5


def test_without_a_network_it_says_what_is_missing() -> None:
    with pytest.raises(Unavailable, match="Streams"):
        asyncio.run(RealRuntime().connect("h:1", "test", timeout_s=1.0))


def test_a_conversation_that_fails_is_logged_and_ends_alone(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(connection: Connection) -> None:
        raise LookupError("on purpose")

    async def act(runtime: Runtime) -> int:
        for _ in range(2):
            connection = await dial(stage, runtime)
            with pytest.raises(ConnectionLost):
                await connection.receive(timeout_s=5.0)
        return 2

    with caplog.at_level(logging.ERROR):
        assert stage.run(fail, act) == 2
    assert "a conversation with" in caplog.text


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [(True, True, ""), (False, True, "the other side speaks plain"), (True, False, "TLS"), (True, None, "CA")],
)
def test_tls_is_for_those_of_one_ca(ours: bool, theirs: bool | None, why: str) -> None:
    stage = Stage(False, Guard("the token of this group", certified() if ours else None))
    other = certified("another CA") if theirs is None else certified() if theirs else None

    async def act(runtime: Runtime) -> int:
        if not why:
            connection = await dial(stage, runtime)
            await connection.send(b"secret", DATA.data, timeout_s=5.0)
            return len((await connection.receive(timeout_s=5.0)).data)
        with pytest.raises((Refused, ConnectionLost), match=why):
            await dial(stage, runtime)
        return ALL

    assert stage.run(echo, act, Guard("the token of this group", other)) == ALL


# -- what only virtual time can do -------------------------------------------------------------------------------------


def test_a_frozen_process_keeps_its_connections_and_answers_when_it_thaws() -> None:
    world, told = World(Streams(), latency_s=1e-3), []

    async def serving(runtime: Runtime) -> None:
        await runtime.listen("server:7", "test", echo)
        await runtime.sleep(20)

    async def asking(runtime: Runtime) -> None:
        connection = await runtime.connect("server:7", "test", timeout_s=5.0)
        await connection.send(b"1", timeout_s=1.0)
        with contextlib.suppress(DeadlineExceeded):
            await connection.receive(timeout_s=2.0)
        told.append(runtime.now())
        await connection.receive(timeout_s=10.0)
        told.append(runtime.now())

    server = world.start("server", serving)
    world.start("client", asking, delay_s=1.0)
    world.at(1.002, server.freeze)
    world.at(6.0, server.thaw)
    world.run()
    assert told == pytest.approx([3.002, 6.001], abs=2e-3)


@pytest.mark.parametrize(("event", "after_s"), [("crash", 0.001), ("cut", 4.0)])
def test_a_crash_is_heard_at_once_and_a_cut_after_a_while(event: str, after_s: float) -> None:
    world, told = World(Streams(), latency_s=1e-3), []

    async def serving(runtime: Runtime) -> None:
        await runtime.listen("server:7", "test", echo)
        await runtime.sleep(20)

    async def asking(runtime: Runtime) -> None:
        connection = await runtime.connect("server:7", "test", timeout_s=5.0)
        with pytest.raises(ConnectionLost):
            await connection.receive(timeout_s=60.0)
        told.append(runtime.now())
        with pytest.raises(ConnectionLost):
            await runtime.connect("server:7", "test", timeout_s=3.0)

    server = world.start("server", serving)
    world.start("client", asking, delay_s=1.0)
    world.at(2.0, server.crash if event == "crash" else lambda: world.sockets.cut("server"))
    world.run()
    assert told == pytest.approx([2.0 + after_s], abs=2e-3)


def test_a_killed_process_begins_nothing_any_more_and_another_may_take_its_place() -> None:
    world, said = World(Streams(), latency_s=1e-3), []

    async def serving(runtime: Runtime) -> None:
        await runtime.listen("server:7", "test", echo)
        try:
            await runtime.sleep(10)
        finally:
            said.append(runtime.now())
            await runtime.sleep(1)
            said.append(-1.0)

    first = world.start("server", serving)
    world.at(2.0, first.crash)
    world.start("server again", serving, host="server", delay_s=3.0)
    world.run()
    assert said == [2.0, 13.0, -1.0]


def test_who_closes_after_more_than_a_window_is_still_heard_to_the_end() -> None:
    world, heard = World(Streams(), latency_s=1e-3), []

    async def serving(runtime: Runtime) -> None:
        async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(bytes(2 * MOST_UNREAD))
            writer.close()

        await asyncio.start_server(tell, "server", 7)
        await runtime.sleep(20)

    async def asking(runtime: Runtime) -> None:
        reader, _ = await asyncio.open_connection("server", 7)
        heard.append(len(await reader.read()))

    world.start("server", serving)
    world.start("client", asking, delay_s=1.0)
    world.run()
    assert heard == [2 * MOST_UNREAD]


def test_a_process_killed_before_it_begins_has_ended() -> None:
    world, begun = World(Streams()), []

    async def main(runtime: Runtime) -> None:
        begun.append(runtime.now())

    first = world.start("first", main, delay_s=2.0)
    world.start("second", main, delay_s=3.0)
    world.at(1.0, first.crash)
    world.run()
    assert begun == [3.0]
    assert first.done


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> tuple[float, int]:
        stage = Stage(True)

        async def act(runtime: Runtime) -> float:
            connection = await dial(stage, runtime)
            for i in range(20):
                await connection.send(b"x" * i, DATA.data[: 100 * i], timeout_s=5.0)
                await connection.receive(timeout_s=5.0)
            return runtime.now()

        return stage.run(echo, act), 0

    assert run() == run()


def test_who_has_another_token_is_told_so_through_tls_too(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(False, Guard("the token of this group", certified()))

    async def act(runtime: Runtime) -> None:
        with pytest.raises(Refused, match="the other side has another token"):
            await dial(stage, runtime)

    stage.run(echo, act, Guard("the token of another group", certified()))
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_message_given_up_before_its_turn_costs_nobody_anything() -> None:
    stage = Stage(False)

    async def act(runtime: Runtime) -> int:
        connection = await dial(stage, runtime)
        first = runtime.spawn(connection.send(b"first", DATA.data, timeout_s=5.0), name="first")
        second = runtime.spawn(connection.send(b"second", DATA.data, timeout_s=5.0), name="second")
        await runtime.sleep(0.0)
        assert not first.done(), "else the second has had its turn"
        second.cancel()
        await first
        return len((await connection.receive(timeout_s=5.0)).data)

    assert stage.run(echo, act) == ALL


def test_one_sent_away_before_its_connection_stands_is_cut_when_it_does() -> None:
    """TLS shakes hands first; meanwhile others may have come, or its time may be up."""

    class Transport(asyncio.Transport):
        aborted = False

        def abort(self) -> None:
            self.aborted = True

        def write(self, data: Any) -> None:
            raise AssertionError("greeted")

    link, transport = Link(lambda _: Session("test", dialled=False)), Transport()

    async def act() -> None:
        link.abort()
        link.connection_made(transport)
        link.connection_lost(None)

    asyncio.run(act())
    assert transport.aborted
