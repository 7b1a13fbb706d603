"""Driver: every key a scenario may have, from the typed settings themselves: for `atoll sim keys` and the docs."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from atoll.reproduce.scenario.decoding import TAGGED, spelled
from atoll.reproduce.scenario.settings import Scenario


class Key(NamedTuple):
    """One that may stand in a scenario, or (without a kind) the head of a table."""

    name: str
    kind: str
    default: str
    about: str


OF_THE_FILE: Final = (
    Key("extends", "the name of a file", "none", "The scenario is that one but for what this file says."),
    Key("[sweep]", "", "", "For a dotted key, a list of values: a run for each, or for each combination."),
)


def keys() -> list[Key]:
    """All of them, table by table; what several kinds have in common stands with the first."""
    return [*OF_THE_FILE, *_of(Scenario, "", set())]


def _of(cls: type[Any], prefix: str, told: set[tuple[str, Any]]) -> Iterator[Key]:
    about, kinds = _documented(cls), get_type_hints(cls)
    deeper: list[tuple[str, Any, str]] = []
    for f in fields(cls):
        if not f.init:
            continue
        kind, inner = kinds[f.name], _inner(kinds[f.name])
        if inner is not None:
            lists = get_origin(kind) in (tuple, list)
            deeper.append((f"{prefix}{f.name}" + ("[]" if lists else ""), inner, about.get(f.name, "")))
            continue
        default = f.default if f.default_factory is MISSING else f.default_factory()
        said = "" if default is MISSING else "none" if default is None else str(default)
        yield Key(prefix + f.name, spelled(kind), "needed" if default is MISSING else said, about.get(f.name, ""))
    for name, inner, said in deeper:
        if (name, inner) in told:
            continue
        told.add((name, inner))
        if inner not in TAGGED:
            yield Key(f"[{name}]", "", "", said or _first(inner))
            yield from _of(inner, f"{name}.", told)
            continue
        tag, choices = TAGGED[inner]
        for choice, cls_of in choices.items():
            yield Key(f'[{name}] {tag} = "{choice}"', "", "", _first(cls_of))
            yield from _of(cls_of, f"{name}.", told)


def _inner(kind: Any) -> Any:
    """The settings that a key holds, if it holds some."""
    parts = [kind, *(part for part in get_args(kind) if part is not NoneType)]
    return next((part for part in parts if part in TAGGED or (isinstance(part, type) and is_dataclass(part))), None)


def _first(cls: type[Any]) -> str:
    return " ".join((inspect.getdoc(cls) or "").split())


def _documented(cls: type[Any]) -> dict[str, str]:
    """What stands below each field, those of base classes among them."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            found |= _below_fields(inspect.getsourcefile(base) or "").get(base.__name__, {})
    return found


@cache
def _below_fields(file: str) -> dict[str, dict[str, str]]:
    """The same of every class of a module."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(file).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            own = found[node.name] = {}
            for field, below in pairwise(node.body):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        own[name] = " ".join(text.split())
    return found
