"""What `atoll reproduce burstgpt` says: honest about what is missing, and nothing fails of what is here."""

from pathlib import Path

import pytest

from atoll.reproduce import burstgpt
from atoll.reproduce.burstgpt import azure
from atoll.reproduce.burstgpt.reading import reading
from atoll.reproduce.demonstrations import find


def ignore(said: str) -> None:
    """Nobody waits."""


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(azure.FOLDER, str(tmp_path))
    azure._trace.cache_clear()
    yield tmp_path  # type: ignore[misc]
    azure._trace.cache_clear()


def test_it_can_be_found() -> None:
    assert find("burstgpt") is burstgpt.demonstrate


def test_reading_holds() -> None:
    assert [(line.number, line.verdict) for line in reading(ignore)] == [("7a", "pass"), ("7b", "pass")]


def test_without_the_traces_it_says_what_it_needs(traces: Path) -> None:
    lines = [*azure.fits(1, ignore), *azure.lengths(1, ignore)]
    assert [line.verdict for line in lines] == ["not yet"] * 6 + ["pass"]
    assert all("AzureLLMInferenceTrace_" in line.measured for line in lines[:-1])


def test_another_trace_is_not_taken_for_the_one_known(traces: Path) -> None:
    slice_ = Path(__file__).parents[1] / "data" / "azure-llm-2023-code-head.csv"
    (traces / azure.FILES["code"][0]).write_bytes(slice_.read_bytes())
    first, second, third = azure.fits(1, ignore)
    assert (first.verdict, second.verdict) == ("fail", "not yet")
    assert "200 for 8819" in first.measured
    assert third.number == "2c"


@pytest.mark.parametrize(("number", "text"), [(2047.8, "2048"), (-0.0215, "-.02"), (0.0728, ".07"), (13.15, "13.2")])
def test_a_number_is_as_known_within_two_percent_or_its_last_digit(number: float, text: str) -> None:
    assert azure._near(number, text)
    assert not azure._near(2 * number + 1, text)


@pytest.mark.slow
def test_nothing_fails_but_for_a_busy_clock() -> None:
    lines = {line.number: line for line in burstgpt.demonstrate(False, 1, ignore)}
    assert {n for n, line in lines.items() if line.verdict == "not yet"} >= {"4b", "5", "6c"}
    assert not [line for n, line in lines.items() if line.verdict == "fail" and n != "6a"]
