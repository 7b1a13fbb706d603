"""Driver: `atoll strategies`: what there is, and what each would cost on a link one has. Nothing is run."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final, get_args, get_type_hints

from rich.table import Table
from rich.text import Text

from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.errors import InvalidConfig
from atoll.train import forecast
from atoll.train.forecast import Forecast, Link
from atoll.train.guide import EVERY, GUIDES, TARGET, Option, begin, fewest_steps, guide, take
from atoll.train.limits import flag
from atoll.train.schedule import FragmentSchedule
from atoll.train.settings import TrainSettings

STRATEGIES: Final[tuple[str, ...]] = get_args(get_type_hints(TrainSettings)["strategy"])
RATES: Final = {"bit": 1 / 8, "kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8, "tbit": 1e12 / 8}
TIMES: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
ASSUMED_STEP_S: Final = 1.0
TWO_LOOKS: Final = 4 / 6
"""Of one-byte, which goes forward twice, against going forward and back; the noise it makes besides is not counted."""
EXAMPLE: Final = "atoll strategies --bandwidth 100mbit --rtt 80ms --params 1e9 --peers 8 --step-time 2s"
ERROR: Final = (
    "of runs in virtual time, waits were foretold within 5 %, a server's within 10 % where speeds are evenly apart, "
    "bytes within 2 % (tests/train/test_forecast.py)"
)


@dataclass(frozen=True, kw_only=True)
class StrategiesSettings:
    """Ways to train together, and when to use which. With a link, a model and the time of a step: what each costs there
    and which to take. All of that is simulated, by the schedules and codecs of training itself; nothing is sent.

    atoll strategies --bandwidth 100mbit --rtt 80ms --params 1e9 --peers 8 --step-time 2s
    """

    bandwidth: str = ""
    """Of the slowest peer, the slower of its two directions: 100mbit, 2.5gbit."""
    rtt: str = "20ms"
    """There and back between any two peers: 80ms."""
    params: float = 0.0
    """Of the model: 1e9."""
    peers: int = 4
    step_time: str = ""
    """Of computing one step, without any exchange: 1.2s, 300ms. If nothing says how long that takes: 1s."""
    slowest: float = 1.0
    """Times as long as that, that a step takes the slowest peer: 3."""
    tokens_per_step: float = 0.0
    """Or: tokens of one peer's batch, and"""
    flops: float = 0.0
    """floating point operations per second that it reaches (6 per parameter and token): 5e13."""
    json: bool = False
    """One JSON object per strategy; with a link, the one to take last."""

    @property
    def given(self) -> bool:
        """Is a link asked about?"""
        return replace(self, json=False) != StrategiesSettings()

    @property
    def link(self) -> Link:
        """InvalidConfig names the flag."""
        return Link(_read("bandwidth", self.bandwidth, RATES, "100mbit"), _read("rtt", self.rtt, TIMES, "80ms"))

    @property
    def numbers(self) -> int:
        """Parameters. InvalidConfig names the flag."""
        if not 1 <= self.params <= 1e15:
            raise InvalidConfig(f"--params must be from 1 to 1e15 (a model's parameters, as 1e9), not {self.params:g}")
        if not 1 <= self.peers <= 4096:
            raise InvalidConfig(f"--peers must be from 1 to 4096, not {self.peers}")
        return round(self.params)

    @property
    def slower(self) -> float:
        """InvalidConfig names the flag."""
        if not 1 <= self.slowest < math.inf:
            raise InvalidConfig(f"--slowest must be at least 1 and finite, as 3, not {self.slowest:g}")
        return self.slowest

    @property
    def assumes(self) -> bool:
        """Does nothing say how long a step takes?"""
        return not (self.step_time or self.tokens_per_step or self.flops)

    @property
    def step_s(self) -> float:
        """InvalidConfig names the flag."""
        if self.assumes:
            return ASSUMED_STEP_S
        if self.step_time:
            return _read("step-time", self.step_time, TIMES, "1.2s")
        for name in ("tokens_per_step", "flops"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InvalidConfig(
                    f"{flag(name)} must be above 0 and finite, not {value:g}; or give --step-time, as 1.2s"
                )
        return 6 * self.params * self.tokens_per_step / self.flops


def main(argv: list[str]) -> int:
    """List, or foretell."""
    settings = parse(
        StrategiesSettings, argv, prog="atoll strategies", description=str(StrategiesSettings.__doc__), env=os.environ
    ).value
    if settings.given:
        _foretell(settings)
    else:
        _list(settings.json)
    return 0


def options(name: str, numbers: int, peers: int, step_s: float, link: Link) -> list[Option]:
    """That strategy with ever more steps between exchanges, as far as that makes a difference to it."""
    found: dict[FragmentSchedule, Option] = {}
    for every in EVERY:
        settings = _settings(name, every, peers)
        schedule = replace(settings.schedule, steps=None)
        if schedule in found:
            continue
        on = partial(_forecast, settings, schedule, numbers, peers, step_s)
        found[schedule] = Option(name, _flags(settings), schedule, link, on)
    return list(found.values())


def best(name: str, numbers: int, peers: int, step_s: float, link: Link, slower: float = 1.0) -> Option:
    """The one of these with the fewest steps that do, as it is for a peer whose steps take that long; those of the
    slowest take `slower` times as long."""
    if not guide(name).rounds:
        return fewest_steps(options(name, numbers, peers, step_s, link))
    return fewest_steps(options(name, numbers, peers, step_s * slower, link)).held_up(slower)


# -- inside -----------------------------------------------------------------------------------------------------------


def _settings(name: str, every: int, peers: int = 1) -> TrainSettings:
    some: dict[str, Any] = begin(name, peers)
    delay = some.pop("delay", None)
    settings = TrainSettings(strategy=name, every=every, **some)  # type: ignore[arg-type]
    return settings if delay is None else replace(settings, delay=min(delay, settings.schedule.apart - 1))


def _flags(settings: TrainSettings) -> str:
    """Those that differ from the usual, and how often it exchanges."""
    usual = TrainSettings()
    others = [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(usual, f.name)]
    names = dict.fromkeys(["strategy", *(["every"] if settings.schedule.every > 1 else []), *others])
    return " ".join(f"{flag(name)} {getattr(settings, name)}" for name in names)


def _besides(flags: str) -> str:
    """Without the strategy's own."""
    return " ".join(flags.split()[2:])


def _forecast(
    settings: TrainSettings, schedule: FragmentSchedule, numbers: int, peers: int, step_s: float, link: Link
) -> Forecast:
    s = settings
    if s.strategy == "one-byte":
        part = forecast.say(s.one_byte.samples, peers, link)
        return forecast.forecast(schedule, step_s * TWO_LOOKS, [part])
    codec, down = None if s.codec == "none" else s.codec, None if s.down == "same" else s.down
    if not guide(s.strategy).rounds:
        return forecast.served(s.every, step_s, numbers, peers, link, codec)
    part = forecast.exchange(-(-numbers // schedule.fragments), peers, link, codec, down)
    return forecast.forecast(schedule, step_s, [part] * schedule.fragments)


def _list(as_json: bool) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("strategy", "use it for", "begin with"):
        table.add_column(column, overflow="fold")
    for name in sorted(STRATEGIES, key=lambda name: (name not in GUIDES, [*GUIDES, name].index(name))):
        flags, when = _flags(_settings(name, EVERY[0])), guide(name).when
        if as_json:
            say(json.dumps({"strategy": name, "when": when, "flags": flags}))
        table.add_row(Text(name, "bold"), when, _besides(flags))
    if not as_json:
        console = wide_console()
        console.print(table)
        console.print(f"for your link, for example: {EXAMPLE}", style="dim", soft_wrap=True, highlight=False)


def _foretell(settings: StrategiesSettings) -> None:
    link, numbers, step_s, slower = settings.link, settings.numbers, settings.step_s, settings.slower
    found = [best(name, numbers, settings.peers, step_s, link, slower) for name in STRATEGIES]
    found.sort(key=lambda option: -option.forecast.utilisation)
    taken = take(found)
    why = _why(taken, found, link)
    if settings.json:
        for option in found:
            say(json.dumps(_entry(option)))
        say(json.dumps({"take": taken.name, "flags": taken.flags, "why": why, "simulated": True}))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("strategy", no_wrap=True)
    table.add_column("with", overflow="fold")
    for column in ("sent per step", "busiest second", "wait per step", "step", "computing", "95 % needs"):
        table.add_column(column, justify="right")
    for option in found:
        told, name = option.forecast, Text(option.name, "bold green" if option is taken else "bold")
        table.add_row(
            name, _besides(option.flags), f"{_amount(told.sent_bytes / told.steps)}B",
            f"{_amount(told.peak_bytes_per_s)}B/s", _time(told.waited_s / told.steps), _time(told.step_s),
            f"{told.utilisation:.0%}", _rate(option.needed_bytes_per_s),
        )  # fmt: skip
    console = wide_console()
    console.print(
        f"simulated: {settings.peers} peers, {_rate(link.bytes_per_s)}, {_time(link.trip_s)} there and back, "
        f"{numbers:,} parameters, {_time(step_s)} of computing per step"
        + (" (a guess: give --step-time)" if settings.assumes else "")
        + (f", {slower:g} times as long on the slowest" if slower > 1 else ""),
        style="bold",
    )
    console.print(table)
    console.print(f"take {taken.name}: {why}")
    console.print(f"  atoll train {taken.flags}", soft_wrap=True, highlight=False)
    console.print(ERROR, style="dim")


def _why(taken: Option, found: list[Option], link: Link) -> str:
    """In a sentence."""
    share = f"{taken.forecast.utilisation:.0%}"
    if not taken.reaches:
        more = ", or to fine-tune, one-byte" if any(o.reaches and not guide(o.name).anew for o in found) else ""
        return (
            f"nothing computes {TARGET:.0%} of the time here, and this, with {share}, does most; larger batches, more "
            f"--every or a smaller model help{more}"
        )
    ddp = next(option for option in found if option.name == "ddp")
    if taken is ddp:
        return f"this link bears an exchange at every step, with {share} of the time computing, and nothing learns more"
    needs = ddp.needed_bytes_per_s
    would = "can't on any link" if math.isinf(needs) else f"would need {_rate(needs)} for that"
    return (
        f"it computes {share} of the time, and of those that do no other's peers hear of each other sooner, within "
        f"{taken.age} steps; ddp {would}"
    )


def _entry(option: Option) -> dict[str, Any]:
    told, needed = option.forecast, option.needed_bytes_per_s
    return {
        "strategy": option.name,
        "flags": option.flags,
        "bytes_per_step": told.sent_bytes / told.steps,
        "peak_bytes_per_s": told.peak_bytes_per_s,
        "wait_s": told.waited_s / told.steps,
        "step_s": told.step_s,
        "utilisation": told.utilisation,
        "needed_bytes_per_s": needed if math.isfinite(needed) else None,
        "simulated": True,
    }


def _read(name: str, text: str, units: Mapping[str, float], example: str) -> float:
    """A number with a unit. InvalidConfig: it is none, or not above 0."""
    found = re.fullmatch(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*([a-z]+)(?:/s)?\s*", text.lower())
    try:
        value = float(found[1]) * units[found[2]] if found else 0.0
    except (ValueError, KeyError):
        value = 0.0
    if not 0 < value < math.inf:
        raise InvalidConfig(
            f"--{name} must be a number above 0 and one of {', '.join(units)}, as {example}; not {text!r}"
        )
    return value


def _amount(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "


def _rate(bytes_per_s: float) -> str:
    return "no link" if math.isinf(bytes_per_s) else f"{_amount(8 * bytes_per_s)}bit/s"


def _time(seconds: float) -> str:
    if seconds >= 1000:
        return f"{seconds:,.0f} s"
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"
