"""In the real world computing is measured, and blocks nobody else."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from atoll.cost import Op
from atoll.record import Entry, Record
from atoll.runtime.real import RealNode, RealRuntime


class Entries(list[Entry]):
    """A sink that keeps what it is told."""

    def write(self, entry: Entry) -> None:
        self.append(entry)

    def close(self) -> None:
        pass


def on_node(record: Record, fn: Callable[[], Any]) -> Any:
    return RealNode(record=record).compute(Op("nap"), fn)


def on_runtime(record: Record, fn: Callable[[], Any]) -> Any:
    return asyncio.run(RealRuntime(record=record).compute(Op("nap"), fn))


both = pytest.mark.parametrize("compute", [on_node, on_runtime])


@both
def test_the_seconds_of_a_computation_are_recorded_under_its_kind(compute: Callable[..., Any]) -> None:
    def nap() -> str:
        time.sleep(0.02)
        return "value"

    entries = Entries()
    assert compute(Record(entries), nap) == "value"
    assert [(e["type"], e["name"]) for e in entries] == [("observe", "compute.nap")]
    assert 0.019 < entries[0]["value"] < 10


@both
def test_a_failed_computation_is_not_recorded(compute: Callable[..., Any]) -> None:
    entries = Entries()
    with pytest.raises(ZeroDivisionError):
        compute(Record(entries), lambda: 1 / 0)
    assert entries == []


def test_actors_go_on_while_a_computation_blocks() -> None:
    async def main() -> bool:
        runtime, go = RealRuntime(), threading.Event()
        computing = runtime.spawn(runtime.compute(Op("wait"), lambda: go.wait(20)), name="computing")
        await runtime.sleep(0.001)
        go.set()
        return await computing

    assert asyncio.run(main())
