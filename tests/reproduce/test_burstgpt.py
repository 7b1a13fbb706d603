"""What `atoll reproduce burstgpt` says: honest about what is missing, and nothing fails of what is here."""

from pathlib import Path

import numpy as np
import pytest

from atoll.endpoint.driving import Prompts
from atoll.reproduce.burstgpt import azure
from atoll.reproduce.burstgpt.bursts import paced
from atoll.reproduce.burstgpt.reading import reading
from atoll.reproduce.burstgpt.sharing import TALK, Sessions, Shuffled
from atoll.reproduce.demonstrations import demonstrated
from atoll.workload.generate.conversations import Conversations
from atoll.workload.generate.processes import Gamma, Poisson


def ignore(said: str) -> None:
    """Nobody waits."""


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(azure.FOLDER, str(tmp_path))
    azure._trace.cache_clear()
    yield tmp_path  # type: ignore[misc]
    azure._trace.cache_clear()


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


def test_bursts_are_the_same_requests_at_the_same_mean_rate() -> None:
    poisson, bursty = (paced(process, 200, 5.0, seed=1) for process in (Poisson(1.0), Gamma(1.0, 4.0)))
    sizes = [[(d.arrival.number, d.arrival.prompt_tokens, d.output_tokens) for d in each] for each in (poisson, bursty)]
    assert sizes[0] == sizes[1]
    assert poisson[-1].arrival.at_s == pytest.approx(40.0) == bursty[-1].arrival.at_s
    spread = [float(np.std(np.diff([d.arrival.at_s for d in each]))) for each in (poisson, bursty)]
    assert spread[1] > 2 * spread[0]


def test_a_shuffled_conversation_has_the_same_tokens_and_begins_as_nothing_before() -> None:
    first = next(Sessions(Conversations(Poisson(1.0), TALK, 1), 1).start())
    told, shuffled = Prompts(1).of(first.arrival), Shuffled(1).of(first.arrival)
    assert sorted(told) == sorted(shuffled)
    assert told[:16] != shuffled[:16]


def test_so_many_sessions_come_and_each_goes_on_to_its_end() -> None:
    world = Sessions(Conversations(Poisson(1.0), TALK, 1), 30)
    demands = list(world.start())
    assert len(demands) == 30
    turns = 0
    while demands:
        demands = [then for each in demands for then in world.handle(each.arrival, each.arrival.at_s)]
        turns += len(demands)
    assert turns > 30


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it drives servers in real time
def test_nothing_fails_but_for_a_busy_clock() -> None:
    lines = {line.number: line for line in demonstrated("burstgpt", False, 1, ignore)}
    assert {"4b", "5a", "5b", "5c", "6c"} <= lines.keys()
    assert {n for n, line in lines.items() if line.verdict == "not yet"} <= {"2a", "2b", "2c", "3a", "3b", "3c"}
    assert not [line for n, line in lines.items() if line.verdict == "fail" and n not in ("5a", "5b", "5c", "6a", "6c")]
