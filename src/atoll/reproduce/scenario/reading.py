"""Driver: a scenario from its file. Whatever is wrong there gets one line: which file, which key, what to do.

extends = "base.toml"      the same but for what this file says
[sweep]                    "fabric.oversub" = [1, 4]: a run for each, or for each combination
"""

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from atoll.errors import AtollError, InvalidConfig
from atoll.reproduce.scenario.decoding import Names, Reader, short
from atoll.reproduce.scenario.fabrics import checked
from atoll.reproduce.scenario.pricing import prices
from atoll.reproduce.scenario.settings import CollectiveJob, Scenario, TrainJob
from atoll.reproduce.scenario.striking import stream_of

Table = dict[str, Any]
Changes = Mapping[str, Any]
"""Values by dotted key."""
NOTHING: Final[Changes] = {}


@dataclass(frozen=True)
class Document:
    """A file, read but not yet understood."""

    path: Path
    table: Table
    sweep: dict[str, list[Any]]

    def scenario(self, changes: Changes = NOTHING) -> Scenario:
        """With these changes. InvalidConfig: one line says what is wrong and what to do."""
        table = _copied(self.table)
        origins: dict[Names, str] = {}
        for key, value in changes.items():
            origins[_set(table, key, value)] = f"{key}={short(value)}"
        scenario = Reader(self.path, origins).table(Scenario, table, ())
        try:
            _check(scenario)
        except AtollError as error:
            said = f" with {', '.join(origins.values())}" if origins else ""
            raise InvalidConfig(f"{self.path}{said}: {error}") from error
        return scenario

    def points(self, changes: Changes, sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
        """What each run changes: the combinations of the file's sweep and this one, which goes before it key by key. A
        key that `changes` has is swept no more."""
        axes = {**self.sweep, **sweep}
        axes = {key: values for key, values in axes.items() if key not in changes or key in sweep}
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def read(path: Path) -> Document:
    """InvalidConfig: there is no such file, it is no TOML, or it extends itself."""
    table = _read(path, ())
    sweep = table.pop("sweep", {})
    if not isinstance(sweep, dict) or not all(isinstance(v, list) and v for v in sweep.values()):
        raise InvalidConfig(f'{path}: [sweep] must be a list of values for each key: "fabric.oversub" = [1, 4]')
    return Document(path, table, sweep)


def load(path: Path, changes: Changes = NOTHING) -> Scenario:
    """The scenario of a file, not swept. InvalidConfig: as `Document.scenario`."""
    return read(path).scenario(changes)


def change(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value as in TOML or a plain word. InvalidConfig: it is none."""
    key, value = _key(text, "--set fabric.oversub=4")
    return key, _parsed(value)


def axis(text: str) -> tuple[str, list[Any]]:
    """KEY=VALUE,VALUE... InvalidConfig: it is none."""
    key, values = _key(text, "--sweep fabric.oversub=1,2,4")
    listed = _parsed(f"[{values}]")
    return key, listed if isinstance(listed, list) else [_parsed(value) for value in values.split(",")]


def _check(scenario: Scenario) -> None:
    """What no key shows alone. InvalidConfig, InvalidData."""
    try:
        fabric = checked(scenario.fabric)
    except AtollError as error:
        raise InvalidConfig(f"fabric: {error}") from error
    job, hosts = scenario.job, len(fabric.hosts)
    wanted = job.peers if isinstance(job, TrainJob) else job.ranks
    if wanted is not None and wanted > hosts:
        name = "peers" if isinstance(job, TrainJob) else "ranks"
        raise InvalidConfig(f"job.{name} = {wanted}, but the fabric has {hosts} hosts; ask for so many, or add hosts")
    if isinstance(job, CollectiveJob) and (hosts < 2 or scenario.faults):
        raise InvalidConfig('a collective needs 2 hosts or more and no [[faults]]; change that, or take kind = "train"')
    stream_of(scenario.faults, fabric, scenario.seed)
    priced = prices(scenario.cost, scenario.seed)
    if isinstance(job, TrainJob):
        priced.check("train_step")


def _key(text: str, example: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise InvalidConfig(f"{text!r} is no KEY=VALUE; write for example {example}")
    return key.strip(), value.strip()


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _read(path: Path, above: tuple[Path, ...]) -> Table:
    if path.resolve() in above:
        circle = " -> ".join(p.name for p in (*above, path))
        raise InvalidConfig(f"{path}: extends: {circle} is a cycle; remove `extends` from one of them")
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path}: can't be read: {error.strerror}; name a scenario file") from error
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path}: is no TOML: {error}; mend that place") from error
    base = table.pop("extends", None)
    if base is None:
        return _anchored(table, path.parent)
    if not isinstance(base, str):
        raise InvalidConfig(f"{path}: extends = {short(base)} must be the name of a file")
    return _laid_over(_read(path.parent / base, (*above, path.resolve())), _anchored(table, path.parent))


def _anchored(table: Table, folder: Path) -> Table:
    """Files are named as seen from the file that names them."""
    for name in ("file", "calibration", "text"):
        value = table.get(name)
        if isinstance(value, str):
            table[name] = str(folder / value)
        elif isinstance(value, list):
            table[name] = [str(folder / v) if isinstance(v, str) else v for v in value]
    for value in table.values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                _anchored(inner, folder)
    return table


def _laid_over(base: Table, table: Table) -> Table:
    """Tables key by key, unless they are of different kinds; all else as a whole."""
    merged = dict(base)
    for key, value in table.items():
        below = merged.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            kind = below.get("kind")
            if value.get("kind", kind) == kind:
                value = _laid_over(below, value)
        merged[key] = value
    return merged


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value


def _set(table: Table, key: str, value: Any) -> Names:
    """Change one key, found by its dotted name."""
    at: Any = table
    *path, last = names = [int(part) if part.isdigit() else part for part in key.split(".")]
    for depth, name in enumerate(path):
        inner = at.get(name) if isinstance(at, dict) else None
        if isinstance(at, list) and isinstance(name, int) and name < len(at):
            inner = at[name]
        if inner is None and isinstance(at, dict):
            inner = at[name] = {}
        if not isinstance(inner, dict | list):
            raise InvalidConfig(f"{key}={short(value)}: {'.'.join(map(str, names[: depth + 1]))} has no keys in it")
        at = inner
    if isinstance(at, list) and not (isinstance(last, int) and last < len(at)):
        raise InvalidConfig(f"{key}={short(value)}: {last} is none of 0 to {len(at) - 1}; name one of these")
    at[last if isinstance(at, list) else str(last)] = value
    return tuple(names)
