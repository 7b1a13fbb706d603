"""Policy: which strategy for which link: when each is used, what to begin with, and which of several to take."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final

from atoll.train.forecast import Forecast, Link, held_up, needed
from atoll.train.schedule import FragmentSchedule

TARGET: Final = 0.95
"""Share of the time that devices should compute."""
EVERY: Final = (20, 40, 100, 200, 500)
"""Steps between exchanges that are tried: the fewest that reach the target, for peers that meet often learn more."""


@dataclass(frozen=True)
class Guide:
    """`begin`: settings for a first run, besides `every`; a `delay` as far as the steps between exchanges allow.
    `anew`: does it train a model from nothing? `rounds`: does everybody exchange at the same step?"""

    when: str
    begin: Mapping[str, str | int] = field(default_factory=lambda: MappingProxyType({}))
    anew: bool = True
    rounds: bool = True


GUIDES: Final = {
    "ddp": Guide("links as fast as a LAN", {"codec": "bf16"}),
    "diloco": Guide("slow links, long runs", {"codec": "uint8"}),
    "streaming": Guide("home links, other cities", {"delay": 5, "codec": "e3m0"}),
    "local-sgd": Guide("slow links, few exchanges", {"codec": "uint8"}),
    "slowmo": Guide("slow links, many peers", {"codec": "uint8"}),
    "co2": Guide("exchanges as long as rounds", {"codec": "uint8"}),
    "eager": Guide("the same, in long runs", {"codec": "uint8"}),
    "diloco-server": Guide("peers of unequal speed", {"codec": "uint8"}, rounds=False),
    "one-byte": Guide("fine-tuning, slowest links", anew=False),
}
"""In order of preference where other things are equal."""
CO2_MOMENTUM: Final = ((16, 0.0), (32, 0.2), (64, 0.5), (math.inf, 0.6))
"""Up to so many peers, that outer momentum (Sun et al. 2024)."""
UNKNOWN: Final = Guide("see `atoll train --help`")


@dataclass(frozen=True)
class Option:
    """A strategy with its flags, and what it comes to `on` a link: this one, or any."""

    name: str
    flags: str
    schedule: FragmentSchedule
    link: Link
    on: Callable[[Link], Forecast]

    @cached_property
    def forecast(self) -> Forecast:
        """On this link."""
        return self.on(self.link)

    @cached_property
    def needed_bytes_per_s(self) -> float:
        """The bandwidth at which it reaches the target."""
        return needed(self.on, self.link.trip_s, TARGET)

    @property
    def reaches(self) -> bool:
        """The target."""
        return self.forecast.utilisation >= TARGET

    @property
    def age(self) -> int:
        """Steps that a peer goes without what others have learnt, at most."""
        s = self.schedule
        return s.every + (s.every if s.late or not guide(self.name).rounds else s.delay)

    def held_up(self, slower: float) -> "Option":
        """What it is for all others where this is the slowest peer's, whose steps take so many times as long."""
        return replace(self, on=lambda link: held_up(self.on(link), slower))


def fewest_steps(options: Sequence[Option]) -> Option:
    """Of one strategy's options, in order of their steps between exchanges."""
    best = max(options, key=lambda option: option.forecast.utilisation)
    return next((option for option in options if option.reaches), best)


def take(options: Sequence[Option]) -> Option:
    """The one whose peers hear of each other soonest, of those that reach the target; else the one that computes
    most. Never one that can't train a model from nothing."""
    order = list(GUIDES)
    some = [option for option in options if guide(option.name).anew]
    some.sort(key=lambda option: order.index(option.name) if option.name in order else len(order))
    if reaching := [option for option in some if option.reaches]:
        return min(reaching, key=lambda option: option.age)
    return max(some, key=lambda option: option.forecast.utilisation)


def begin(name: str, peers: int) -> dict[str, str | int | float]:
    """Settings for a first run of a strategy among so many, as in its guide."""
    momentum = next(momentum for most, momentum in CO2_MOMENTUM if peers <= most) if name == "co2" else 0.0
    return {**guide(name).begin, **({"outer_momentum": momentum} if momentum else {})}


def guide(name: str) -> Guide:
    """Of a strategy."""
    return GUIDES.get(name, UNKNOWN)
