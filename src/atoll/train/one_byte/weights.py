"""Driver: parameters moved in place along noise that is made anew each time it is needed, block by block.

Each tensor stands on a grid of its own, and so does every move: sums of such numbers are exact in float32. So to and
fro leads back to the same bits without a copy, which floats as they are would not do (theta + z - 2 z + z leaves
dust), and all peers that make the same moves hold the same bits. A grid has at least 2**21 steps up to the largest
parameter of its tensor; where that grows beyond 2**23, the grid becomes coarser, on all peers alike.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import frexp, inf
from typing import Any, Final

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from atoll.group.tensors import flat_view
from atoll.rng import normal, signs

FINEST_BITS: Final = 22
COARSEST_BITS: Final = 23
"""One less than float32 has: so a move that will be taken back is exact too."""
BLOCK: Final = 1 << 16
"""Numbers of noise that are in memory at a time."""
LARGEST_NORMAL: Final = 8.0
"""More than any noise; see `rng.normal`."""
Law = Callable[..., NDArray[np.float32]]
LAWS: Final[dict[str, Law]] = {"normal": normal, "signs": signs}
"""What noise is made of."""

Noise = tuple[int | str, ...]
"""The name of a direction: by it everybody makes the same."""


@dataclass(frozen=True, slots=True)
class Move:
    """Along a noise: each parameter by `size` times its number there, put on the grid, and that `times` over."""

    noise: Noise
    size: float
    times: int = 1


class Weights:
    """Named float32 tensors on the CPU, in order: the noise runs through them as through one. `reach`: the size of the
    largest move that is taken back; `law`: one of `LAWS`. They are put on grids at once."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], reach: float, law: str = "normal") -> None:
        self.tensors = dict(tensors)
        self.grids = torch.zeros(len(tensors))
        """Steps of each tensor's grid; as much part of what all share as the parameters."""
        self._law, self._reach = LAWS[law], reach
        self._flat = [flat_view(tensor, name) for name, tensor in tensors.items()]
        self._blocks = list(_blocks(self._flat))
        self.snap()

    @property
    def numbers(self) -> int:
        """How many parameters."""
        return sum(flat.size for flat in self._flat)

    def snap(self) -> None:
        """New values have been written from outside, with which all begin: choose grids and put them there."""
        for i, flat in enumerate(self._flat):
            _, exponent = frexp(max(_largest(flat), LARGEST_NORMAL * self._reach))
            self._set_grid(i, 2.0 ** (exponent - FINEST_BITS))

    def perturb(self, moves: Sequence[Move]) -> None:
        """Moves that will be taken back."""
        again = {noise for noise, n in Counter(move.noise for move in moves).items() if n > 1}
        for block in self._blocks:
            block.move(moves, self._law, again, self.grids)

    def update(self, back: Sequence[Move], moves: Sequence[Move]) -> None:
        """Take moves back, then make those that stay."""
        self.perturb([*back, *moves])
        for i, flat in enumerate(self._flat):
            grid, largest = float(self.grids[i]), _largest(flat)
            while grid * 2**COARSEST_BITS < largest < inf:
                grid *= 2
            if grid > self.grids[i]:
                self._set_grid(i, grid)

    def digest(self) -> bytes:
        """128 bits for all parameters and grids."""
        return digest_of([*self._flat, self.grids.numpy()])

    def _set_grid(self, i: int, grid: float) -> None:
        self.grids[i] = grid
        for part in _parts(self._flat[i]):
            np.rint(part * np.float32(1 / grid), out=part)
            part *= np.float32(grid)


def digest_of(tensors: Iterable[NDArray[Any]]) -> bytes:
    """128 bits for their bytes (xxh3; not against forgers)."""
    digest = xxhash.xxh3_128()
    for flat in tensors:
        digest.update(flat.view(np.uint8).data)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the tensor that has this number."""

    tensor: int
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Block:
    """Neighbours in the noise, from `offset` on, who may be of several tensors."""

    offset: int
    pieces: list[_Piece] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(piece.values.size for piece in self.pieces)

    def move(self, moves: Sequence[Move], law: Law, again: set[Noise], grids: torch.Tensor) -> None:
        """`again`: noises that more than one of the moves needs."""
        kept: dict[Noise, NDArray[np.float32]] = {}
        size, steps = self.size, [float(grids[piece.tensor]) for piece in self.pieces]
        for move in moves:
            noise = kept[move.noise] if move.noise in kept else law(move.noise, size, offset=self.offset)
            if move.noise in again:
                kept[move.noise] = noise
            at = 0
            for piece, grid in zip(self.pieces, steps, strict=True):
                way = noise[at : at + piece.values.size] * np.float32(move.size / grid)
                np.rint(way, out=way)
                way *= np.float32(move.times * grid)
                np.add(piece.values, way, out=piece.values)
                at += way.size


def _largest(flat: NDArray[np.float32]) -> float:
    return max(max(float(part.max()), -float(part.min())) for part in _parts(flat))


def _parts(flat: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
    return (flat[at : at + BLOCK] for at in range(0, flat.size, BLOCK))


def _blocks(tensors: Iterable[NDArray[np.float32]]) -> Iterable[_Block]:
    block = _Block(0)
    for i, flat in enumerate(tensors):
        at = 0
        while at < flat.size:
            part = flat[at : at + BLOCK - block.size]
            block.pieces.append(_Piece(i, part))
            at += part.size
            if block.size == BLOCK:
                yield block
                block = _Block(block.offset + BLOCK)
    if block.pieces:
        yield block
