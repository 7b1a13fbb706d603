"""Driver: unmodified asyncio code in virtual time, on the same heap of events as programs and models.

Ready callbacks run first; when there are none, the heap's next event runs and moves the clock. Time is kept in the
heap's integers: asyncio's own loop adds its clock's resolution to a float, which at large times changes nothing and
makes it spin for ever. A callback's wall time is charged to nobody; what costs time says so (`VirtualRuntime.compute`).
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any, NoReturn, Protocol, TypeVar, TypeVarTuple

from atoll.cost import Op
from atoll.errors import Deadlock, RealIoInVirtualTime
from atoll.runtime.api import Network
from atoll.runtime.real import AsyncioRuntime
from atoll.sim.loop import Loop
from atoll.sim.sockets import Sockets

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Running = Generator[Any, None, T] | Coroutine[Any, Any, T]

REAL_IO = """
    add_reader add_signal_handler add_writer connect_accepted_socket connect_read_pipe connect_write_pipe
    create_connection create_datagram_endpoint create_server create_unix_connection create_unix_server getaddrinfo
    getnameinfo remove_reader remove_signal_handler remove_writer run_in_executor sendfile sock_accept sock_connect
    sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendfile sock_sendto start_tls
    subprocess_exec subprocess_shell
"""
"""`create_connection` and `create_server` work where there are simulated sockets."""


class Place(Protocol):
    """Where tasks run that stand still together: a simulated process."""

    def holds(self, handle: asyncio.Handle) -> bool:
        """Keep it for later, for nothing can run here now?"""


PLACE: ContextVar[Place | None] = ContextVar("place", default=None)
"""Of the code that runs; what it schedules runs in the same one."""


def run(main: Coroutine[Any, Any, T], *, heap: Loop | None = None) -> T:
    """As `asyncio.run`, in virtual time from `heap.now_ns` on; what still runs when `main` returns is cancelled.

    Deadlock: nothing can happen any more and `main` still waits. RealIoInVirtualTime: the code isn't all virtual.
    """
    loop = VirtualEventLoop(heap or Loop())
    try:
        return loop.run_until_complete(main)
    finally:
        try:
            loop.run_until_complete(loop.cancel_all())
        finally:
            loop.close()


class _Task(asyncio.Task[T]):
    """A task hashed by its number instead of its address, because asyncio keeps sets of tasks and walks them."""

    def __init__(self, number: int, place: Place | None, coro: Running[T], **options: Any) -> None:
        self.number, self.place = number, place
        options["name"] = options.get("name") or f"Task-{number}"
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.number


class _Timer(asyncio.TimerHandle):
    __slots__ = ("token",)
    token: int | None  # None: it has run


class VirtualEventLoop(asyncio.BaseEventLoop):
    """An event loop whose time is `heap`'s; whatever would touch the real world raises `RealIoInVirtualTime`.

    The same code gives the same order of events; only `asyncio.as_completed` starts bare coroutines in any order: give
    it tasks.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool
    _check_closed: Callable[[], None]

    def __init__(self, heap: Loop) -> None:
        super().__init__()
        self.heap = heap
        self.sockets: Sockets | None = None
        self._numbers = itertools.count(1)
        self.set_task_factory(self._task)

    def time(self) -> float:
        """Virtual seconds since the heap's start."""
        return self.heap.now_s

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back after `delay` seconds, to the nanosecond."""
        return self._post(round(delay * 1e9), _Timer(self.time() + delay, callback, args, self, context))

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back when `time()` is `when`."""
        return self._post(round(when * 1e9) - self.heap.now_ns, _Timer(when, callback, args, self, context))

    async def cancel_all(self) -> None:
        """Cancel every other task, in the order of their creation, and wait for their end."""
        others = sorted(asyncio.all_tasks(self) - {asyncio.current_task(self)}, key=hash)
        for task in others:
            task.cancel()
        for result in await asyncio.gather(*others, return_exceptions=True):
            if isinstance(result, Exception):
                self.call_exception_handler({"message": "a task failed while it was cancelled", "exception": result})
        await self.shutdown_asyncgens()

    def cancel_all_in(self, place: Place) -> None:
        """Cancel every task that runs there."""
        for task in sorted(asyncio.all_tasks(self), key=hash):
            if isinstance(task, _Task) and task.place is place:
                task.cancel()

    def _task(self, loop: asyncio.AbstractEventLoop, coro: Running[T], **options: Any) -> _Task[T]:
        context = options.get("context")
        place = PLACE.get() if context is None else context.get(PLACE)
        return _Task(next(self._numbers), place, coro, loop=loop, **options)

    def _post(self, delay_ns: int, timer: _Timer) -> _Timer:
        self._check_closed()
        timer.token = self.heap.post(max(0, delay_ns), self._fire, timer)
        return timer

    def _fire(self, timer: _Timer) -> None:
        timer.token = None
        self._let_run(timer)

    def _let_run(self, handle: Any) -> None:
        place = handle._context.get(PLACE)
        if place is None or not place.holds(handle):
            handle._run()

    def _timer_handle_cancelled(self, timer: _Timer) -> None:
        if timer.token is not None:
            self.heap.cancel(timer.token)

    def _run_once(self) -> None:
        if not self._ready and not self._stopping and not self.heap.step():
            raise Deadlock(self._who_waits())
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            if not handle._cancelled:
                self._let_run(handle)

    def _write_to_self(self) -> None:
        """Nothing to wake: a program that calls `call_soon_threadsafe` holds the baton."""

    def _who_waits(self) -> str:
        tasks = [f"{task.get_name()} waits in {_where(task)}" for task in sorted(asyncio.all_tasks(self), key=hash)]
        programs = [f"{p.name} waits for {p.waits_for}" for p in self.heap.programs if not p.ended]
        return f"nothing is left to happen at {self.time():.6f} s, but " + "; ".join(tasks + programs)


def _where(task: asyncio.Task[Any]) -> str:
    """The calls the task is in, outermost first, with their lines."""
    calls = []
    awaited: Any = task.get_coro()
    while (frame := getattr(awaited, "cr_frame", None)) is not None:
        calls.append(f"{awaited.__qualname__} ({frame.f_code.co_filename}:{frame.f_lineno})")
        awaited = awaited.cr_await
    return " > ".join(calls)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(self: VirtualEventLoop, *args: Any, **options: Any) -> NoReturn:
        raise RealIoInVirtualTime(f"`{name}` would touch the real world, but this code runs in virtual time")

    return refuse


def _simulated(name: str, method: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    """`Sockets.method`, for code in a process. RealIoInVirtualTime: there is none, or it wants what isn't simulated."""
    refuse = _refuse(name)

    async def simulated(
        self: VirtualEventLoop, factory: Callable[[], Any], host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        owner: Any = PLACE.get()
        options.pop("backlog", None)
        if self.sockets is None or owner is None or any(value is not None for value in options.values()):
            refuse(self)
        made = getattr(self.sockets, method)(owner, factory, host, port)
        return await made if asyncio.iscoroutine(made) else made

    return simulated


for _name in REAL_IO.split():
    setattr(VirtualEventLoop, _name, _refuse(_name))
for _name, _method in {"create_connection": "connect", "create_server": "listen"}.items():
    setattr(VirtualEventLoop, _name, _simulated(_name, _method))


class VirtualRuntime(AsyncioRuntime):
    """The world of actors in virtual time, under `run(main, heap=heap)`; `cost` gives the seconds an operation
    takes."""

    def __init__(self, heap: Loop, seed: int, cost: Callable[[Op], float], network: Network | None = None) -> None:
        super().__init__(seed, network)
        self._heap, self._cost = heap, cost

    def now(self) -> float:
        """Virtual seconds since the heap's start."""
        return self._heap.now_s

    async def compute(self, op: Op, fn: Callable[[], T]) -> T:
        """Run `fn` at once, then let the seconds pass that `op` costs."""
        result = fn()
        await self.sleep(self._cost(op))
        return result
