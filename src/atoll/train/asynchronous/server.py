"""Actor: the server: holds the parameters, asks its desk what to do, and has many conversations at once.

What the desk decides is carried out in its order by one task; each worker has another that sends, so that a slow link
holds up nobody else. The parameters of a version are never written to, so any number may be sent while new ones come.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from atoll.cost import Op
from atoll.errors import AtollError, ConnectionLost, InvalidConfig, InvalidData, ProtocolError
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import Beat as Alive
from atoll.group.messages import Bye
from atoll.model.saved import save_model
from atoll.runtime.api import Connection, Listener, Message, Runtime
from atoll.train import essentials
from atoll.train.api import Task
from atoll.train.asynchronous import messages
from atoll.train.asynchronous.desk import (
    Accepted,
    Action,
    Came,
    Changed,
    Desk,
    Dropped,
    Event,
    Finish,
    Pushed,
    Save,
    Work,
)
from atoll.train.asynchronous.local import WIRE, decoded
from atoll.train.asynchronous.messages import PROTOCOL, Assign, Beat, Enter, Leave, Over, Push, Refuse, encode
from atoll.train.asynchronous.nesterov import DelayedNesterov
from atoll.train.checkpoint import load_newest, save_checkpoint
from atoll.train.flat import FlatModel
from atoll.train.loop import Folders
from atoll.train.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

Report = Callable[..., None]

TICK_S: Final = 0.25
LEAST_S: Final = 1e-4
"""Of waiting; less may be nothing to a clock."""
BEAT_S: Final = 1.0
ENTER_S: Final = 10.0
STUCK_S: Final = 30.0
FORGOTTEN_S: Final = 600.0
"""A worker that was silent for so long has to come again."""
LEAVE_S: Final = 3.0
"""For so long workers may take to hear that all is done, and we to carry out what was decided when told to leave."""


@dataclass(eq=False)
class _Seat:
    """A worker's connection, and what is to be said to it."""

    connection: Connection
    outbox: "asyncio.Queue[tuple[bytes, memoryview]]" = field(default_factory=asyncio.Queue)
    heard: int = 0
    """Bytes, when last looked at."""


class Server:
    """`save_to`: the run's folders; None: nothing is saved."""

    def __init__(
        self, runtime: Runtime, settings: TrainSettings, task: Task, report: Report, save_to: Folders | None = None
    ) -> None:
        self.runtime, self.settings, self.task, self.report, self.save_to = runtime, settings, task, report, save_to
        s = settings
        self.model = FlatModel(task.model)
        self.outer = DelayedNesterov(self.model.parameters.clone(), s.outer.rate, s.outer.momentum)
        self.desk = Desk(
            steps=s.steps, every=s.every, batch=s.batch, grace_s=s.grace, max_staleness=s.max_staleness,
            save_every=s.save_every,
        )  # fmt: skip
        self.essentials = essentials.of(settings, task)
        self._seats: dict[int, _Seat] = {}
        self._last = 0
        self._actions: asyncio.Queue[Action] = asyncio.Queue()
        self._hurry = asyncio.Event()
        """The desk waits for a moment that is nearer than the next tick."""
        self._end = asyncio.Event()
        self._leaving = False
        self._saving: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Save, and end. To be called where the event loop runs."""
        self._leaving = True
        self._end.set()

    def resume(self, folder: "Path") -> None:
        """Go on from the newest checkpoint there. InvalidConfig: it is of another run; InvalidData: of none."""
        tensors, about = load_newest(folder)
        if difference := essentials.difference(about.get("trains") or {}, self.essentials):
            raise InvalidConfig(f"{folder}: the checkpoint is of another run: {difference}; resume with the same flags")
        try:
            self.outer.restore(tensors)
            self.desk.restore(about["desk"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InvalidData(f"{folder}: the checkpoint is not one of --strategy diloco-server ({error})") from None
        self.report("resumed", step=int(self.desk.taken))

    async def run(self, address: str) -> bool:
        """Serve workers at HOST:PORT. True: to the end; False: until told to leave, after saving."""
        codec_bytes = 5 * self.model.parameters.numel() + 4096  # no codec takes more
        listener = await self.runtime.listen(address, PROTOCOL, self._attend, largest=codec_bytes)
        self.report("listening", address=listener.address)
        if not self.desk.taken:
            await self._evaluate(0)
        tasks = [self.runtime.spawn(self._tick(), name="tick"), self.runtime.spawn(self._carry_out(), name="carry out")]
        try:
            await self._until_the_end(tasks)
            if self._leaving:
                await self._leave()
                return False
            await self._dismiss()
            return True
        finally:
            self._close(listener, tasks)

    # -- conversations ------------------------------------------------------------------------------------------------

    async def _attend(self, connection: Connection) -> None:
        """One worker, from its first word to its last."""
        enter = messages.from_worker((await connection.receive(timeout_s=ENTER_S)).head)
        if not isinstance(enter, Enter):
            raise ProtocolError(f"the first word of {connection.name} was no Enter")
        if difference := essentials.difference(self.essentials, essentials.read(enter.trains)):
            why = f"the server trains something else: {difference}; join with the same flags and text"
            await connection.send(encode(Refuse(why)), timeout_s=STUCK_S)
            with suppress(AtollError):
                await connection.receive(timeout_s=LEAVE_S)  # until it has read that, and gone
            return
        self._last += 1
        who, seat = self._last, _Seat(connection)
        self._seats[who] = seat
        sender = self.runtime.spawn(self._send(seat), name=f"to {enter.name}")
        why = ""
        try:
            self._feed(who, Came(enter.name or f"worker-{who}", enter.min_world, enter.used, enter.epoch, enter.holds))
            await self._hear(who, connection)
        except AtollError as error:
            why = str(error)
            raise
        finally:
            sender.cancel()
            del self._seats[who]
            self._feed(who, Gone(f"connection lost: {why}") if why else Bye())

    async def _hear(self, who: int, connection: Connection) -> None:
        while True:
            message = await connection.receive(timeout_s=FORGOTTEN_S)
            match messages.from_worker(message.head):
                case Push() as push:
                    await self._pushed(who, push, message)
                case Leave():
                    return
                case Enter():
                    raise ProtocolError("a second Enter")

    async def _pushed(self, who: int, push: Push, message: Message) -> None:
        n, name = self.model.parameters.numel(), self.settings.codec
        op = Op("decode", bytes=len(message.data))
        gradient = await self.runtime.compute(op, lambda: decoded(name, message.data, n))
        self._feed(who, Pushed(push.version, push.steps, push.seconds, gradient, push.loss))

    async def _send(self, seat: _Seat) -> None:
        """Large or small, in order; when there is nothing to say, that."""
        with suppress(ConnectionLost):
            while True:
                try:
                    async with asyncio.timeout(BEAT_S):
                        head, data = await seat.outbox.get()
                except TimeoutError:
                    head, data = encode(Beat()), memoryview(b"")
                await seat.connection.send(head, data, timeout_s=STUCK_S)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def _feed(self, who: int, event: Event) -> None:
        if self._leaving:  # what is saved is as of that moment
            return
        for action in self.desk.handle(who, event, self.runtime.now()):
            self._actions.put_nowait(action)
        if self.desk.due is not None and who:
            self._hurry.set()

    async def _tick(self) -> None:
        """Look at the clock, and at who has said anything."""
        while not self._leaving:
            due = self.desk.due
            wait_s = TICK_S if due is None else min(max(due - self.runtime.now(), LEAST_S), TICK_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._hurry.wait()
            self._hurry.clear()
            for who, seat in list(self._seats.items()):
                if seat.connection.received > seat.heard:
                    seat.heard = seat.connection.received
                    self._feed(who, Alive(who, b"", "running", b""))
            self._feed(0, Tick())

    async def _carry_out(self) -> None:
        while True:
            action = await self._actions.get()
            match action:
                case Accepted():
                    await self._accept(action)
                case Dropped(name, staleness, refused):
                    self._drop(name, staleness, refused)
                case Work(who):
                    self._say(who, _assign(action), self._parameters())
                case Changed(name, what, went, world, epoch):
                    if not self._end.is_set():
                        self.report("went" if went else "came", who=name, message=what, world=world, epoch=epoch)
                case Save(about):
                    await self._save(about)
                case Finish(who):
                    if not self._end.is_set():
                        await self._keep_all()
                        self._end.set()
                    self._say(who, Over(), memoryview(b""))
            self._actions.task_done()

    async def _accept(self, push: Accepted) -> None:
        op = Op("outer_step", bytes=4 * self.model.parameters.numel())
        await self.runtime.compute(op, lambda: self.outer.push(push.gradient, push.workers))
        self.report(
            "applied", who=push.name, version=push.version, staleness=push.staleness, steps=push.steps,
            step=push.step, loss=push.loss, tokens=push.steps * self.settings.batch * self.task.model.config.context,
            world=push.workers,
        )  # fmt: skip

    def _drop(self, name: str, staleness: int, refused: bool) -> None:
        step = int(self.desk.taken)
        if refused:
            self.report("refused", who=name, step=step)
        else:
            self.report("dropped", who=name, step=step, staleness=staleness)

    def _parameters(self) -> memoryview:
        """As they travel."""
        return self.outer.parameters.numpy().astype(WIRE, copy=False).data.cast("B")

    def _say(self, who: int, what: Any, data: memoryview) -> None:
        seat = self._seats.get(who)
        if seat is not None:
            seat.outbox.put_nowait((encode(what), data))

    # -- what stays ---------------------------------------------------------------------------------------------------

    async def _save(self, about: dict[str, Any]) -> None:
        """Of this moment; written while the work goes on, one after the other."""
        if self.save_to is None:
            return
        if self._saving is not None:
            await self._saving
        tensors = {name: tensor.clone() for name, tensor in self.outer.memory().items()}
        self._saving = self.runtime.spawn(self._write(tensors, about), name="save")

    async def _write(self, tensors: dict[str, Any], about: dict[str, Any]) -> None:
        assert self.save_to is not None
        folder, step = self.save_to.checkpoint, int(Desk.taken_of(about))
        op = Op("save", bytes=sum(tensor.nbytes for tensor in tensors.values()))
        said = {"trains": self.essentials, "desk": about}
        path = await self.runtime.compute(op, lambda: save_checkpoint(folder, step, tensors, said))
        self.report("saved", path=str(path), step=step)

    async def _keep_all(self) -> None:
        """The end: checkpoint, loss, model."""
        await self._save(self.desk.remembered())
        if self._saving is not None:
            await self._saving
        step = int(self.desk.taken)
        await self._evaluate(step)
        if self.save_to is not None:
            folder = self.save_to.model
            await self.runtime.compute(Op("save"), lambda: save_model(folder, self.task.model, self.task.tokenizer))
            self.report("saved", path=str(folder), step=step)

    async def _evaluate(self, step: int) -> None:
        self.model.parameters.copy_(self.outer.parameters)
        found = await self.runtime.compute(Op("evaluate"), self.task.evaluate)
        self.report("evaluated", step=step, **found)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def _until_the_end(self, tasks: "list[asyncio.Task[None]]") -> None:
        """All is done, we are told to leave, or what must go on has failed."""
        end = self.runtime.spawn(self._end.wait(), name="end")
        await asyncio.wait([end, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()

    async def _leave(self) -> None:
        """Carry out what was decided, and save that."""
        self._actions.put_nowait(Save(self.desk.remembered()))
        with suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await self._actions.join()
        if self._saving is not None:
            await self._saving

    async def _dismiss(self) -> None:
        """Let all hear that it is over."""
        deadline = self.runtime.now() + LEAVE_S
        while self._seats and self.runtime.now() < deadline:
            await self.runtime.sleep(0.02)
        self.report("done", step=int(self.desk.taken), hash="", sent=0, ddp=0)

    def _close(self, listener: Listener, tasks: "list[asyncio.Task[None]]") -> None:
        listener.close()
        for task in tasks:
            task.cancel()
        for seat in list(self._seats.values()):
            seat.connection.close()


def _assign(work: Work) -> Assign:
    return Assign(work.version, work.steps, work.first, work.position, work.rank, work.world, work.epoch)
