"""Every input that was ever worth keeping, and a second of new ones for each target; with atheris a guided one too."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.fuzzers import NAMES, runner
from tests.fuzzers.choices import recorded, records
from tests.fuzzers.runner import GUIDED, by_mutation, guided, kept, replay, target


@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_kept_is_taken_well(name: str) -> None:
    module = target(name)
    for path in kept(name):
        try:
            module.fuzz(path.read_bytes())
        except Exception as error:
            error.add_note(f"input: {path}")
            raise


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_second_of_other_inputs_finds_nothing(name: str) -> None:
    report = by_mutation(name, 1.0)
    assert report.broken is None, f"{report.why}: python -m tests.fuzzers {name}, or the input {report.broken}"
    assert report.runs > 10


@pytest.mark.sampled(1)
@pytest.mark.skipif(not GUIDED, reason="atheris is not installed")
@pytest.mark.parametrize("name", NAMES)
def test_a_second_guided_by_coverage_finds_nothing(name: str) -> None:
    report = guided(name, 1.0, keep=False)
    assert report.broken is None, f"{report.why}: {report.broken}"
    assert report.edges > 10


@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_stays_small(name: str) -> None:
    whole = [path for path in kept(name) if not path.name.startswith("broken-")]
    assert len(whole) <= runner.MOST_FILES
    assert all(path.stat().st_size <= runner.LARGEST_FILE for path in whole)


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A target that falls over an X."""
    module = ModuleType("tests.fuzzers.weak")

    def fuzz(data: bytes) -> None:
        assert b"X" not in data, "there is an X"

    module.fuzz, module.seeds = fuzz, lambda: [b"abcW", b"x"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tests.fuzzers.weak", module)
    monkeypatch.setattr(runner, "CORPUS", tmp_path)
    return "weak"


def test_what_breaks_a_target_is_kept_and_breaks_it_again(weak: str) -> None:
    assert replay(weak) == 2
    report = by_mutation(weak, 20.0)
    assert report.broken is not None
    assert b"X" in report.broken.read_bytes()
    assert "there is an X" in report.why
    with pytest.raises(AssertionError, match="there is an X"):
        replay(weak)


def test_the_same_seed_makes_the_same_inputs(weak: str) -> None:
    tried: list[bytes] = []
    target(weak).fuzz = tried.append  # type: ignore[attr-defined]
    for seed in (3, 3, 4):
        by_mutation(weak, 20.0, seed, most_runs=50)
    assert tried[:50] == tried[50:100] != tried[100:]


def test_records_are_read_as_they_were_written() -> None:
    said = [(3, b"abc"), (255, b""), (0, bytes(300))]
    assert list(records(recorded(*said))) == said
    assert list(records(recorded(*said)[:-1]))[-1] == (0, bytes(299))
