"""Runs of scenarios: the same seed is the same run, laws are kept, faults cost what they must, nothing is unmarked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.cost import CostModel, Op, Sample
from atoll.errors import InvalidConfig
from atoll.record import Record
from atoll.reproduce.scenario.api import Result, duration, volume
from atoll.reproduce.scenario.chronicle import Chronicle
from atoll.reproduce.scenario.reading import read
from atoll.reproduce.scenario.running import run_scenario
from atoll.reproduce.scenario.timeline import Timeline
from tests.reproduce.scenario.small import COLLECTIVE, QUICK, SHIPPED, TRAIN, scenario, shipped

CRASH = '\n[[faults]]\nwhen = "once"\nkind = "crash"\nat_s = 1.7\nfor_s = 0.5\nwhere = ["host1"]\n'
SAY = """
import sys
from tests.reproduce.scenario.small import shipped
from atoll.reproduce.scenario.running import run_scenario
for name in ("diloco-wan", "allreduce-1024"):
    print(name, run_scenario(shipped(name)).hash)
"""


def said_elsewhere() -> str:
    """In another process, where strings have other hashes than here."""
    environment = os.environ | {"PYTHONHASHSEED": "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"}
    done = subprocess.run([sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def value(result: Result, figure: str) -> float:
    return result.figures[figure].value


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_in_every_process_and_for_every_string_hash() -> None:
    hashes = {name: run_scenario(shipped(name)).hash for name in ("diloco-wan", "allreduce-1024")}
    assert said_elsewhere() == "".join(f"{name} {found}\n" for name, found in hashes.items())
    assert run_scenario(shipped("diloco-wan"), 2).hash != hashes["diloco-wan"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", QUICK)
def test_a_shipped_scenario_keeps_every_law_and_hangs_on_no_luck(name: str) -> None:
    straight = run_scenario(shipped(name))
    assert straight.sound, straight.checks
    fuzzed = run_scenario(shipped(name, tie_break=1))
    assert fuzzed.sound, fuzzed.checks
    for figure, found in straight.figures.items():
        assert value(fuzzed, figure) == pytest.approx(found.value, rel=1e-6), figure


def test_training_takes_the_time_that_its_steps_cost(tmp_path: Path) -> None:
    result = run_scenario(scenario(tmp_path, TRAIN))
    assert value(result, "steps") == 8
    assert 8 * 0.5 < result.seconds < 8 * 0.5 + 2
    assert value(result, "crashes") == value(result, "redone") == 0
    assert value(result, "goodput") + value(result, "waiting") + value(result, "away") == pytest.approx(1)
    assert [curve.plot for curve in result.curves] == ["loss", "steps"]
    assert result.curves[1].ys[-1] == 8


def test_a_model_that_stands_for_a_large_one_takes_its_time_and_its_bytes(tmp_path: Path) -> None:
    text = TRAIN.replace('"1" = 0.5', "flops = 1e-9") + "[job.stands_for]\nparameters = 1e6\ntokens_per_step = 100\n"
    result = run_scenario(scenario(tmp_path, text))
    assert result.seconds > 8 * 0.6  # 6 * 1e6 * 100 flops
    exchanged = 2 * 2 / 3 * 4e6  # a ring of three, float32
    assert value(result, "sent") > 3 * 2 * exchanged


def test_a_crash_costs_what_the_host_had_not_shared_and_its_absence(tmp_path: Path) -> None:
    result = run_scenario(scenario(tmp_path, TRAIN + CRASH, job__restart_s=1.0))
    assert value(result, "crashes") == 1
    assert value(result, "redone") > 0
    assert value(result, "away") > 0
    assert value(result, "steps") == 8
    assert result.sound
    members = next(curve for curve in result.curves if curve.plot == "members")
    assert 2.0 in members.ys
    assert max(members.ys) == 3.0


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "fault",
    [
        'kind = "hang"\nat_s = 1.7\nfor_s = 20\nwhere = ["host1"]',
        'kind = "slow"\nfactor = 3\nat_s = 1.2\nfor_s = 2\nwhere = ["host1"]',
        'kind = "crash"\nsilent = true\nat_s = 1.7\nfor_s = 9\nwhere = ["host1"]',
        'kind = "preempt"\nnotice_s = 0.5\nat_s = 1.2\nfor_s = 2\nwhere = ["host2"]',
        'kind = "link_down"\nat_s = 3.0\nfor_s = 1\nwhere = ["host1->switch"]',
        'kind = "link_degrade"\nbandwidth = 0.001\nat_s = 0.1\nwhere = ["host1->*"]',
        'kind = "crash"\nat_s = 1.1\nfor_s = 3\nwhere = ["master"]',
    ],
)
def test_every_fault_costs_time_and_breaks_no_law(fault: str, tmp_path: Path) -> None:
    calm = run_scenario(scenario(tmp_path, TRAIN))
    result = run_scenario(scenario(tmp_path, f'{TRAIN}\n[[faults]]\nwhen = "once"\n{fault}\n', job__restart_s=1.0))
    assert result.sound, result.checks
    assert value(result, "steps") == 8
    assert result.seconds > calm.seconds + 0.05


def test_when_all_are_gone_the_run_waits_for_who_comes_back(tmp_path: Path) -> None:
    everybody = CRASH.replace('["host1"]', '["*"]')
    result = run_scenario(scenario(tmp_path, TRAIN + everybody, job__restart_s=1.0))
    assert value(result, "crashes") == 3
    assert value(result, "steps") == 8
    assert result.sound


def test_a_run_ends_when_its_time_is_up(tmp_path: Path) -> None:
    result = run_scenario(scenario(tmp_path, TRAIN, until_s=4.0))
    assert result.seconds == 4.0
    assert 0 < value(result, "steps") < 8
    assert result.sound


def test_a_kind_of_work_without_a_price_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"cost: says nothing of 'train_step'; give \[cost.seconds.train_step\]"):
        scenario(tmp_path, TRAIN.replace("train_step", "decode"))


def test_a_collective_takes_what_the_books_say(tmp_path: Path) -> None:
    free = run_scenario(scenario(tmp_path, COLLECTIVE))
    assert free.seconds == pytest.approx(2 * 7 / 8 * 8e6 / 1e9, rel=0.01)
    assert value(free, "of the hosts' links") == pytest.approx(1, rel=0.01)
    narrow = run_scenario(scenario(tmp_path, COLLECTIVE, fabric__oversub=8))
    assert narrow.seconds == pytest.approx(2 * free.seconds, rel=0.02)  # a ring crosses once each way, over half a link
    assert free.sound
    assert narrow.sound


@pytest.mark.parametrize(
    ("collective", "algorithm"),
    [("all_reduce", "direct"), ("all_reduce", "halving"), ("reduce_scatter", "ring"), ("all_gather", "direct")],
)
def test_every_collective_keeps_the_laws(collective: str, algorithm: str, tmp_path: Path) -> None:
    result = run_scenario(scenario(tmp_path, COLLECTIVE, job__collective=collective, job__algorithm=algorithm))
    assert result.sound, result.checks
    assert value(result, "sent per rank") > 0


def test_placement_is_chance_of_the_seed(tmp_path: Path) -> None:
    text = COLLECTIVE.replace("oversub", "") + 'placement = "shuffled"\n'
    one, again, other = (run_scenario(scenario(tmp_path, text, fabric__oversub=4), seed) for seed in (1, 1, 2))
    assert one.hash == again.hash != other.hash


def test_what_is_simulated_says_so_and_how_far_off_it_may_be(tmp_path: Path) -> None:
    result = run_scenario(scenario(tmp_path, TRAIN))
    assert result.to_json()["simulated"] is True
    assert result.to_json()["calibration"] == "uncalibrated"
    samples = [Sample(Op("train_step", flops=n), 1e-9 * n) for n in (1e3, 2e3, 3e3)]
    (tmp_path / "cost.json").write_text(CostModel.fit("train_step", ["flops"], samples).to_json())
    calibrated = run_scenario(scenario(tmp_path, TRAIN, cost__calibration=str(tmp_path / "cost.json")))
    assert calibrated.calibration == "train_step: median error 0.0%, worst 0.0% on 3 points of the fit itself"
    assert "the cost of 'train_step' is extrapolated" in calibrated.warnings[0]


def test_watching_a_run_does_not_change_it(tmp_path: Path) -> None:
    case = scenario(tmp_path, TRAIN + CRASH)
    assert run_scenario(case).hash == run_scenario(case, trace=tmp_path / "trace.json", say=lambda text: None).hash


def test_a_timeline_is_in_one_state_at_a_time() -> None:
    spans: list[tuple[str, str, int, int]] = []
    timeline = Timeline(["a", "b"], lambda *span: spans.append(span))
    timeline.becomes("a", "computing", 10)
    timeline.becomes("a", "waiting", 30)
    timeline.shared("a", 1, 40)
    timeline.becomes("a", "computing", 50)
    timeline.ended("a", "down", 60)
    timeline.close(100)
    assert timeline.total() == {"joining": 110, "kept": 20, "lost": 10, "waiting": 20, "down": 40}
    assert spans[:2] == [("a", "joining", 0, 10), ("a", "computing", 10, 30)]
    assert timeline.worst_gap_ns(100) == 60
    assert timeline.members == [(10, 1), (60, 0)]


def test_a_log_is_told_apart_by_order_time_and_content(tmp_path: Path) -> None:
    def hash_of(*entries: tuple[int, str]) -> str:
        now = [0]
        chronicle = Chronicle(lambda: now[0], Record())
        for at, what in entries:
            now[0] = at
            chronicle.tell(what, "host")
        return chronicle.hash()

    hashes = {hash_of((1, "a"), (2, "b")), hash_of((2, "b"), (1, "a")), hash_of((1, "a"), (3, "b")), hash_of((1, "a"))}
    assert len(hashes) == 4
    assert hash_of((1, "a")) in hashes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0421, "42.1 ms"), (1.0, "1 s"), (119.4, "119 s"), (844, "14 min 04 s"), (86400, "24 h 00 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_bytes_read_as_people_say_them() -> None:
    assert [volume(n) for n in (0, 999, 1e3, 1.79e12)] == ["0 B", "999 B", "1 kB", "1.79 TB"]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("name", QUICK)
def test_a_shipped_scenario_runs_at_its_full_size(name: str) -> None:
    document = read(SHIPPED / f"{name}.toml")
    results = {str(point): run_scenario(document.scenario(point)) for point in document.points({}, {})}
    assert all(result.sound for result in results.values())
    if name == "diloco-wan":
        diloco, ddp = results.values()
        assert value(diloco, "steps") > 10 * value(ddp, "steps")
        assert value(diloco, "loss") < value(ddp, "loss") - 0.3
