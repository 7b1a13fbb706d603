"""Driver: settings that make no sense, and numbers that are none. (Streaming DiLoCo, "Done when" 7.)"""

from collections.abc import Callable, Iterator

import torch

import atoll
from atoll.errors import InvalidConfig
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.streaming_diloco.reference import Tower
from atoll.reproduce.threads import run_peers
from atoll.train.exchange import Exchange, Exchanged
from atoll.train.fragments import FragmentPlan
from atoll.train.settings import TrainSettings


def refusals(say: Say) -> Iterator[Line]:
    """Each names the setting, or the rank."""
    say("settings that make no sense")
    cases: dict[str, tuple[str, Callable[[], object]]] = {
        "delay": ("H=32, P=4, delay 8", lambda: TrainSettings(strategy="streaming", every=32, fragments=4, delay=8)),
        "every": ("H=30, P=4", lambda: TrainSettings(strategy="streaming", every=30, fragments=4)),
        "mix": ("mix 1.5", lambda: TrainSettings(strategy="streaming", mix=1.5)),
        "fragments": ("a parameter in two fragments", _twice),
    }
    said = {field: refused(make) for field, (_, make) in cases.items()}
    right = sum(text.startswith((f"--{field} ", f"{field}:")) for field, text in said.items())
    yield Line(
        "7a",
        "; ".join(what for what, _ in cases.values()),
        "each refused, naming the setting",
        f"{right} of {len(cases)}: {'; '.join(said.values())}",
        judged(right == len(cases)),
    )

    def body(group: atoll.Group) -> Exchanged:
        exchange = Exchange()
        exchange.enter(group)
        mine = torch.full((100_000,), float(group.rank))
        if group.rank == 1:
            mine[500] = float("nan")
        exchange.start(0, mine)
        return exchange.finish(0, lambda vector: vector)

    say("a contribution that is no number")
    all_done = run_peers(3, body)
    means = {float(x) for done in all_done if done.mean is not None for x in done.mean.unique()}
    ranks = {done.refused for done in all_done}
    yield Line(
        "7b",
        "three peers give 0, NaN and 2: that one is refused and named by rank, the rest averaged",
        "rank 1; a mean of 1",
        f"refused: {', '.join(str(rank) for some in ranks for rank in some)}; mean {', '.join(map(str, means))}",
        judged(ranks == {(1,)} and means == {1.0}),
    )


def _twice() -> None:
    tower = Tower(0)
    (names,) = FragmentPlan.of(tower).fragments
    FragmentPlan((names, names[:1])).check(tower)


def refused(make: Callable[[], object]) -> str:
    """What is said to settings that can't be."""
    try:
        make()
    except InvalidConfig as error:
        return str(error)
    return "not refused"
