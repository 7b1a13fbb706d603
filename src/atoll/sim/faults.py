"""Policy: what goes wrong and when, as seeded streams of timed faults; `sim/injector.py` makes them happen.

Every node, link or rack draws from a random stream of its own name, so adding one never shifts another's faults, and
the same clocks strike at the same times when only a factor is changed. Alternating renewal: the next failure's clock
starts when the last one is over (Barlow and Proschan, 1965).
"""

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from atoll.errors import InvalidConfig, InvalidData
from atoll.rng import stream
from atoll.sim.clocks import Clock


@dataclass(frozen=True, slots=True)
class Crash:
    """The node's process ends. Its peers see a reset at once; `silent`: nothing, until they time out."""

    node: str
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Hang:
    """The node's process stands still; what is sent to it waits."""

    node: str


@dataclass(frozen=True, slots=True)
class Slow:
    """All the node does takes `factor` times as long."""

    node: str
    factor: float

    def __post_init__(self) -> None:
        _check(1 <= self.factor < math.inf, f"factor={self.factor} of a slow {self.node!r} must be at least 1")


@dataclass(frozen=True, slots=True)
class Preempt:
    """The node is told that it will be taken away in `notice_s`; then it crashes."""

    node: str
    notice_s: float

    def __post_init__(self) -> None:
        _check(0 <= self.notice_s < math.inf, f"notice_s={self.notice_s} to {self.node!r} must be at least 0")


@dataclass(frozen=True, slots=True)
class DiskError:
    """Reads and writes of the node's disk fail."""

    node: str


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Nothing passes the link."""

    link: str


@dataclass(frozen=True, slots=True)
class LinkDegrade:
    """The link keeps the fraction `bandwidth` of its rate, and every message takes `latency_s` longer."""

    link: str
    bandwidth: float = 1.0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        _check(0 < self.bandwidth <= 1, f"bandwidth={self.bandwidth} left of {self.link!r} must be in (0, 1]")
        _check(0 <= self.latency_s < math.inf, f"latency_s={self.latency_s} added to {self.link!r} must be at least 0")


@dataclass(frozen=True, slots=True)
class MessageLoss:
    """The link loses each message with this probability."""

    link: str
    probability: float

    def __post_init__(self) -> None:
        _check(0 <= self.probability <= 1, f"probability={self.probability} of loss on {self.link!r} must be in [0, 1]")


@dataclass(frozen=True, slots=True)
class Partition:
    """Nodes reach those of their own island only; all that are named in none are one more."""

    islands: tuple[tuple[str, ...], ...]


Fault = Crash | Hang | Slow | Preempt | DiskError | LinkDown | LinkDegrade | MessageLoss | Partition
KINDS: dict[str, type[Fault]] = {
    "crash": Crash,
    "hang": Hang,
    "slow": Slow,
    "preempt": Preempt,
    "disk_error": DiskError,
    "link_down": LinkDown,
    "link_degrade": LinkDegrade,
    "message_loss": MessageLoss,
    "partition": Partition,
}
NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Timed:
    """`fault` strikes at `at_s` and lasts `for_s`: a crashed or preempted node is down so long, then it restarts."""

    at_s: float
    fault: Fault
    for_s: float = math.inf

    def __post_init__(self) -> None:
        _check(0 <= self.at_s < math.inf and self.for_s >= 0, f"{self.fault}: at_s and for_s must be at least 0")

    @property
    def over_s(self) -> float:
        """When all is as before; a notice comes before what lasts."""
        notice_s = self.fault.notice_s if isinstance(self.fault, Preempt) else 0.0
        return self.at_s + notice_s + self.for_s


def merge(*streams: Iterable[Timed]) -> Iterator[Timed]:
    """Streams that are each in order of time, as one; of equal times the earlier stream's comes first."""
    return heapq.merge(*streams, key=lambda timed: timed.at_s)


def repeated(first: Timed, every_s: float, times: int) -> list[Timed]:
    """`first` and again after `every_s`, so many `times`: a link that flaps."""
    _check(every_s >= first.for_s, f"every_s={every_s} must be at least for_s={first.for_s}, or the faults overlap")
    return [replace(first, at_s=first.at_s + i * every_s) for i in range(times)]


def by_clock(fault: Fault, up: Clock, down: Clock, rng: np.random.Generator) -> Iterator[Timed]:
    """`fault` after `up`, for `down`, and again after `up`, without end."""
    at_s = up.draw(rng)
    while at_s < math.inf:
        timed = Timed(at_s, fault, down.draw(rng))
        yield timed
        at_s = timed.over_s + up.draw(rng)


def each(faults: Iterable[Fault], up: Clock, down: Clock, seed: int, name: str = "") -> Iterator[Timed]:
    """Each of `faults` by a clock of its own; those of one kind on one subject need different `name`s."""
    streams = {_label(fault): fault for fault in faults}
    return merge(*(by_clock(f, up, down, stream(seed, "faults", name, *label)) for label, f in streams.items()))


def together(
    domains: Mapping[str, Sequence[Fault]],
    up: Clock,
    down: Clock,
    seed: int,
    name: str = "",
    *,
    share: float = 1.0,
    spread_s: float = 0.0,
) -> Iterator[Timed]:
    """What a rack or a zone suffers at once: when its clock strikes, each of its faults occurs with probability
    `share`, within `spread_s`, and each for a `down` of its own."""
    _check(0 < share <= 1 and 0 <= spread_s < math.inf, f"share={share} must be in (0, 1], spread_s={spread_s} >= 0")

    def bursts(domain: str, faults: Sequence[Fault]) -> Iterator[Timed]:
        clock = stream(seed, "faults", name, domain)
        own = [(fault, stream(seed, "faults", name, domain, *_label(fault))) for fault in faults]
        at_s = up.draw(clock)
        while at_s < math.inf:
            draws = [(rng.random(), rng.random(), down.draw(rng), fault) for fault, rng in own]
            burst = [Timed(at_s + late * spread_s, fault, for_s) for luck, late, for_s, fault in draws if luck < share]
            yield from sorted(burst, key=lambda timed: timed.at_s)
            at_s = max([at_s, *(timed.over_s for timed in burst)]) + up.draw(clock)

    return merge(*(bursts(domain, faults) for domain, faults in domains.items()))


def from_entries(entries: Iterable[Mapping[str, Any]]) -> list[Timed]:
    """A trace or a scenario's table: `{at_s, kind, node | link | islands, ...}`, without `for_s` where there is no end.

    Raises `InvalidData` naming the entry that is none.
    """
    faults = []
    for number, entry in enumerate(entries, start=1):
        fields = dict(entry)
        at_s, kind, for_s = fields.pop("at_s", None), fields.pop("kind", None), fields.pop("for_s", math.inf)
        try:
            _check(str(kind) in KINDS, f"kind {kind!r} must be one of {', '.join(KINDS)}")
            fault = msgspec.convert(fields, KINDS[str(kind)], strict=True)
            surplus = fields.keys() - asdict(fault).keys()
            _check(not surplus, f"a {kind} has no {', '.join(sorted(surplus))}")
            faults.append(Timed(msgspec.convert(at_s, float), fault, msgspec.convert(for_s, float)))
        except (msgspec.ValidationError, InvalidConfig) as error:
            raise InvalidData(f"fault {number} of the trace: {error}") from error
    return faults


def to_entry(timed: Timed) -> dict[str, Any]:
    """The inverse of `from_entries`, for one fault."""
    lasts = {"for_s": timed.for_s} if timed.for_s < math.inf else {}
    return {"at_s": timed.at_s, "kind": NAMES[type(timed.fault)]} | lasts | asdict(timed.fault)


@dataclass(slots=True)
class Trigger:
    """`fault` at the `nth` event of that name whose fields are those of `where`: the 3rd send of step 7 on rank 2."""

    event: str
    fault: Fault
    where: Mapping[str, object] = field(default_factory=dict)
    nth: int = 1
    for_s: float = math.inf
    seen: int = 0

    def handle(self, event: str, fields: Mapping[str, object]) -> bool:
        """Is this the one?"""
        if event != self.event or any(k not in fields or fields[k] != v for k, v in self.where.items()):
            return False
        self.seen += 1
        return self.seen == self.nth


def _label(fault: Fault) -> tuple[str, str]:
    """The kind of a fault and whom it hits, but not how hard."""
    match fault:
        case Partition(islands=islands):
            return NAMES[Partition], str(islands)
        case LinkDown(link=link) | LinkDegrade(link=link) | MessageLoss(link=link):
            return NAMES[type(fault)], link
    return NAMES[type(fault)], fault.node


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidConfig(otherwise)
