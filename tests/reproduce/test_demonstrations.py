"""Parts of demonstrations: each is found, one that comes to no end fails alone, and the command's exit code says so."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from atoll.cli.main import run
from atoll.errors import AtollError, InvalidConfig, LabUnavailable
from atoll.reproduce.api import Line, Part, judged
from atoll.reproduce.demonstrations import DEMONSTRATIONS, demonstrated


def ignore(said: str) -> None:
    """Nobody waits."""


def line(number: str, ok: bool = True) -> Line:
    return Line(number, "a claim", "good", "good" if ok else "bad", judged(ok))


def broken(error: Exception) -> Iterator[Line]:
    yield line("2a")
    raise error


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Part]:
    found = {
        "1": Part("all well", lambda: [line("1a"), line("1b")]),
        "2": Part("half", lambda: broken(AtollError("a peer has gone"))),
        "3": Part("a lab", lambda: broken(LabUnavailable("no namespaces"))),
        "10c": Part("a slip", lambda: broken(KeyError("steps"))),
    }
    monkeypatch.setitem(DEMONSTRATIONS, "pccl", lambda full, seed, say: found)
    return found


def test_a_part_that_comes_to_no_end_fails_and_the_others_are_run(parts: dict[str, Part]) -> None:
    found = [(each.number, each.verdict, each.measured) for each in demonstrated("pccl", False, 1, ignore)]
    assert found == [
        ("1a", "pass", "good"),
        ("1b", "pass", "good"),
        ("2a", "pass", "good"),
        ("2", "fail", "a peer has gone"),
        ("2a", "pass", "good"),
        ("3", "not yet", "needs a lab of networks: no namespaces"),
        ("2a", "pass", "good"),
        ("10c", "fail", "KeyError('steps')"),
    ]


def test_parts_are_chosen_by_number_with_or_without_letter(parts: dict[str, Part]) -> None:
    assert [each.number for each in demonstrated("pccl", False, 1, ignore, ("1",))] == ["1a", "1b"]
    assert [each.number for each in demonstrated("pccl", False, 1, ignore, ("10", "1"))] == ["1a", "1b", "2a", "10c"]
    with pytest.raises(InvalidConfig, match="no part '7'; there are: 1, 2, 3, 10c"):
        list(demonstrated("pccl", False, 1, ignore, ("1", "7")))


def test_the_command_exits_with_1_where_a_line_fails(parts: dict[str, Part], capsys: Any) -> None:
    assert run(["reproduce", "pccl", "--only", "1", "3", "--json"]) == 0
    assert [json.loads(text)["number"] for text in capsys.readouterr().out.splitlines()] == ["1a", "1b", "2a", "3"]
    assert run(["reproduce", "pccl", "--only", "2"]) == 1
    parts["1"] = Part("not well", lambda: [line("1a", ok=False)])
    assert run(["reproduce", "pccl", "--only", "1", "--json"]) == 1


def test_what_was_found_is_shown_though_somebody_stops_the_rest(parts: dict[str, Part], capsys: Any) -> None:
    def stopped() -> Iterator[Line]:
        raise KeyboardInterrupt
        yield

    parts["2"] = Part("for ever", stopped)
    assert run(["reproduce", "pccl"]) == 130
    assert "a claim" in capsys.readouterr().out


@pytest.mark.parametrize("slug", DEMONSTRATIONS)
def test_each_system_s_parts_can_be_told_apart(slug: str) -> None:
    parts = DEMONSTRATIONS[slug](False, 1, ignore)
    assert len({part.about for part in parts.values()}) == len(parts)
