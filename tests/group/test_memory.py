"""Buffers that go back by themselves: never while somebody looks at them, never two at once, never too many kept."""

import gc
import queue
import threading
import tracemalloc
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.group.collectives.memory import Memory

LARGE = 1 << 16
"""Bytes from which a buffer is worth keeping."""
Array = np.ndarray[Any, Any]


def place(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


def held() -> int:
    """Bytes taken and not given back to the system since tracing began."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


# -- lent again --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float16", "bfloat16", "float32", "float64", "int64"])
def test_an_array_has_the_size_and_type_asked_for_and_may_be_written(memory: Memory, dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    for size in (0, 1, 7, LARGE // kind.itemsize - 1, LARGE // kind.itemsize, 3 * LARGE + 5):
        x = memory.empty(size, kind)
        assert (x.shape, x.dtype) == ((size,), kind)
        x[...] = 1
        assert (x == 1).all()
        assert place(x) % 16 == 0


def test_what_nobody_looks_at_any_more_is_lent_again(memory: Memory) -> None:
    x = memory.empty(LARGE, np.uint8)
    x[:] = 7
    at = place(x)
    del x
    again = memory.empty(LARGE // 4, np.float32)  # of any type, if the bytes are as many
    assert place(again) == at
    assert (again.view(np.uint8) == 7).all(), "nothing is spent on clearing it"


VIEWS = {
    "a slice": lambda x: x[5:9],
    "an empty slice": lambda x: x[5:5],
    "a view as another type": lambda x: x[:8].view(np.uint16),
    "a view of a view": lambda x: x[100:].view(np.int32)[::2][3:].reshape(-1, 1),
    "its bytes": lambda x: memoryview(x),
    "a part of its bytes": lambda x: memoryview(x)[10:20].cast("B"),
    "an array over its bytes": lambda x: np.frombuffer(memoryview(x)[:64], np.float64),
}


@pytest.mark.parametrize("kind", VIEWS)
def test_a_buffer_comes_back_only_when_its_last_view_is_gone(memory: Memory, kind: str) -> None:
    x = memory.empty(LARGE, np.uint8)
    x[:] = 3
    at = place(x)
    view = VIEWS[kind](x)
    bits = bytes(view)
    del x
    other = memory.empty(LARGE, np.uint8)
    other[:] = 9
    assert place(other) != at
    assert bytes(view) == bits
    del view
    assert place(memory.empty(LARGE, np.uint8)) == at


def test_a_buffer_of_another_size_is_never_lent_instead(memory: Memory) -> None:
    for nbytes in (LARGE, LARGE + 1, 2 * LARGE):
        x = memory.empty(nbytes, np.uint8)
        at = place(x)
        del x
        for other in {LARGE, LARGE + 1, 2 * LARGE} - {nbytes}:
            assert place(memory.empty(other, np.uint8)) != at


def test_arrays_outlive_the_memory_they_came_from() -> None:
    memory = Memory()
    x = memory.empty(LARGE, np.uint8)
    x[:] = 5
    gone = weakref.ref(memory)
    del memory
    assert (x == 5).all()
    del x
    assert gone() is None, "and then all of it goes"


# -- how much is kept --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("traced")
def test_small_buffers_are_not_kept(memory: Memory) -> None:
    arrays = [memory.empty(LARGE - 1, np.uint8) for _ in range(100)]
    arrays.clear()
    assert held() < LARGE


@pytest.mark.usefixtures("traced")
def test_of_one_size_a_few_buffers_are_kept_and_the_rest_given_back(memory: Memory) -> None:
    for _ in range(3):
        arrays = [memory.empty(LARGE, np.uint8) for _ in range(100)]
        assert held() >= 100 * LARGE
        arrays.clear()
        assert 15 * LARGE < held() < 17 * LARGE


@pytest.mark.usefixtures("traced")
def test_of_all_sizes_together_no_more_is_kept_than_allowed() -> None:
    memory = Memory(largest_total=10 * LARGE)
    for more in range(50):  # every one of its own size
        arrays = [memory.empty(LARGE + more, np.uint8) for _ in range(3)]
        arrays.clear()
        if more % 10 == 9:
            assert held() < 11 * LARGE
    assert held() > 8 * LARGE
    x = memory.empty(11 * LARGE, np.uint8)
    del x
    assert held() < 11 * LARGE, "one too large for it is not kept at all"


@pytest.mark.usefixtures("traced")
def test_what_is_taken_out_makes_room_for_others() -> None:
    memory = Memory(largest_total=2 * LARGE)
    for _ in range(20):
        x, y = memory.empty(LARGE, np.uint8), memory.empty(LARGE, np.uint8)
        places = {place(x), place(y)}
        del x, y
        again = [memory.empty(LARGE, np.uint8) for _ in range(2)]
        assert {place(x) for x in again} == places, "the count of what is kept has drifted"
        again.clear()


# -- never two at once -------------------------------------------------------------------------------------------------

SIZES = [LARGE, LARGE + 8, 2 * LARGE, 64]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["take", "take", "view", "drop", "drop"]), st.integers(0, 3), st.integers(0, 1 << 16)),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS, st.sampled_from([0, LARGE, 3 * LARGE, 1 << 30]))
def test_two_live_arrays_never_overlap(actions: list[tuple[str, int, int]], largest_total: int) -> None:
    memory = Memory(largest_total)
    live: list[tuple[Array, int]] = []
    for number, (what, size, which) in enumerate(actions):
        if what == "take":
            x = memory.empty(SIZES[size], np.uint8)
            x[:] = number % 251
            live.append((x, number % 251))
        elif live and what == "view":  # only a part of it stays alive
            x, value = live[which % len(live)]
            live[which % len(live)] = x[which % len(x) :], value
        elif live:
            del live[which % len(live)]
        x = None
        spans = sorted((place(x), place(x) + len(x)) for x, _ in live)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for x, value in live:
        assert (x == value).all()


def test_buffers_may_be_given_back_by_any_thread(memory: Memory) -> None:
    """A program drops its result whenever it likes."""
    results: queue.Queue[Array | None] = queue.Queue(40)
    wrong: list[int] = []

    def program() -> None:
        while (x := results.get(timeout=30.0)) is not None:
            if not (x == x[0]).all():
                wrong.append(int(x[0]))

    thread = threading.Thread(target=program)
    thread.start()
    for number in range(3000):
        x = memory.empty(LARGE, np.uint8)
        x[:] = number % 251
        results.put(x, timeout=30.0)
        del x
    results.put(None, timeout=30.0)
    thread.join(30.0)
    assert not thread.is_alive()
    assert not wrong
    assert memory._kept == sum(raw.nbytes for kept in memory._free.values() for raw in kept)
