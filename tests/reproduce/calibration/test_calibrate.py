import json
from pathlib import Path

import pytest

from atoll.cli.sim.calibrate import main, summary
from atoll.cost import Op
from atoll.errors import InvalidConfig, InvalidData
from atoll.reproduce.calibration import fit
from atoll.reproduce.calibration.api import Calibration
from atoll.reproduce.calibration.measure import fingerprint, machine


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_quick_calibration_of_this_machine_can_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "calib.json"
    assert main(["--quick", "--json", "--out", str(out)]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = Calibration.from_json(out.read_bytes())
    assert found.quick
    assert found.machine == machine()
    assert found.fingerprint == fingerprint(machine())
    assert found.seconds(Op("matmul", flops=1e9)) > 0
    assert found.seconds(Op("disk", bytes=1e6)) > 0
    assert {point.kind for point in found.points} == {"simulated"}
    assert [row for row in said if row["type"] == "row" and row["what"].startswith("all-reduce, N=4")]
    assert any("quickly" in line for line in summary(fit.table(found), found))


def test_what_is_beyond_a_bound_is_marked() -> None:
    assert fit.Row("x", 4, 0.10, 0.2, 0.25).within
    assert not fit.Row("x", 4, 0.11, 0.2, 0.25).within
    assert not fit.Row("x", 4, 0.10, 0.2, 0.26).within
    assert not fit.Row("transfer, 1 stream", 1, 0.10, 0.11, 0.11).within
    assert fit.Row("recovery, N=3", 1, 0.20, 0.20, 0.20).within


def test_another_machine_has_another_fingerprint() -> None:
    here = machine()
    assert fingerprint(here) == fingerprint(dict(reversed(here.items())))
    assert fingerprint(here) != fingerprint({**here, "cores": "1024"})


def test_a_file_that_is_no_calibration_is_refused() -> None:
    for text in ("", "{}", "[1]", "\xff"):
        with pytest.raises(InvalidData, match="atoll sim calibrate"):
            Calibration.from_json(text)


def test_an_unknown_kind_of_work_is_named() -> None:
    from tests.reproduce.calibration import synthetic

    costs = fit.host_costs(synthetic.measured(), "f", "d")
    empty = Calibration(fingerprint="f", machine={}, fitted_on="d", costs=costs)
    with pytest.raises(InvalidConfig, match="'decode'"):
        empty.seconds(Op("decode"))
