"""Policy: a trace as columns of numbers: all the fits look at, some 40 bytes a request."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidData
from atoll.rng import stream
from atoll.workload.api import Demand

Column = NDArray[Any]
TICKS: Final = 0.01
"""The share of gaps of exactly 0 from which on times are taken for rounded."""
SHORTEST_TICK_S: Final = 1e-4


@dataclass(frozen=True)
class Columns:
    """Requests in order of time. `session` numbers those of conversations, others have -1; `elapsed_s` is NaN where the
    source tells none."""

    at_s: Column
    prompt: Column
    output: Column
    failed: Column
    conversation: Column
    session: Column
    elapsed_s: Column

    def __len__(self) -> int:
        return len(self.at_s)

    def where(self, mask: Column) -> "Columns":
        """Those of the requests."""
        return Columns(*(getattr(self, field.name)[mask] for field in fields(self)))


def columns(demands: Iterable[Demand]) -> Columns:
    """Raises `InvalidData` where there are none."""
    at_s, prompt, output, session, elapsed_s = array("d"), array("q"), array("q"), array("q"), array("d")
    failed, conversation = bytearray(), bytearray()
    names: dict[str, int] = {}
    for demand in demands:
        a = demand.arrival
        at_s.append(a.at_s)
        prompt.append(a.prompt_tokens)
        output.append(demand.output_tokens)
        failed.append(demand.failed)
        talks = a.service == "conversation"  # others never come back: no name is kept
        session.append(names.setdefault(a.session, len(names)) if talks else -1)
        conversation.append(talks)
        elapsed_s.append(float("nan") if demand.elapsed_s is None else demand.elapsed_s)
    if not at_s:
        raise InvalidData("the trace has no requests to look at")
    return Columns(
        np.array(at_s),
        np.array(prompt),
        np.array(output),
        np.frombuffer(failed, np.bool_),
        np.frombuffer(conversation, np.bool_),
        np.array(session),
        np.array(elapsed_s),
    )


def tick_s(at_s: Column) -> float:
    """To what the times were rounded: the smallest gap there is, where many are 0; else 0."""
    gaps = np.diff(at_s)
    if not len(gaps) or (gaps <= 0).mean() < TICKS:
        return 0.0
    smallest = float(gaps[gaps > 0].min(initial=np.inf))
    return smallest if SHORTEST_TICK_S <= smallest < np.inf else 0.0


def jittered(at_s: Column, seed: int = 0) -> Column:
    """Rounded times spread over their tick, in order again: without that, gaps of 0 are taken for bursts."""
    tick = tick_s(at_s)
    return np.sort(at_s + stream(seed, "jitter").random(len(at_s)) * tick) if tick else at_s
