"""One member's vote names the right operation and adds what makes no sense.

All get the same clear error, nobody is lost, and the next operation works.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from atoll.errors import Mismatch
from atoll.group.collectives.rounds import encoded_counts
from atoll.group.facade import Group
from tests.group.together import together

WORLD, ODD_ONE = 3, 1


def vote(group: Group, kind: Any, what: str, payload: bytes, tensor: Any = None) -> None:
    """As the collective would, with another payload."""
    ticket = group._ticket(kind, 0, what, payload, tensor=tensor, algorithm="direct")
    group._submit(ticket, lambda outcome: None).wait()


def outcomes(proper: Callable[[Group], Any], odd: Callable[[Group], Any]) -> list[str]:
    """What became of it on each rank; afterwards all go on."""

    def main(group: Group) -> str:
        error = ""
        try:
            (odd if group.rank == ODD_ONE else proper)(group)
        except Mismatch as raised:
            error = str(raised)
        x = np.full(5000, float(group.rank))
        group.all_reduce(x, "sum")
        assert (x == 3).all()
        assert group.world == WORLD
        return error

    return together(WORLD, main)


@pytest.mark.parametrize("nbytes", [0, 8, 15, 24, 4000])
@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter", "broadcast"])
def test_a_vote_that_carries_more_or_less_than_the_operation_is_told_to_all(kind: Any, nbytes: int) -> None:
    """Eight bytes would even be added up, to wrong numbers."""
    ops = {"all_reduce": "sum", "reduce_scatter": "sum"}
    what = " ".join(filter(None, [kind, ops.get(kind, ""), "float64", "2", "codec none"]))
    what += " root 1" if kind == "broadcast" else ""
    calls: dict[str, Callable[[Group], Any]] = {
        "all_reduce": lambda group: group.all_reduce(np.ones(2), "sum"),
        "reduce_scatter": lambda group: group.reduce_scatter(np.ones(2), "sum"),
        "all_gather": lambda group: group.all_gather(np.ones(2)),
        "broadcast": lambda group: group.broadcast(np.ones(2), 1),
    }
    errors = outcomes(calls[kind], lambda group: vote(group, kind, what, bytes(nbytes)))
    others = [error for rank, error in enumerate(errors) if rank != ODD_ONE]
    assert all(f"rank {ODD_ONE} voted with {nbytes} bytes, not 16" in error for error in others)


COUNTS = {
    "nothing": b"",
    "no counts": b"\xc1",
    "a text": msgspec.msgpack.encode("three"),
    "too few": encoded_counts([1]),
    "too many": encoded_counts([1] * 9),
    "negative": encoded_counts([1, -1, 1]),
    "more than memory": encoded_counts([1 << 34, 1, 1]),
    "more than could be cut into blocks": encoded_counts([1, 1, 1 << 60]),
    "more than a number holds": encoded_counts([1, 1, (1 << 64) - 1]),
}


@pytest.mark.parametrize("what", COUNTS)
def test_counts_that_cannot_be_fail_an_all_to_all_for_all(what: str) -> None:
    said = "all_to_all float64 rows of [] codec none"
    errors = outcomes(
        lambda group: group.all_to_all([np.ones(1)] * WORLD),
        lambda group: vote(group, "all_to_all", said, COUNTS[what], np.ones(WORLD)),
    )
    assert all(errors)
    assert len(set(errors)) == 1


@pytest.mark.parametrize("place", [b"", b"\xc1", msgspec.msgpack.encode(("a",)), msgspec.msgpack.encode((1, 2, 3))])
def test_an_unreadable_place_in_a_subgroup_is_told_to_all(place: bytes) -> None:
    errors = outcomes(lambda group: group.subgroup("a"), lambda group: vote(group, "gather_bytes", "subgroup", place))
    assert all("somebody's vote can't be read" in error for rank, error in enumerate(errors) if rank != ODD_ONE)
