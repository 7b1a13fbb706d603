"""Collectives as plain loops over the steps they consist of, each begun when all of the last has arrived."""

from collections.abc import Callable, Iterator

from atoll.fabric import Fabric
from atoll.sim.loop import Loop
from atoll.sim.net import Network

Step = list[tuple[str, str, int]]


def ring_steps(hosts: list[str], nbytes: int, rounds: int) -> Iterator[Step]:
    """`rounds` is 2 (N - 1) for an all-reduce, N - 1 for its halves."""
    n = len(hosts)
    step = [(host, hosts[(i + 1) % n], nbytes // n) for i, host in enumerate(hosts)]
    for _ in range(rounds):
        yield step


def doubling_steps(hosts: list[str], nbytes: int) -> Iterator[Step]:
    """Recursive doubling: each exchanges all it has with the one 1, 2, 4... places away."""
    distance = 1
    while distance < len(hosts):
        yield [(host, hosts[i ^ distance], nbytes) for i, host in enumerate(hosts)]
        distance *= 2


def exchange_steps(hosts: list[str], nbytes: int) -> Iterator[Step]:
    """All-to-all: in step k each sends its part to the one k places on."""
    n = len(hosts)
    for k in range(1, n):
        yield [(host, hosts[(i + k) % n], nbytes // n) for i, host in enumerate(hosts)]


def begin(network: Network, steps: Iterator[Step], done: Callable[[], object]) -> None:
    """Walk `steps`, then call `done`."""

    def go_on() -> None:
        step = next(steps, None)
        if step is None:
            done()
        else:
            network.send_all(step, go_on)

    go_on()


def seconds(fabric: Fabric, *walks: Iterator[Step], tie_break: int | None = None) -> list[float]:
    """When each of `walks` over `fabric` ends, all begun at 0, with nothing bounding them but the links."""
    loop = Loop(tie_break)
    network = Network(loop, fabric)
    ends: dict[int, float] = {}
    for i, walk in enumerate(walks):
        begin(network, walk, lambda i=i: ends.__setitem__(i, loop.now_s))  # type: ignore[misc]
    loop.run()
    network.fluid.check_stall()
    return [ends[i] for i in range(len(walks))]
