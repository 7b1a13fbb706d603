"""Driver: whose state wins, and who is expelled for what? (PCCL, "Done when" 8.)"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import atoll
from atoll.errors import Mismatch, PeerLost, Unfit
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.threads import run_peers

State = Callable[[int], atoll.SharedState]


def _fill(value: float, n: int = 4) -> Any:
    return np.full(n, value, np.float32)


def _sync_all(world: int, state: State) -> list[tuple[str, Any]]:
    """What each rank's sync came to: ("ok", (state, bytes)) or (error's name, message). Who sees a loss tries again."""

    def body(group: atoll.Group) -> tuple[str, Any]:
        mine = state(group.rank)
        while True:
            try:
                received = group.sync(mine).bytes_received
                group.barrier()
                return "ok", (mine, received)
            except PeerLost:
                continue
            except (Unfit, Mismatch) as error:
                return type(error).__name__, str(error)

    return run_peers(world, body)


def elections(say: Say) -> Iterator[Line]:
    say("elections of shared state")

    def kinds(outcomes: list[tuple[str, Any]]) -> list[str]:
        return [kind for kind, _ in outcomes]

    def values(outcomes: list[tuple[str, Any]], key: str = "w") -> list[float]:
        return [float(what[0].tensors[key][0]) for kind, what in outcomes if kind == "ok"]

    def line(number: str, claim: str, expected: object, measured: object) -> Line:
        return Line(number, claim, str(expected), str(measured), judged(expected == measured))

    popular = _sync_all(3, lambda r: atoll.SharedState({"w": _fill(0.0 if r == 0 else 7.0)}))
    yield line("8a", "the most popular content wins, though another came first", [7.0] * 3, values(popular))

    keys = {f"k{i:02d}": i for i in range(50)}

    def partly(rank: int) -> atoll.SharedState:
        return atoll.SharedState({k: _fill(-1.0 if rank == 2 and i % 5 == 0 else float(i)) for k, i in keys.items()})

    dirty = _sync_all(3, partly)
    same = len({what[0].digest() for _, what in dirty}) == 1
    yield line(
        "8b", "50 keys, 10 of them dirty on one peer: only those travel", (True, 10 * 16), (same, dirty[2][1][1])
    )

    behind = _sync_all(3, lambda r: atoll.SharedState({"w": _fill(float(r > 0))}, revision=4 if r else 1))
    ends = [(what[0].revision, float(what[0].tensors["w"][0])) for _, what in behind]
    yield line("8c", "a peer with a stale revision is dragged along", [(4, 1.0)] * 3, ends)

    first = _sync_all(2, lambda r: atoll.SharedState({"w": _fill(3.0)}, revision=13))
    yield line("8d", "the first sync may come at revision 13", [13, 13], [what[0].revision for _, what in first])

    def skip(group: atoll.Group) -> str:
        state = atoll.SharedState({"w": _fill(1.0)})
        group.sync(state)
        state.revision += 2 if group.rank == 2 else 1
        while True:
            try:
                group.sync(state)
                group.barrier()
                return "ok"
            except PeerLost:
                continue
            except Unfit:
                return "Unfit"

    yield line("8e", "who skips a revision is expelled, the others go on", ["ok", "ok", "Unfit"], run_peers(3, skip))

    odd = _sync_all(3, lambda r: atoll.SharedState({"v" if r == 2 else "w": _fill(1.0)}))
    yield line("8f", "other keys expel only the offender", ["ok", "ok", "Unfit"], kinds(odd))

    senders = _sync_all(2, lambda r: atoll.SharedState({"w": _fill(float(r))}, strategy="send"))
    yield line(
        "8g", "of two that may only send different contents one is expelled", ["Unfit", "ok"], sorted(kinds(senders))
    )

    takers = _sync_all(3, lambda r: atoll.SharedState({"w": _fill(float(r))}, strategy="receive"))
    yield line("8h", "if all only want to receive, all are expelled", ["Unfit"] * 3, kinds(takers))

    mixed = _sync_all(3, lambda r: atoll.SharedState({"w": _fill(1.0)}, strategy="send" if r == 1 else "popular"))
    yield line("8i", "mixing strategies expels the one that breaks the rule", ["ok", "Unfit", "ok"], kinds(mixed))


def peer_groups(say: Say) -> Iterator[Line]:
    """Four peers as a grid: the same keys in two subgroups, both synced at once, each by an election of its own."""
    say("subgroups")

    def body(group: atoll.Group) -> tuple[float, float, int]:
        row = group.subgroup(f"row {group.rank // 2}")
        column = group.subgroup(f"column {group.rank % 2}")
        state = atoll.SharedState({"w": _fill(float(group.rank))}, revision=3 * row.rank)
        row.sync(state)  # the higher revision wins: that of the second in each row
        held = float(state.tensors["w"][0])
        x = _fill(float(group.rank))
        column.all_reduce(x, "sum")
        group.barrier()
        return held, float(x[0]), state.revision

    found = run_peers(4, body)
    expected = [(1.0, 2.0, 3), (1.0, 4.0, 3), (3.0, 2.0, 3), (3.0, 4.0, 3)]
    yield Line(
        "8p",
        "peer groups: the same keys in two, syncs at once in two, sums along the other axis",
        "each row its own state",
        "as expected on 4 peers" if found == expected else str(found),
        judged(found == expected),
    )
