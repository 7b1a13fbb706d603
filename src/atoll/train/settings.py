"""Driver: what a training run can be told, paths included; the single source of flags, configuration files and their
documentation."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import tyro

from atoll.errors import InvalidConfig
from atoll.train.limits import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Range, check, flag
from atoll.train.one_byte.settings import OneByteSettings
from atoll.train.schedule import FragmentSchedule

Codec = Literal["none", "bf16", "uint8", "uint8-zero", "int4", "e3m0"]
ONCE: Final = ("int4", "e3m0")
"""Codecs by which each contribution is rounded once, and not at each hop of a ring."""

LIMITS: Final = {
    **dict.fromkeys(("every", "fragments", "steps", "batch", "shards", "max_staleness"), AT_LEAST_1),
    **dict.fromkeys(("consensus", "warm_up", "save_every", "grace", "most_every"), AT_LEAST_0),
    **dict.fromkeys(("lr", "outer_rate"), ABOVE_0),
    "outer_clip": Range(0, above=True, endless=True),
    "penalty": AT_LEAST_1,
    "outer_momentum": Range(0, 1, below=True),
    "mix": Range(0, 1),
}
"""That of `delay` hangs on the schedule."""
ONLY_FOR: Final = {
    **{f"one_byte.{each.name}": ("one-byte",) for each in fields(OneByteSettings)},
    "fragments": ("streaming",),
    "pattern": ("streaming",),
    "naive": ("eager",),
    "consensus": ("eager",),
    "penalty": ("co2",),
    "outer_clip": ("co2",),
    "first": ("co2",),
    "grace": ("diloco-server",),
    "max_staleness": ("diloco-server",),
    "on_abort": ("local-sgd", "slowmo", "diloco", "streaming"),
}
"""Settings that mean something to these strategies only."""
MODEL_LIMITS: Final = dict.fromkeys(("width", "layers", "heads", "context"), AT_LEAST_1)


class OuterStep(NamedTuple):
    """Of the outer optimiser."""

    rate: float
    momentum: float


OUTER: Final = {
    "local-sgd": OuterStep(1.0, 0.0),
    "slowmo": OuterStep(1.0, 0.5),
    "diloco": OuterStep(0.7, 0.9),
    "streaming": OuterStep(0.4, 0.9),
    "eager": OuterStep(0.7, 0.9),
    "co2": OuterStep(1.0, 0.0),
    "diloco-server": OuterStep(0.7, 0.5),
}
"""By default: averaging; Wang et al. 2020; Douillard et al. 2023, 2025; Kale et al. 2025; Sun et al. 2024 (of up to 16
peers); Liu et al. 2024, with less momentum: of 0 to 0.9, the least loss over 144 runs of two and four workers, one
three times as slow, of which 0.9 made 13 % more."""


@dataclass(frozen=True)
class ModelSettings:
    """The transformer that is trained: a decoder of the Llama family over bytes, or a published one."""

    name: Annotated[str, tyro.conf.arg(aliases=["--model"])] = ""
    """Start from that model (as in `atoll model list`, or a path) instead of a new one; its shape is its own."""
    width: int = 128
    """Size of the residual stream."""
    layers: int = 4
    heads: int = 4
    context: int = 128
    """Bytes, or tokens of a published model, that are seen at once."""

    def check(self) -> None:
        """InvalidConfig names the flag that makes no sense."""
        check(self, MODEL_LIMITS, "model.")
        if self.width % (2 * self.heads) and not self.name:
            raise InvalidConfig(
                f"--model.width must be a multiple of {2 * self.heads}, twice --model.heads, not {self.width}"
            )


@dataclass(frozen=True)
class TrainSettings:
    """The same on all peers but for `text`, which each reads where it runs."""

    text: tuple[Path, ...] = ()
    """Files and folders to learn from. Without any: the sources of the Python standard library."""
    strategy: Literal[
        "ddp", "local-sgd", "slowmo", "diloco", "streaming", "eager", "co2", "diloco-server", "one-byte"
    ] = "diloco"
    """ddp: exchange gradients at every step. The others let each peer train alone for `every` steps, then exchange how
    far it has come. local-sgd: go on from the mean. slowmo, diloco: take an outer step with momentum along it.
    streaming: diloco, one fragment of the model at a time. eager: diloco whose exchange travels for a whole round.
    co2: averaging that does, whose steps are the smaller the staler they are. diloco-server: no rounds; a server takes
    what each has learnt when it comes, so that nobody waits for slower ones.
    one-byte: no gradients, but forward passes along random directions, and one byte for each."""
    task: str = ""
    """Learn to label texts (one-byte): a file of lines LABEL<tab>TEXT, or `docstrings`, those of Python's own library.
    Without one: to go on with the text."""
    every: int = 20
    """Local steps between exchanges (all but ddp)."""
    most_every: int = 0
    """Change `every`, by what exchanges take, to the fewest steps that hide them, and at most so many; 0: leave it as
    it is (co2, eager)."""
    fragments: int = 4
    """Parts of the model that are exchanged in turn, whole layers each (streaming). `every` is a multiple of it."""
    pattern: Literal["strided", "sequential"] = "strided"
    """strided: neighbouring layers are in different fragments. sequential: in the same."""
    delay: int | None = None
    """Steps that go on while an exchange travels: less than `every` for diloco, than `every` / `fragments` for
    streaming, longer for peers on slower links; at most 1 for ddp. By default 1 for streaming, else 0."""
    mix: float = 0.5
    """Where there is a delay, how much of its own parameters a peer keeps when an exchange is back: 0 none, 1 all."""
    naive: bool = False
    """Don't put one's own newest progress in the place of the last in the mean that is late (eager)."""
    consensus: int = 10
    """Rounds after which all wait and go on from the same parameters (eager); 0: only at the end."""
    penalty: float | None = None
    """What late steps are divided by. By default 1 + how far all has gone since they were measured, over how far they
    go, at most 10; a number of at least 1: always that (co2)."""
    outer_clip: float = 1.0
    """Largest outer momentum of a parameter, in what `every` steps of the peak learning rate amount to; inf: none
    (co2)."""
    first: Literal["waits", "holds"] = "waits"
    """When the first round ends there is no result of an earlier one: wait for its own; or let the second round begin
    where the first did (co2)."""
    grace: float = 0.0
    """Seconds for which the server waits after what one has learnt has come, to take that of others with it
    (diloco-server)."""
    max_staleness: int = 10
    """What was learnt from parameters older than so many rounds is dropped; a round is one push of each
    (diloco-server)."""
    shards: int = 1
    """Split the memory of the outer optimiser among so many peers; the others hold copies (co2)."""
    on_abort: Literal["again", "reset"] = "again"
    """When a peer is lost, exchange that fragment again among the others; or drop what was learnt on it since its last
    exchange (local-sgd, slowmo, diloco, streaming)."""
    codec: Codec = "none"
    """How numbers travel: as they are, in 2 bytes (bf16), in 1 (uint8), or in half a one (int4, e3m0)."""
    down: Codec | Literal["same"] = "same"
    """How means travel back, if not as by `codec`."""
    rounding: Literal["nearest", "random"] = "nearest"
    """random: int4 and e3m0 round up or down by chance, right on average."""
    error_feedback: bool = False
    """What rounding takes from one exchange goes with the next (int4, e3m0)."""
    steps: int = 200
    """Local steps of each peer."""
    batch: int = 8
    """Sequences per step and peer."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warm_up: int = 20
    """Steps until it is reached."""
    outer_rate: float | None = None
    """Learning rate of the outer step. By default 1 for local-sgd, slowmo and co2, 0.4 for streaming, else 0.7."""
    outer_momentum: float | None = None
    """Its momentum. By default 0 for local-sgd and co2 (whose authors take 0.2 from 17 peers on, 0.5 from 33, 0.6 from
    65), 0.5 for slowmo and diloco-server, else 0.9."""
    save_every: int = 100
    """Steps between checkpoints, at the next exchange; 0: only at the end, and when told to leave."""
    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    one_byte: OneByteSettings = field(default_factory=OneByteSettings)

    def __post_init__(self) -> None:
        check(self, LIMITS)
        self.model.check()
        self.one_byte.check()
        if self.most_every and (self.strategy not in ("co2", "eager") or self.shards > 1):
            raise InvalidConfig(
                f"--most-every {self.most_every} is for co2 and eager with one shard, whose exchanges take a round: "
                "for all else it must be 0"
            )
        if 0 < self.most_every < self.every:
            raise InvalidConfig(f"--most-every must be 0, or at least --every {self.every}, not {self.most_every}")
        if self.shards > 1 and (self.strategy != "co2" or self.codec != "none"):
            raise InvalidConfig(f"--shards {self.shards} is for co2 without a codec; for all else it must be 1")
        if self.strategy == "diloco-server" and self.down != "same":
            raise InvalidConfig(
                f"--down is for means; what a server gives travels as it is: leave out --down {self.down}"
            )
        if self.down != "same" and self.codec == "none":
            raise InvalidConfig(f"--down {self.down} is for what travels by a codec: give a --codec")
        if self.error_feedback and (self.codec not in ONCE or self.strategy in ("diloco-server", "one-byte")):
            raise InvalidConfig(
                f"--error-feedback is for means that travel by --codec {' or '.join(ONCE)}, which round each "
                f"contribution once: not for {self.strategy} with --codec {self.codec}"
            )
        try:
            fragments = self.schedule.fragments
        except InvalidConfig as error:
            raise InvalidConfig(f"--{error}") from None
        if fragments > self.model.layers:
            raise InvalidConfig(
                f"--fragments must be from 1 to {self.model.layers}, the model's layers, not {self.fragments}"
            )
        if self.strategy == "one-byte" and self.batch % self.one_byte.samples:
            raise InvalidConfig(f"--batch {self.batch} can't be shared by --one-byte.samples {self.one_byte.samples}")
        for name, value in (("task", self.task), ("model.name", self.model.name)):
            if value and self.strategy != "one-byte":
                raise InvalidConfig(f"--{name} is for --strategy one-byte, not {self.strategy}")

    @property
    def schedule(self) -> FragmentSchedule:
        """When what is exchanged."""
        match self.strategy:
            case "ddp":
                if self.delay not in (None, 0, 1):
                    raise InvalidConfig(f"delay must be 0 or 1 for ddp, not {self.delay}")
                return FragmentSchedule(late=bool(self.delay))
            case "one-byte":
                if self.delay:
                    raise InvalidConfig(f"delay must be 0 for one-byte, not {self.delay}")
                return FragmentSchedule()
            case "eager":
                if self.delay:
                    raise InvalidConfig(f"delay must be 0 for eager, which is a whole round late, not {self.delay}")
                return FragmentSchedule(self.every, steps=self.steps, late=True, consensus=self.consensus)
            case "co2":
                if self.delay:
                    raise InvalidConfig(f"delay must be 0 for co2, which is a whole round late, not {self.delay}")
                waits = self.first == "waits"
                return FragmentSchedule(self.every, steps=self.steps, late=True, first_waits=waits, stages=self._stages)
            case "streaming":
                delay = int(self.every > self.fragments) if self.delay is None else self.delay
                return FragmentSchedule(self.every, self.fragments, delay, self.steps)
            case "diloco":
                return FragmentSchedule(self.every, delay=self.delay or 0, steps=self.steps)
            case _:
                if self.delay:
                    raise InvalidConfig(f"delay must be 0 for {self.strategy}, not {self.delay}")
                return FragmentSchedule(self.every, steps=self.steps)

    @property
    def own(self) -> tuple[str, ...]:
        """Settings that each peer may have otherwise than others."""
        return ("delay",) if self.strategy in ("diloco", "streaming") else ()

    @property
    def _stages(self) -> int:
        """Of an exchange: contributions, norms where the penalty asks for them, steps."""
        if self.shards == 1:
            return 1
        return 3 if self.penalty is None else 2

    @property
    def outer(self) -> OuterStep:
        """Given, or by default."""
        usual = OUTER[self.strategy]
        return OuterStep(
            usual.rate if self.outer_rate is None else self.outer_rate,
            usual.momentum if self.outer_momentum is None else self.outer_momentum,
        )


def check_typed(strategy: str, names: Iterable[str]) -> None:
    """InvalidConfig: a setting that somebody gave on purpose means nothing to the strategy. (A file may hold those of
    several.)"""
    for name in names:
        if strategy not in (strategies := ONLY_FOR.get(name, (strategy,))):
            raise InvalidConfig(f"{flag(name)} is for --strategy {' or '.join(strategies)}, not {strategy}")
