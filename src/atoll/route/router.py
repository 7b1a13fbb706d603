"""Actor: several endpoints as one. A request goes where the balance says, and to others while nothing of its answer has
been heard; each is gone round for a while after a failure.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Final

import msgspec
import xxhash

from atoll.endpoint.api import Conversation, Delta, Endpoint, Load, Request, Served, Text, Tokens
from atoll.errors import DeadlinePassed, Draining, EngineLost, InvalidRequest, NotServed, Overloaded, RequestFailed
from atoll.model.api import Tokenizer
from atoll.route.api import Balance
from atoll.route.dispatch import Dispatch
from atoll.runtime.api import Runtime

BEGINNING_CHARACTERS: Final = 256
BEGINNING_TOKENS: Final = 64
"""Of a prompt that is neither a conversation nor of a session, what has to be the same."""


class Router:
    """An endpoint over `endpoints`, by name. They are started and closed by whoever made them."""

    def __init__(self, runtime: Runtime, endpoints: Mapping[str, Endpoint], balance: Balance) -> None:
        self._runtime = runtime
        self._endpoints = tuple(endpoints.values())
        self.dispatch = Dispatch(tuple(endpoints), balance)

    # -- Endpoint -----------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """See `endpoint.api.Endpoint`. Draining: none of them can answer now. Overloaded: all have too many."""
        dispatch, key, began = self.dispatch, key_of(request), self._runtime.now()
        tried: list[int] = []
        failure: EngineLost | Overloaded | None = None
        while True:
            now = self._runtime.now()
            which = dispatch.choose(key, self._ready(request.model), tried, now)
            if which is None:
                raise self._nobody(request, failure, now)
            tried.append(which)
            heard = False
            try:
                asked = _with_less_time(request, now - began)
                async with aclosing(self._endpoints[which].generate(asked)) as answer:
                    async for delta in answer:
                        if not heard:
                            heard = True
                            dispatch.answered(which)
                        yield _named(delta, dispatch.names[which])
                return
            except (EngineLost, Overloaded) as error:
                if isinstance(error, EngineLost | Draining):
                    dispatch.failed(which, self._runtime.now())
                else:
                    dispatch.refused(which)
                if heard:
                    raise
                failure = error
            except (InvalidRequest, NotServed):  # it is there, and nobody would answer
                dispatch.answered(which)
                raise
            finally:
                dispatch.ended(which)

    def load(self) -> Load:
        """The sum, and each one's own with what the router knows of it."""
        engines = {name: self._load(number) for number, name in enumerate(self.dispatch.names)}
        loads = tuple(engines.values())
        return Load(
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads),
            pages=sum(load.pages for load in loads),
            free_pages=sum(load.free_pages for load in loads),
            counts=_sum(load.counts for load in loads),
            instances=_sum(load.instances for load in loads),
            engines=engines,
        )

    def describe(self) -> tuple[Served, ...]:
        """All that one of them serves; of a model that several do, the least context that they have room for."""
        found: dict[str, Served] = {}
        for endpoint in self._endpoints:
            for served in endpoint.describe():
                known = found.setdefault(served.name, served)
                if served.context < known.context:
                    found[served.name] = served
        return tuple(found.values())

    def tokenizer(self, model: str) -> Tokenizer | None:
        """That of the first that serves it."""
        ready = self._ready(model)
        if not ready:
            raise self._nobody(Request(id="", model=model, prompt=Text("")), None, self._runtime.now())
        return self._endpoints[ready[0]].tokenizer(model)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _ready(self, model: str) -> list[int]:
        return [
            number
            for number, endpoint in enumerate(self._endpoints)
            if any(served.name == model for served in endpoint.describe())
        ]

    def _nobody(self, request: Request, failure: RequestFailed | None, now: float) -> RequestFailed:
        """Why a request can't be answered."""
        if isinstance(failure, Overloaded):
            return failure
        names = [served.name for served in self.describe()]
        if all(endpoint.describe() for endpoint in self._endpoints) and request.model not in names:
            return NotServed(f"there is no model {request.model!r} here; there is {', '.join(names)}")
        why = f"; the last said: {failure}" if failure else ""
        wait_s = max(1.0, self.dispatch.wait_s(now))
        return Draining(f"none of {len(self._endpoints)} servers can answer now{why}", retry_s=wait_s)

    def _load(self, number: int) -> Load:
        """Of one."""
        load, dispatch = self._endpoints[number].load(), self.dispatch
        there = self._endpoints[number].describe() and dispatch.reachable(number, self._runtime.now())
        counts = {"routed_requests": dispatch.asked[number], "routed_failures": dispatch.failures[number]}
        return msgspec.structs.replace(
            load,
            counts={**load.counts, **counts},
            instances=load.instances or {"ready" if there else "lost": 1},
        )


def key_of(request: Request) -> str:
    """The same for requests that should go to the same engine, since their prompts begin alike."""
    if request.session:
        return request.session
    match request.prompt:
        case Conversation(messages, tools):
            first = next((i for i, message in enumerate(messages) if message.get("role") == "user"), 0)
            beginning = msgspec.json.encode((tools, messages[: first + 1]))
        case Text(text):
            beginning = text[:BEGINNING_CHARACTERS].encode("utf-8", "surrogatepass")
        case Tokens(tokens):
            beginning = msgspec.json.encode(tokens[:BEGINNING_TOKENS])
    return xxhash.xxh3_128_hexdigest(beginning)


def _with_less_time(request: Request, passed_s: float) -> Request:
    """DeadlinePassed: there is none left."""
    if request.deadline_s is None:
        return request
    if passed_s >= request.deadline_s:
        raise DeadlinePassed(f"the answer was not there within {request.deadline_s} s")
    return msgspec.structs.replace(request, deadline_s=request.deadline_s - passed_s)


def _named(delta: Delta, engine: str) -> Delta:
    if delta.times is None:
        return delta
    return msgspec.structs.replace(delta, times=msgspec.structs.replace(delta.times, engine=engine))


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for each in counts:
        total.update(each)
    return dict(total)
