"""Memory is never below nothing or above what there is, and admits in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InvalidConfig, InvalidData
from atoll.sim.loop import Loop
from atoll.sim.memory import Memory


@given(st.lists(st.tuples(st.sampled_from(["take", "wait", "give"]), st.integers(0, 12)), max_size=60))
def test_memory_is_never_negative_and_never_overcommitted(steps: list[tuple[str, int]]) -> None:
    loop = Loop()
    memory = Memory(loop, "gpu", 12)
    held: list[int] = []
    waiting: list[int] = []
    admitted: list[int] = []
    for what, nbytes in steps:
        if what == "take":
            if memory.take(nbytes):
                held.append(nbytes)
        elif what == "wait":
            waiting.append(nbytes)
            memory.take_when_free(nbytes, lambda n=nbytes: (held.append(n), admitted.append(n)))
        elif held:
            memory.give_back(held.pop(0))
        loop.run()
        assert 0 <= memory.used == sum(held) <= 12
        assert admitted == waiting[: len(admitted)]
        assert len(admitted) == len(waiting) or waiting[len(admitted)] > memory.free
    assert memory.peak <= 12


def test_nobody_overtakes_a_large_one() -> None:
    loop = Loop()
    memory = Memory(loop, "gpu", 10)
    assert memory.take(5)
    seen: list[str] = []
    memory.take_when_free(8, lambda: seen.append("large"))
    assert not memory.take(1)
    memory.take_when_free(1, lambda: seen.append("small"))
    loop.run()
    assert seen == []
    memory.give_back(5)
    assert seen == []  # not before the call returns
    loop.run()
    assert (seen, memory.free) == (["large", "small"], 1)


def test_a_process_that_has_ended_is_admitted_to_nothing() -> None:
    loop = Loop()
    memory = Memory(loop, "gpu", 10)
    seen: list[str] = []
    memory.take_when_free(8, lambda: seen.append("the dead one"))
    memory.clear()
    memory.take_when_free(9, lambda: seen.append("the next"))
    loop.run()
    assert (seen, memory.free) == (["the next"], 1)


def test_what_can_not_be_is_refused() -> None:
    memory = Memory(Loop(), "gpu", 10)
    with pytest.raises(InvalidData, match="never fit"):
        memory.take_when_free(11, lambda: None)
    with pytest.raises(InvalidData, match="only 0 were taken"):
        memory.give_back(1)
    with pytest.raises(InvalidData, match="whole number"):
        memory.take(-1)
    with pytest.raises(InvalidConfig, match="gpu"):
        Memory(Loop(), "gpu", -1)
