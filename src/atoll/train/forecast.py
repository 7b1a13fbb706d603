"""Policy: what a strategy costs on a link: bytes, waits, the share of the time that is computing. Nothing is sent.

    steps        follow the strategy's own `FragmentSchedule`, each with the same time of computing
    an exchange  goes the way the group would choose for it, and is as long as its codec makes it; they share the link
                 one behind the other, while steps are taken, until somebody waits
    a server     is asked by each worker for itself; those who happen to come together share its link

As the simulation of Douillard et al. 2025 (Streaming DiLoCo, arXiv 2501.18512, section 4). All peers are alike, but for
one that may be slower, and none goes; a link gives its rate from the first byte on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from atoll import codec as codecs
from atoll.errors import InvalidConfig
from atoll.group.collectives.choice import choose, seconds
from atoll.group.messages import Pace
from atoll.train.schedule import FragmentSchedule, Start, Swap

FLOAT_BYTES: Final = 4
WINDOW_S: Final = 1.0
"""The busiest time of a link is looked for in windows of that length."""
MOST_STEPS: Final = 10_000
"""That are gone through to find it."""


@dataclass(frozen=True, slots=True)
class Link:
    """What each peer has: so many bytes per second out, and as many in; so long to any other and back.

    InvalidConfig: that can't be.
    """

    bytes_per_s: float
    trip_s: float

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_s < math.inf:
            raise InvalidConfig(f"the bandwidth of a link must be above 0 and finite, not {self.bytes_per_s:g} bytes/s")
        if not 0 <= self.trip_s < math.inf:
            raise InvalidConfig(f"the round trip of a link must be at least 0 and finite, not {self.trip_s:g} s")

    @property
    def pace(self) -> Pace:
        """As a group that has measured it knows it."""
        return Pace(self.trip_s, self.trip_s, self.bytes_per_s, self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Transfer:
    """One exchange of one fragment: bytes out of a peer, seconds it has its link, seconds besides for the way."""

    sent_bytes: float
    link_s: float
    way_s: float


def exchange(numbers: int, peers: int, link: Link, codec: str | None = None, down: str | None = None) -> Transfer:
    """The mean of so many float32 of each peer. Names as `Exchange` takes them. InvalidConfig: there is no such codec.

    Where ranks send unequal amounts (halving among a number that is no power of 2), those of the average one.
    """
    if peers == 1 or not numbers:
        return Transfer(0.0, 0.0, 0.0)
    encoder = codecs.get(codec)
    nbytes, pace = FLOAT_BYTES * numbers, link.pace
    way = choose("all_reduce", nbytes, peers, pace, encoder is None or encoder.hops)
    if way == "votes":
        return say(nbytes, peers, link)
    there, back = _encoded(numbers, codec), _encoded(numbers, codec if down is None else down)
    sent = (peers - 1) * there if way == "eager" else (peers - 1) / peers * (there + back)
    return Transfer(sent, sent / link.bytes_per_s, seconds(way, "all_reduce", 0, peers, pace))


def say(nbytes: float, peers: int, link: Link) -> Transfer:
    """A few bytes of each peer to all, by way of the master, who is as far as they are."""
    return Transfer(nbytes, nbytes / link.bytes_per_s, link.trip_s) if peers > 1 else Transfer(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `steps` steps come to for each peer. Simulated."""

    steps: int
    computed_s: float
    waited_s: float
    sent_bytes: float
    """With a server, by that too."""
    peak_bytes_per_s: float
    """In the busiest second, or over all where that is shorter. Of a server's link, where there is one."""

    @property
    def step_s(self) -> float:
        """Of one step, waits included."""
        return (self.computed_s + self.waited_s) / self.steps

    @property
    def utilisation(self) -> float:
        """Share of the time in which devices compute."""
        return self.computed_s / (self.computed_s + self.waited_s)


def forecast(schedule: FragmentSchedule, step_s: float, parts: Sequence[Transfer]) -> Forecast:
    """Steps that take `step_s` by themselves; `parts`: the exchange of each fragment.

    Over the whole run, if the schedule has an end. Else over as many rounds as it takes for all to come again, after
    twice as many that don't count, and on through two windows.
    """
    _check(step_s)
    assert len(parts) == schedule.fragments
    period = schedule.every * max(1, schedule.consensus if schedule.late else 1)
    skipped, steps = (0, schedule.steps) if schedule.steps else (2 * period, 3 * period)
    clock = free_s = waited = began_s = sent = 0.0
    arrives: dict[int, float] = {}
    busy: list[tuple[float, float, float]] = []
    step = 0
    while step < steps or _longer(schedule, step, period, clock - began_s):
        if step == skipped:
            began_s, waited, sent = clock, 0.0, 0.0
        clock += step_s
        for action in schedule.at(step):
            fragment = action.fragment
            if not isinstance(action, Start):
                late_s = max(0.0, arrives.get(fragment, clock) - clock)
                waited, clock = waited + late_s, clock + late_s
            if isinstance(action, Start | Swap):
                leaves_s = max(clock, free_s)
                free_s = leaves_s + parts[fragment].link_s
                arrives[fragment] = free_s + parts[fragment].way_s
                sent += parts[fragment].sent_bytes
                busy.append((leaves_s, free_s, parts[fragment].sent_bytes))
        step += 1
    counted = step - skipped
    return Forecast(counted, counted * step_s, waited, sent, _peak(busy, began_s, clock))


def served(every: int, step_s: float, numbers: int, peers: int, link: Link, codec: str | None = None) -> Forecast:
    """A round of one of so many workers of a server, who come at any time: it gives them so many float32, they take
    `every` steps, and what they push is as long as the codec makes it.

    Its link is shared fairly, each way by itself: a closed network of two such queues. Mean waits in it don't hang on
    how what is asked of it is distributed (mean value analysis: Reiser and Lavenberg 1980, J. ACM 27 (2)). Workers that
    come all at the same moment, as when they begin, wait longest: for `peers` transfers each way.
    """
    _check(step_s)
    pulled, pushed = FLOAT_BYTES * numbers, _encoded(numbers, codec)
    computed_s, waited_s, queues = every * step_s, 0.0, [0.0, 0.0]
    for n in range(1, peers + 1):
        ways_s = [
            nbytes / link.bytes_per_s * (1 + queue) for nbytes, queue in zip((pulled, pushed), queues, strict=True)
        ]
        waited_s = link.trip_s + sum(ways_s)
        queues = [n * way_s / (computed_s + waited_s) for way_s in ways_s]
    peak = min(link.bytes_per_s, peers * pulled / min(WINDOW_S, computed_s + waited_s))
    return Forecast(every, computed_s, waited_s, pulled + pushed, peak)


def held_up(told: Forecast, slower: float) -> Forecast:
    """What it is for all others where these are the steps of the slowest, which take so many times as long as theirs:
    in rounds they wait for it."""
    computed_s = told.computed_s / slower
    return replace(told, computed_s=computed_s, waited_s=told.waited_s + told.computed_s - computed_s)


def needed(make: Callable[[Link], Forecast], trip_s: float, target: float) -> float:
    """The least bytes per second at which `make` says that devices compute for `target` of the time, within 1 %.

    Infinite where the round trip alone forbids it.
    """
    low, high = 1.0, 1e15
    if make(Link(high, trip_s)).utilisation < target:
        return math.inf
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if make(Link(middle, trip_s)).utilisation >= target else (middle, high)
    return high


def _check(step_s: float) -> None:
    if not 0 < step_s < math.inf:
        raise InvalidConfig(f"a step must take a time above 0 and finite, not {step_s:g} s")


def _encoded(numbers: int, codec: str | None) -> int:
    encoder = codecs.get(codec)
    return FLOAT_BYTES * numbers if encoder is None else encoder.encoded_size(numbers)


def _longer(schedule: FragmentSchedule, step: int, period: int, seconds_: float) -> bool:
    """Is the steady state to be followed for longer? It always ends with a whole period."""
    if schedule.steps or (step >= MOST_STEPS and not step % period):
        return False
    return bool(step % period) or seconds_ < 2 * WINDOW_S


def _peak(busy: list[tuple[float, float, float]], began_s: float, ended_s: float) -> float:
    """Bytes per second in the busiest window: it begins with a transfer or ends with one."""
    if not busy:
        return 0.0
    moments = np.array([moment for begin, end, _ in busy for moment in (begin, end)])
    sent = np.cumsum([part for _, _, nbytes in busy for part in (0.0, nbytes)])
    if ended_s - began_s <= WINDOW_S:
        within = np.interp([began_s, ended_s], moments, sent)
        return float(np.diff(within)[0] / (ended_s - began_s))
    begins = np.concatenate([moments[::2], moments[1::2] - WINDOW_S])
    begins = np.clip(begins, began_s, ended_s - WINDOW_S)
    return float((np.interp(begins + WINDOW_S, moments, sent) - np.interp(begins, moments, sent)).max() / WINDOW_S)
