"""What serving takes is found in what an engine did and a client heard; published laws are as they were published."""

import json
from dataclasses import replace

import pytest

from atoll.cost import Op
from atoll.errors import InvalidData
from atoll.reproduce.calibration.api import Calibration
from atoll.reproduce.calibration.engines import PUBLISHED, EngineCosts, Heard, Restart, engine_costs
from atoll.serve.scheduler import Limits
from atoll.serve.steps import Begun, Came, Steps, Taken
from tests.test_cost import step_samples

MS = 1_000_000
CHUNK_NS = 4_160_036
"""What `step_samples` has 8 tokens take."""


def measured() -> EngineCosts:
    """Two asked alone, 3 ms and 5 ms on their way there, 1 ms back; then steps of all kinds."""
    came = (Came(103 * MS, "a", 8), Came(205 * MS, "b", 8), Came(300 * MS, "c", 8))
    chunk = Op("engine_step", prefill_tokens=8, prefill_pairs=36)
    taken = [
        Taken(103 * MS, 103 * MS + CHUNK_NS, (("a", 8),), chunk),
        Taken(205 * MS, 205 * MS + CHUNK_NS, (("b", 8),), chunk),
    ]
    now_ns = 300 * MS
    for sample in step_samples():
        taken.append(Taken(now_ns, now_ns + round(sample.seconds * 1e9), (("c", 1),), sample.op))
        now_ns = taken[-1].ended_ns
    heard = [Heard(sent * MS, *(2 * (at * MS + CHUNK_NS + MS,))) for sent, at in ((100, 103), (200, 205))]
    steps = Steps(Begun(77, 512, Limits(), "a kernel"), came, tuple(taken), {})
    return engine_costs("tiny", steps, heard, fingerprint="here", fitted_on="today")


def test_the_way_and_the_steps_are_told_apart() -> None:
    found = measured()
    assert found.ask_s == pytest.approx(4e-3)
    assert found.answer_s == pytest.approx(1e-3)
    assert (found.about, found.pages, found.context) == ("tiny, a kernel", 77, 512)
    assert found.step.few.coefficients["batch"] == pytest.approx(1e-4, rel=1e-3)
    assert found.step.residuals.worst < 0.01
    assert "held out" in found.errors


def test_a_calibration_of_before_restarts_were_measured_can_be_read() -> None:
    one = replace(measured(), restart=Restart(ready_s=0.8, cold_s=0.1))
    text = Calibration(fingerprint="f", machine={}, fitted_on="d", engines={"tiny": one}).to_json()
    assert Calibration.from_json(text).engines["tiny"] == one
    old = json.loads(text)
    del old["engines"]["tiny"]["restart"]
    assert Calibration.from_json(json.dumps(old)).engines["tiny"] == replace(one, restart=None)


def test_nobody_who_was_asked_alone_is_refused() -> None:
    with pytest.raises(InvalidData, match="alone"):
        engine_costs("tiny", Steps(Begun(9, 99, Limits(), ""), (), (), {}), [])


@pytest.mark.parametrize(
    ("name", "prompt_ms", "few_ms", "many_ms"),
    [
        ("opt-13b-a100", 18.10 + 0.10191 * 700 + 7.122e-6 * 700**2, 19.93 + 6.269e-4 * 9000 + 0.03851 * 95,
         7.166 + 5.798e-4 * 9000 + 0.15831 * 96),
        ("opt-13b-a100-tp4", 12.06 + 0.03808 * 700 + 5.226e-7 * 700**2, 10.26 + 1.879e-4 * 9000 + 0.03269 * 95,
         10.48 + 1.712e-4 * 9000 + 0.04567 * 96),
    ],
)  # fmt: skip
def test_a_published_law_is_as_published(name: str, prompt_ms: float, few_ms: float, many_ms: float) -> None:
    step = PUBLISHED[name].step
    prompt = Op("engine_step", prefill_tokens=700, prefill_pairs=700 * 701 // 2)
    assert step.seconds(prompt) == pytest.approx(prompt_ms * 1e-3, rel=1e-12)
    assert step.seconds(Op("engine_step", batch=95, context_tokens=9000)) == pytest.approx(few_ms * 1e-3, rel=1e-12)
    assert step.seconds(Op("engine_step", batch=96, context_tokens=9000)) == pytest.approx(many_ms * 1e-3, rel=1e-12)
    assert PUBLISHED[name].errors == "error not known here"
