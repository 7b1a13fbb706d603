"""Policy: requests in a row: open loops that wait for nobody, closed loops whose users do, and both together.

Times, prompts and answers draw from streams of their own, so changing one leaves the others as they were.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from atoll.rng import stream
from atoll.workload.api import Arrival, Demand, Lengths, Process, Service, Workload
from atoll.workload.generate.lengths import Joint
from atoll.workload.generate.processes import check_positive


def oracle(demands: Iterable[Demand]) -> Callable[[Arrival], int]:
    """The output tokens of each arrival, for a policy that is meant to know the future."""
    known = {demand.arrival: demand.output_tokens for demand in demands}
    return known.__getitem__


def open_loop(
    process: Process,
    prompt: Lengths,
    output: Lengths | Joint,
    seed: int,
    name: str = "",
    service: Service = "api",
) -> Iterator[Demand]:
    """Arrivals that come whatever becomes of those before, each a session of its own, without end."""
    times, prompts, outputs = (stream(seed, "arrivals", name, what) for what in ("times", "prompts", "outputs"))
    for number, at_s in enumerate(process.times(times)):
        arrival = Arrival(number, at_s, prompt.draw(prompts), f"{name}{number}", service=service)
        answers = output.given(arrival.prompt_tokens) if isinstance(output, Joint) else output
        yield Demand(arrival, answers.draw(outputs))


class Replay:
    """A workload of demands that are known: a trace, or an open loop."""

    def __init__(self, demands: Iterable[Demand]) -> None:
        self._demands = demands

    def start(self) -> Iterator[Demand]:
        return iter(self._demands)

    def handle(self, answered: Arrival, now_s: float) -> Sequence[Demand]:
        """Nobody waits for answers."""
        return ()


class ClosedLoop:
    """So many users, each of whom asks, reads the answer, thinks for an exponential time and asks again.

    A user's draws are a stream of their own: who is answered first changes when the others ask, never what.
    """

    def __init__(self, users: int, think_s: float, prompt: Lengths, output: Lengths, seed: int, name: str = "") -> None:
        check_positive(users=users, think_s=think_s)
        self.think_s, self.prompt, self.output = think_s, prompt, output
        self._rngs = {f"{name}{user}": stream(seed, "arrivals", name, user) for user in range(users)}
        self._asked = 0

    def start(self) -> Iterator[Demand]:
        """The first request of each user, in order of time: all think first."""
        first = [self._ask(session, 0.0, turn=0) for session in self._rngs]
        return iter(sorted(first, key=lambda demand: demand.arrival.at_s))

    def handle(self, answered: Arrival, now_s: float) -> Sequence[Demand]:
        """The next request of the user whose `answered` was finished at `now_s`."""
        return [self._ask(answered.session, now_s, answered.turn + 1)]

    def _ask(self, session: str, now_s: float, turn: int) -> Demand:
        rng = self._rngs[session]
        at_s = now_s + self.think_s * rng.standard_exponential()
        arrival = Arrival(self._asked, at_s, self.prompt.draw(rng), session, turn=turn)
        self._asked += 1
        return Demand(arrival, self.output.draw(rng))


class Together:
    """Several workloads at once, numbered through. Their sessions need different names."""

    def __init__(self, workloads: Sequence[Workload]) -> None:
        self._workloads = workloads
        self._owners: dict[int, tuple[Workload, Arrival]] = {}
        self._asked = 0

    def start(self) -> Iterator[Demand]:
        streams = [_tagged(workload) for workload in self._workloads]
        for demand, workload in heapq.merge(*streams, key=lambda pair: pair[0].arrival.at_s):
            yield self._numbered(demand, workload)

    def handle(self, answered: Arrival, now_s: float) -> Sequence[Demand]:
        if answered.number not in self._owners:
            return ()
        workload, arrival = self._owners.pop(answered.number)
        return [self._numbered(demand, workload) for demand in workload.handle(arrival, now_s)]

    def _numbered(self, demand: Demand, workload: Workload) -> Demand:
        self._owners[self._asked] = workload, demand.arrival
        self._asked += 1
        return renumbered(demand, self._asked - 1)


def unrolled(workload: Workload, answer_s: Callable[[Demand], float]) -> Iterator[Demand]:
    """Who asks, in order of time and numbered so, if each answer took `answer_s` of its request."""
    coming = workload.start()
    ahead = next(coming, None)
    events: list[tuple[float, int, Demand, bool]] = []  # when, in which order, who, and whether that is an answer
    order = number = 0
    while ahead or events:
        if ahead and (not events or ahead.arrival.at_s <= events[0][0]):
            demand, ahead, is_answer = ahead, next(coming, None), False
        else:
            now_s, _, demand, is_answer = heapq.heappop(events)
        if is_answer:
            followers = workload.handle(demand.arrival, now_s)
            new = [(follower.arrival.at_s, follower, False) for follower in followers]
        else:
            yield renumbered(demand, number)
            number += 1
            new = [(demand.arrival.at_s + answer_s(demand), demand, True)]
        for at_s, who, answer in new:
            heapq.heappush(events, (at_s, order, who, answer))
            order += 1


def renumbered(demand: Demand, number: int) -> Demand:
    """The same as the `number`th."""
    if demand.arrival.number == number:
        return demand
    return replace(demand, arrival=replace(demand.arrival, number=number))


def _tagged(workload: Workload) -> Iterator[tuple[Demand, Workload]]:
    return ((demand, workload) for demand in workload.start())
