"""Driver: engines in virtual time: the very scheduler and pool of real ones, each step charged what a cost model says.

How long an answer is, the world knows and the scheduler doesn't: its last token comes when the `Demand` says so. While
only lengths change, many steps are one event, to the nanosecond as if they were many.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, Protocol

from atoll.cost import Op
from atoll.endpoint.api import Sampling
from atoll.model.paged import PAGE_TOKENS
from atoll.serve.pool import KvPool
from atoll.serve.restarts import Restarts
from atoll.serve.scheduler import Limits, Run, Scheduler, Step
from atoll.serve.sequence import Sequence
from atoll.sim.loop import FOREVER_NS, Loop
from atoll.workload.api import Arrival, Demand, End, Outcome, Workload
from atoll.workload.pacer import Pacer
from atoll.workload.trace.edits import within

Logged = tuple[int, tuple[tuple[str, int], ...]]
"""A step: its begin in ns, and the tokens of each sequence that passed."""

_GREEDY: Final = Sampling(temperature=0)
_END: Final = 0
_WORD: Final = 1
_BLOCKS: Final = 2
"""From here on."""
_NS: Final = 1_000_000_000


class Cost(Protocol):
    """As `cost.Fitted`."""

    def seconds(self, op: Op) -> float: ...


class Dispatch(Protocol):
    """Who of several is asked: see `route.dispatch.Dispatch`."""

    def choose(self, key: str, ready: Collection[int], tried: Collection[int], now_s: float) -> int | None: ...
    def answered(self, which: int) -> None: ...
    def refused(self, which: int) -> None: ...
    def failed(self, which: int, now_s: float) -> None: ...
    def ended(self, which: int) -> None: ...


@dataclass(slots=True)
class _Asked:
    demand: Demand
    sequence: Sequence
    due_s: float
    sent_s: float
    first_ns: int | None = None


@dataclass(slots=True)
class _Turn:
    """Steps under way that are one event: when each of them ends."""

    step: Step
    began_ns: int
    ends_ns: list[int]
    event: int


class VirtualEngine:
    """One engine. `answered` is told how each request ended, at that time, and `began` of its first token. `log` gets
    its steps."""

    def __init__(
        self,
        loop: Loop,
        cost: Cost,
        pages: int,
        limits: Limits,
        answered: Callable[[Outcome], object] = lambda outcome: None,
        *,
        log: list[Logged] | None = None,
        leaps: bool = True,
    ) -> None:
        """`leaps`: whether many steps may be one event."""
        self.loop, self.cost, self.limits = loop, cost, limits
        self.scheduler = Scheduler(KvPool(pages, PAGE_TOKENS), limits)
        self.steps = self.preempted = 0
        self.answered = answered
        self.began: Callable[[int], object] = lambda number: None
        self.ready = True
        """Can it be asked? Not after a crash, until it has been started again."""
        self._log, self._leaps = log, leaps
        self._asked: dict[str, _Asked] = {}
        self._arrivals = 0
        self._turn: _Turn | None = None
        self._call: int | None = None
        """The event by which `_begin` will be called."""
        self._unwanted: list[str] = []
        self._restarts, self._started_s = Restarts(), loop.now_s
        self._return: int | None = None
        """The event by which it will be ready again."""
        self._cold_ns = 0
        """How much longer the next step takes."""

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return len(self._asked)

    def ask(self, demand: Demand, due_s: float) -> None:
        """A request comes now; it was meant for `due_s`."""
        id = str(demand.arrival.number)
        room = self.scheduler.pool.pages * PAGE_TOKENS - demand.arrival.prompt_tokens
        sequence = Sequence(
            id, prompt_tokens(demand.arrival), (0, self._arrivals), _GREEDY, room, ends=frozenset({_END})
        )
        asked = _Asked(demand, sequence, due_s, self.loop.now_s)
        full = len(self.scheduler.waiting) >= self.limits.waiting
        if not self.ready or full or demand.output_tokens > room:
            self._tell(asked, "refused", 0)
            return
        self._asked[id] = asked
        self._arrivals += 1
        if not self.scheduler.full:
            self._cut()
        self.scheduler.add(sequence)
        if self._turn is None and self._call is None:
            self._call = self.loop.post(0, self._begin)

    def drop(self, number: int) -> None:
        """Nobody wants this answer any more: it ends with the step under way, and nobody is told. One that is over is
        no error."""
        if str(number) in self._asked:
            self._unwanted.append(str(number))
            self._cut()

    def crash(self, ready_s: float, cold_s: float = 0.0) -> None:
        """Its process dies with all that is in it: nothing of that is answered, and what it kept is lost. After a wait
        (`Restarts`) it is started again, which takes `ready_s`; until then it refuses what comes. The first step then
        takes `cold_s` longer."""
        turn = self._turn
        if turn is not None:
            self._count(turn, bisect_right(turn.ends_ns, self.loop.now_ns))
        for event in (None if turn is None else turn.event, self._call, self._return):
            if event is not None:
                self.loop.cancel(event)
        lost = [asked for id, asked in self._asked.items() if id not in self._unwanted]
        self.ready, self._turn, self._call = False, None, None
        self._asked.clear()
        self._unwanted.clear()
        self.scheduler = Scheduler(KvPool(self.scheduler.pool.pages, PAGE_TOKENS), self.limits)
        wait_s = self._restarts.wait_s(self.loop.now_s - self._started_s)
        self._started_s = self.loop.now_s + wait_s
        self._return = self.loop.post(round((wait_s + ready_s) * _NS), self._returned, cold_s)
        for asked in lost:
            self._tell(asked, "aborted", 0)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """After all who come at this moment."""
        self._call = None
        for id in self._unwanted:
            if (asked := self._asked.pop(id, None)) is not None:
                self.scheduler.drop(asked.sequence)
        self._unwanted.clear()
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
        op = step.operation()
        n = 1
        if self._leaps and not op.prefill_tokens:
            asked = self._asked
            left = [asked[run.sequence.id].demand.output_tokens - run.sequence.answered for run in step.runs]
            n = self.scheduler.steady(step, min(left))
        ends = [now_ns + self._cold_ns + self._takes_ns(op)]
        self._cold_ns = 0
        for i in range(1, n):
            more = Op(op.kind, batch=op.batch, context_tokens=op.context_tokens + i * op.batch)
            ends.append(ends[-1] + self._takes_ns(more))
        return ends

    def _takes_ns(self, op: Op) -> int:
        return max(1, round(self.cost.seconds(op) * _NS))

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
        self._count(turn, n)
        last = [run for run in turn.step.runs if self._advance(run, n)]
        for run in last:
            sequence = run.sequence
            self.scheduler.advance(run, (_END,))
            self.scheduler.drop(sequence)
            asked = self._asked.pop(sequence.id)
            self._tell(asked, "answered", asked.demand.output_tokens)
        self._begin()

    def _count(self, turn: _Turn, n: int) -> None:
        """`n` of these steps were taken."""
        self.steps += n
        if not n:
            return
        if self._log is not None:
            passed = tuple((run.sequence.id, len(run.tokens)) for run in turn.step.runs)
            self._log += [(began, passed) for began in (turn.began_ns, *turn.ends_ns[: n - 1])]
        for run in turn.step.runs:
            asked = self._asked[run.sequence.id]
            if run.draws and asked.first_ns is None:
                asked.first_ns = turn.ends_ns[0]
                self.began(asked.demand.arrival.number)

    def _advance(self, run: Run, n: int) -> bool:
        """`n` steps with this run are over. True: of the last, which ends the answer, nothing is told yet."""
        if not run.draws:
            self.scheduler.advance(run, ())
            return False
        sequence = run.sequence
        is_last = sequence.answered + n == self._asked[sequence.id].demand.output_tokens
        if len(run.tokens) == 1:
            self.scheduler.leap(run, n - is_last, _WORD)
        elif not is_last:
            self.scheduler.advance(run, (_WORD,))
        return is_last

    def _returned(self, cold_s: float) -> None:
        self.ready, self._return, self._cold_ns = True, None, round(cold_s * _NS)

    def _tell(self, asked: _Asked, end: End, tokens: int) -> None:
        number = asked.demand.arrival.number
        first_s = math.nan if asked.first_ns is None else asked.first_ns / _NS
        self.answered(Outcome(number, asked.due_s, asked.sent_s, end, first_s, self.loop.now_s, tokens))


@dataclass
class VirtualDrive:
    """Asks virtual engines what a workload says: what `endpoint.driving.Drive` is to servers, with fields as there.

    `dispatch` says which engine gets a request: by number, each request by the session it is of. One of which nothing
    was heard when its engine crashed or refused it goes to another. It reaches an engine after `ask_s`; what is said is
    heard `answer_s` later.
    """

    engines: Listed[VirtualEngine]
    dispatch: Dispatch
    workload: Workload
    told: Callable[[Arrival, Outcome], object]
    offered: Callable[[Arrival], object] = lambda arrival: None
    until_s: float = math.inf
    patience_s: float = 600.0
    most_tokens: int = 1 << 30
    ask_s: float = 0.0
    answer_s: float = 0.0
    cut: int = 0
    """How many requests were."""
    _open: dict[int, "_Sent"] = field(default_factory=dict)
    _wakes_ns: int = FOREVER_NS

    def run(self) -> Pacer:
        """Until all that is due has been sent and has ended."""
        self._loop = self.engines[0].loop
        self._pacer = Pacer(self.workload, self.until_s)
        for engine in self.engines:
            engine.answered, engine.began = self._said, self._began
        self._sleep()
        while (self._open or self._pacer.wake_s < math.inf) and self._loop.step():
            pass
        return self._pacer

    def _sleep(self) -> None:
        """Until something is due: a nanosecond more, so that no rounding makes it too early."""
        if self._pacer.wake_s == math.inf:
            return
        wakes_ns = max(self._loop.now_ns, int(self._pacer.wake_s * _NS) + 1)
        if wakes_ns < self._wakes_ns:
            self._wakes_ns = wakes_ns
            self._loop.post(wakes_ns - self._loop.now_ns, self._send)

    def _send(self) -> None:
        if self._loop.now_ns >= self._wakes_ns:
            self._wakes_ns = FOREVER_NS
        for demand in self._pacer.decide(self._loop.now_s):
            arrival, asked = demand.arrival, within(demand, self.most_tokens)
            self.offered(arrival)
            self.cut += asked is not demand
            sent = self._open[arrival.number] = _Sent(arrival, asked, self._loop.now_s)
            self._loop.post(round(self.patience_s * _NS), self._give_up, arrival.number)
            if not self._ask(sent):
                self._end(sent, Outcome(arrival.number, arrival.at_s, sent.at_s, "refused"))
        self._sleep()

    def _ask(self, sent: "_Sent") -> bool:
        """Somebody who was not asked yet, if there is one."""
        ready = [number for number, engine in enumerate(self.engines) if engine.ready]
        which = self.dispatch.choose(sent.arrival.session, ready, sent.tried, self._loop.now_s)
        if which is None:
            return False
        sent.tried.append(which)
        self._loop.post(round(self.ask_s * _NS), self.engines[which].ask, sent.demand, sent.arrival.at_s)
        return True

    def _began(self, number: int) -> None:
        self._loop.post(round(self.answer_s * _NS), self._heard_first, number)

    def _heard_first(self, number: int) -> None:
        if (sent := self._open.get(number)) is not None:
            self.dispatch.answered(sent.which)

    def _said(self, outcome: Outcome) -> None:
        self._loop.post(round(self.answer_s * _NS), self._heard, outcome)

    def _heard(self, outcome: Outcome) -> None:
        sent = self._open.get(outcome.number)
        if sent is None:  # nobody listens any more
            return
        self.dispatch.ended(sent.which)
        if outcome.end != "answered":
            if outcome.end == "aborted" or not self.engines[sent.which].ready:
                self.dispatch.failed(sent.which, self._loop.now_s)
            else:
                self.dispatch.refused(sent.which)
            if math.isnan(outcome.first_s):
                if self._ask(sent):
                    return
                if len(self.engines) > 1:  # then it is the router that refuses
                    outcome = replace(outcome, end="refused")
        first_s = outcome.first_s + self.answer_s
        self._end(sent, replace(outcome, sent_s=sent.at_s, first_s=first_s, last_s=self._loop.now_s))

    def _end(self, sent: "_Sent", outcome: Outcome) -> None:
        del self._open[outcome.number]
        self.told(sent.arrival, outcome)
        if outcome.end == "answered":
            self._pacer.handle(sent.arrival, self._loop.now_s)
            self._sleep()

    def _give_up(self, number: int) -> None:
        sent = self._open.get(number)
        if sent is None:
            return
        self.dispatch.ended(sent.which)
        self.engines[sent.which].drop(number)
        self._end(sent, Outcome(number, sent.arrival.at_s, sent.at_s, "timed out"))


@dataclass(slots=True)
class _Sent:
    arrival: Arrival
    demand: Demand
    """What of it is asked."""
    at_s: float
    tried: list[int] = field(default_factory=list)
    """Engines, in order."""

    @property
    def which(self) -> int:
        """It is with that engine."""
        return self.tried[-1]


def prompt_tokens(arrival: Arrival) -> tuple[int, ...]:
    """A prompt's tokens: the same where the arrival names the same blocks; after them, one like no other's."""
    size = arrival.block_tokens
    named = (_BLOCKS + block * size + i for block in arrival.hash_ids for i in range(size))
    shared = tuple(islice(named, arrival.prompt_tokens))
    own = arrival.prompt_tokens - len(shared)
    return (*shared, -1 - arrival.number, *(_WORD,) * (own - 1)) if own else shared
