"""Real servers, and what virtual time makes of them."""

from pathlib import Path

import pytest

from atoll.cost import Op
from atoll.errors import AtollError
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.reproduce.calibration.asking import QUICK
from atoll.reproduce.calibration.calibrate import calibrate_engine
from atoll.reproduce.server import serving, workload_run
from atoll.reproduce.simulator.replay import replay
from tests.serve.bytes_model import model

pytestmark = pytest.mark.slow


def test_a_real_server_s_run_is_taken_again_in_virtual_time() -> None:
    assert [line.verdict for line in replay(1, lambda text: None)] == ["pass", "pass"]


def test_what_serving_a_model_takes_is_measured_and_can_be_simulated(tmp_path: Path) -> None:
    save_model(tmp_path / "tiny", model(context=512), ByteTokenizer())
    name = str(tmp_path / "tiny")
    calibration = calibrate_engine(name, QUICK, flags=("--threads", "1"))
    costs = calibration.engines[name]
    assert costs.context == 512
    assert costs.ask_s + costs.answer_s > 0
    assert costs.step.residuals.held_out
    assert 0 < costs.step.seconds(Op("engine_step", batch=2, context_tokens=100)) < 1
    (tmp_path / "calib.json").write_text(calibration.to_json())
    report = workload_run("--virtual", "--cost", str(tmp_path / "calib.json"), "--seconds", "5")
    assert report["simulated"] is True
    assert report["offered"] == report["answered"] > 0


def test_what_can_not_be_served_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(AtollError, match=r"that is ready: nobody is left; .*nothing"),
        serving(str(tmp_path / "nothing")),
    ):
        pass
