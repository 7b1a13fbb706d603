"""What `atoll reproduce co2` says of all that needs no network lab and kills nobody."""

import sys

import pytest

from atoll.errors import LabUnavailable
from atoll.reproduce.co2.digits import digits
from atoll.reproduce.co2.faults import killed, refusals
from atoll.reproduce.co2.noise import ablation, rate
from atoll.reproduce.co2.parity import parity
from atoll.reproduce.co2.scaling import exchange_s, scaling
from atoll.reproduce.co2.shards import shards
from atoll.reproduce.co2.slow import slow_link
from atoll.reproduce.demonstrations import demonstrated
from atoll.reproduce.streaming_diloco.islands import Trained


def ignore(said: str) -> None:
    """Nobody waits."""


def test_what_is_quick_holds() -> None:
    lines = [*shards(1, ignore), *ablation(1, ignore), *scaling(ignore), *refusals(1, ignore)]
    assert [(line.number, line.verdict) for line in lines] == [
        (number, "pass") for number in ("4", "3", "7a", "7b", "8b", "8c")
    ]
    assert {line.number for line in lines if line.kind == "simulated"} == {"7a", "7b"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_rest_holds(seed: int) -> None:
    lines = [*parity(seed, ignore), *digits(seed, ignore), *rate(False, seed, ignore), *killed(seed, ignore)]
    assert [(line.number, line.verdict) for line in lines] == [
        (number, "pass") for number in ("1a", "1b", "1c", "1d", "1e", "5", "6", "8a")
    ]


def test_without_a_lab_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Trained:
        raise LabUnavailable("networks")

    monkeypatch.setattr(sys.modules[slow_link.__module__], "train", none)
    (only,) = demonstrated("co2", False, 1, ignore, ("2",))
    assert (only.verdict, only.measured) == ("not yet", "needs a lab of networks: networks")


def test_an_exchange_takes_what_a_ring_does() -> None:
    assert exchange_s(16, 80) == pytest.approx(2 * 15 / 16 * 28e9 / 1e10 + 30 * 25e-6, rel=0.01)
