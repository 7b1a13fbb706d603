"""Real processes under random spawn, SIGKILL and SIGSTOP, from one seed."""

import pytest

from atoll.reproduce.churn import Churn, Report


def assert_survived(report: Report) -> None:
    assert not report.failures
    assert not report.differing
    assert report.compared > 50
    assert report.steps > report.seconds
    assert report.worst_gap_s <= 5.0


@pytest.mark.slow  # all this and more is done by test_some_seconds_of_stress
def test_some_seconds_of_churn() -> None:
    report = Churn(seed=7).run(6.0)
    assert_survived(report)
    assert report.done["killed"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_of_churn() -> None:
    assert_survived(Churn(seed=8).run(600.0))
