"""What was read or written lately is as fast as memory, the rest as slow as the disk; nothing is lost silently."""

import pytest

from atoll.errors import InvalidConfig
from atoll.sim.fluid import Fluid
from atoll.sim.host import Disk
from atoll.sim.loop import Loop
from atoll.sim.pagecache import PageCache

MB = 10**6


class Bench:
    """A disk of 1 MB/s behind a cache of 16 MB that moves 100 MB/s and may have 3.2 MB on their way."""

    def __init__(self) -> None:
        self.loop = Loop()
        fluid = Fluid(self.loop)
        self.disk = Disk(fluid, "disk", bytes_per_s=MB)
        self.cache = PageCache(fluid, self.disk, 16 * MB, 3_200_000, 100 * MB)
        self.seen: list[tuple[str, float, bool]] = []

    def note(self, what: str):  # type: ignore[no-untyped-def]
        return lambda ok: self.seen.append((what, round(self.loop.now_s, 3), ok))

    def read(self, name: str, nbytes: int) -> float:
        """Seconds it takes."""
        start_s = self.loop.now_s
        self.cache.read(name, nbytes, self.note("read"))
        self.loop.run()
        return round(self.loop.now_s - start_s, 3)


def test_the_second_read_is_from_memory() -> None:
    bench = Bench()
    assert [bench.read("a", 2 * MB), bench.read("a", 2 * MB), bench.read("b", MB)] == [2, 0.02, 1]
    assert bench.read("a", 3 * MB) == 3  # it has grown


def test_the_least_recently_used_is_forgotten() -> None:
    bench = Bench()
    for name in "abcd":
        bench.read(name, 4 * MB)
    assert bench.read("a", 4 * MB) == 0.04
    bench.read("e", 4 * MB)
    assert bench.cache.held == 16 * MB
    assert bench.read("a", 4 * MB) == 0.04
    assert bench.read("b", 4 * MB) == 4
    bench.read("huge", 17 * MB)
    assert bench.cache.held == 0


def test_a_short_write_is_over_once_it_is_in_memory_and_flushed_once_it_is_on_the_disk() -> None:
    bench = Bench()
    bench.cache.write("a", MB, bench.note("written"))
    bench.cache.flush(bench.note("flushed"))
    bench.loop.run()
    assert bench.seen == [("written", 0.01, True), ("flushed", pytest.approx(1.002, abs=0.001), True)]
    assert bench.cache.dirty == 0
    assert bench.read("a", MB) == 0.01


def test_a_long_write_is_as_slow_as_the_disk_but_for_what_may_be_on_its_way() -> None:
    bench = Bench()
    bench.cache.write("a", 10 * MB, bench.note("written"))
    bench.cache.write("b", 0, bench.note("empty"))
    bench.loop.run()
    assert bench.seen[0] == ("written", pytest.approx(10 - 3.2, abs=0.25), True)
    assert bench.seen[1][0] == "empty"
    assert bench.loop.now_s == pytest.approx(10, abs=0.01)


def test_a_flush_tells_of_writes_that_failed_once() -> None:
    bench = Bench()
    bench.disk.failing = True
    bench.cache.write("a", MB, bench.note("written"))
    bench.loop.run()
    bench.disk.failing = False
    for _ in range(2):
        bench.cache.flush(bench.note("flushed"))
        bench.loop.run()
    assert [ok for _, _, ok in bench.seen] == [True, False, True]


def test_a_crash_empties_the_cache() -> None:
    bench = Bench()
    bench.read("a", MB)
    bench.cache.write("b", 10 * MB, bench.note("written"))
    bench.cache.flush(bench.note("flushed"))
    bench.loop.run(until_ns=1_500_000_000)
    bench.cache.abort()
    bench.disk.abort()
    bench.loop.run()
    assert [what for what, _, _ in bench.seen] == ["read"]
    assert (bench.cache.held, bench.cache.dirty) == (0, 0)
    assert bench.read("a", MB) == 1
    bench.cache.write("b", MB, bench.note("written"))
    bench.cache.flush(bench.note("flushed"))
    bench.loop.run()
    assert [what for what, _, _ in bench.seen[-2:]] == ["written", "flushed"]


def test_an_impossible_cache_is_refused() -> None:
    loop = Loop()
    fluid = Fluid(loop)
    with pytest.raises(InvalidConfig, match=r"dirty_bytes=20 must be 16\.\.capacity=19"):
        PageCache(fluid, Disk(fluid, "disk", 1), 19, 20, 1)
