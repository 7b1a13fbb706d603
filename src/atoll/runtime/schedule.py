"""Interface: the steps a schedule is made of.

A schedule is a generator per rank; it names ranks and pieces (numbers that partition an operation's data) and never
sees a byte. A step may start once every `Recv` before it has landed; who walks it is `group/execution.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Send:
    """The newest value of `piece` leaves for rank `to`: the input's, a partial result or the final one."""

    to: int
    piece: int


@dataclass(frozen=True, slots=True)
class Recv:
    """A value of `piece` comes from rank `source`; `reduce`: combine it with our input, else it is the result."""

    source: int
    piece: int
    reduce: bool = False


@dataclass(frozen=True, slots=True)
class Compute:
    """Local work on a piece. `final`: its value is complete here: divide for an average, encode once for all."""

    op: str
    piece: int


Step = Send | Recv | Compute
Schedule = Iterator[Step]
