"""Every codec along every way an all-reduce can go: the same bits on all ranks, no further from the exact sum than so
many encodings may take it, and every piece encoded whenever it travels."""

import random
from dataclasses import dataclass
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from atoll.codec import CODECS
from atoll.group import operations
from atoll.group.api import EAGER_BYTES, EAGER_BYTES_SENT
from atoll.group.collectives.execution import cut
from atoll.group.facade import Group
from atoll.group.work import wait_all
from tests.group.together import together

WAYS = ["eager", "direct", "halving", "ring"]
DTYPES = ["float16", "bfloat16", "float32", "float64"]
WORLDS = [2, 3, 4, 5]
LOW, HIGH = -3.0, 5.0


@dataclass(frozen=True)
class Case:
    """One all-reduce."""

    codec: str | None
    way: str
    dtype: str
    n: int
    op: str

    @property
    def kind(self) -> np.dtype[Any]:
        return np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))

    def numbers(self, rank: int) -> np.ndarray[Any, Any]:
        return np.random.default_rng([self.n, rank]).uniform(LOW, HIGH, self.n).astype(self.kind)

    def possible(self, world: int) -> bool:
        """May it go this way?"""
        nbytes = self.n * self.kind.itemsize
        if self.way == "eager":
            return nbytes <= EAGER_BYTES and nbytes * (world - 1) <= EAGER_BYTES_SENT
        return self.way == "direct" or self.codec is None or CODECS[self.codec].hops

    def encoded(self, n: int) -> int:
        """Bytes that so many elements take on their way."""
        return CODECS[self.codec].encoded_size(n) if self.codec else n * self.kind.itemsize


def cases(world: int) -> list[Case]:
    sizes = sorted({1, 2, world - 1, 33, 1000, 70_001})
    every = product([None, *CODECS], WAYS, DTYPES, sizes)
    op = random.Random(world)
    return [case for case in (Case(*fields, op.choice(["sum", "avg"])) for fields in every) if case.possible(world)]


# -- how far off it may be ---------------------------------------------------------------------------------------------


class Error:
    """The largest error that a value may have by now, which is the sum of some inputs of at most `largest`."""

    def __init__(self, case: Case, largest: float) -> None:
        info = ml_dtypes.finfo(case.kind)
        self.rounding, self.least = float(info.eps) / 2, float(info.smallest_subnormal)
        self.codec, self.largest = case.codec, largest
        self.now = 0.0

    def _size(self, inputs: int) -> float:
        return inputs * self.largest + self.now

    def encode(self, inputs: int, times: int = 1) -> None:
        """`times` sums of so many inputs each are encoded and decoded, and come together."""
        size = self._size(inputs)
        off = {
            None: 0.0,
            "bf16": size * 2.0**-8,
            "uint8": 2 * size / 510,  # half of one of 255 steps from -size to size
            "uint8-zero": 2 * size / 510,
            "e3m0": size * (1 - 2.0**-0.5) * (1 + 1e-6),  # from the largest that is nearer to 1 than to a half by ratio
            "int4": size / 7 * (1 + 1 / 128) / 2,  # half of a scale that was rounded up
        }[self.codec]
        if self.codec is not None:
            off += self._rounded(size)
        self.now += times * off

    def add(self, inputs: int, times: int = 1) -> None:
        """So many inputs are in the sum now."""
        self.now += times * self._rounded(self._size(inputs))

    def divide(self, world: int) -> None:
        self.now /= world
        self.now += self._rounded(self._size(1))

    def _rounded(self, size: float) -> float:
        return self.rounding * size + self.least


def bound(case: Case, world: int, largest: float) -> float:
    """By how often a partial sum is encoded on its way, and how many inputs are in it by then."""
    error = Error(case, largest)
    match case.way:
        case "eager":  # each input once; everybody sums
            error.encode(1, times=world)
            error.add(world, times=world - 1)
        case "direct":  # all inputs but its owner's, which a codec that encodes once takes too
            error.encode(1, times=world - 1 if case.codec is None or CODECS[case.codec].hops else world)
            error.add(world, times=world - 1)
        case "ring":  # sums of 1, 2, ... inputs
            for inputs in range(1, world):
                error.encode(inputs)
                error.add(inputs + 1)
        case "halving":  # some join a partner first, then sums of twice as many each round
            inner = 1 << world.bit_length() - 1
            error.encode(1, times=world - inner)
            error.add(2, times=world - inner)
            senders, inputs = inner // 2, 1 if world == inner else 2
            while senders:
                error.encode(min(inputs, world - 1), times=senders)
                inputs *= 2
                error.add(min(inputs, world), times=senders)
                senders //= 2
    if case.op == "avg":
        error.divide(world)
    if case.way != "eager":
        error.encode(1 if case.op == "avg" else world)
    return error.now


def bytes_of_all(case: Case, world: int) -> int:
    """What all ranks send together."""
    if case.way == "eager":
        return world * (world - 1) * case.encoded(case.n)
    chunks = sum(case.encoded(part.stop - part.start) for part in cut(0, case.n, world))
    return 2 * (world - 1) * chunks


# -- what came out -----------------------------------------------------------------------------------------------------


def reduced(world: int, todo: list[Case], monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[bytes, int]]]:
    """By rank: the bits of each result, and the bytes sent for it."""
    way = [""]  # in virtual time one program runs at any moment, and to launch takes none
    monkeypatch.setattr(operations, "choose", lambda *_: way[0])

    def main(group: Group) -> list[tuple[bytes, int]]:
        found = []
        for case in todo:
            way[0] = case.way
            x = case.numbers(group.rank)
            sent = group.all_reduce(x, case.op, codec=case.codec).bytes_sent
            found.append((x.tobytes(), sent))
        return found

    return together(world, main)


def check(world: int, todo: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    by_rank = reduced(world, todo, monkeypatch)
    closest: dict[str | None, float] = {}
    for case, *results in zip(todo, *by_rank, strict=True):
        assert len({bits for bits, _ in results}) == 1, f"{case}, world {world}: ranks differ"
        assert sum(sent for _, sent in results) == bytes_of_all(case, world), f"{case}, world {world}"
        inputs = [case.numbers(rank).astype(np.longdouble) for rank in range(world)]
        exact = np.sum(inputs, axis=0) / (world if case.op == "avg" else 1)
        got = np.frombuffer(results[0][0], case.kind).astype(np.longdouble)
        limit = bound(case, world, float(np.max(np.abs(inputs))))
        error = float(np.abs(got - exact).max())
        assert error <= limit, f"{case}, world {world}: off by {error:.3g}, {limit:.3g} allowed"
        closest[case.codec] = max(closest.get(case.codec, 0.0), error / limit)
    assert all(share > 0.1 for share in closest.values()), f"these bounds say little: {closest}"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("world", WORLDS)
def test_every_case_is_within_its_bound_in_the_same_bits_everywhere(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(world, cases(world), monkeypatch)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "ways",
    [["direct"], ["ring"], ["halving"], ["direct", "ring"], ["eager", "direct", "ring", "halving"]],
    ids="-".join,
)
def test_operations_under_way_at_once_do_not_wait_for_each_other_in_a_circle(
    ways: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame whose turn has not come holds up all behind it on its link."""
    at_once(ways, monkeypatch)


def at_once(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight operations at a time on links whose delays differ, so that members begin them at different moments."""
    way = [""]
    monkeypatch.setattr(operations, "choose", lambda *_: way[0])

    def main(group: Group) -> None:
        for _ in range(3):
            tensors, works = [np.full(20_000, float(group.rank)) for _ in range(8)], []
            for tag, x in enumerate(tensors):
                way[0] = ways[tag % len(ways)]
                works.append(group.all_reduce_async(x, "sum", tag=tag))
            wait_all(works)
            assert all((x == group.world * (group.world - 1) / 2).all() for x in tensors)

    for world, seed in product((5, 6), range(3)):
        together(world, main, seed=seed, jitter=5.0)
