"""What `atoll reproduce streaming-diloco` says of all that needs no network lab and kills nobody."""

import sys
from itertools import pairwise

import pytest

from atoll.errors import LabUnavailable
from atoll.reproduce.demonstrations import demonstrated
from atoll.reproduce.streaming_diloco.asynchronous import identity, killed_without_rounds, raced, simulated
from atoll.reproduce.streaming_diloco.bits import bits
from atoll.reproduce.streaming_diloco.faults import killed
from atoll.reproduce.streaming_diloco.islands import Trained
from atoll.reproduce.streaming_diloco.learning import learning
from atoll.reproduce.streaming_diloco.parity import parity
from atoll.reproduce.streaming_diloco.refusals import refusals
from atoll.reproduce.streaming_diloco.slow import slow_link
from atoll.reproduce.streaming_diloco.utilisation import MODELS, cost, utilisation
from atoll.train.forecast import Link
from atoll.train.schedule import FragmentSchedule


def ignore(said: str) -> None:
    """Nobody waits."""


@pytest.mark.parametrize("seed", [1, 2])
def test_what_needs_no_lab_holds(seed: int) -> None:
    lines = [*parity(seed, ignore), *bits(seed, ignore), *utilisation(ignore), *refusals(ignore)]
    assert [(line.number, line.verdict) for line in lines] == [
        (number, "pass") for number in ("1a", "1b", "1c", "4a", "4b", "4c", "6a", "6b", "6c", "7a", "7b")
    ]
    assert {line.number for line in lines if line.kind == "simulated"} == {"6a", "6b", "6c"}


def test_n_pushes_are_one_step() -> None:
    assert [line.verdict for line in identity(1)] == ["pass"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_rounds_nobody_waits_for_a_slower_one_or_a_dead_one() -> None:
    lines = [*simulated(False, 1, ignore), *raced(False, 1, ignore), *killed_without_rounds(1, ignore)]
    assert [(line.number, line.verdict) for line in lines] == [(f"8{part}", "pass") for part in "bcde"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_in_mid_flight_is_survived() -> None:
    assert [(line.number, line.verdict) for line in killed(1, ignore)] == [("5a", "pass"), ("5b", "pass")]


def test_without_a_lab_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Trained:
        raise LabUnavailable("networks")

    for part, lines in (("2", learning), ("3", slow_link)):
        monkeypatch.setattr(sys.modules[lines.__module__], "train", none)
        (only,) = demonstrated("streaming-diloco", False, 1, ignore, (part,))
        assert (only.verdict, only.measured) == ("not yet", "needs a lab of networks: networks")


def test_more_bandwidth_is_never_worse_and_hides_a_fragment_in_its_delay() -> None:
    model = MODELS[0]
    schedule = FragmentSchedule(40, 8, 4)

    def share(bits_per_s: float) -> float:
        return cost(model, schedule, "e3m0", Link(bits_per_s / 8, 1e-3)).utilisation

    shares = [share(10.0**decade) for decade in range(6, 13)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(shares))
    assert shares[-1] == pytest.approx(1.0)
    fits = 4 * model.step_s  # a fragment of 1/8 of the model, between two peers
    assert share(model.parameters / 8 * 4.125 / (fits - 3e-3)) == pytest.approx(1.0)
    assert share(model.parameters / 8 * 4.125 / (1.5 * fits)) < 0.99


def test_the_busiest_window_is_found() -> None:
    run = Trained(1.0, 1.0, 0.0, True, [(0.0, 0), (0.5, 10), (1.0, 10), (1.5, 40), (2.0, 45)])
    assert run.bytes_sent == 45
    assert [run.peak(w) for w in (0.5, 1.0, 5.0)] == [30, 35, 45]
