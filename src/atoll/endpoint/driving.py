"""Actor: asks an endpoint what a workload says, at its times, whatever becomes of the answers.

Open loop: nobody waits for an answer but who would ask next because of it. An answer is as long as its demand says;
prompts of a session begin with all that was said in it before.
"""

import asyncio
import math
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from atoll.endpoint.api import Endpoint, Request, Sampling, Tokens
from atoll.errors import DeadlinePassed, Overloaded, RequestFailed
from atoll.rng import stream
from atoll.runtime.api import Runtime
from atoll.workload.api import Arrival, Demand, End, Outcome, Workload
from atoll.workload.pacer import Pacer
from atoll.workload.trace.edits import within

_LETTERS: Final = (33, 127)
"""Token ids that every vocabulary has."""

_TICK_S: Final = 1e-6
"""Clocks count in steps; to wait for less than one may take no time at all."""


class Prompts:
    """Tokens for prompts of the lengths asked for."""

    def __init__(self, seed: int, ids: tuple[int, int] = _LETTERS) -> None:
        self._seed, self._ids = seed, ids
        self._said: dict[str, list[int]] = {}

    def of(self, arrival: Arrival) -> tuple[int, ...]:
        """What was said in the session, and new tokens after it; named blocks are the same wherever they are named."""
        begun = self._said.get(arrival.session, []) if arrival.turn else []
        for block in islice(arrival.hash_ids, math.ceil(arrival.prompt_tokens / arrival.block_tokens)):
            begun = begun + self._drawn(("block", block), arrival.block_tokens)
        begun = begun[: arrival.prompt_tokens - 1]
        new = self._drawn(("prompt", arrival.number), arrival.prompt_tokens - len(begun))
        return (*begun, *new)

    def answered(self, arrival: Arrival, prompt: tuple[int, ...], answer: list[int]) -> None:
        """Remember it, for the next turn. Of an answer whose tokens nobody numbered, new ones take the place."""
        if arrival.service == "conversation":
            self._said[arrival.session] = [*prompt, *answer]

    def _drawn(self, name: tuple[str, int], n: int) -> list[int]:
        drawn: list[int] = stream(self._seed, *name).integers(*self._ids, size=n).tolist()
        return drawn


@dataclass
class Drive:
    """One run: `run` sends all, and `told` hears of each request how it ended. Times are seconds since its start.

    `most_tokens`: prompt and answer together are cut to that, prompts first.
    """

    runtime: Runtime
    endpoint: Endpoint
    model: str
    workload: Workload
    prompts: Prompts
    told: Callable[[Arrival, Outcome], object]
    offered: Callable[[Arrival], object] = lambda arrival: None
    until_s: float = math.inf
    patience_s: float = 600.0
    """After which an answer is given up."""
    most_tokens: int = 1 << 30
    cut: int = 0
    """How many requests were."""
    _began: float = 0.0
    _more: asyncio.Event = field(default_factory=asyncio.Event)
    _open: set["asyncio.Task[None]"] = field(default_factory=set)
    _mistake: BaseException | None = None
    """What no endpoint should raise: with a request less the figures would be wrong."""

    async def run(self) -> Pacer:
        """Until all that is due has been sent and has ended."""
        pacer = Pacer(self.workload, self.until_s)
        self._began = self.runtime.now()
        while pacer.wake_s < math.inf or self._open:
            for demand in pacer.decide(self._now()):
                self.offered(demand.arrival)
                task = self.runtime.spawn(self._ask(demand, pacer), name=f"request-{demand.arrival.number}")
                self._open.add(task)
                task.add_done_callback(self._ended)
            self._more.clear()
            await self._until(pacer.wake_s)
            if self._mistake is not None:
                raise self._mistake
        return pacer

    async def _until(self, at_s: float) -> None:
        """Or until an answer is there, since it may bring the next request."""
        wait_s = None if at_s == math.inf else max(_TICK_S, at_s - self._now())
        try:
            await asyncio.wait_for(self._more.wait(), wait_s)
        except TimeoutError:
            pass

    async def _ask(self, demand: Demand, pacer: Pacer) -> None:
        sent_s, asked = self._now(), within(demand, self.most_tokens)
        self.cut += asked is not demand
        arrival, n = asked.arrival, asked.output_tokens
        prompt = self.prompts.of(arrival)
        request = Request(
            id=f"load-{arrival.number}",
            model=self.model,
            prompt=Tokens(prompt),
            max_tokens=n,
            ignore_end=True,
            sampling=Sampling(temperature=0.0),
            token_ids=True,
            session=arrival.session,
        )
        first_s = last_s = math.nan
        said: list[int] = []
        end: End = "answered"
        try:
            async with asyncio.timeout(self.patience_s), aclosing(self.endpoint.generate(request)) as answer:
                async for delta in answer:
                    last_s = self._now()
                    first_s = last_s if math.isnan(first_s) else first_s
                    said += delta.tokens
        except (TimeoutError, DeadlinePassed):
            end = "timed out"
        except Overloaded:
            end = "refused"
        except RequestFailed:
            end = "aborted"
        self.prompts.answered(arrival, prompt, said)
        self.told(arrival, Outcome(arrival.number, arrival.at_s, sent_s, end, first_s, last_s, n))
        if end == "answered":
            pacer.handle(arrival, self._now())

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._open.discard(task)
        self._mistake = self._mistake or (None if task.cancelled() else task.exception())
        self._more.set()

    def _now(self) -> float:
        return self.runtime.now() - self._began
