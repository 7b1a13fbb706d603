"""Never more than the rate, on average and in any stretch of time, and nearly that much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.net.bucket import TokenBucket


@given(
    st.floats(1e3, 1e9),
    st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 1 << 20)), min_size=1, max_size=50),
)
def test_in_no_stretch_of_time_leaves_more_than_the_rate_and_a_burst(
    rate: float, asked: list[tuple[float, int]]
) -> None:
    bucket, now = TokenBucket(rate), 0.0
    sent: list[tuple[float, int]] = []
    for pause, wanted in asked:
        now += pause
        n = min(wanted, bucket.room(now))
        bucket.take(n)
        sent.append((now, n))
    for i, (start, _) in enumerate(sent):
        total = 0
        for at, n in sent[i:]:
            total += n
            assert total <= rate * (at - start) * (1 + 1e-9) + bucket.burst + 1


def test_who_takes_all_there_is_gets_the_rate() -> None:
    bucket, now, sent = TokenBucket(1e6), 0.0, 0
    while now < 10.0:
        n = bucket.room(now)
        bucket.take(n)
        sent += n
        now += bucket.wait_s()
    assert sent == pytest.approx(10e6, rel=0.02)


def test_idle_time_is_no_credit_beyond_a_burst() -> None:
    bucket = TokenBucket(1e6)
    bucket.room(0.0)
    assert bucket.room(1000.0) == bucket.burst == 20_000


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        TokenBucket(rate)
