"""Policy: a trace cut, sped up and shrunk to what a server at hand can take; each edit counts what it changed."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from atoll.errors import InvalidConfig
from atoll.workload.api import Arrival, Demand, Workload
from atoll.workload.generate.loops import renumbered
from atoll.workload.generate.processes import check_positive


def selected(
    demands: Iterable[Demand], *, start_s: float = 0.0, end_s: float = math.inf, model: str = "", service: str = ""
) -> Iterator[Demand]:
    """Those of `start_s` <= time < `end_s`, of that model and service ("": all), `start_s` becoming 0."""
    if service not in ("", "api", "conversation"):
        raise InvalidConfig(f"there is no service {service!r}; choose api or conversation")
    number = 0
    for demand in demands:
        arrival = demand.arrival
        if arrival.at_s >= end_s:
            return
        if arrival.at_s < start_s or model not in ("", arrival.model) or service not in ("", arrival.service):
            continue
        if start_s:
            demand = replace(demand, arrival=replace(arrival, at_s=arrival.at_s - start_s))
        yield renumbered(demand, number)
        number += 1


def faster(demands: Iterable[Demand], scale: float) -> Iterator[Demand]:
    """The same requests in 1 / `scale` of the time: bursts stay as they are, only shorter."""
    check_positive(scale=scale)
    for demand in demands:
        yield replace(demand, arrival=replace(demand.arrival, at_s=demand.arrival.at_s / scale))


def work(demands: Iterable[Demand], counts: Counter[str]) -> Iterator[Demand]:
    """Without those the source never answered, which nobody knows the answer's length of."""
    number = 0
    for demand in demands:
        if demand.failed:
            counts["failed at the source, left out"] += 1
        else:
            yield renumbered(demand, number)
            number += 1


def capped(
    demands: Iterable[Demand], counts: Counter[str], prompt_tokens: int = 1024, output_tokens: int = 1024
) -> Iterator[Demand]:
    """With nothing longer than a server's limits."""
    check_positive(prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    for demand in demands:
        arrival = demand.arrival
        if arrival.prompt_tokens <= prompt_tokens and demand.output_tokens <= output_tokens:
            yield demand
            continue
        counts["capped"] += 1
        kept = min(arrival.prompt_tokens, prompt_tokens)
        blocks = math.ceil(kept / arrival.block_tokens)
        arrival = replace(arrival, prompt_tokens=kept, hash_ids=arrival.hash_ids[:blocks])
        yield replace(demand, arrival=arrival, output_tokens=min(demand.output_tokens, output_tokens))


def within(demand: Demand, most_tokens: int) -> Demand:
    """Cut to what a model has room for, the prompt first; itself where it fits."""
    prompt, output = demand.arrival.prompt_tokens, demand.output_tokens
    if prompt + output <= most_tokens:
        return demand
    output = max(1, min(output, most_tokens // 2))
    arrival = replace(demand.arrival, prompt_tokens=min(prompt, most_tokens - output))
    return replace(demand, arrival=arrival, output_tokens=output)


def smaller(demands: Iterable[Demand], factor: float) -> Iterator[Demand]:
    """For tiny models: all lengths, and the blocks `hash_ids` stand for, through `factor`; at least 1 token is left."""
    check_positive(factor=factor)
    for demand in demands:
        arrival = replace(
            demand.arrival,
            prompt_tokens=_shrunk(demand.arrival.prompt_tokens, factor),
            block_tokens=_shrunk(demand.arrival.block_tokens, factor),
        )
        yield replace(demand, arrival=arrival, output_tokens=_shrunk(demand.output_tokens, factor))


class Shrunk:
    """The same of a workload."""

    def __init__(self, workload: Workload, factor: float) -> None:
        self._workload, self._factor = workload, factor

    def start(self) -> Iterator[Demand]:
        return smaller(self._workload.start(), self._factor)

    def handle(self, answered: Arrival, now_s: float) -> Sequence[Demand]:
        return list(smaller(self._workload.handle(answered, now_s), self._factor))


def _shrunk(tokens: int, factor: float) -> int:
    return max(1, round(tokens / factor)) if tokens else 0
