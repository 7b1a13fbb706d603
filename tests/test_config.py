"""Settings: which layer wins and who is told; the run's folder; files that are whole or as they were."""

import errno
import os
import stat
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.config import RunDir, atomic_write, parse, resolve, to_toml
from atoll.errors import InvalidConfig, SaveFailed


@dataclass(frozen=True)
class Outer:
    lr: float = 0.7
    momentum: float | None = 0.9


@dataclass(frozen=True)
class Train:
    lr: float = 1e-3
    steps: int = 10
    strategy: Literal["ddp", "diloco"] = "ddp"
    bf16: bool = False
    data: Path | None = None
    layers: tuple[int, ...] = (1, 2)
    name: str | None = None
    outer: Outer = field(default_factory=lambda: Outer(lr=0.5))

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise InvalidConfig(f"steps={self.steps} must be at least 0")


@dataclass
class Join:
    address: tyro.conf.Positional[str]
    """Where the master is."""
    island: str = "a"

    def __post_init__(self) -> None:
        self.host = self.address.split(":")[0]


def written(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text, "utf-8")
    return path


def parsed(*argv: str, cls: Any = Train, env: dict[str, str] | None = None) -> Any:
    return parse(cls, argv, prog="atoll train", description="Train.", env=env or {})


def test_without_any_layer_the_defaults_hold() -> None:
    resolved = resolve(Train, file=None, env={}, prog="atoll train")
    assert resolved.value == Train()
    assert resolved.value.outer.lr == 0.5
    assert set(resolved.sources.values()) == {"default"}
    assert {"lr", "outer.lr", "outer.momentum"} <= set(resolved.sources)


def test_each_layer_lies_on_the_one_below(tmp_path: Path) -> None:
    file = written(tmp_path, "lr = 1\nsteps = 1\nbf16 = true\n[outer]\nlr = 1\nmomentum = 0.1\n")
    env = {"ATOLL_STEPS": "2", "ATOLL_BF16": "0", "ATOLL_OUTER__LR": "2", "HOME": "/", "ATOLL_OTHER": "x"}
    resolved = parsed("--config", str(file), "--bf16", "--outer.lr", "3", env=env)
    assert resolved.value == Train(lr=1.0, steps=2, bf16=True, outer=Outer(lr=3.0, momentum=0.1))
    assert resolved.sources == {
        "lr": f"file {file}",
        "steps": "ATOLL_STEPS",
        "strategy": "default",
        "bf16": "command line",
        "data": "default",
        "layers": "default",
        "name": "default",
        "outer.lr": "command line",
        "outer.momentum": f"file {file}",
    }


def test_a_flag_that_changes_nothing_is_no_source() -> None:
    assert parsed("--lr", "0.001", "--layers", "1", "2", cls=Train).sources == parsed().sources


def test_every_kind_of_value_can_come_from_a_file(tmp_path: Path) -> None:
    text = 'strategy = "diloco"\ndata = "d"\nlayers = [3]\nname = "n"\n[outer]\nmomentum = "none"\n'
    value = resolve(Train, file=written(tmp_path, text), env={}, prog="p").value
    assert value == Train(strategy="diloco", data=Path("d"), layers=(3,), name="n", outer=Outer(0.5, None))


def test_every_kind_of_value_can_come_from_the_environment() -> None:
    env = {
        "ATOLL_LR": "1e-2",
        "ATOLL_STRATEGY": "diloco",
        "ATOLL_BF16": "true",
        "ATOLL_DATA": "d",
        "ATOLL_LAYERS": "3, 4",
        "ATOLL_OUTER__MOMENTUM": "none",
    }
    value = resolve(Train, file=None, env=env, prog="p").value
    assert value == Train(
        lr=0.01, strategy="diloco", bf16=True, data=Path("d"), layers=(3, 4), outer=Outer(0.5, momentum=None)
    )
    assert resolve(Train, file=None, env={"ATOLL_LAYERS": ""}, prog="p").value.layers == ()


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [("step = 1", "'step'", "steps"), ("[outer]\nmomentun = 1", "'outer.momentun'", "outer.momentum")],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        resolve(Train, file=written(tmp_path, text), env={}, prog="atoll train")
    message = str(caught.value)
    assert message.startswith(f"atoll train: unknown key {key} in {tmp_path}")
    assert message.endswith(f": {nearest}")


def test_an_unknown_key_like_no_other_is_told_all_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"'zzz' in .*; there is: lr, steps, .*, outer\.lr, outer\.momentum$"):
        resolve(Train, file=written(tmp_path, "zzz = 1"), env={}, prog="p")


@pytest.mark.parametrize(
    ("text", "key", "value", "expected"),
    [
        ('lr = "fast"', "lr", "'fast'", "float"),
        ('steps = "1"', "steps", "'1'", "int"),
        ("steps = 1.5", "steps", "1.5", "int"),
        ("steps = true", "steps", "True", "int"),
        ("bf16 = 1", "bf16", "1", "bool"),
        ('strategy = "gossip"', "strategy", "'gossip'", "Literal['ddp', 'diloco']"),
        ("data = 3", "data", "3", "Path | None"),
        ('layers = ["a"]', "layers", "['a']", "tuple[int, ...]"),
        ('steps = "none"', "steps", "'none'", "int"),
        ("outer = 3", "outer", "", "a table [outer]"),
        ("lr = {a = 1}", "lr", "{'a': 1}", "float"),
    ],
)
def test_a_wrong_type_in_a_file_is_named(tmp_path: Path, text: str, key: str, value: str, expected: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        resolve(Train, file=written(tmp_path, text), env={}, prog="p")
    message = str(caught.value)
    assert f" {key} " in message
    assert value in message
    assert "c.toml" in message
    assert message.endswith(f"expected {expected}")


def test_a_wrong_type_in_the_environment_is_named() -> None:
    with pytest.raises(InvalidConfig, match=r"lr = 'fast' \(ATOLL_LR\) has the wrong type; expected float"):
        resolve(Train, file=None, env={"ATOLL_LR": "fast"}, prog="p")
    with pytest.raises(InvalidConfig, match=r"ATOLL_LAYERS.*expected tuple\[int, \.\.\.\]"):
        resolve(Train, file=None, env={"ATOLL_LAYERS": "1,x"}, prog="p")


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="absent"):
        resolve(Train, file=tmp_path / "absent.toml", env={}, prog="p")
    with pytest.raises(InvalidConfig, match=r"c\.toml is no TOML"):
        resolve(Train, file=written(tmp_path, "lr ="), env={}, prog="p")
    with pytest.raises(InvalidConfig, match=r"c\.toml is no TOML"):
        resolve(Train, file=written(tmp_path, "lr = " + "[" * 100_000), env={}, prog="p")


def test_settings_check_themselves() -> None:
    with pytest.raises(InvalidConfig, match="steps=-1"):
        resolve(Train, file=None, env={"ATOLL_STEPS": "-1"}, prog="p")
    with pytest.raises(InvalidConfig, match="steps=-1"):
        parsed("--steps", "-1")


def test_a_required_field_may_come_from_any_layer() -> None:
    with pytest.raises(InvalidConfig, match=r"address has no value.*ATOLL_ADDRESS"):
        resolve(Join, file=None, env={}, prog="p")
    with pytest.raises(SystemExit) as caught:
        parsed(cls=Join)
    assert caught.value.code == 2
    from_env = parsed(cls=Join, env={"ATOLL_ADDRESS": "env:1"})
    assert (from_env.value.host, from_env.sources["address"]) == ("env", "ATOLL_ADDRESS")
    positional = parsed("flag:1", "--island", "b", cls=Join, env={"ATOLL_ADDRESS": "env:1"})
    assert (positional.value.host, positional.value.island) == ("flag", "b")
    assert positional.sources == {"address": "command line", "island": "command line"}
    assert list(parsed("flag:1", cls=Join).sources) == ["address", "island"]  # in the order of the fields


@pytest.mark.parametrize("argv", [["--setps", "3"], ["--steps", "three"], ["--strategy", "gossip"], ["--config"]])
def test_bad_flags_exit_with_2_and_a_short_message(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*argv)
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert argv[0] in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


def test_help_shows_fields_and_the_common_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--help", env={"ATOLL_STEPS": "77"})
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--lr", "--outer.momentum", "--config FILE", "--print-config"))
    assert "77" in shown


def test_a_flag_that_begins_like_config_is_not_it() -> None:
    @dataclass
    class Short:
        con: str = ""

    assert parsed("--con", "absent.toml", cls=Short).value == Short("absent.toml")


def test_print_config_shows_each_value_and_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "lr = 0.25\nname = '[bold]'\n")
    with pytest.raises(SystemExit) as caught:
        parsed("--print-config", f"--config={file}", "--outer.lr", "3", env={"ATOLL_STEPS": "7"})
    assert caught.value.code == 0
    rows = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["lr", "0.25", f"file {file}"] in rows
    assert ["name", '"[bold]"', f"file {file}"] in rows
    assert ["steps", "7", "ATOLL_STEPS"] in rows
    assert ["outer.lr", "3.0", "command line"] in rows
    assert ["bf16", "false", "default"] in rows


@dataclass(frozen=True)
class Inner:
    weights: tuple[float, ...]
    path: Path
    deep: Outer


@dataclass(frozen=True)
class Simple:
    text: str
    number: int
    real: float
    on: bool
    maybe: int | None
    words: tuple[str, ...]
    inner: Inner
    after: int = 5


texts = st.text(st.characters(exclude_categories=["Cs"]))
reals = st.floats(allow_nan=False)
outers = st.builds(Outer, lr=reals, momentum=st.none() | reals)
simples = st.builds(
    Simple,
    text=texts,
    number=st.integers(-(2**63), 2**63 - 1),
    real=reals,
    on=st.booleans(),
    maybe=st.none() | st.integers(-9, 9),
    words=st.lists(texts).map(tuple),
    inner=st.builds(Inner, weights=st.lists(reals).map(tuple), path=texts.map(Path), deep=outers),
    after=st.integers(-9, 9),
)


@settings(deadline=None)
@given(simples)
def test_written_settings_are_read_again(tmp_path_factory: pytest.TempPathFactory, value: Simple) -> None:
    path = tmp_path_factory.getbasetemp() / "simple.toml"
    path.write_bytes(to_toml(value).encode())
    assert resolve(Simple, file=path, env={}, prog="p").value == value


@given(texts)
def test_written_text_is_the_text_for_any_reader_of_toml(text: str) -> None:
    assert tomllib.loads(to_toml(Join(text)))["address"] == text


def test_what_toml_can_not_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="no form in TOML"):
        to_toml(Outer(lr=b"x"))  # type: ignore[arg-type]


def test_a_run_has_its_places(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs", "one")
    assert run.path == tmp_path / "runs" / "one"
    assert (run.config.name, run.log.name, run.record.name) == ("config.toml", "log.jsonl", "record.jsonl")
    assert list(run.path.iterdir()) == []
    assert [p.name for p in (run.checkpoint, run.model, run.plots) if p.is_dir()] == ["checkpoint", "model", "plots"]
    assert run.checkpoint.is_dir()  # again
    run.write_config(Train(steps=3))
    assert resolve(Train, file=run.config, env={}, prog="p").value == Train(steps=3)


def test_last_points_to_the_newest_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        run = RunDir.create(tmp_path, name)
        assert RunDir.open(tmp_path, "last").path == run.path.resolve()
    assert RunDir.open(tmp_path).path.name == "two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "one", "two"]


def test_last_is_a_text_where_links_are_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    for name in ("one", "two"):
        run = RunDir.create(tmp_path, name)
        assert (tmp_path / "last").read_text("utf-8") == name
        assert RunDir.open(tmp_path, "last").path == run.path.resolve()
        assert RunDir.open(Path("elsewhere"), tmp_path / "last").path == run.path.resolve()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "one", "two"]


@pytest.mark.parametrize("pointer", [b"\xff", b"\0", b"x" * 5000])
def test_a_pointer_that_is_none_leads_to_no_run(tmp_path: Path, pointer: bytes) -> None:
    (tmp_path / "last").write_bytes(pointer)
    with pytest.raises(InvalidConfig, match="there are: none"):
        RunDir.open(tmp_path / "runs", tmp_path / "last")


def test_a_folder_in_the_place_of_last_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    with pytest.raises(SaveFailed, match="last"):
        RunDir.create(tmp_path, "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last", "one"]


def test_an_opened_run_stays_the_same_when_last_moves_on(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "one")
    opened = RunDir.open(tmp_path, "last")
    RunDir.create(tmp_path, "two")
    assert opened.path.name == "one"


def test_a_run_is_opened_by_name_or_path(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "one")
    assert RunDir.open(tmp_path, "one") == RunDir.open(Path("elsewhere"), str(run.path))
    with pytest.raises(InvalidConfig, match=r"no run 'tow' in .*; there are: one"):
        RunDir.open(tmp_path, "tow")
    with pytest.raises(InvalidConfig, match="there are: none"):
        RunDir.open(tmp_path / "absent")


def test_a_run_is_never_written_over(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "one").write_config(Train())
    with pytest.raises(InvalidConfig, match=r"one exists.*--resume"):
        RunDir.create(tmp_path, "one")
    assert (tmp_path / "one" / "config.toml").exists()


def test_runs_without_a_name_get_one_each(tmp_path: Path) -> None:
    assert len({RunDir.create(tmp_path).path for _ in range(5)}) == 5


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a/", "/", "last"])
def test_what_is_no_folder_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidConfig, match="can't name a run"):
        RunDir.create(tmp_path / "runs", name)
    assert not (tmp_path / "runs").exists()


def test_a_root_that_can_not_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed, match="file"):
        RunDir.create(tmp_path / "file", "one")


def test_a_run_at_a_place_is_made_where_there_is_none(tmp_path: Path) -> None:
    for _ in range(2):
        assert RunDir.at(tmp_path / "a" / "b").checkpoint.is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveFailed, match="file"):
        RunDir.at(tmp_path / "file")


def test_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    for data in (b"a long first text", b"short", b""):
        atomic_write(tmp_path / "f", data)
        assert (tmp_path / "f").read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    atomic_write(tmp_path / "f", b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(SaveFailed, match=r"f: No space left on device;.*intact.*free some space"):
        atomic_write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(tmp_path / "f", b"old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


@pytest.mark.skipif(os.name == "nt", reason="folders can't be flushed there")
def test_data_folder_and_rename_reach_the_disk_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (order.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "data"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("rename"), replace(*args)))
    atomic_write(tmp_path / "f", b"new")
    assert order == ["data", "rename", "folder"]


@pytest.mark.skipif(os.name == "nt", reason="folders can't be flushed there")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_folder_that_can_not_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Some file systems never can; a disk that says it failed is reported, with the new file in place."""
    fsync = os.fsync

    def fail_on_folders(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    if code == errno.EINVAL:
        atomic_write(tmp_path / "f", b"new")
    else:
        with pytest.raises(SaveFailed, match="in place"):
            atomic_write(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match="absent"):
        atomic_write(tmp_path / "absent" / "f", b"new")
    assert list(tmp_path.iterdir()) == []
