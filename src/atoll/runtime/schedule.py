"""Interface: the steps a schedule is made of.

A schedule has a generator per rank and lane; it names ranks and pieces (numbers that partition an operation's data) and
never sees a byte. A step may start once every `Recv` before it *in its lane* has landed; lanes don't wait for each
other. Who walks it is `group/collectives/execution.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Send:
    """The newest value of `piece` leaves for rank `to`; `reduce`: for it to combine with what it has."""

    to: int
    piece: int
    reduce: bool = False


@dataclass(frozen=True, slots=True)
class Recv:
    """A value of `piece` comes from rank `source`; `reduce`: combine it with what we have, else it is the result.

    No lane waits for the same (source, piece, reduce) twice: by these three a frame finds its step.
    """

    source: int
    piece: int
    reduce: bool = False


@dataclass(frozen=True, slots=True)
class Compute:
    """Local work on a piece. `own`: add our input as others would decode it. `final`: its value is complete here:
    divide for an average, encode once for all."""

    op: str
    piece: int


Step = Send | Recv | Compute
Lane = Iterator[Step]
Schedule = Sequence[Lane]
"""One rank's lanes."""
