"""Driver: typed settings from tables, each mistake in one line: which file, which key, what to do."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from atoll.errors import AtollError, InvalidConfig
from atoll.reproduce.scenario.fabrics import FABRICS, Network
from atoll.reproduce.scenario.settings import CLOCKS, FAULTS, JOBS, Faults, Job
from atoll.sim.clocks import Clock

T = TypeVar("T")
Names = tuple[str | int, ...]  # ("faults", 0, "at_s")

TAGGED: Final[dict[Any, tuple[str, dict[str, type[Any]]]]] = {
    Network: ("kind", FABRICS),
    Job: ("kind", JOBS),
    Faults: ("when", FAULTS),
    Clock: ("law", CLOCKS),
}
"""What may be one of several: the key that says which."""


class Reader:
    """Makes typed settings of tables, or says in one line why not."""

    def __init__(self, path: Path, origins: Mapping[Names, str]) -> None:
        self.path, self.origins = path, origins

    def table(self, cls: type[T], raw: Any, at: Names) -> T:
        """An instance of a dataclass."""
        if not isinstance(raw, dict):
            raise self.wrong(at, f"= {short(raw)} must be a table [{dotted(at)}]")
        kinds = get_type_hints(cls)
        own = {f.name: f for f in fields(cls) if f.init}  # type: ignore[arg-type]
        for key in raw:
            if key not in own:
                raise self.wrong((*at, key), f"is no key there; {_nearest(key, own)}")
        for name, f in own.items():
            if name not in raw and f.default is MISSING and f.default_factory is MISSING:
                raise self.wrong((*at, name), f"is missing; give it: {spelled(kinds[name])}")
        values = {name: self.value(kinds[name], inner, (*at, name)) for name, inner in raw.items()}
        try:
            return cls(**values)
        except AtollError as error:
            raise self.broken(at, str(error), own) from error

    def value(self, kind: Any, raw: Any, at: Names) -> Any:
        """What a key says, as its type wants it."""
        if kind in TAGGED:
            return self.tagged(*TAGGED[kind], raw, at)
        if get_origin(kind) in (tuple, list) and is_deep(get_args(kind)[0]):
            if not isinstance(raw, list):
                raise self.wrong(at, f"= {short(raw)} must be a list of tables [[{dotted(at)}]]")
            made = (self.value(get_args(kind)[0], inner, (*at, i)) for i, inner in enumerate(raw))
            return tuple(made) if get_origin(kind) is tuple else list(made)
        parts = [part for part in get_args(kind) if part is not NoneType] if NoneType in get_args(kind) else [kind]
        if len(parts) == 1 and is_dataclass(parts[0]):
            return self.table(parts[0], raw, at)  # type: ignore[arg-type]
        if get_origin(kind) is Literal and raw not in get_args(kind):
            known = [str(v) for v in get_args(kind)]
            raise self.wrong(at, f"= {short(raw)} is none of {', '.join(known)}; {_nearest(str(raw), known)}")
        try:
            return msgspec.convert(raw, kind, strict=True, dec_hook=_path)
        except msgspec.ValidationError as error:
            raise self.wrong(at, f"= {short(raw)} has the wrong type; give {spelled(kind)}") from error

    def tagged(self, tag: str, choices: dict[str, type[Any]], raw: Any, at: Names) -> Any:
        """One of several dataclasses."""
        if not isinstance(raw, dict):
            raise self.wrong(at, f"= {short(raw)} must be a table with {tag} = one of {', '.join(choices)}")
        rest = dict(raw)
        name = rest.pop(tag, None)
        if name is None:
            raise self.wrong((*at, tag), f"is missing; give one of {', '.join(choices)}")
        if name not in choices:
            raise self.wrong((*at, tag), f"= {short(name)} is none of {', '.join(choices)}; {_nearest(name, choices)}")
        return self.table(choices[name], rest, at)

    def broken(self, at: Names, why: str, own: Iterable[str]) -> InvalidConfig:
        """A rule of the settings themselves; where it begins with a key, that is the one to name."""
        word, _, rest = why.removeprefix("--").partition(" ")
        key, equals, value = word.partition("=")
        if (name := key.replace("-", "_")) in own:
            return self.wrong((*at, name), f"= {value} {rest}" if equals else rest)
        return self.wrong(at, f": {why}" if at else why)

    def wrong(self, at: Names, what: str) -> InvalidConfig:
        """The one line."""
        said = next((self.origins[at[:n]] for n in range(len(at), 0, -1) if at[:n] in self.origins), None)
        where = f"{self.path} with {said}" if said else str(self.path)
        name = dotted(at) if what.startswith(":") else f"{dotted(at)} " if at else ""
        return InvalidConfig(f"{where}: {name}{what}")


def is_deep(kind: Any) -> bool:
    """Is it made of tables?"""
    return kind in TAGGED or (isinstance(kind, type) and is_dataclass(kind))


def _path(kind: Any, raw: Any) -> Any:
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    raise msgspec.ValidationError(f"expected {kind}")


def _nearest(name: str, known: Iterable[str]) -> str:
    near: Iterator[str] = iter(difflib.get_close_matches(str(name), list(known), 1, 0.0))
    return f"did you mean {next(near, '')!r}?"


def dotted(at: Names) -> str:
    return ".".join(map(str, at))


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def spelled(kind: Any) -> str:
    if kind in TAGGED:
        return f"a table with {TAGGED[kind][0]} = one of {', '.join(TAGGED[kind][1])}"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    plain = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "the name of a file"}
    if kind in plain:
        return plain[kind]
    if get_origin(kind) in (list, tuple):
        return f"a list, each {spelled(get_args(kind)[0])}"
    parts = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) is dict:
        return "a table"
    return " or ".join(map(spelled, parts)) if parts else f"a table of {kind.__name__.lower()}"
