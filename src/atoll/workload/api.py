"""Interface: a request as it comes, what its world knows of it, and what makes, paces and judges such requests.

A policy is given an `Arrival`, which does not know how long its answer will be; the world that plays the model is given
the `Demand`. A policy that asks for an `oracle` says so in its signature.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np

from atoll.errors import InvalidConfig

Service = Literal["api", "conversation"]
End = Literal["answered", "refused", "timed out", "aborted"]
BLOCK_TOKENS: Final = 512
"""What one of `hash_ids` stands for, as in Mooncake's traces."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What anybody may know of a request when it comes. `hash_ids` name the blocks of its prompt, `block_tokens` each:
    equal ids at the start of two prompts are a shared prefix. `turn` counts from 0 within its session."""

    number: int
    at_s: float
    prompt_tokens: int
    session: str
    hash_ids: tuple[int, ...] = ()
    turn: int = 0
    service: Service = "api"
    model: str = ""
    block_tokens: int = BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Demand:
    """A request with its ground truth: the tokens its answer will have. For worlds, not for policies.

    `failed`: the source never answered it, so it is no work. `elapsed_s`: what its whole answer took at the source.
    """

    arrival: Arrival
    output_tokens: int
    failed: bool = False
    elapsed_s: float | None = None


class Process(Protocol):
    """A point process of arrival times in seconds, from 0 on, without end."""

    def times(self, rng: np.random.Generator) -> Iterator[float]: ...


class Lengths(Protocol):
    """A distribution of whole numbers from 1 on: tokens, turns."""

    def draw(self, rng: np.random.Generator) -> int: ...


class Workload(Protocol):
    """All who will ask. The virtual world and the HTTP driver take the same one."""

    def start(self) -> Iterator[Demand]:
        """Those who come whatever becomes of others, in order of time, perhaps without end."""

    def handle(self, answered: Arrival, now_s: float) -> Sequence[Demand]:
        """Who comes because `answered` was answered at `now_s`, each at `now_s` or later."""


@dataclass(slots=True)
class Tally:
    """What became of the rows of a trace: `read` = `emitted` + all of `dropped`. `odd` counts peculiar ones among those
    emitted. `begins_s`: the first row's time of the week, from Monday 0:00, or from 0:00 of the source's first day."""

    format: str = ""
    read: int = 0
    emitted: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    begins_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Targets:
    """What a user was promised, in seconds; None: nothing. `tpot_s`: the mean time between two tokens of an answer."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s), ("latency_s", self.latency_s)):
            if value is not None and not 0 < value < math.inf:
                raise InvalidConfig(f"the target {name}={value} must be finite and above 0, or None")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. Times are counted from `due_s`, when its user meant to ask: what a late driver adds is part
    of the wait, and a server that stalls can't hide the requests it kept from being sent."""

    number: int
    due_s: float
    sent_s: float
    end: End
    first_s: float = math.nan
    """When the first token came."""
    last_s: float = math.nan
    output_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_s - self.due_s

    @property
    def latency_s(self) -> float:
        """Time to the last token."""
        return self.last_s - self.due_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 where there is none."""
        return (self.last_s - self.first_s) / (self.output_tokens - 1) if self.output_tokens > 1 else 0.0
