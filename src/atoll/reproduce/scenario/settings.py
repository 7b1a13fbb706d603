"""Driver: what a scenario may say, as typed settings: the single source of its keys, their defaults and their
documentation. `reading.py` makes them from a file."""

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

from atoll.errors import InvalidConfig
from atoll.reproduce.scenario.fabrics import Network
from atoll.sim.clocks import Clock, Exponential, Fixed, LogNormal, Weibull
from atoll.sim.faults import KINDS
from atoll.train.settings import ModelSettings, TrainSettings


@dataclass(frozen=True, kw_only=True)
class StandsFor:
    """The model whose time is charged while a tiny one learns: its operations and its bytes count instead."""

    parameters: float
    tokens_per_step: float
    """Of each peer."""

    def __post_init__(self) -> None:
        _above_0(parameters=self.parameters, tokens_per_step=self.tokens_per_step)


@dataclass(frozen=True, kw_only=True)
class TrainJob(TrainSettings):
    """`kind = "train"`: what `atoll train` runs, a peer on each host, with real tensors; every key of `atoll train` is
    one here."""

    peers: int | None = None
    """How many; by default one on each host."""
    stands_for: StandsFor | None = None
    text_bytes: int = 1 << 21
    """How much of the text is read."""
    save_every: int = 0
    start_every_s: float = 0.1
    """Peers start so long after each other."""
    restart_s: float = 5.0
    """A process that ended though its host lives is started again after so long, and so is that of a host that is
    back."""
    model: ModelSettings = field(default_factory=lambda: ModelSettings(width=32, layers=2, heads=2, context=32))

    def __post_init__(self) -> None:
        super().__post_init__()
        _above_0(start_every_s=self.start_every_s, restart_s=self.restart_s, text_bytes=self.text_bytes)
        if self.peers is not None and self.peers < 1:
            raise InvalidConfig(f"peers must be at least 1, not {self.peers}")


@dataclass(frozen=True, kw_only=True)
class CollectiveJob:
    """`kind = "collective"`: one collective of all hosts, by the schedules the group runs, over flows: without
    programs, so that there may be thousands of ranks."""

    collective: Literal["all_reduce", "reduce_scatter", "all_gather"] = "all_reduce"
    algorithm: Literal["ring", "direct", "halving"] = "ring"
    nbytes: int
    """Of the tensor on each rank."""
    ranks: int | None = None
    """How many; by default one on each host."""
    placement: Literal["in_order", "shuffled"] = "in_order"
    """Which host a rank is on: the next, or any (by the seed)."""

    def __post_init__(self) -> None:
        if self.algorithm == "halving" and self.collective != "all_reduce":
            raise InvalidConfig(
                f'algorithm = "halving" is for all_reduce; take "ring" or "direct" for {self.collective}'
            )
        if self.ranks is not None and self.ranks < 2:
            raise InvalidConfig(f"ranks must be at least 2, not {self.ranks}")
        _above_0(nbytes=self.nbytes)


JOBS: dict[str, type[Any]] = {"train": TrainJob, "collective": CollectiveJob}
Job = TrainJob | CollectiveJob


@dataclass(frozen=True, kw_only=True)
class CostSettings:
    """How many seconds an operation takes: a sum of prices, or what was measured."""

    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    """For a kind of operation ("train_step"), the price of each of its "flops", "bytes", "tokens"; "1": of its own."""
    calibration: Path | None = None
    """A file of fitted models (`atoll sim calibrate`); goes before `seconds` for the kinds it knows."""
    spread: float = 0.0
    """Every operation takes longer or shorter by a log-normal factor of this sigma (and median 1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.spread < inf:
            raise InvalidConfig(f"spread must be at least 0, not {self.spread}")


@dataclass(frozen=True, kw_only=True)
class Striking:
    """What goes wrong."""

    kind: Literal["crash", "hang", "slow", "preempt", "link_down", "link_degrade"]
    silent: bool | None = None
    """crash: the peers see no reset, and notice only when nothing comes."""
    factor: float | None = None
    """slow: all takes so many times as long."""
    notice_s: float | None = None
    """preempt: told so long before."""
    bandwidth: float | None = None
    """link_degrade: the fraction that is left."""

    def __post_init__(self) -> None:
        own = KINDS[self.kind].__dataclass_fields__
        for name in ("silent", "factor", "notice_s", "bandwidth"):
            if getattr(self, name) is not None and name not in own:
                raise InvalidConfig(f'{name} is nothing a fault of kind = "{self.kind}" has; remove it')
        for name in ("factor", "notice_s"):
            if name in own and getattr(self, name) is None:
                raise InvalidConfig(f'a fault of kind = "{self.kind}" needs {name}; give it')

    def of(self, subject: str) -> dict[str, Any]:
        """The fields of the fault that strikes `subject`, a node or a link."""
        given = {n: getattr(self, n) for n in ("silent", "factor", "notice_s", "bandwidth")}
        where = "link" if self.kind.startswith("link") else "node"
        return {"kind": self.kind, where: subject} | {n: value for n, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Once(Striking):
    """`when = "once"`: at a time."""

    at_s: float
    where: list[str]
    """Hosts or links by name; `*` stands for anything, "master" for the master."""
    for_s: float = inf
    """How long it lasts: a crashed node is down so long."""


@dataclass(frozen=True, kw_only=True)
class Repeatedly(Striking):
    """`when = "repeatedly"`: each of them by a clock of its own."""

    up: Clock
    """How long until it strikes, each time."""
    down: Clock
    """How long it lasts."""
    where: list[str] = field(default_factory=lambda: ["*"])
    """Hosts or links by name; `*` stands for anything."""


@dataclass(frozen=True, kw_only=True)
class Together(Striking):
    """`when = "together"`: hosts of one rack at once."""

    up: Clock
    down: Clock
    racks: int
    """The hosts, in order, are in so many."""
    share: float = 1.0
    """Of the rack's hosts that are struck."""
    spread_s: float = 0.0
    """Within which they are."""


@dataclass(frozen=True, kw_only=True)
class FromTrace:
    """`when = "trace"`: as recorded, `{at_s, kind, node, for_s, ...}` on each line."""

    file: Path


FAULTS: dict[str, type[Any]] = {"once": Once, "repeatedly": Repeatedly, "together": Together, "trace": FromTrace}
CLOCKS: dict[str, type[Any]] = {
    "fixed": Fixed, "exponential": Exponential, "weibull": Weibull, "lognormal": LogNormal,
}  # fmt: skip
Faults = Once | Repeatedly | Together | FromTrace


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run. `atoll sim run FILE` makes it, `--set KEY=VALUE` changes it."""

    about: str = ""
    """What it shows, in a sentence."""
    fabric: Network
    job: Job
    cost: CostSettings = field(default_factory=CostSettings)
    faults: tuple[Faults, ...] = ()
    seed: int = 1
    """Of all chance: the same seed gives the same run."""
    until_s: float | None = None
    """The run ends then, if not before."""
    tie_break: int | None = None
    """A seed that permutes what happens at the same moment: no result should hang on that."""

    def __post_init__(self) -> None:
        if self.until_s is not None:
            _above_0(until_s=self.until_s)


def _above_0(**numbers: float) -> None:
    for name, number in numbers.items():
        if not 0 < number < inf:
            raise InvalidConfig(f"{name} must be above 0 and finite, not {number}")
