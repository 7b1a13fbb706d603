"""Interface: what a calibration holds: cost models of one machine, what a host does for a message or a byte, and the
points that judge both.

An error is |predicted - measured| / measured. What was `fitted` never judges.
"""

from dataclasses import dataclass, field
from typing import Final, Self

import msgspec

from atoll.cost import CostCurve, CostModel, Op
from atoll.errors import InvalidConfig, InvalidData
from atoll.reproduce.api import Kind
from atoll.reproduce.calibration.engines import EngineCosts

MEDIAN_BOUND: Final = 0.10
WORST_BOUND: Final = 0.25
"""Of the errors of whole all-reduces, held out."""
WAN_BOUND: Final = 0.10
RECOVERY_BOUND: Final = 0.20

BYTE_WORK: Final = ("add", "copy", "divide", "read", "receive", "reduce", "send")
"""What a host does byte by byte. `read`: out of another process's memory; `reduce`: the same, and add it up in pieces
that stay in the cache; `send` and `receive`: through loopback TCP."""


@dataclass(frozen=True, slots=True)
class Reduced:
    """An all-reduce as it was: the median of rank 0. `direct`: processes read each other's memory; else over TCP."""

    world: int
    direct: bool
    nbytes: int
    seconds: float

    @property
    def what(self) -> str:
        """For tables."""
        return f"all-reduce, N={self.world}, {'direct reads' if self.direct else 'TCP'}"


@dataclass(frozen=True, slots=True)
class Control:
    """Two peers and their master, without data. Seconds; `_core_s`: of one process' core."""

    vote_s: float
    vote_core_s: float
    """A peer's, per vote."""
    master_core_s: float
    """The master's, per vote of both."""
    message_core_s: float
    """A peer's, per message of few bytes to or from the other: one end of three frames."""
    frame_core_s: float
    """The sender's, per frame of several that leave one after the other."""
    vote_alone_core_s: float
    reduce_alone_core_s: float
    """Of a vote and of a small all-reduce that ask nobody: what the program's side takes."""
    form_s: float
    """By the clock: a new epoch of the same two, with new links."""


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was found on a machine."""

    machine: dict[str, str]
    cores: int
    bytes: dict[str, dict[int, float]]
    """Median seconds by what was done and so many bytes: `BYTE_WORK`, and `loopback` by the clock."""
    together: float
    """How many times as long `reduce` takes when every core does it."""
    control: Control
    reduced: tuple[Reduced, ...]
    matmul: tuple[tuple[float, float], ...]
    """(flops, seconds)"""
    disk: tuple[tuple[int, float], ...]
    """(bytes, seconds) of a write and its fsync"""
    exits: tuple[tuple[int, float], ...]
    """(bytes of memory, seconds) from a kill to the end of its connection"""
    quick: bool = False


@dataclass(frozen=True, slots=True)
class HostCosts:
    """What taking part in a group takes of a machine, in seconds of one core unless said otherwise."""

    launch_s: float
    """The program's part of an operation with data: from call to ticket, and from outcome to return."""
    vote_s: float
    """The same of one without."""
    turn_s: float
    """Whenever a peer that slept has something to do: to find out what."""
    message_s: float
    """Then for each message to or from the master, at a peer."""
    frame_s: float
    """And for each data frame, at either end, without its bytes."""
    master_turn_s: float
    master_s: float
    """The same at the master."""
    wake_s: float
    """Until a process that slept runs; no core's time."""
    dial_s: float
    """More than a message, at either end, for a new link."""
    exit_s: float
    """From a kill until the others see its connections closed, without its memory; no core's time."""
    exit_byte_s: float
    """For each byte of its memory that must be given back first."""
    cores: int
    memory: float
    """So many cores can go through memory at full speed."""
    bytes: dict[str, CostCurve]
    """For each of `BYTE_WORK`: of so many bytes, where a whole operation has as many."""

    def per_byte_s(self, work: str, nbytes: int) -> float:
        """Of one byte, in an operation of `nbytes`."""
        return self.bytes[work].seconds(Op(work, bytes=nbytes)) / nbytes


@dataclass(frozen=True, slots=True)
class Point:
    """A whole operation: as it was, and as it was predicted."""

    what: str
    nbytes: int
    measured_s: float
    predicted_s: float
    fitted: bool = False
    """Had the prediction seen it?"""
    kind: Kind = "real"

    @property
    def error(self) -> float:
        """Relative."""
        return abs(self.predicted_s - self.measured_s) / self.measured_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Of one machine, on one day."""

    fingerprint: str
    machine: dict[str, str]
    """What the fingerprint is made of."""
    fitted_on: str
    quick: bool = False
    models: dict[str, CostModel] = field(default_factory=dict)
    curves: dict[str, CostCurve] = field(default_factory=dict)
    """By kind, for `Node.compute`."""
    engines: dict[str, EngineCosts] = field(default_factory=dict)
    """By model, for virtual engines."""
    costs: HostCosts | None = None
    """None: only engines were measured."""
    points: tuple[Point, ...] = ()

    def seconds(self, op: Op) -> float:
        """What `op` should take here: for `World(cost=)`. InvalidConfig: nothing of its kind was measured."""
        model = self.models.get(op.kind) or self.curves.get(op.kind)
        if model is None:
            known = ", ".join(sorted([*self.models, *self.curves]))
            raise InvalidConfig(f"no cost of {op.kind!r} was measured; there are: {known}")
        return model.seconds(op)

    def to_json(self) -> str:
        """For a file."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`. InvalidData: it is no calibration."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, InvalidConfig, InvalidData) as error:
            raise InvalidData(f"not a calibration: {error}; make one with `atoll sim calibrate`") from error
