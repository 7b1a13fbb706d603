"""What comes out of a collective, against NumPy and Python integers; on all ranks in the same bits.

Data has three ways: the smallest travels in the votes, more leaves with the vote, large operations wait for all votes.
All three are here.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import atoll
from atoll.group.collectives.execution import divide
from atoll.group.facade import Group
from atoll.group.local import LocalGroup
from atoll.group.work import wait_all
from tests.group.together import together

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
OPS = ["sum", "avg", "prod", "max", "min"]
WORLDS = range(2, 6)
EAGER, COMMENCED = 70_000, 300_000
"""Bytes above the limit of what travels in votes, and of what doesn't wait for them."""


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def numbers(dtype: str, n: int, rank: int, salt: int = 0) -> np.ndarray[Any, Any]:
    """Rank's input. Integers use all of their range, floats stay where a product of five has no overflow."""
    rng = np.random.default_rng([salt, n, rank])
    if dtype in INTEGERS:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, n, dtype=np.dtype(dtype), endpoint=True)
    return (rng.uniform(0.5, 1.5, n) * rng.choice([-1, 1], n)).astype(dtype_of(dtype))


def expected_integers(dtype: str, op: str, inputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """By Python's unbounded integers, wrapped at the end; an average truncates towards zero."""
    info = np.iinfo(dtype)
    span = int(info.max) - int(info.min) + 1
    fold: dict[str, Callable[[list[int]], int]] = {
        "sum": sum, "avg": sum, "prod": math.prod, "max": max, "min": min,
    }  # fmt: skip
    out = []
    for column in zip(*(x.tolist() for x in inputs), strict=True):
        value = (fold[op](list(column)) - int(info.min)) % span + int(info.min)
        if op == "avg":
            value = abs(value) // len(inputs) * (1 if value >= 0 else -1)
        out.append(value)
    return np.array(out, dtype)


def expected_floats(op: str, inputs: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    stacked = np.stack([x.astype(np.float64) for x in inputs])
    fold = {"sum": np.sum, "avg": np.mean, "prod": np.prod, "max": np.max, "min": np.min}[op]
    return np.asarray(fold(stacked, axis=0))


def tolerance(dtype: str, op: str, codec: str | None, inputs: list[np.ndarray[Any, Any]]) -> float:
    """The largest error allowed: each of at most `world` roundings, and each hop's encoding, is off by so much."""
    world = len(inputs)
    widest = 1.5**world if op == "prod" else 1.5 * world
    step = float(ml_dtypes.finfo(dtype_of(dtype)).eps)
    rounding = 0.0 if op in ("max", "min") and codec is None else world * widest * step
    if codec == "bf16":
        rounding += world * widest * 2.0**-8
    if codec == "uint8":
        rounding += world * (2 * widest) / (2 * 255)
    return rounding * (widest if op == "prod" else 1.0)


def cases(world: int) -> Iterator[tuple[str, str, int, str | None, bool]]:
    """dtype, op, n, codec, in place?"""
    sizes = sorted({0, 1, 2, world - 1, world + 1, 7, 1000})
    number = 0
    for dtype, op, n in product(INTEGERS + FLOATS, OPS, sizes):
        for codec in (None, "bf16", "uint8") if dtype in FLOATS else (None,):
            number += 1
            yield dtype, op, n, codec, number % 2 == 0
    for dtype, op, codec in [("float32", "avg", None), ("int16", "sum", None), ("bfloat16", "sum", "uint8")]:
        for nbytes, more, in_place in product((EAGER, COMMENCED), (0, world - 1), (False, True)):
            yield dtype, op, nbytes // dtype_of(dtype).itemsize + more, codec, in_place


@pytest.mark.sampled(2)
@pytest.mark.parametrize("world", [2, 3, 4, 5])
def test_all_reduce_equals_numpy_and_has_the_same_bits_everywhere(world: int) -> None:
    todo = list(cases(world))

    def main(group: Group) -> list[bytes]:
        inputs, outs, works = [], [], []
        for i, (dtype, op, n, codec, in_place) in enumerate(todo):
            x = numbers(dtype, n, group.rank)
            out = x if in_place else np.empty_like(x)
            works.append(group.all_reduce_async(x, op, tag=i % 16, codec=codec, out=None if in_place else out))
            inputs.append(x)
            outs.append(out)
            if len(works) == 16 or i == len(todo) - 1:
                wait_all(works)
                works.clear()
        for (dtype, _, n, _, in_place), x in zip(todo, inputs, strict=True):
            assert in_place or x.tobytes() == numbers(dtype, n, group.rank).tobytes(), "the input was written"
        return [out.tobytes() for out in outs]

    results = together(world, main)
    for case, *bits in zip(todo, *results, strict=True):
        dtype, op, n, codec, _ = case
        assert len(set(bits)) == 1, f"{case}: ranks differ"
        got = np.frombuffer(bits[0], dtype_of(dtype))
        inputs = [numbers(dtype, n, r) for r in range(world)]
        if dtype in INTEGERS:
            assert got.tolist() == expected_integers(dtype, op, inputs).tolist(), case
        elif n:
            error = np.abs(got.astype(np.float64) - expected_floats(op, inputs)).max()
            assert error <= tolerance(dtype, op, codec, inputs), case


@pytest.mark.parametrize("world", [2, 3])
def test_a_reduce_of_several_blocks_is_right(world: int) -> None:
    n = (5 << 20) // 4 + 3  # above 1 MiB per chunk

    def main(group: Group) -> bytes:
        x = np.arange(n, dtype=np.float32) * (group.rank + 1)
        result = group.all_reduce(x, "sum")
        assert result.bytes_sent == pytest.approx(2 * (world - 1) / world * x.nbytes, rel=1e-5)
        assert result.bytes_received == pytest.approx(result.bytes_sent, rel=1e-5)
        np.testing.assert_allclose(x[::997], np.arange(n)[::997] * (world * (world + 1) / 2), rtol=1e-6)
        return x.tobytes()

    assert len(set(together(world, main))) == 1


@pytest.mark.parametrize("world", WORLDS)
def test_uint8_is_off_by_half_a_level_per_hop(world: int) -> None:
    def main(group: Group) -> tuple[np.ndarray[Any, Any], bytes]:
        x = np.random.default_rng(group.rank).uniform(-3, 5, 999)
        out = np.empty_like(x)
        group.all_reduce(x, "sum", codec="uint8", out=out)
        return x, out.tobytes()

    results = together(world, main)
    inputs, bits = [x for x, _ in results], {b for _, b in results}
    assert len(bits) == 1
    error = np.abs(np.frombuffer(bits.pop()) - np.sum(inputs, axis=0)).max()
    partial_ranges = [8.0 * k for k in range(1, world + 1)]  # of the sum of k inputs: one encoding of each
    assert 0 < error <= sum(partial_ranges) / (2 * 255) + 1e-12


@pytest.mark.parametrize("world", [1, *WORLDS])
@pytest.mark.parametrize("n", [0, 1, 7, 30_000])
def test_reduce_scatter_gives_chunk_r_to_rank_r(world: int, n: int) -> None:
    def main(group: Group) -> None:
        whole = np.sum([numbers("int32", n, r) for r in range(world)], axis=0, dtype=np.int32)
        own = np.array_split(whole, world)[group.rank]
        x = numbers("int32", n, group.rank)
        value = group.reduce_scatter(x, "sum").value
        assert value.tolist() == own.tolist()
        out = np.empty_like(own)
        assert group.reduce_scatter(x, "sum", out=out).value is out
        assert out.tolist() == own.tolist()
        assert x.tolist() == numbers("int32", n, group.rank).tolist()

    together(world, main)


@pytest.mark.parametrize("world", [1, *WORLDS])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3), (200, 101)])
def test_all_gather_stacks_by_rank(world: int, shape: tuple[int, ...]) -> None:
    def main(group: Group) -> None:
        def values(rank: int) -> np.ndarray[Any, Any]:
            return np.asarray(np.arange(math.prod(shape), dtype=np.int64).reshape(shape) * 10 + rank)

        stacked = np.stack([values(r) for r in range(world)])
        value = group.all_gather(values(group.rank)).value
        assert value.shape == stacked.shape
        assert value.tolist() == stacked.tolist()
        out = np.empty_like(stacked)
        assert group.all_gather(values(group.rank), out=out).value is out
        assert out.tolist() == stacked.tolist()

    together(world, main)


@pytest.mark.parametrize("world", [1, *WORLDS])
def test_broadcast_from_each_root(world: int) -> None:
    def main(group: Group) -> None:
        for root, n in product(range(world), (0, 5, 20_000)):
            x = np.full((n, 1), float(group.rank))
            group.broadcast(x, root)
            assert (x == root).all()

    together(world, main)


@pytest.mark.parametrize("codec", ["bf16", "uint8"])
def test_with_a_codec_gather_and_broadcast_give_the_giver_what_the_others_decode(codec: str) -> None:
    def main(group: Group) -> tuple[bytes, bytes]:
        x = numbers("float32", 50, group.rank)
        gathered = group.all_gather(x, codec=codec).value
        np.testing.assert_allclose(gathered[group.rank], x, atol=3 / 255)
        group.broadcast(x, 1, codec=codec)
        return gathered.tobytes(), x.tobytes()

    assert len(set(together(3, main))) == 1


@pytest.mark.parametrize("world", [1, *WORLDS])
def test_gather_bytes_keeps_rank_order(world: int) -> None:
    def main(group: Group) -> None:
        for size in (0, 1, 4096):
            assert group.gather_bytes(bytes([group.rank]) * size) == [bytes([r]) * size for r in range(world)]

    together(world, main)


def test_nobody_leaves_a_barrier_before_the_last_has_come() -> None:
    def main(group: Group) -> tuple[float, float]:
        node = atoll.runtime.api.here()
        node.sleep(0.1 * group.rank)
        came = node.now()
        group.barrier()
        return came, node.now()

    times = together(4, main)
    assert min(left for _, left in times) >= max(came for came, _ in times) >= 0.3


TORCH = [torch.int8, torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_torch_in_torch_out(world: int, dtype: torch.dtype) -> None:
    def main(group: Group) -> None:
        def mine(rank: int) -> torch.Tensor:
            return torch.arange(6).reshape(2, 3).add(rank).to(dtype)

        def same(got: Any, want: torch.Tensor) -> None:
            assert isinstance(got, torch.Tensor)
            assert got.dtype == dtype
            assert got.tolist() == want.to(dtype).tolist()

        every = torch.stack([mine(r) for r in range(world)])
        x = mine(group.rank)
        assert group.all_reduce(x, "sum").value is x
        same(x, every.sum(0))
        out = torch.empty_like(x)
        group.all_reduce(mine(group.rank), "max", out=out)
        same(out, every.amax(0))
        same(group.all_gather(mine(group.rank)).value, every)
        chunk = every.sum(0).flatten().tensor_split(world)[group.rank]
        same(group.reduce_scatter(mine(group.rank), "sum").value, chunk)
        x = mine(group.rank)
        group.broadcast(x, world - 1)
        same(x, mine(world - 1))

    together(world, main)


def test_a_parameters_gradient_is_averaged_in_place() -> None:
    def main(group: Group) -> None:
        weight = torch.nn.Parameter(torch.ones(4, 3))
        (weight * float(group.rank)).sum().backward()
        assert weight.grad is not None
        group.all_reduce(weight.grad)
        assert weight.grad.tolist() == torch.full((4, 3), 1.0).tolist()
        group.broadcast(weight)  # one that requires a gradient
        group.all_reduce(weight, codec="bf16")
        assert weight.requires_grad
        assert weight.tolist() == torch.ones(4, 3).tolist()

    together(3, main)


def specials(dtype: str, rank: int) -> np.ndarray[Any, Any]:
    """Every pair of odd values meets; each rank's NaN has bits of its own, its array an alignment of its own."""
    nan = {"float16": 0x7E00, "bfloat16": 0x7FC0, "float32": 0x7FC00000, "float64": 0x7FF8 << 48}[dtype]
    kind = dtype_of(dtype)
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0]).astype(kind)
    row = np.repeat(odd, 8) if rank % 2 else np.tile(odd, 8)
    bits = row.view(f"u{kind.itemsize}")
    bits[np.isnan(row.astype(np.float64))] = nan + rank + 1
    many = np.tile(row, 5)
    buffer = np.empty(len(many) + rank, kind)
    buffer[rank:] = many
    return buffer[rank:]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_zeros_with_signs_infinities_and_nans_have_the_same_bits_everywhere(world: int, dtype: str) -> None:
    def main(group: Group) -> list[bytes]:
        seen = []
        for op in OPS:
            x = specials(dtype, group.rank)
            group.all_reduce(x, op)
            seen.append(x.tobytes())
        return seen

    for op, *bits in zip(OPS, *together(world, main), strict=True):
        assert len(set(bits)) == 1, op


def test_an_average_of_integers_truncates_towards_zero() -> None:
    for dtype, by in product(INTEGERS, (1, 2, 3, 7, 128, 200, 300)):
        info = np.iinfo(dtype)
        values = [int(info.min), int(info.min) + 1, 0, 1, 6, int(info.max)] + ([-1, -6, -7] if info.min else [])
        x = np.array(values, dtype)
        divide(x, by)
        assert x.tolist() == [abs(v) // by * (1 if v >= 0 else -1) for v in values], (dtype, by)


def alone(check: Callable[[Group], None]) -> None:
    check(LocalGroup())
    together(1, check)


@pytest.mark.parametrize("codec", [None, "bf16", "uint8"])
def test_alone_everything_is_the_identity(codec: str | None) -> None:
    def check(group: Group) -> None:
        given = numbers("float32", 11, 0)
        for op in OPS:
            x, out = given.copy(), np.empty_like(given)
            group.all_reduce(x, op, codec=codec)
            group.all_reduce(given, op, codec=codec, out=out)
            value = group.reduce_scatter(given, op, codec=codec).value
            assert x.tobytes() == out.tobytes() == value.tobytes() == given.tobytes()
            assert value is not given
        assert group.all_gather(given, codec=codec).value.tobytes() == given.tobytes()
        assert group.all_gather(given, codec=codec).value.shape == (1, 11)
        group.broadcast(given, codec=codec)
        assert given.tobytes() == numbers("float32", 11, 0).tobytes()
        assert group.gather_bytes(b"x") == [b"x"]
        assert (group.world, group.rank) == (1, 0)

    alone(check)


def test_the_result_says_what_moved() -> None:
    def main(group: Group) -> None:
        x, tiny = np.zeros(300_000, np.float32), np.zeros(300, np.float32)
        works = [
            group.all_reduce_async(x.copy(), tag=1),
            group.all_reduce_async(x.copy(), codec="bf16", tag=2),
            group.all_gather_async(x, tag=3),
            group.all_reduce_async(tiny, tag=4),
            group.gather_bytes_async(b"abc", tag=5),
        ]
        full, half, gathered, voted, votes = wait_all(works)
        assert (full.world, full.bytes_sent, full.bytes_received) == (3, 1_600_000, 1_600_000)
        assert half.bytes_sent == 800_000
        assert gathered.bytes_received == 2_400_000
        assert (voted.bytes_sent, voted.bytes_received) == (1200, 2400), "in the vote; the others' in the verdict"
        assert (votes.bytes_sent, votes.bytes_received, votes.value) == (3, 6, [b"abc"] * 3)
        assert full.seconds > 0

    together(3, main)


@pytest.mark.parametrize("n", [25_000, 60_000])
def test_on_a_long_way_too_everything_arrives_whole(n: int) -> None:
    """Blocks are smaller there than what leaves with the vote."""

    def main(group: Group) -> None:
        x = np.arange(n) + 100.0 * group.rank
        every = [np.arange(n) + 100.0 * r for r in range(group.world)]
        for root in range(group.world):
            copy = x.copy()
            group.broadcast(copy, root)
            assert (copy == every[root]).all()
        assert (group.all_gather(x).value == np.stack(every)).all()
        assert (group.reduce_scatter(x, "max").value == np.array_split(every[-1], group.world)[group.rank]).all()
        group.all_reduce(x, "max")
        assert (x == every[-1]).all()

    together(3, main, latency_s=0.01)


@pytest.mark.parametrize("codec", [None, "uint8", "int4"])
def test_how_long_the_way_is_changes_no_bit(codec: str | None) -> None:
    """Of one algorithm; blocks may have other sizes there."""

    def main(group: Group) -> bytes:
        x = np.random.default_rng(group.rank).normal(size=200_000).astype(np.float32)
        group.all_reduce(x, "sum", codec=codec, algorithm="direct")
        return x.tobytes()

    assert len({bits for latency_s in (1e-4, 0.01) for bits in together(3, main, latency_s=latency_s)}) == 1
