"""Driver: all-reduce beside torch's gloo on this machine, in the same run. (PCCL, "Done when" 6.)"""

from collections.abc import Iterator

import msgspec

from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.crew import crew
from atoll.reproduce.rivals import Settings, Spec, Task, Times, Way, compare

_WAYS = (Way("atoll", "near"), Way("TCP", "far"), Way("gloo"), Way("vote", "near", gather=True))
_STARTS = 3
"""Of the processes, for small operations: gloo's take either of two times, for as long as a process lives."""


def speed(full: bool, say: Say) -> Iterator[Line]:
    """Small and large, two and four peers; votes included; shared memory, and TCP alone."""
    rounds = 15 if full else 5
    small = {4 << 10: (rounds, 100), 256 << 10: (rounds, 40)}
    large = {64 << 20: (rounds, 2)}
    if full:
        large[256 << 20] = (5, 1)
    found: dict[tuple[int, int, str], Times] = {}
    for world in (2, 4):
        say(f"all-reduces of {world} peers beside gloo")
        for sizes in (*[small] * _STARTS, large):
            for times in _compared(world, sizes):
                key = world, times.nbytes, times.way
                earlier = found[key].seconds if key in found else []
                found[key] = msgspec.structs.replace(times, seconds=earlier + times.seconds)

    def line(number: str, nbytes: int, expected: float, way: str) -> Line:
        parts, worst = [], float("inf")
        for world in (2, 4):
            ours, gloo = found[world, nbytes, way], found[world, nbytes, "gloo"]
            ratio = gloo.median_s / ours.median_s
            worst = min(worst, ratio)
            parts.append(f"W={world}: {ours.spread} against {gloo.spread}: {ratio:.2f}x")
        size = f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"
        what = "all-reduce, votes included, TCP only" if way == "TCP" else "all-reduce, votes included"
        claim = f"{size} {what}: gloo's time over ours"
        return Line(number, claim, f">= {expected}x", "; ".join(parts), judged(worst >= expected))

    yield line("6a", 4 << 10, 1.0, "atoll")
    yield line("6b", 256 << 10, 1.0, "atoll")
    yield _data_alone(found, 256 << 10)
    yield line("6c", 64 << 20, 0.8, "TCP")
    yield line("6c", 64 << 20, 1.3, "atoll")
    if full:
        yield line("6c", 256 << 20, 0.8, "TCP")
        yield line("6c", 256 << 20, 1.3, "atoll")


def _data_alone(found: dict[tuple[int, int, str], Times], nbytes: int) -> Line:
    """What an all-reduce takes longer than a vote without data, beside all that gloo takes."""
    parts, worst = [], float("inf")
    for world in (2, 4):
        ours, vote, gloo = (found[world, nbytes, way].median_s for way in ("atoll", "vote", "gloo"))
        ratio = gloo / max(ours - vote, 1e-6)
        worst = min(worst, ratio)
        parts.append(
            f"W={world}: {1e3 * (ours - vote):.3g} of {1e3 * ours:.3g} ms against {1e3 * gloo:.3g} ms: {ratio:.1f}x"
        )
    claim = f"{nbytes >> 10} KiB all-reduce, less a vote of the same peers: gloo's time over that"
    return Line("6e", claim, ">= 3x", "; ".join(parts), judged(worst >= 3.0))


def _compared(world: int, sizes: dict[int, tuple[int, int]]) -> list[Times]:
    tasks = tuple(Task(n, rounds, repeat, _WAYS) for n, (rounds, repeat) in sizes.items())
    with crew() as peers:
        groups = {
            "near": Settings(peers.master("master of near")),
            "far": Settings(peers.master("master of far"), shared_memory=False),
        }
        return compare(peers, Spec(world, groups, tasks))
