import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InvalidData
from atoll.train.shards import Shards, batch, count_windows


@given(
    n_windows=st.integers(1, 60),
    seed=st.integers(0, 9),
    steps=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=40),
)
def test_each_pass_uses_every_window_once_whoever_comes_and_goes(n_windows, seed, steps):
    """`steps` are the world and the count per member at each step; each member keeps its own `Shards`."""
    members = [Shards(n_windows, seed) for _ in range(6)]
    cursor, used = 0, []
    for world, count in steps:
        for rank in range(world):
            used.extend(members[rank].indices(cursor, rank, world, count).tolist())
        cursor += world * count
    for start in range(0, len(used), n_windows):
        one_pass = used[start : start + n_windows]
        assert len(set(one_pass)) == len(one_pass)
        if len(one_pass) == n_windows:
            assert set(one_pass) == set(range(n_windows))


def test_each_pass_and_each_seed_has_its_own_order():
    one = Shards(1000, seed=1)
    first, second = one.indices(0, 0, 1, 1000), one.indices(1000, 0, 1, 1000)
    assert not np.array_equal(first, np.arange(1000))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, Shards(1000, seed=2).indices(0, 0, 1, 1000))


def test_a_cursor_may_move_back():
    """A member that resumes, or takes over another's state, sees what it would have seen."""
    shards = Shards(10, seed=1)
    before = shards.indices(5, 0, 2, 3)
    shards.indices(95, 1, 2, 3)
    assert np.array_equal(shards.indices(5, 0, 2, 3), before)


def test_a_rank_outside_the_world_is_refused():
    with pytest.raises(ValueError, match="rank 2"):
        Shards(10, seed=1).indices(0, 2, 2, 1)


def test_windows_cover_the_text_and_overlap_by_one_token():
    tokens = np.arange(10, dtype=np.uint8)
    assert count_windows(tokens, 3) == 3
    windows = batch(tokens, np.array([2, 0, 1]), 3)
    assert windows.dtype == torch.int64
    assert windows.tolist() == [[6, 7, 8, 9], [0, 1, 2, 3], [3, 4, 5, 6]]


@given(n=st.integers(2, 300), context=st.integers(1, 50))
def test_the_last_window_ends_within_the_text(n, context):
    tokens = np.arange(n).astype(np.uint8)
    if n <= context:
        with pytest.raises(InvalidData, match="too few"):
            count_windows(tokens, context)
        return
    last = count_windows(tokens, context) - 1
    assert batch(tokens, np.array([last]), context).shape == (1, context + 1)
    with pytest.raises(IndexError):
        batch(tokens, np.array([last + 1]), context)
