"""`atoll train --strategy one-byte` as people use it: a run through a crash, then on from its log alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from atoll.train.one_byte.rounds import NAME, read
from tests.cli.test_commands import TINY, assert_nothing_is_left, finish

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
FLAGS = ["--strategy", "one-byte", "--json", *TINY, "--one-byte.lr", "1e-3"]


def summary(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_a_run_through_a_crash_and_on_from_its_log(tmp_path: Path) -> None:
    words = ["train", "--steps", "60", "--peers", "3", "--chaos", "--name", "first", *FLAGS]
    code, out, err = finish(*words, cwd=tmp_path, timeout_s=200)
    assert code == 0, err
    found = summary(out)
    assert found["hashes_equal"]
    assert found["failures_survived"] == 1
    assert found["bytes_sent"] < 60 * 4
    log = tmp_path / "runs" / "first" / "checkpoint" / NAME
    about, rounds = read(log)
    assert len(rounds) == about["steps"] == 60
    log.rename(tmp_path / "mine.log")
    words = ["train", "--steps", "60", "--peers", "1", "--resume", "mine.log", "--name", "second", *FLAGS]
    code, out, err = finish(*words, cwd=tmp_path, timeout_s=200)
    assert code == 0, err
    weights = [tmp_path / "runs" / name / "model" / "model.safetensors" for name in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert_nothing_is_left()


def test_labels_of_one_s_own(tmp_path: Path) -> None:
    texts = "".join(f"{('good', 'bad')[i % 2]}\t{('fine', 'poor')[i % 2]} thing number {i}\n" for i in range(60))
    (tmp_path / "texts.tsv").write_text(texts)
    words = ["train", "--steps", "5", "--peers", "2", "--task", "texts.tsv", *FLAGS, "--model.context", "48"]
    code, out, err = finish(*words, cwd=tmp_path, timeout_s=200)
    assert code == 0, err
    found = summary(out)
    assert 0 <= found["right_before"] <= 1
    assert found["right_after"] is not None
