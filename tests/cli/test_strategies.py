"""`atoll strategies`: what there is, what it would cost, which to take."""

import json
from typing import Any

import pytest

from atoll.cli.main import run
from atoll.cli.strategies import STRATEGIES, best
from atoll.config import parse
from atoll.train.forecast import Link
from atoll.train.guide import GUIDES, take
from atoll.train.settings import TrainSettings

HOME = ["--bandwidth", "100mbit", "--rtt", "80ms", "--params", "1e9", "--peers", "8", "--step-time", "2s"]


def told(*argv: str, capsys: Any) -> list[dict[str, Any]]:
    assert run(["strategies", *argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_strategy_has_a_line_that_says_when_and_flags_that_train_takes(capsys: Any) -> None:
    assert run(["strategies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(GUIDES)
    assert set(GUIDES) == set(STRATEGIES)
    for entry in told(capsys=capsys):
        assert entry["when"]
        settings = parse(TrainSettings, entry["flags"].split(), prog="atoll train", description="", env={}).value
        assert settings.strategy == entry["strategy"]


def test_on_a_link_each_is_priced_and_one_is_taken(capsys: Any) -> None:
    *rows, taken = told(*HOME, capsys=capsys)
    assert {row["strategy"] for row in rows} == set(STRATEGIES)
    assert all(row["simulated"] for row in (*rows, taken))
    by_name = {row["strategy"]: row for row in rows}
    ddp, streaming, server = by_name["ddp"], by_name["streaming"], by_name["diloco-server"]
    assert ddp["bytes_per_step"] == 2 * 7 / 8 * 2e9  # bf16
    assert ddp["wait_s"] == pytest.approx(ddp["bytes_per_step"] / 12.5e6, rel=0.01)
    assert ddp["utilisation"] == pytest.approx(2 / ddp["step_s"])
    assert streaming["bytes_per_step"] == pytest.approx(2 * 7 / 8 * 1e9 * 4.125 / 8 / 500, rel=1e-3)
    assert streaming["peak_bytes_per_s"] == pytest.approx(12.5e6)
    assert server["bytes_per_step"] == pytest.approx(5 * 1e9 / 500, rel=0.01)  # float32 down, uint8 up
    assert taken["take"] in by_name
    assert by_name[taken["take"]]["utilisation"] >= 0.95
    assert taken["flags"] == by_name[taken["take"]]["flags"]


@pytest.mark.parametrize(
    ("bytes_per_s", "trip_s", "numbers", "name"),
    [
        (1e10, 1e-4, 10**7, "ddp"),
        (1e9, 20e-3, 10**8, "diloco"),
        (1e6, 50e-3, 10**7, "streaming"),
        (12.5e6, 80e-3, 10**9, "co2"),
        (1e4, 50e-3, 10**9, "streaming"),  # nothing reaches the target there, and it does most
    ],
)
def test_the_one_taken_has_peers_that_hear_of_each_other_soonest(
    bytes_per_s: float, trip_s: float, numbers: int, name: str
) -> None:
    link = Link(bytes_per_s, trip_s)
    found = [best(each, numbers, 8, 2.0, link) for each in STRATEGIES]
    taken = take(found)
    assert taken.name == name
    if taken.reaches:
        assert all(other.age >= taken.age for other in found if other.reaches and other.name != "one-byte")


@pytest.mark.parametrize(
    ("peers", "momentum"), [(2, ""), (16, ""), (17, "0.2"), (32, "0.2"), (33, "0.5"), (64, "0.5"), (65, "0.6")]
)
def test_co2_has_more_momentum_among_more_peers(peers: int, momentum: str) -> None:
    """As Sun et al. 2024 have it."""
    flags = best("co2", 10**7, peers, 1.0, Link(1e7, 0.02)).flags.split()
    assert dict(zip(flags[::2], flags[1::2], strict=True)).get("--outer-momentum", "") == momentum


@pytest.mark.sampled(3)
@pytest.mark.parametrize("bytes_per_s", [1e5, 1e7, 1e9])
@pytest.mark.parametrize("trip_s", [1e-4, 50e-3, 1.0])
@pytest.mark.parametrize("step_s", [0.1, 3.0])
@pytest.mark.parametrize("numbers", [10**5, 10**7, 10**9])
@pytest.mark.parametrize("peers", [2, 8])
def test_a_server_is_for_peers_of_unequal_speed(
    bytes_per_s: float, trip_s: float, step_s: float, numbers: int, peers: int
) -> None:
    """Equal ones always wait less, or hear of each other sooner, in rounds of some kind."""
    link = Link(bytes_per_s, trip_s)
    assert take([best(name, numbers, peers, step_s, link) for name in STRATEGIES]).name != "diloco-server"
    found = [best(name, numbers, peers, step_s, link, slower=3.0) for name in STRATEGIES]
    server = next(option for option in found if option.name == "diloco-server")
    assert (take(found) is server) == (server.forecast.utilisation > 1 / 3)


def test_a_slowest_peer_is_waited_for_in_rounds_and_not_by_a_server(capsys: Any) -> None:
    usual, unequal = (
        {row["strategy"]: row for row in told(*HOME, "--slowest", slowest, capsys=capsys)[:-1]}
        for slowest in ("1", "2")
    )
    assert usual["diloco-server"] == unequal["diloco-server"]
    assert unequal["co2"]["step_s"] == 2 * usual["co2"]["step_s"]
    assert unequal["co2"]["utilisation"] == 0.5
    assert unequal["co2"]["needed_bytes_per_s"] is None
    assert run(["strategies", *HOME, "--slowest", "2"]) == 0
    assert "2 times as long on the slowest" in " ".join(capsys.readouterr().out.split())


def test_people_see_a_table_that_says_it_is_simulated(capsys: Any) -> None:
    assert run(["strategies", *HOME]) == 0
    out = capsys.readouterr().out
    assert out.startswith("simulated: 8 peers")
    assert "take " in out
    assert "atoll train --strategy " in out


def test_tokens_and_operations_make_a_step(capsys: Any) -> None:
    *rows, _ = told(
        "--bandwidth", "1gbit", "--params", "1e9", "--tokens-per-step", "1e5", "--flops", "5e13", capsys=capsys
    )
    ddp = next(row for row in rows if row["strategy"] == "ddp")
    assert ddp["step_s"] - ddp["wait_s"] == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--bandwidth": "100"}, ["--bandwidth must be", "mbit", "100mbit", "'100'"]),
        ({"--bandwidth": "0mbit"}, ["--bandwidth must be a number above 0"]),
        ({"--rtt": "80 years"}, ["--rtt must be", "80ms"]),
        ({"--params": "0"}, ["--params must be from 1 to 1e15"]),
        ({"--params": "nan"}, ["--params must be from 1 to 1e15"]),
        ({"--slowest": "0.5"}, ["--slowest must be at least 1", "as 3"]),
        ({"--peers": "0"}, ["--peers must be from 1 to 4096"]),
        ({"--step-time": "1e999s"}, ["--step-time must be"]),
        ({"--step-time": "", "--flops": "1e12"}, ["--tokens-per-step must be above 0", "--step-time"]),
    ],
    ids=str,
)
def test_what_can_not_be_is_refused_by_its_flag(changes: dict[str, str], words: list[str], capsys: Any) -> None:
    argv = {**dict(zip(HOME[::2], HOME[1::2], strict=True)), **changes}
    assert run(["strategies", *(f"{name}={value}" for name, value in argv.items())]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize(
    "words", [["--slowest", "3"], ["--rtt", "80ms"], ["--peers", "8"], ["--flops", "5e13"]], ids=str
)
def test_who_says_a_part_of_it_is_asked_for_the_rest(words: list[str], capsys: Any) -> None:
    assert run(["strategies", *words]) == 2
    assert "--bandwidth must be" in capsys.readouterr().err


def test_a_step_of_a_second_is_assumed_where_nothing_is_said_of_it_and_that_is_told(capsys: Any) -> None:
    assert run(["strategies", *HOME[:-2]]) == 0
    assert "1 s of computing per step (a guess: give --step-time)" in " ".join(capsys.readouterr().out.split())
