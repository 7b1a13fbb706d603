"""Whatever a run is told that makes no sense is refused in words that name the flag and what it may be."""

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from atoll.config import parse
from atoll.errors import InvalidConfig
from atoll.train.settings import ONLY_FOR, TrainSettings, check_typed

FREE = {"text", "task", "seed", "naive", "error_feedback", "model.name", "one_byte.trainable"}
"""Paths and names, which are looked up where they are used; any whole number; yes or no."""
STRATEGIES = get_args(get_type_hints(TrainSettings)["strategy"])


def leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(kind):
        hint = get_type_hints(kind)[field.name]
        if is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hint


def nonsense(kind: Any) -> list[Any]:
    """Values that nothing of this type can mean here; none for what is free."""
    parts = {kind, *get_args(kind)}
    if any(get_origin(part) is Literal for part in parts):
        return ["no such word", ""]
    if float in parts:
        return [-1.0, -1e-9, -math.inf, math.inf, math.nan]
    return [-1, -(10**12)] if int in parts else []


def changed(settings: Any, name: str, value: Any) -> Any:
    outer, dot, inner = name.partition(".")
    return replace(settings, **{outer: changed(getattr(settings, outer), inner, value) if dot else value})


LEAVES = dict(leaves(TrainSettings))


@pytest.mark.parametrize("name", sorted(LEAVES.keys() - FREE))
def test_what_a_setting_can_not_be_is_refused_whatever_the_strategy(name: str) -> None:
    values = [value for value in nonsense(LEAVES[name]) if (name, value) != ("outer_clip", math.inf)]
    assert values
    for strategy in STRATEGIES:
        settings = TrainSettings(strategy=strategy)
        for value in values:
            with pytest.raises(InvalidConfig) as caught:
                changed(settings, name, value)
            said = str(caught.value)
            assert re.match(rf"--{re.escape(name.replace('_', '-'))} must be ", said), said
            assert re.search(r"must be (one of \w|at least \d|above \d|from \d|\d)", said), said
            assert "\n" not in said


def test_all_that_is_free_is_a_setting() -> None:
    assert LEAVES.keys() >= FREE


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model.width": 130}, "--model.width must be a multiple of 8, twice --model.heads, not 130"),
        ({"model.heads": 3}, "--model.width must be a multiple of 6"),
        ({"model.layers": 0}, "--model.layers must be at least 1, not 0"),
        ({"one_byte.samples": 1025}, "--one-byte.samples must be from 1 to 1024, not 1025"),
        ({"mix": 1.0000001}, "--mix must be from 0 to 1"),
        ({"outer_momentum": 1.0}, "--outer-momentum must be at least 0 and less than 1"),
        ({"strategy": "one-byte", "delay": 1}, "--delay must be 0 for one-byte"),
    ],
)
def test_the_ends_of_ranges_and_what_must_fit_together(changes: dict[str, Any], says: str) -> None:
    *first, (name, value) = changes.items()
    settings = TrainSettings(**dict(first))
    with pytest.raises(InvalidConfig, match=re.escape(says)):
        changed(settings, name, value)


@pytest.mark.parametrize("name", ONLY_FOR)
def test_a_flag_for_other_strategies_is_not_passed_over_in_silence(name: str) -> None:
    assert name in LEAVES
    for strategy in STRATEGIES:
        if strategy in ONLY_FOR[name]:
            check_typed(strategy, ["steps", name])
        else:
            with pytest.raises(
                InvalidConfig, match=f"--{re.escape(name.replace('_', '-'))} is for --strategy .*{strategy}"
            ):
                check_typed(strategy, ["steps", name])


@pytest.mark.parametrize("flag", ["--model", "--model.name"])
def test_a_published_model_is_named_in_short_or_in_full(flag: str, tmp_path: Path) -> None:
    argv = ["--strategy", "one-byte", flag, "smollm2", "--model.context", "48"]
    found = parse(TrainSettings, argv, prog="atoll train", description="", env={})
    assert (found.value.model.name, found.value.model.context) == ("smollm2", 48)
    assert found.sources["model.name"] == "command line"
    (tmp_path / "run.toml").write_text('strategy = "one-byte"\n[model]\nname = "smollm2"\n')
    argv = ["--config", str(tmp_path / "run.toml"), flag, "other"]
    assert parse(TrainSettings, argv, prog="atoll train", description="", env={}).value.model.name == "other"
