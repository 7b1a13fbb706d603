"""Driver: are collectives right, and the same bits on all? (PCCL, "Done when" 1.)"""

from collections.abc import Iterator
from typing import Any, Final

import ml_dtypes
import numpy as np
import xxhash

import atoll
from atoll.codec import CODECS
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.threads import run_peers
from atoll.rng import stream

INTEGERS: Final = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
OPS: Final = ("sum", "avg", "prod", "max", "min")
FOLD: Final[dict[str, Any]] = {"sum": np.add, "avg": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}


def _dtype(name: str) -> Any:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def _input(seed: int, rank: int, dtype: str, n: int) -> Any:
    """Small whole numbers: sums and products are exact in every type, so NumPy is an exact oracle."""
    low = 0 if dtype.startswith("u") else -2
    return stream(seed, "input", rank, n).integers(low, 3, n).astype(_dtype(dtype))


def _expected(seed: int, world: int, dtype: str, op: str, n: int) -> Any:
    total = FOLD[op].reduce([_input(seed, r, dtype, n).astype(np.float64) for r in range(world)])
    if op == "avg":
        total = np.trunc(total / world) if dtype in INTEGERS else total / world
    return total.astype(_dtype(dtype))


def _right(found: Any, expected: Any, dtype: str, op: str) -> bool:
    """The same, but for the last digit of an average that is no whole number."""
    if dtype in INTEGERS or op != "avg":
        return bool((found == expected).all())
    last = float(ml_dtypes.finfo(_dtype(dtype)).eps)  # type: ignore[no-untyped-call]
    return np.allclose(found.astype(np.float64), expected.astype(np.float64), rtol=last, atol=0)


def collectives(seed: int, say: Say) -> Iterator[Line]:
    """Every type and operation on 2 to 5 peers against NumPy."""
    done = wrong = unequal = 0
    for world in (2, 3, 4, 5):
        say(f"collectives on {world} peers")
        sizes = [0, 1, 2, world - 1, 1001]
        cases = [(d, op, n, out) for d in (*INTEGERS, *FLOATS) for op in OPS for n in sizes for out in (False, True)]
        cases += [(d, op, 10**6, True) for d in (*INTEGERS, *FLOATS) for op in OPS if op == "avg" or world == 2]

        def body(group: atoll.Group, cases: Any = cases) -> list[tuple[bool, bytes]]:
            results = []
            for dtype, op, n, out in cases:
                x = _input(seed, group.rank, dtype, n)
                target = np.empty_like(x) if out else x
                group.all_reduce(x, op, out=target)
                right = group.rank > 0 or _right(target, _expected(seed, group.world, dtype, op, n), dtype, op)
                results.append((right, xxhash.xxh3_128_digest(target.tobytes())))
            return results

        by_rank = run_peers(world, body, timeout_s=300.0)
        done += len(cases)
        wrong += sum(not right for right, _ in by_rank[0])
        unequal += sum(len({digest for _, digest in ranks}) > 1 for ranks in zip(*by_rank, strict=True))
    yield Line(
        "1a",
        "all-reduce of every type, operation, odd size on 2 to 5 peers equals NumPy, same bytes on all",
        "0 wrong, 0 unequal",
        f"{done} cases: {wrong} wrong, {unequal} unequal",
        judged(not wrong and not unequal),
    )


def quantised(seed: int, say: Say) -> Iterator[Line]:
    """Codecs: the same bits on all, and an error within the bound."""
    n, worst, most, unequal = 100_001, 0.0, 0.0, 0
    for world in (2, 3, 4, 5):
        say(f"quantised collectives on {world} peers")
        inputs = [stream(seed, "quantised", r).standard_normal(n).astype(np.float32) for r in range(world)]

        def body(group: atoll.Group, inputs: Any = inputs) -> Any:
            found = {}
            for codec in CODECS:
                x = inputs[group.rank].copy()
                sent = group.all_reduce(x, "sum", codec=codec).bytes_sent
                found[codec] = x, sent
            return found

        by_rank = run_peers(world, body)
        unequal += sum(len({mine[codec][0].tobytes() for mine in by_rank}) > 1 for codec in CODECS)
        exact = np.sum([x.astype(np.float64) for x in inputs], axis=0)
        # at each of the W hops a partial sum is encoded once; its range is at most that of all inputs together
        reach = sum(float(x.max() - x.min()) for x in inputs)
        worst = max(worst, float(np.abs(by_rank[0]["uint8"][0] - exact).max()) / (world * reach / (2 * 255)))
        share = 4 * n * 2 * (world - 1) / world
        most = max(most, *(mine["uint8"][1] / share for mine in by_rank))
    yield Line(
        "1b",
        f"with codecs ({', '.join(CODECS)}) too all peers hold the same bytes; uint8 stays within (max - min) / 510 "
        "per hop, and is a quarter of float32 on the way",
        "equal; <= 1.0 of the bound; <= 0.26 of the bytes",
        f"{unequal} unequal; worst {worst:.2f} of the bound; {most:.3f} of the bytes",
        judged(not unequal and worst <= 1.0 and most <= 0.26),
    )
