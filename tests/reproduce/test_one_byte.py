"""What `atoll reproduce one-byte` says."""

import pytest

from atoll.reproduce.demonstrations import demonstrated
from atoll.reproduce.one_byte.estimator import codes, nothing_said


def ignore(said: str) -> None:
    """Nobody waits."""


def test_what_takes_no_time_holds() -> None:
    assert [line.verdict for line in (*codes(1, ignore), *nothing_said())] == ["pass"] * 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_fails() -> None:
    lines = list(demonstrated("one-byte", False, 1, ignore))
    assert [line for line in lines if line.verdict == "fail"] == []
    assert {line.number[0] for line in lines} == set("12345678")
