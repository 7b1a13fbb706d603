"""The exchange of codecs that encode each input once: encoded shards go to their owners, are summed in the order of
ranks, encoded once more, and come back; everybody decodes the same bytes, its own too."""

from itertools import product

import numpy as np
import pytest

from atoll import codec as codecs
from atoll.errors import InvalidConfig, InvalidTensor
from atoll.group.collectives.execution import cut
from atoll.group.facade import Group
from atoll.group.local import LocalGroup
from tests.group.together import together

N = 300_001  # too much to leave before the votes are in: its shards go to their owners


def numbers(rank: int, n: int = N) -> np.ndarray:
    return np.random.default_rng([7, rank]).normal(0, 10.0**-rank, n).astype(np.float32)


def through(codec: str | None, x: np.ndarray, seed: int | None = None) -> np.ndarray:
    """As others see it."""
    found = codecs.get(codec)
    if found is None:
        return x.copy()
    encoded, decoded = np.empty(found.encoded_size(len(x)), np.uint8), np.empty_like(x)
    found.encode(x, encoded, seed)
    found.decode(encoded, decoded)
    return decoded


def expected(world: int, codec: str, down: str | None, op: str) -> np.ndarray:
    """By the definition, shard by shard (each is one block here)."""
    whole = np.empty(N, np.float32)
    for shard in cut(0, N, world):
        total = through(codec, numbers(0)[shard])
        for rank in range(1, world):
            total = total + through(codec, numbers(rank)[shard])
        if op == "avg":
            total = total / np.float32(world)
        whole[shard] = through(codec if down is None else None if down == "none" else down, total)
    return whole


@pytest.mark.sampled(2)
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("codec", ["e3m0", "int4"])
def test_all_get_the_sum_of_what_all_decode_bit_for_bit(world: int, codec: str) -> None:
    ways = list(product([None, "bf16", "none"], ["sum", "avg"]))

    def main(group: Group) -> list[np.ndarray]:
        found = []
        for down, op in ways:
            x = numbers(group.rank)
            group.all_reduce(x, op, codec=codec, down=down)
            found.append(x)
        return found

    for found in together(world, main):
        for x, (down, op) in zip(found, ways, strict=True):
            np.testing.assert_array_equal(x, expected(world, codec, down, op))


def test_reduce_scatter_sums_the_same() -> None:
    def main(group: Group) -> np.ndarray:
        return group.reduce_scatter(numbers(group.rank), "sum", codec="e3m0").value

    for shard, own in zip(cut(0, N, 3), together(3, main), strict=True):
        first, second, third = (through("e3m0", numbers(rank)[shard]) for rank in range(3))
        total = (first + second) + third
        np.testing.assert_array_equal(own, through("e3m0", total))


def test_bytes_are_those_of_the_codecs_both_ways() -> None:
    def main(group: Group) -> list[int]:
        return [
            group.all_reduce(numbers(group.rank), codec="e3m0", down=down).bytes_sent for down in (None, "bf16", "none")
        ]

    sizes = [part.stop - part.start for part in cut(0, N, 3)]
    up = [codecs.CODECS["e3m0"].encoded_size(n) for n in sizes]
    for rank, sent in enumerate(together(3, main)):
        there = sum(up) - up[rank]
        assert sent == [there + 2 * up[rank], there + 2 * 2 * sizes[rank], there + 2 * 4 * sizes[rank]]
        assert there * 8 / (N - sizes[rank]) == pytest.approx(4.125, rel=1e-3)


@pytest.mark.parametrize("n", [5000, N])  # all to all; shard by shard
def test_at_random_each_rounds_by_its_own_seed_and_all_hold_the_same(n: int) -> None:
    def main(group: Group) -> list[bytes]:
        found = []
        for seed in (None, 1, 1, 2):
            x = np.full(n, 0.3, np.float32)
            x[::256] = 1.0
            group.all_reduce(x, "avg", codec="e3m0", seed=None if seed is None else 10 * seed + group.rank)
            found.append(x)
        if n == N:
            assert abs(float(np.mean(found[1])) - float(np.mean(np.where(np.arange(n) % 256, 0.3, 1.0)))) < 2e-3
            assert abs(float(np.mean(found[0])) - 0.3) > 0.04  # to the nearest, always the same way
        return [x.tobytes() for x in found]

    first, *others = together(3, main)
    assert all(other == first for other in others)
    assert first[1] == first[2]
    assert len(set(first)) == 3


@pytest.mark.parametrize("codec", ["e3m0", "int4"])
def test_each_is_told_what_the_codec_took_from_his(codec: str) -> None:
    """Nothing of what travels in the votes; else all of the difference to what the others decode, also at random."""

    def main(group: Group) -> list[np.ndarray]:
        found = []
        for n, seed in ((3, None), (5000, None), (N, None), (N, group.rank)):
            x, lost = numbers(group.rank, n), np.full(n, np.nan, np.float32)
            group.all_reduce(x.copy(), "sum", codec=codec, seed=seed, out=np.empty_like(x), lost=lost)
            found.append(lost)
            if n == N:
                total = x - lost
                group.all_reduce(total, "sum", algorithm="direct")
                group.all_reduce(x, "sum", codec=codec, down="none", seed=seed)
                np.testing.assert_allclose(x, total, rtol=1e-5, atol=1e-6)
        return found

    for rank, (votes, eager, direct, random) in enumerate(together(3, main)):
        assert not votes.any()
        np.testing.assert_array_equal(eager, numbers(rank, 5000) - through(codec, numbers(rank, 5000)))
        for shard in cut(0, N, 3):
            x = numbers(rank)[shard]
            np.testing.assert_array_equal(direct[shard], x - through(codec, x))
        assert (random != direct).any()


def test_alone_the_codec_takes_nothing() -> None:
    lost = np.full(1000, np.nan, np.float32)
    LocalGroup().all_reduce(numbers(0, 1000), codec="e3m0", lost=lost)
    assert not lost.any()


@pytest.mark.parametrize("n", [3, 5000, N])  # in the votes, all to all, shard by shard
def test_notes_ride_in_the_vote(n: int) -> None:
    def main(group: Group) -> tuple[bytes, ...]:
        x = np.full(n, float(group.rank))
        result = group.all_reduce(x, "sum", note=b"I am %d" % group.rank)
        assert (x == 3.0).all()
        assert group.all_reduce(x, "sum").notes == ()
        return result.notes

    assert together(3, main) == [(b"I am 0", b"I am 1", b"I am 2")] * 3


def test_alone_there_is_a_note_and_nothing_is_encoded() -> None:
    x = numbers(0, 1000)
    assert LocalGroup().all_reduce(x, codec="e3m0", down="bf16", note=b"me").notes == (b"me",)
    np.testing.assert_array_equal(x, numbers(0, 1000))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"note": b"x" * 65}, "at most 64 bytes"),
        ({"down": "bf16"}, "name one"),
        ({"codec": "e3m0", "down": "e3m1"}, "unknown codec 'e3m1'"),
        ({"codec": "uint8", "lost": numbers(0, 10)}, "applied only once"),
        ({"lost": numbers(0, 10)}, "applied only once"),
        ({"codec": "e3m0", "lost": numbers(0, 9)}, "can't hold the result: 10 elements"),
    ],
)
def test_what_makes_no_sense_is_refused(options, says: str) -> None:
    with pytest.raises((ValueError, InvalidConfig, InvalidTensor), match=says):
        LocalGroup().all_reduce(numbers(0, 10), **options)
