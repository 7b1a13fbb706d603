"""Driver: settings of a command, and the folder of a run.

A dataclass is the single source of a command's flags, its file and its documentation. Defaults < TOML file <
environment (`ATOLL_LR`, nested: `ATOLL_OUTER__LR`, tuples: `1,2`) < flags. None is written "none".
"""

import argparse
import difflib
import errno
import inspect
import json
import os
import secrets
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, make_dataclass
from functools import reduce
from pathlib import Path, PurePath
from types import NoneType
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import tyro
from rich.console import Console
from rich.table import Table

from atoll.errors import InvalidConfig, SaveFailed

T = TypeVar("T")
Names = tuple[str, ...]  # ("outer", "lr") for the field outer.lr
LAST = "last"


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """Settings, and where each came from.

    `sources`: for each dotted field "default", "file PATH", the environment variable, or "command line" where a flag
    changed it.
    """

    value: T
    sources: dict[str, str]

    @property
    def typed(self) -> list[str]:
        """Dotted names of what flags changed."""
        return [name for name, source in self.sources.items() if source == "command line"]


def resolve(cls: type[T], *, file: Path | None, env: Mapping[str, str], prog: str) -> Resolved[T]:
    """The settings of `prog` from all layers but the flags.

    Raises `InvalidConfig` for an unknown key, a value of the wrong type, or a required field without a value.
    """
    values, sources = _layers(cls, file, env, prog)
    for names in _leaves(cls):
        if names not in values:
            raise InvalidConfig(f"{prog}: {'.'.join(names)} has no value; give it in a file or as {_variable(names)}")
    return Resolved(_assemble(cls, values, lambda kind, own: kind(**own)), sources)


def parse(cls: type[T], argv: Sequence[str], *, prog: str, description: str, env: Mapping[str, str]) -> Resolved[T]:
    """The settings of `prog` with the flags of `argv` on top; it also takes `--config FILE` and `--print-config`.

    Raises `InvalidConfig` as `resolve` does, SystemExit(2) for bad flags, SystemExit(0) after help or printed settings.
    """
    first = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    file = first.parse_known_args(argv)[0].config
    values, sources = _layers(cls, file, env, prog)
    defaults = dict.fromkeys(_leaves(cls), tyro.MISSING) | values
    command = tyro.cli(
        _command(cls),
        args=argv,
        prog=prog,
        description=inspect.cleandoc(description),
        default=_command(cls)(_assemble(cls, defaults, _unchecked)),
    )
    for names, default in defaults.items():
        if reduce(getattr, names, command.settings) != default:
            sources[".".join(names)] = "command line"
    resolved = Resolved(command.settings, {".".join(names): sources[".".join(names)] for names in defaults})
    if command.print_config:
        _print(resolved)
        raise SystemExit(0)
    return resolved


def to_toml(settings: Any) -> str:
    """A dataclass of simple values and of such dataclasses, so that `resolve` reads the same settings again."""
    return "".join(f"{line}\n" for line in _toml_lines(settings, ()))


def atomic_write(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file at `path`, so that after a crash it holds all of the old or all of the new bytes.

    `mode`: who may read and write it, from the start, less what the umask takes.

    Raises `SaveFailed`; the old file is then as it was, unless the message says that the new one is in place.
    """
    aside = _aside(path)
    try:
        with open(aside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise SaveFailed(
            f"can't write {path}: {error.strerror}; what was there is intact; free some space or choose another folder"
        ) from error
    finally:
        with suppress(OSError):
            aside.unlink()


def check_writable(path: Path) -> None:
    """SaveFailed: no file can be made there. To be asked before work whose outcome is written in the end."""
    aside = _aside(path)
    try:
        aside.touch(exist_ok=False)
        aside.unlink()
    except OSError as error:
        raise SaveFailed(f"can't write {path}: {error.strerror}; choose another folder") from error


@dataclass(frozen=True)
class RunDir:
    """The folder of one run: settings, log, record, and inner folders that come into being when asked for."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> "RunDir":
        """A new folder in `root` (by custom `runs`), to which `root/last` then points. Default name: the local time.

        Raises `InvalidConfig` where the name is taken or is none, `SaveFailed` where `root` can't be written.
        """
        if name is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        if Path(name).name != name or name in {"", "..", LAST}:
            raise InvalidConfig(f"{name!r} can't name a run; choose a plain folder name other than {LAST!r}")
        path = root / name
        try:
            path.mkdir(parents=True)
        except FileExistsError as error:
            raise InvalidConfig(f"the run {path} exists; choose another name, or continue it with --resume") from error
        except OSError as error:
            raise SaveFailed(f"can't make {path}: {error.strerror}; choose another folder") from error
        _point(root / LAST, name)
        return cls(path)

    @classmethod
    def open(cls, root: Path, name: str | Path = LAST) -> "RunDir":
        """The run `name` of `root`: a name, "last" or a path. Raises `InvalidConfig` where there is none."""
        for path in (root / name, Path(name)):
            with suppress(OSError, ValueError):  # a name too long, a pointer that is no text
                found = path.parent / path.read_text("utf-8") if path.name == LAST and path.is_file() else path
                if found.is_dir():
                    return cls(found.resolve())
        known = sorted(path.name for path in root.glob("*") if path.is_dir() and path.name != LAST)
        raise InvalidConfig(f"no run {str(name)!r} in {root}; there are: {', '.join(known) or 'none'}")

    @classmethod
    def at(cls, path: Path) -> "RunDir":
        """The folder at `path`, made where there is none. Raises `SaveFailed`."""
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SaveFailed(f"can't make {path}: {error.strerror}; choose another folder") from error
        return cls(path)

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def record(self) -> Path:
        return self.path / "record.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self._folder("checkpoint")

    @property
    def model(self) -> Path:
        return self._folder("model")

    @property
    def plots(self) -> Path:
        return self._folder("plots")

    def write_config(self, settings: Any) -> None:
        """Keep the settings (a dataclass) as `config.toml`. Raises `SaveFailed`."""
        atomic_write(self.config, to_toml(settings).encode())

    def _folder(self, name: str) -> Path:
        path = self.path / name
        path.mkdir(exist_ok=True)
        return path


def _layers(cls: Any, file: Path | None, env: Mapping[str, str], prog: str) -> tuple[dict[Names, Any], dict[str, str]]:
    """Values and sources from defaults, file and environment; a required field may lack both."""
    leaves = _leaves(cls)
    values = {names: default for names, (_, default) in leaves.items() if default is not MISSING}
    sources = {".".join(names): "default" for names in values}

    def lay(names: Names, raw: Any, source: str, strict: bool) -> None:
        kind = leaves[names][0]
        try:
            values[names] = _convert(raw, kind, strict)
        except msgspec.ValidationError as error:
            where = f"{prog}: {'.'.join(names)} = {raw!r} ({source})"
            raise InvalidConfig(f"{where} has the wrong type; expected {_spelled(kind)}") from error
        sources[".".join(names)] = source

    if file is not None:
        for names, raw in _flatten(_read(file, prog), leaves):
            if names not in leaves:
                raise _unknown(names, leaves, file, prog)
            lay(names, raw, f"file {file}", strict=True)
    for names, (kind, _) in leaves.items():
        text = env.get(_variable(names))
        if text is not None:
            raw = [part.strip() for part in text.split(",") if part.strip()] if _is_tuple(kind, text) else text
            lay(names, raw, _variable(names), strict=False)
    return values, sources


def _leaves(cls: Any, prefix: Names = (), instance: Any = None) -> dict[Names, tuple[Any, Any]]:
    """Type and default of each field, nested ones among them. `instance` has the defaults, where it is given."""
    found: dict[Names, tuple[Any, Any]] = {}
    for name, kind, default in _own_fields(cls):
        if instance is not None:
            default = getattr(instance, name)
        if is_dataclass(kind):
            found |= _leaves(kind, (*prefix, name), None if default is MISSING else default)
        else:
            found[(*prefix, name)] = kind, default
    return found


def _own_fields(cls: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, type and default (or MISSING) of what `cls` takes."""
    kinds = get_type_hints(cls)
    for field in fields(cls):
        if field.init:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield field.name, kinds[field.name], default


def _assemble(
    cls: Any, values: Mapping[Names, Any], make: Callable[[Any, dict[str, Any]], Any], prefix: Names = ()
) -> Any:
    own = {
        name: _assemble(kind, values, make, (*prefix, name)) if is_dataclass(kind) else values[(*prefix, name)]
        for name, kind, _ in _own_fields(cls)
    }
    return make(cls, own)


def _unchecked(cls: Any, own: dict[str, Any]) -> Any:
    """An instance that never ran `__post_init__`, which would stumble over a value the flags have yet to give."""
    instance = object.__new__(cls)
    for name, value in own.items():
        object.__setattr__(instance, name, value)
    return instance


def _command(cls: Any) -> Any:
    """`cls`, its flags without a prefix, beside the two flags every command takes."""
    file = tyro.conf.arg(metavar="FILE", help="Settings in TOML; flags and ATOLL_* variables go before it.")
    show = tyro.conf.arg(help="Print each setting and where it came from.")
    return make_dataclass(
        "Command",
        [
            ("settings", Annotated[cls, tyro.conf.arg(name="")]),
            ("config", Annotated[Path | None, file], None),
            ("print_config", tyro.conf.FlagCreatePairsOff[Annotated[bool, show]], False),
        ],
    )


def _read(file: Path, prog: str) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{prog}: can't read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{prog}: {file} is no TOML: {error}") from error


def _flatten(table: dict[str, Any], leaves: Mapping[Names, Any], prefix: Names = ()) -> Iterator[tuple[Names, Any]]:
    for key, raw in table.items():
        names = (*prefix, key)
        if isinstance(raw, dict) and _is_table(names, leaves):
            yield from _flatten(raw, leaves, names)
        else:
            yield names, raw


def _is_table(names: Names, leaves: Mapping[Names, Any]) -> bool:
    return any(leaf[: len(names)] == names and leaf != names for leaf in leaves)


def _unknown(names: Names, leaves: Mapping[Names, Any], file: Path, prog: str) -> InvalidConfig:
    key = ".".join(names)
    if _is_table(names, leaves):
        return InvalidConfig(f"{prog}: {key} in {file} has the wrong type; expected a table [{key}]")
    known = [".".join(leaf) for leaf in leaves]
    near = difflib.get_close_matches(key, known, n=1) or known
    return InvalidConfig(f"{prog}: unknown key {key!r} in {file}; there is: {', '.join(near)}")


def _variable(names: Names) -> str:
    return "ATOLL_" + "__".join(names).upper()


def _is_tuple(kind: Any, text: str) -> bool:
    if _is_none(text, kind):
        return False
    return any(get_origin(part) is tuple for part in (kind, *get_args(kind)))


def _is_none(raw: Any, kind: Any) -> bool:
    return NoneType in get_args(kind) and isinstance(raw, str) and raw.lower() == "none"


def _convert(raw: Any, kind: Any, strict: bool) -> Any:
    """`strict`: a string is no number. Raises `msgspec.ValidationError`."""
    return None if _is_none(raw, kind) else msgspec.convert(raw, kind, strict=strict, dec_hook=_path)


def _path(kind: Any, raw: Any) -> Any:
    """For msgspec, which knows no paths."""
    if isinstance(raw, str) and issubclass(kind, PurePath):
        return kind(raw)
    raise msgspec.ValidationError(f"expected {kind.__name__}")


def _spelled(kind: Any) -> str:
    spelled = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    return spelled.replace("typing.", "").replace("pathlib.", "")


def _print(resolved: Resolved[Any]) -> None:
    table = Table("field", "value", "source")
    for key, source in resolved.sources.items():
        value = reduce(getattr, key.split("."), resolved.value)
        table.add_row(key, _toml(value), source)
    # Only a screen has an edge to fold lines at.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 10_000).print(table)


def _toml_lines(settings: Any, prefix: Names) -> Iterator[str]:
    own = {field.name: getattr(settings, field.name) for field in fields(settings) if field.init}
    for name, value in own.items():
        if not is_dataclass(value):
            yield f"{name} = {_toml(value)}"
    for name, value in own.items():
        if is_dataclass(value):
            yield f"\n[{'.'.join((*prefix, name))}]"
            yield from _toml_lines(value, (*prefix, name))


def _toml(value: Any) -> str:
    match value:
        case None:
            return '"none"'
        case bool():
            return str(value).lower()
        case int():
            return int.__repr__(value)
        case float():
            return float.__repr__(value)
        case str() | PurePath():
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return f"[{', '.join(map(_toml, value))}]"
    raise TypeError(f"{value!r} has no form in TOML")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _point(link: Path, name: str) -> None:
    """Make `link` lead to its sibling `name`, at once: a symbolic link, or a text where there are none."""
    if os.name != "nt":  # where no link to a folder can be replaced
        aside = _aside(link)
        try:
            aside.symlink_to(name)
            aside.replace(link)
            return
        except OSError:
            aside.unlink(missing_ok=True)
    atomic_write(link, name.encode())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # some network file systems
            raise SaveFailed(f"the new file is in place in {folder}, but unconfirmed by the disk: {error}") from error
