"""Actor: a worker: pulls, trains alone, pushes; and looks for its server when that is gone, for a while.

Steps and encoding run beside the event loop (`Runtime.compute`), so that it is heard while it trains. A push that could
not be sent whole is sent again to the next server; one that was sent is not, for it may have been taken.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from atoll.cost import Op
from atoll.errors import ConnectionLost, DeadlineExceeded, InvalidConfig, MasterLost, ProtocolError
from atoll.runtime.api import Connection, Runtime
from atoll.train import essentials
from atoll.train.api import Task
from atoll.train.asynchronous import messages
from atoll.train.asynchronous.local import Local
from atoll.train.asynchronous.messages import PROTOCOL, Assign, Beat, Enter, Leave, Over, Push, Refuse, encode
from atoll.train.settings import TrainSettings

Report = Callable[..., None]

BEAT_S: Final = 0.5
SILENT_S: Final = 10.0
"""A server that says nothing for so long is gone."""
STUCK_S: Final = 30.0
"""One that takes nothing for so long is."""
DIAL_S: Final = 5.0
AGAIN_S: Final = 0.3


class _Left(Exception):
    """We were told to leave while we waited."""


class Worker:
    """`name`: for people. `min_world`: begin when so many are there. `reconnect_s`: for so long a server is looked
    for."""

    def __init__(
        self, runtime: Runtime, settings: TrainSettings, task: Task, report: Report, *, name: str = "",
        min_world: int = 1, reconnect_s: float = 30.0,
    ) -> None:  # fmt: skip
        self.runtime, self.settings, self.task, self.report = runtime, settings, task, report
        self.name, self.min_world, self.reconnect_s = name, min_world, reconnect_s
        self.local = Local(settings, task)
        self.sent = self.ddp_would_send = 0
        """Bytes both ways, for the server's half is ours too."""
        self.step = 0
        self._used = self._epoch = 0
        self._unsent: tuple[bytes, bytes | memoryview] | None = None
        self._waited_s = 0.0
        self._leaving = False

    def leave(self) -> None:
        """After the step under way. To be called where the event loop runs."""
        self._leaving = True

    async def run(self, address: str) -> bool:
        """Work for the server there. True: to the end; False: until told to leave.

        MasterLost: it can't be found, or not again. InvalidConfig: it trains something else.
        """
        while not self._leaving:
            try:
                connection = await self._found(address)
            except _Left:
                return False
            beats = self.runtime.spawn(self._beat(connection), name="beats")
            try:
                return await self._work(connection)
            except _Left:
                return False
            except ConnectionLost as error:
                self.report("alone", message=str(error), epoch=self._epoch)
                self.min_world = 1  # who comes back waits for nobody
            finally:
                beats.cancel()
                connection.close()
        return False

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _found(self, address: str) -> Connection:
        """The server's connection, looked for again and again."""
        end = self.runtime.now() + self.reconnect_s
        while True:
            try:
                return await self.runtime.connect(address, PROTOCOL, largest=self.local.nbytes, timeout_s=DIAL_S)
            except ConnectionLost as error:
                if self._leaving:
                    raise _Left from None
                if self.runtime.now() + AGAIN_S > end:
                    raise MasterLost(
                        f"no server at {address} for {self.reconnect_s:g} s ({error}): start one with "
                        "`atoll train --strategy diloco-server --peers 0 --listen HOST:PORT`"
                    ) from None
            await self.runtime.sleep(AGAIN_S)

    async def _beat(self, connection: Connection) -> None:
        with suppress(ConnectionLost):
            while True:
                await connection.send(encode(Beat()), timeout_s=STUCK_S)
                await self.runtime.sleep(BEAT_S)

    async def _work(self, connection: Connection) -> bool:
        trains = json.dumps(essentials.of(self.settings, self.task))
        holds = self._unsent is not None
        enter = Enter(self.name, trains, self.min_world, self._used, self._epoch, holds)
        await connection.send(encode(enter), timeout_s=STUCK_S)
        await self._push(connection)
        entered = False
        while True:
            began = self.runtime.now()
            assign = await self._next(connection)
            self._waited_s += self.runtime.now() - began
            if assign is None:
                self.report("done", step=self.step, hash="", sent=self.sent, ddp=self.ddp_would_send)
                return True
            if not entered:
                self.report("joined", id=assign.rank, rank=assign.rank, world=assign.world, epoch=assign.epoch)
                entered = True
            if not await self._train(assign):
                await connection.send(encode(Leave()), timeout_s=STUCK_S)
                return False
            await self._push(connection)

    async def _next(self, connection: Connection) -> Assign | None:
        """What to do next, its parameters taken; None: nothing, all is done."""
        while True:
            try:
                message = await connection.receive(timeout_s=SILENT_S)
            except DeadlineExceeded as error:
                raise ConnectionLost(f"the server has gone: {error}") from None
            match messages.from_server(message.head):
                case Assign() as assign:
                    self.sent += len(message.head) + len(message.data)
                    self._epoch = assign.epoch
                    self._used = assign.first + assign.steps * self.settings.batch
                    await self._begin(message.data)
                    return assign
                case Over():
                    return None
                case Refuse(reason):
                    raise InvalidConfig(reason)
                case Beat():
                    if self._leaving:
                        raise _Left

    async def _begin(self, data: memoryview) -> None:
        await self.runtime.compute(Op("load", bytes=len(data)), lambda: self.local.begin(data))

    async def _train(self, assign: Assign) -> bool:
        """Take the steps; False: told to leave."""
        if not assign.steps:
            raise ProtocolError("the server asked for no steps")
        losses, spent_s, op = 0.0, 0.0, self.local.op()
        for i in range(assign.steps):
            if self._leaving:
                return False
            at = min(assign.position + i, self.settings.steps - 1)
            first = assign.first + i * self.settings.batch
            began = self.runtime.now()
            loss, tokens = await self.runtime.compute(op, partial(self.local.step, first, at))
            seconds = self.runtime.now() - began
            losses, spent_s, self.step = losses + loss, spent_s + seconds, at + 1
            self.ddp_would_send += 2 * self.local.nbytes * (assign.world - 1) // assign.world
            self.report(
                "step", step=at + 1, loss=loss, tokens=tokens, seconds=seconds, waited=self._waited_s, sent=self.sent,
                ddp=self.ddp_would_send, world=assign.world, rank=assign.rank, epoch=assign.epoch,
            )  # fmt: skip
            self._waited_s = 0.0
        encode_op = Op("encode", bytes=self.local.nbytes)
        data = await self.runtime.compute(encode_op, lambda: self.local.contribution(assign.first))
        push = Push(assign.version, assign.steps, spent_s, losses / assign.steps)
        self._unsent = encode(push), data
        return True

    async def _push(self, connection: Connection) -> None:
        if self._unsent is None:
            return
        head, data = self._unsent
        began = self.runtime.now()
        await connection.send(head, data, timeout_s=STUCK_S)
        self._waited_s += self.runtime.now() - began
        self.sent += len(head) + len(data)
        self._unsent = None
