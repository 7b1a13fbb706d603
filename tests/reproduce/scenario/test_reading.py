"""A scenario file is understood, or one line says which file, which key and what to do."""

from pathlib import Path

import pytest

from atoll.errors import InvalidConfig
from atoll.reproduce.scenario.fabrics import LeafSpine
from atoll.reproduce.scenario.keys import keys
from atoll.reproduce.scenario.reading import axis, change, load, read
from atoll.reproduce.scenario.settings import CollectiveJob, Repeatedly, TrainJob
from atoll.sim.clocks import Exponential
from tests.reproduce.scenario.small import COLLECTIVE, SHIPPED, TRAIN, scenario, written

FAULT = '\n[[faults]]\nwhen = "once"\nkind = "crash"\nat_s = 1.0\nwhere = ["host1"]\n'


def test_a_scenario_is_typed_settings_with_defaults(tmp_path: Path) -> None:
    found = scenario(tmp_path, COLLECTIVE)
    assert isinstance(found.fabric, LeafSpine)
    assert isinstance(found.job, CollectiveJob)
    assert (found.fabric.hosts, found.fabric.oversub, found.seed, found.job.algorithm) == (8, 1.0, 1, "ring")


def test_faults_name_their_clocks(tmp_path: Path) -> None:
    text = '[[faults]]\nwhen = "repeatedly"\nkind = "crash"\nup = { law = "exponential", mean_s = 9 }\n'
    found = scenario(tmp_path, TRAIN + text + 'down = { law = "fixed", seconds = 3 }\n')
    (fault,) = found.faults
    assert isinstance(fault, Repeatedly)
    assert fault.up == Exponential(9)


MISTAKES = {
    "an unknown key": (COLLECTIVE.replace("leaves", "leafs"), "fabric.leafs is no key there; did you mean 'leaves'?"),
    "an unknown table": (COLLECTIVE + "[faultz]\n", "faultz is no key there; did you mean 'faults'?"),
    "a wrong type": (COLLECTIVE.replace("= 8\n", '= "8"\n'), "fabric.hosts = '8' has the wrong type; give a whole"),
    "an unknown fabric": (COLLECTIVE.replace("leaf_spine", "leaf_spin"), "did you mean 'leaf_spine'?"),
    "a fabric without a kind": (COLLECTIVE.replace('kind = "leaf_spine"', ""), "fabric.kind is missing; give one of"),
    "no fabric": ('[job]\nkind = "collective"\nnbytes = 1\n', "fabric is missing; give it: a table with kind"),
    "no hosts": (COLLECTIVE.replace("hosts = 8", ""), "fabric.hosts is missing; give it: a whole number"),
    "a word there is not": (COLLECTIVE + 'algorithm = "rign"\n', "job.algorithm = 'rign' is none of ring, direct"),
    "hosts that don't divide": (COLLECTIVE.replace("= 8\n", "= 7\n"), "7 hosts don't fit 2 leaves"),
    "a negative capacity": (COLLECTIVE.replace("1e9", "-1e9"), "bytes_per_s=-1000000000.0 of link"),
    "no capacity": (COLLECTIVE.replace("1e9", "0.0"), "carries 0 bytes/s; give it more than 0"),
    "too many peers": (TRAIN.replace("steps = 8", "steps = 8\npeers = 9"), "job.peers = 9, but the fabric has 3 hosts"),
    "a setting of the job": (TRAIN.replace("every = 4", "every = 0"), "job.every must be at least 1, not 0"),
    "a price of nothing": (TRAIN.replace('"1"', '"flop"'), "has no 'flop'; there are: 1, flops"),
    "a negative price": (TRAIN.replace("0.5", "-0.5"), 'cost.seconds.train_step.1 = -0.5 must be at least 0'),
    "a fault on nobody": (TRAIN + FAULT.replace("host1", "hots1"), "there is no host 'hots1'; did you mean 'host1'?"),
    "a fault without a time": (TRAIN + FAULT.replace("at_s = 1.0", ""), "faults.0.at_s is missing"),
    "a fault of no kind": (TRAIN + FAULT.replace("crash", "crush"), "faults.0.kind = 'crush' is none of crash"),
    "a fault with another's field": (TRAIN + FAULT + "factor = 2.0\n", 'factor is nothing a fault of kind = "crash"'),
    "a slow host, by nothing": (TRAIN + FAULT.replace("crash", "slow"), 'fault of kind = "slow" needs factor; give it'),
    "a trace that isn't there": (TRAIN + '\n[[faults]]\nwhen = "trace"\nfile = "x.jsonl"\n', "faults.0: can't read"),
    "a calibration that isn't there": (TRAIN + '[cost]\ncalibration = "c.json"\n', "c.json can't be read"),
    "faults of a collective": (COLLECTIVE + FAULT, "a collective needs 2 hosts or more and no [[faults]]"),
    "no TOML": ("[fabric\n", "is no TOML"),
    "a sweep of nothing": (COLLECTIVE + "[sweep]\nseed = []\n", "[sweep] must be a list of values for each key"),
    "a clock that never was": (
        TRAIN + '[[faults]]\nwhen = "repeatedly"\nkind = "crash"\nup = { law = "expo", mean_s = 9 }\n'
        'down = { law = "fixed", seconds = 3 }\n',
        "faults.0.up.law = 'expo' is none of fixed, exponential, weibull, lognormal; did you mean 'exponential'?",
    ),
    "a clock that runs backwards": (
        TRAIN + '[[faults]]\nwhen = "repeatedly"\nkind = "crash"\nup = { law = "exponential", mean_s = -9 }\n'
        'down = { law = "fixed", seconds = 3 }\n',
        "faults.0.up.mean_s = -9.0 of a clock must be finite and above 0",
    ),
    "a host nobody reaches": (
        '[fabric]\nkind = "custom"\nhosts = ["a", "b", "c"]\n[[fabric.links]]\nbetween = ["a", "b"]\n'
        'bytes_per_s = 1e9\n[job]\nkind = "collective"\nnbytes = 9\n',
        "there is no way between hosts 'a' and 'c'; add links that join them",
    ),
    "a link to nowhere": (
        '[fabric]\nkind = "custom"\nhosts = ["a", "b"]\n[[fabric.links]]\nbetween = ["a", "x"]\nbytes_per_s = 1e9\n'
        '[job]\nkind = "collective"\nnbytes = 9\n',
        "there is no node 'x' among the 2 of the fabric",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_line_with_file_key_and_remedy(mistake: str, tmp_path: Path) -> None:
    text, says = MISTAKES[mistake]
    with pytest.raises(InvalidConfig) as caught:
        load(written(tmp_path, text))
    message = str(caught.value)
    assert says in message
    assert message.startswith(str(tmp_path / "case.toml"))
    assert "\n" not in message


def test_a_file_extends_another(tmp_path: Path) -> None:
    written(tmp_path, COLLECTIVE, "base.toml")
    path = written(tmp_path, 'extends = "base.toml"\nseed = 5\n[fabric]\noversub = 4\n')
    found = load(path)
    assert isinstance(found.fabric, LeafSpine)
    assert (found.seed, found.fabric.oversub, found.fabric.hosts) == (5, 4, 8)


def test_a_table_of_another_kind_takes_nothing_from_the_one_below(tmp_path: Path) -> None:
    written(tmp_path, COLLECTIVE, "base.toml")
    path = written(tmp_path, 'extends = "base.toml"\n[fabric]\nkind = "star"\nhosts = 4\nbytes_per_s = 1e9\n')
    assert load(path).fabric.build().hosts == ["host0", "host1", "host2", "host3"]


def test_a_circle_of_files_is_named(tmp_path: Path) -> None:
    written(tmp_path, 'extends = "two.toml"\n', "one.toml")
    path = written(tmp_path, 'extends = "one.toml"\n', "two.toml")
    with pytest.raises(InvalidConfig, match=r"extends: two.toml -> one.toml -> two.toml is a cycle; remove `extends`"):
        load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"gone.toml: can't be read: No such file"):
        load(tmp_path / "gone.toml")


def test_a_key_is_changed_by_its_dotted_name(tmp_path: Path) -> None:
    found = load(written(tmp_path, COLLECTIVE), dict([change("fabric.oversub=4"), change("job.placement=shuffled")]))
    assert isinstance(found.fabric, LeafSpine)
    assert isinstance(found.job, CollectiveJob)
    assert (found.fabric.oversub, found.job.placement) == (4, "shuffled")


def test_a_fault_is_changed_by_its_number(tmp_path: Path) -> None:
    found = load(written(tmp_path, TRAIN + FAULT), dict([change("faults.0.at_s=7.5")]))
    assert getattr(found.faults[0], "at_s", None) == 7.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fabric.oversb=4", "with fabric.oversb=4: fabric.oversb is no key there; did you mean 'oversub'?"),
        ("fabric.oversub=much", "fabric.oversub = 'much' has the wrong type; give a number"),
        ("fabric.hosts=7", "with fabric.hosts=7: fabric: 7 hosts don't fit"),
        ("seed.x=7", "seed.x=7: seed has no keys in it"),
        ("faults.0.at_s=7", "faults"),
    ],
)
def test_a_mistake_in_a_change_names_the_change(text: str, says: str, tmp_path: Path) -> None:
    path = written(tmp_path, "seed = 1\n" + COLLECTIVE)
    with pytest.raises(InvalidConfig) as caught:
        load(path, dict([change(text)]))
    assert says in str(caught.value)


@pytest.mark.parametrize("text", ["fabric.oversub", "=4", "fabric.oversub="])
def test_what_is_no_change_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidConfig, match=r"is no KEY=VALUE; write for example --set fabric\.oversub=4"):
        change(text)


def test_a_sweep_is_every_combination_and_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    document = read(written(tmp_path, COLLECTIVE + '[sweep]\n"fabric.oversub" = [1, 4]\nseed = [1, 2]\n'))
    assert document.points({}, {}) == [
        {"fabric.oversub": 1, "seed": 1},
        {"fabric.oversub": 1, "seed": 2},
        {"fabric.oversub": 4, "seed": 1},
        {"fabric.oversub": 4, "seed": 2},
    ]
    assert document.points({"seed": 9}, {"fabric.oversub": [8]}) == [{"fabric.oversub": 8}]


def test_values_of_a_sweep_are_numbers_words_or_lists() -> None:
    assert axis("fabric.oversub=1,2.5") == ("fabric.oversub", [1, 2.5])
    assert axis("job.strategy=diloco,ddp") == ("job.strategy", ["diloco", "ddp"])
    assert axis("fabric.shape=[2,2],[4]") == ("fabric.shape", [[2, 2], [4]])


def test_a_run_without_a_sweep_is_one_point(tmp_path: Path) -> None:
    assert read(written(tmp_path, COLLECTIVE)).points({}, {}) == [{}]


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.toml")), ids=lambda path: path.stem)
def test_the_shipped_scenarios_are_sound_and_say_what_they_show(path: Path) -> None:
    document = read(path)
    for point in document.points({}, {}):
        assert document.scenario(point).about


def test_every_key_is_listed_with_its_type_and_default() -> None:
    listed = {key.name: key for key in keys()}
    assert listed["fabric.oversub"].default == "1.0"
    assert listed["fabric.hosts"].default == "needed"
    assert "log-normal" in listed["cost.spread"].about
    assert "job.one_byte.lr" in listed
    assert {
        f"job.{name}" for name in TrainJob.__dataclass_fields__ if name not in ("model", "stands_for", "one_byte")
    } <= set(listed)
