"""Driver: engines in virtual time: the very scheduler and pool of real ones, each step charged what a cost model says.

How long an answer is, the world knows and the scheduler doesn't: its last token comes when the `Demand` says so. While
only lengths change, many steps are one event, to the nanosecond as if they were many.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from atoll.cost import Op
from atoll.endpoint.api import Sampling
from atoll.model.paged import PAGE_TOKENS
from atoll.serve.pool import KvPool
from atoll.serve.scheduler import Limits, Run, Scheduler, Step
from atoll.serve.sequence import Sequence
from atoll.sim.loop import Loop
from atoll.workload.api import Demand, End, Outcome

Logged = tuple[int, tuple[tuple[str, int], ...]]
"""A step: its begin in ns, and the tokens of each sequence that passed."""

_GREEDY: Final = Sampling(temperature=0)
_END: Final = 0
_WORD: Final = 1
_NAMED_BLOCK: Final = 512
"""Tokens that one of an arrival's `hash_ids` stands for."""
_NS: Final = 1_000_000_000


class Cost(Protocol):
    """As `cost.Fitted`."""

    def seconds(self, op: Op) -> float: ...


@dataclass(slots=True)
class _Asked:
    demand: Demand
    due_s: float
    sent_s: float
    first_s: float = math.nan


@dataclass(slots=True)
class _Turn:
    """Steps under way that are one event: when each of them ends."""

    step: Step
    began_ns: int
    ends_ns: list[int]
    event: int


class VirtualEngine:
    """One engine. `answered` is told how each request ended, at that time. `log` gets its steps."""

    def __init__(
        self,
        loop: Loop,
        cost: Cost,
        pages: int,
        limits: Limits,
        answered: Callable[[Outcome], object],
        *,
        log: list[Logged] | None = None,
        leaps: bool = True,
    ) -> None:
        """`leaps`: whether many steps may be one event."""
        self.loop, self.cost, self.limits = loop, cost, limits
        self.scheduler = Scheduler(KvPool(pages, PAGE_TOKENS), limits)
        self.steps = self.preempted = 0
        self._answered, self._log, self._leaps = answered, log, leaps
        self._asked: dict[str, _Asked] = {}
        self._arrivals = 0
        self._turn: _Turn | None = None

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self._asked)

    def ask(self, demand: Demand, due_s: float) -> None:
        """A request comes now; it was meant for `due_s`."""
        asked = _Asked(demand, due_s, self.loop.now_s)
        prompt = prompt_tokens(demand)
        room = self.scheduler.pool.pages * PAGE_TOKENS - len(prompt)
        if len(self.scheduler.waiting) >= self.limits.waiting or demand.output_tokens > room:
            self._tell(asked, "refused", 0)
            return
        id = str(demand.arrival.number)
        self._asked[id] = asked
        self._arrivals += 1
        sequence = Sequence(id, prompt, (0, self._arrivals), _GREEDY, room, ends=frozenset({_END}))
        self._cut()
        self.scheduler.add(sequence)
        if self._turn is None:
            self._begin()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        step = self.scheduler.schedule()
        self.preempted += step.preempted
        if not step.runs:
            self._turn = None
            return
        for sequence, _ in step.restore:
            sequence.saved = None
        now_ns = self.loop.now_ns
        ends = self._ends(step, now_ns)
        self._turn = _Turn(step, now_ns, ends, self.loop.post(ends[-1] - now_ns, self._end))

    def _ends(self, step: Step, now_ns: int) -> list[int]:
        """When this step ends, and those after it that are sure to be like it."""
        n = self.scheduler.steady(step) if self._leaps else 1
        if n > 1:
            n = min(n, *(self._left(run.sequence) for run in step.runs))
        prefill = sum(len(run.tokens) for run in step.runs if len(run.tokens) > 1)
        batch = len(step.runs)
        context = sum(run.sequence.computed + len(run.tokens) for run in step.runs)
        ends = []
        for i in range(n):
            op = Op("engine_step", prefill_tokens=prefill, batch=batch, context_tokens=context + i * batch)
            now_ns += max(1, round(self.cost.seconds(op) * _NS))
            ends.append(now_ns)
        return ends

    def _left(self, sequence: Sequence) -> int:
        return self._asked[sequence.id].demand.output_tokens - sequence.answered

    def _cut(self) -> None:
        """Somebody comes: the step that runs is the last that is like those before."""
        turn = self._turn
        if turn is None or len(turn.ends_ns) == 1:
            return
        now_ns = self.loop.now_ns
        n = bisect_left(turn.ends_ns, now_ns) + 1
        if n < len(turn.ends_ns):
            del turn.ends_ns[n:]
            self.loop.cancel(turn.event)
            turn.event = self.loop.post(turn.ends_ns[-1] - now_ns, self._end)

    def _end(self) -> None:
        """The steps have been taken: each sequence has one token more for each of them."""
        turn = self._turn
        assert turn is not None
        n = len(turn.ends_ns)
        self.steps += n
        if self._log is not None:
            passed = tuple((run.sequence.id, len(run.tokens)) for run in turn.step.runs)
            self._log += [(began, passed) for began in (turn.began_ns, *turn.ends_ns[:-1])]
        self.scheduler.leap(turn.step, n, _WORD)
        for run in turn.step.runs:
            self._advance(run, turn.ends_ns[0] / _NS)
        self._begin()

    def _advance(self, run: Run, first_s: float) -> None:
        sequence, asked = run.sequence, self._asked[run.sequence.id]
        last = run.draws and self._left(sequence) == 1
        self.scheduler.advance(run, (_END if last else _WORD,) if run.draws else ())
        if run.draws and math.isnan(asked.first_s):
            asked.first_s = first_s
        if last:
            self.scheduler.drop(sequence)
            del self._asked[sequence.id]
            self._tell(asked, "answered", asked.demand.output_tokens)

    def _tell(self, asked: _Asked, end: End, tokens: int) -> None:
        number = asked.demand.arrival.number
        self._answered(Outcome(number, asked.due_s, asked.sent_s, end, asked.first_s, self.loop.now_s, tokens))


def prompt_tokens(demand: Demand) -> tuple[int, ...]:
    """A prompt's tokens: the same where the arrival names the same blocks, else like no other's."""
    arrival = demand.arrival
    named = (2 + block * _NAMED_BLOCK + i for block in arrival.hash_ids for i in range(_NAMED_BLOCK))
    shared = tuple(islice(named, arrival.prompt_tokens))
    return (*shared, *_own(arrival.number, arrival.prompt_tokens - len(shared)))


def _own(number: int, n: int) -> range:
    """Below 0, where no named block is."""
    first = -1 - number * (1 << 20)
    return range(first, first - n, -1)
