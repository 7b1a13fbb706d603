"""Rows and columns as tests make them, and the sizes that matter to them."""

import random
from collections.abc import Callable

import numpy as np

from atoll.group.facade import Group
from atoll.group.work import Work

SMALL, MIDDLE, LARGE = SIZES = 6, 20_000, 40_000
"""Elements of float64: data travels in the vote, leaves with it, or waits for all votes."""
SHAPES = [(2, 2), (2, 3)]


def grid(group: Group, columns: int) -> tuple[Group, Group]:
    """This peer's row and column, places by rank."""
    row, column = divmod(group.rank, columns)
    return group.subgroup(f"row {row}"), group.subgroup(f"column {column}")


def ranks_of(axis: int, rank: int, rows: int, columns: int) -> list[int]:
    """Ranks in the whole group of those in the row (axis 0) or column (1) of `rank`, from the shape alone."""
    table = np.arange(rows * columns).reshape(rows, columns)
    row, column = divmod(rank, columns)
    return (table[row] if axis == 0 else table[:, column]).tolist()


def launch_all(axis: Group, rank: int, n: int, dice: random.Random) -> dict[str, Work]:
    """One of each kind, every kind under the same tag on every axis, in any order."""
    x = np.arange(n) + 100.0 * rank
    calls: dict[str, Callable[[int], Work]] = {
        "all_reduce": lambda tag: axis.all_reduce_async(x, "sum", tag=tag, out=np.empty(n)),
        "reduce_scatter": lambda tag: axis.reduce_scatter_async(x, "max", tag=tag),
        "all_gather": lambda tag: axis.all_gather_async(x, tag=tag),
        "broadcast": lambda tag: axis.broadcast_async(x.copy(), axis.world - 1, tag=tag),
        "all_to_all": lambda tag: axis.all_to_all_async(np.array_split(x, axis.world), tag=tag),
        "gather_bytes": lambda tag: axis.gather_bytes_async(bytes([rank]), tag=tag),
    }
    tags = {kind: tag for tag, kind in enumerate(calls)}
    return {kind: calls[kind](tags[kind]) for kind in dice.sample(list(calls), len(calls))}


def check_all(works: dict[str, Work], ranks: list[int], place: int, n: int) -> None:
    inputs = np.arange(n) + 100.0 * np.array(ranks)[:, None]
    want = {
        "all_reduce": inputs.sum(0),
        "reduce_scatter": np.array_split(inputs.max(0), len(ranks))[place],
        "all_gather": inputs,
        "broadcast": inputs[-1],
    }
    for kind, values in want.items():
        assert np.array_equal(works[kind].wait().value, values), kind
    parts = [np.array_split(row, len(ranks))[place] for row in inputs]
    assert all(np.array_equal(a, b) for a, b in zip(works["all_to_all"].wait().value, parts, strict=True))
    assert works["gather_bytes"].wait().value == [bytes([r]) for r in ranks]
