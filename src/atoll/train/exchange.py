"""Program: one vector per peer in, their mean out, whoever goes meanwhile; several fragments at once.

A collective that failed left its input as it was, so another is begun with those who are left: all survivors see the
same sequence of outcomes and so do the same. A vector with what is no number is refused: zeros go in its place and
count for nothing, and everybody's vote says so. With error feedback, what a codec took from one vector goes with the
next of the same fragment (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Final

import torch

from atoll.errors import Diverged, PeerLost
from atoll.group.facade import Group
from atoll.group.work import Work
from atoll.runtime.api import here

_FIT: Final = b"+"
_REFUSED: Final = b"-"


@dataclass(frozen=True, slots=True)
class Exchanged:
    """What came of it. `mean` None: somebody went, and it was given up."""

    mean: torch.Tensor | None
    world: int
    bytes_sent: int
    waited_s: float
    losses: tuple[str, ...] = ()
    """Who went meanwhile, in words."""
    refused: tuple[int, ...] = ()
    """Ranks whose vectors held what is no number."""
    fit: bool = True
    """Ours did not."""
    notes: tuple[bytes, ...] = ()
    """By rank: what each said with its vector."""

    @property
    def given(self) -> int:
        """How many vectors the mean is of."""
        return self.world - len(self.refused)


@dataclass(frozen=True, slots=True)
class _Flight:
    vector: torch.Tensor
    """As it was given."""
    sent: torch.Tensor
    """With what was owed; the mean comes in its place."""
    lost: torch.Tensor | None
    work: Work
    fit: bool
    seed: int | None
    note: bytes


class Exchange:
    """Means under way, at most one per fragment. A vector belongs to the exchange until `finish`.

    `codec`: how vectors travel, `down`: how means come back, if otherwise. `owed`, for error feedback: by fragment,
    what the codec has taken from ours so far. A fragment's tag is `tag` + its number.
    """

    def __init__(
        self, codec: str | None = None, down: str | None = None, tag: int = 1, owed: list[torch.Tensor] | None = None
    ) -> None:
        self.codec, self.down, self.tag, self.owed = codec, down, tag, owed
        self._group: Group | None = None
        self._flights: dict[int, _Flight] = {}
        self._known: dict[int, Exchanged] = {}
        """What came of those that have been waited for and not finished."""

    @property
    def under_way(self) -> list[int]:
        """Fragments that have been started and not finished, in that order."""
        return [*self._known, *self._flights]

    @property
    def world(self) -> int:
        """How many take part in what is started now."""
        assert self._group is not None, "enter a group first"
        return self._group.world

    @property
    def rank(self) -> int:
        """Our place among them."""
        assert self._group is not None, "enter a group first"
        return self._group.rank

    def enter(self, group: Group) -> None:
        """Exchange with this group from now on; what was under way in another one is dropped."""
        self._group, self._flights, self._known = group, {}, {}

    def meet(self) -> None:
        """All, when somebody has come or gone and nothing is under way. PeerLost: again."""

    def collect(self) -> None:
        """All, so that `memory` holds what all remember, not only we. PeerLost: again."""

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """What it remembers and a checkpoint needs: views."""
        return {f"{prefix}owed.{fragment}": owed for fragment, owed in enumerate(self.owed or ())}

    def advance(self) -> None:
        """What takes several stages begins the next one."""

    def start(self, fragment: int, vector: torch.Tensor, seed: int | None = None, note: bytes = b"") -> bool:
        """Begin; returns at once. `seed`: round at random. `note`: some bytes for all, as many from each. False: the
        vector is refused."""
        flight = self._flights[fragment] = self._launch(fragment, vector, seed, note)
        return flight.fit

    def landed(self) -> bool:
        """Would no `finish` have to wait?"""
        return all(flight.work.done() for flight in self._flights.values())

    def finish(self, fragment: int, again: Callable[[torch.Tensor], torch.Tensor | None]) -> Exchanged:
        """Wait for the mean; without error feedback it comes in the vector's own memory.

        `again`: what to exchange with those who are left, given what was to be exchanged; None: give up. Diverged:
        nobody's vector could be taken.
        """
        if fragment in self._known:
            return self._known.pop(fragment)
        flight, losses, began = self._flights.pop(fragment), [], here().now()
        while True:
            try:
                result = flight.work.wait()
                break
            except PeerLost as error:
                losses.append(str(error))
                vector = again(flight.vector)
                if vector is None:
                    return Exchanged(None, self.world, 0, here().now() - began, tuple(losses))
                flight = self._launch(fragment, vector, flight.seed, flight.note)
        waited_s, mean = here().now() - began, flight.sent
        if self.owed is not None and flight.lost is not None:
            self.owed[fragment].copy_(flight.lost)
        refused = tuple(rank for rank, note in enumerate(result.notes) if note[:1] == _REFUSED)
        if len(refused) == result.world:
            raise Diverged("no peer has numbers to exchange: lower --lr, or look at the text")
        if refused:
            mean *= result.world / (result.world - len(refused))
        notes = tuple(note[1:] for note in result.notes)
        return Exchanged(mean, result.world, result.bytes_sent, waited_s, tuple(losses), refused, flight.fit, notes)

    def wait(self, fragment: int, again: Callable[[torch.Tensor], torch.Tensor | None]) -> Exchanged:
        """As `finish`, which will give the same mean later: it is only lent."""
        done = self.finish(fragment, again)
        self._known[fragment] = Exchanged(done.mean, done.world, 0, 0.0, notes=done.notes)
        return done

    def _launch(self, fragment: int, vector: torch.Tensor, seed: int | None, note: bytes) -> _Flight:
        assert self._group is not None, "enter a group first"
        fit = finite(vector)
        if not fit:
            vector.zero_()
        sent, lost = vector, None
        if self.owed is not None:
            sent, lost = vector + self.owed[fragment] if fit else vector, torch.empty_like(vector)
        work = self._group.all_reduce_async(
            sent, "avg", tag=self.tag + fragment, codec=self.codec, down=self.down, seed=seed,
            note=(_FIT if fit else _REFUSED) + note, lost=lost,
        )  # fmt: skip
        return _Flight(vector, sent, lost, work, fit, seed, note)


def finite(vector: torch.Tensor) -> bool:
    """Are all of it numbers? In one pass without a mask, so ten times as fast as asking each."""
    low, high = torch.aminmax(vector)
    return isfinite(low) and isfinite(high)
