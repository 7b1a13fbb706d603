"""Driver: a scenario's faults as one stream of timed ones, on hosts and links that are there."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from atoll.errors import InvalidConfig, InvalidData
from atoll.fabric import Fabric
from atoll.record import read_jsonl
from atoll.reproduce.scenario.settings import Faults, FromTrace, Once, Repeatedly, Striking, Together
from atoll.sim.faults import (
    NAMES,
    Crash,
    Fault,
    Hang,
    LinkDegrade,
    LinkDown,
    Preempt,
    Slow,
    Timed,
    each,
    from_entries,
    merge,
    together,
)

MASTER = "master"
"""Whom a crash of this name hits."""
SIMULATED = (Crash, Hang, Slow, Preempt, LinkDown, LinkDegrade)


def stream_of(faults: Sequence[Faults], fabric: Fabric, seed: int) -> Iterator[Timed]:
    """All of them, in order of time; without end, where a clock has none. InvalidConfig: a subject there is not, or
    what can't be simulated here."""
    return merge(*[_stream(number, settings, fabric, seed) for number, settings in enumerate(faults)])


def _stream(number: int, settings: Faults, fabric: Fabric, seed: int) -> Iterable[Timed]:
    try:
        match settings:
            case FromTrace(file=file):
                timed = from_entries(read_jsonl(file))
                for fault in {t.fault: None for t in timed}:
                    _check(fault, fabric)
                return sorted(timed, key=lambda t: t.at_s)
            case Once(at_s=at_s, for_s=for_s):
                return [Timed(at_s, fault, for_s) for fault in _faults(settings, settings.where, fabric)]
            case Repeatedly(up=up, down=down):
                return each(_faults(settings, settings.where, fabric), up, down, seed, f"faults.{number}")
            case Together():
                return together(
                    _racks(settings, fabric), settings.up, settings.down, seed, f"faults.{number}",
                    share=settings.share, spread_s=settings.spread_s,
                )  # fmt: skip
    except (InvalidConfig, InvalidData) as error:
        raise InvalidConfig(f"faults.{number}: {error}") from error


def _faults(settings: Striking, patterns: Iterable[str], fabric: Fabric) -> list[Fault]:
    links = settings.kind.startswith("link")
    known = list(fabric.links) if links else [*fabric.hosts, MASTER]
    found: dict[str, None] = {}
    for pattern in patterns:
        subjects = [name for name in known if fnmatchcase(name, pattern) and (name != MASTER or pattern == MASTER)]
        if not subjects:
            raise InvalidConfig(
                f"where: there is no {'link' if links else 'host'} {pattern!r}; {_nearest(pattern, known)}"
            )
        found |= dict.fromkeys(subjects)
    return [_made(settings, subject) for subject in found]


def _racks(settings: Together, fabric: Fabric) -> dict[str, list[Fault]]:
    if settings.kind.startswith("link"):
        raise InvalidConfig('kind: racks have hosts; take when = "repeatedly" for links')
    hosts, n = fabric.hosts, settings.racks
    if not 1 <= n <= len(hosts):
        raise InvalidConfig(f"racks must be from 1 to {len(hosts)}, the hosts there are, not {n}")
    cuts = [len(hosts) * i // n for i in range(n + 1)]
    return {f"rack{i}": [_made(settings, h) for h in hosts[cuts[i] : cuts[i + 1]]] for i in range(n)}


def _made(settings: Striking, subject: str) -> Fault:
    return from_entries([{"at_s": 0.0, **settings.of(subject)}])[0].fault


def _check(fault: Fault, fabric: Fabric) -> None:
    if not isinstance(fault, SIMULATED):
        can = ", ".join(NAMES[kind] for kind in SIMULATED)
        raise InvalidConfig(f"a {NAMES[type(fault)]} can't be simulated here; there are: {can}")
    if isinstance(fault, LinkDown | LinkDegrade):
        if isinstance(fault, LinkDegrade) and fault.latency_s:
            raise InvalidConfig(f"the latency of {fault.link!r} can't change; leave latency_s out")
        if fault.link not in fabric.links:
            raise InvalidConfig(f"there is no link {fault.link!r}; {_nearest(fault.link, fabric.links)}")
    elif fault.node not in fabric.hosts and fault.node != MASTER:
        raise InvalidConfig(f"there is no host {fault.node!r}; {_nearest(fault.node, fabric.hosts)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.0)
    return f"did you mean {near[0]!r}?" if near else "there is none at all"
