"""Driver: what a simulation refuses, and how it says so. (Simulator, "Done when" 10.)"""

import asyncio
from collections.abc import Callable, Iterator
from math import nan

from atoll.errors import AtollError, Deadlock, InvalidData, RealIoInVirtualTime
from atoll.fabric import star
from atoll.reproduce.api import Line, Say, judged
from atoll.sim.aio import run
from atoll.sim.fluid import Fluid
from atoll.sim.loop import Loop
from atoll.sim.net import Network


def refusals(say: Say) -> Iterator[Line]:
    """One line for each."""
    say("what is refused")
    for number, (claim, expected, kind, words, attempt) in zip("abcdefgh", _ATTEMPTS, strict=False):
        try:
            attempt()
            said, ok = "nothing was said", False
        except (AtollError, ValueError) as error:
            said, ok = f"{type(error).__name__}: {error}", isinstance(error, kind) and words in str(error)
        yield Line(f"10{number}", claim, expected, said, judged(ok), "simulated")
    left = _cancelled()
    yield Line(
        "10h",
        "a cancelled message leaves no flow and no event behind",
        "0, 0",
        f"{left[0]}, {left[1]}",
        judged(left == (0, 0)),
        "simulated",
    )


def _deadlock() -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.create_task(wait_for_ever(), name="the one who waits")

    run(main())


def _real_io() -> None:
    async def main() -> None:
        await asyncio.open_connection("127.0.0.1", 9)

    run(main())


def _in_the_past() -> None:
    Loop().post(-1, print)


def _work_that_is_no_number() -> None:
    fluid = Fluid(Loop())
    fluid.start(nan, {fluid.resource("link", 1.0): 1.0}, print)  # type: ignore[arg-type]


def _no_route() -> None:
    Network(Loop(), star(2, 1e9)).send("host0", "elsewhere", 1, print)


def _negative_capacity() -> None:
    Fluid(Loop()).resource("link", -1.0)


def _stall() -> None:
    loop = Loop()
    network = Network(loop, star(2, 1e9))
    network.set_link(network.fabric.links["host0->switch"], 0.0)
    network.send("host0", "host1", 1 << 20, print)
    loop.run()
    network.fluid.check_stall()


def _cancelled() -> tuple[int, int]:
    loop = Loop()
    network = Network(loop, star(2, 1e9))
    flow = network.send("host0", "host1", 1 << 30, print)
    loop.run(until_ns=1000)
    network.abort(flow)
    while loop.step():
        pass
    return len(network.flows()), loop.pending()


_ATTEMPTS: tuple[tuple[str, str, type[Exception], str, Callable[[], None]], ...] = (
    ("nothing can happen any more", "Deadlock that names the tasks", Deadlock, "the one who waits", _deadlock),
    ("real sockets in virtual time", "RealIoInVirtualTime", RealIoInVirtualTime, "", _real_io),
    ("an event in the past", "ValueError", ValueError, "in the past", _in_the_past),
    ("work that is not a number", "InvalidData", InvalidData, "nan", _work_that_is_no_number),
    ("a host nobody knows", "InvalidData that names it", InvalidData, "'elsewhere'", _no_route),
    ("negative capacity", "InvalidData that names the resource", InvalidData, "'link'", _negative_capacity),
    ("no capacity where a message waits", "a stall that names the link", Deadlock, "host0->switch", _stall),
)
