"""Program: one vector per peer in, their mean out, whoever goes meanwhile.

A collective that failed left its input as it was, so it is simply begun again with those who are left: all survivors
see the same sequence of outcomes and so do the same.
"""

from dataclasses import dataclass

import torch

from atoll.errors import PeerLost
from atoll.group.facade import Group
from atoll.group.work import Work
from atoll.runtime.api import here


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What came of it."""

    mean: torch.Tensor
    world: int
    bytes_sent: int
    waited_s: float
    losses: tuple[str, ...] = ()
    """Who went meanwhile, in words."""


class Exchange:
    """At most one mean under way. The vector belongs to the exchange until `finish`."""

    def __init__(self, codec: str | None = None, tag: int = 1) -> None:
        self.codec, self.tag = codec, tag
        self._group: Group | None = None
        self._vector: torch.Tensor | None = None
        self._work: Work | None = None

    @property
    def under_way(self) -> bool:
        """Has something been started and not finished?"""
        return self._vector is not None

    def enter(self, group: Group) -> None:
        """Exchange with this group from now on; what was under way in another one is dropped."""
        self._group, self._vector, self._work = group, None, None

    def start(self, vector: torch.Tensor) -> None:
        """Begin; returns at once."""
        assert self._group is not None, "enter a group first"
        self._vector = vector
        self._work = self._group.all_reduce_async(vector, "avg", tag=self.tag, codec=self.codec)

    def finish(self) -> Exchanged:
        """Wait for the mean; in the vector's own memory."""
        assert self._vector is not None
        began, losses = here().now(), []
        while True:
            if self._work is None:
                self.start(self._vector)
            assert self._work is not None
            work, self._work = self._work, None
            try:
                result = work.wait()
            except PeerLost as error:
                losses.append(str(error))
                continue
            vector, self._vector = self._vector, None
            return Exchanged(vector, result.world, result.bytes_sent, here().now() - began, tuple(losses))
