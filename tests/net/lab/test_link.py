"""When what enters a link comes out: bytes over rate, plus delay, for numbers worked out by hand."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.net.lab.api import Shape
from atoll.net.lab.link import Link

BYTES_PER_S = Shape(rate_bits_per_s=8000.0, queue_bytes=3000)  # 1000 bytes a second


def link(shape: Shape, seed: int = 1) -> Link:
    return Link(shape, Random(seed).random)


def test_packets_leave_at_the_rate_and_arrive_a_delay_later() -> None:
    slow = link(Shape(rate_bits_per_s=8000.0, delay_s=10.0))
    assert [slow.arrival(500, 100.0) for _ in range(3)] == [110.5, 111.0, 111.5]
    assert slow.arrival(500, 200.0) == 210.5


def test_a_packet_that_finds_the_queue_full_is_dropped() -> None:
    slow = link(BYTES_PER_S)
    assert [slow.arrival(1000, 0.0) for _ in range(6)] == [1.0, 2.0, 3.0, 4.0, None, None]
    assert slow.arrival(1000, 1.0) == 5.0


def test_a_queue_of_no_size_is_one_round_trip_of_bytes_but_not_tiny() -> None:
    assert Shape(rate_bits_per_s=800e6, delay_s=0.05).room_bytes == 10_000_000
    assert Shape(rate_bits_per_s=1e6, delay_s=0.001).room_bytes == 256 << 10
    assert Shape(queue_bytes=7).room_bytes == 7


def test_losses_come_as_often_as_told() -> None:
    lossy = link(Shape(loss=0.25))
    assert sum(lossy.arrival(100, float(at)) is None for at in range(10_000)) == pytest.approx(2500, abs=200)


def test_a_lost_packet_has_taken_its_time_on_the_link() -> None:
    gone = Link(Shape(rate_bits_per_s=8000.0, loss=0.5), iter([0.1, 0.9]).__next__)
    assert [gone.arrival(1000, 0.0), gone.arrival(1000, 0.0)] == [None, 2.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.integers(0, 99))
def test_jitter_is_within_bounds_and_keeps_the_order(pauses: list[float], seed: int) -> None:
    shaky = link(Shape(rate_bits_per_s=1e12, delay_s=1.0, jitter_s=0.5), seed)
    now, last = 0.0, 0.0
    for pause in pauses:
        now += pause
        arrival = shaky.arrival(100, now)
        assert arrival is not None
        assert now + 1.0 <= arrival <= now + 1.5 + 1e-6
        assert arrival >= last
        last = arrival


def test_a_stream_loses_nothing_and_shares_the_rate() -> None:
    full = link(BYTES_PER_S)
    assert [full.arrival_of_stream(1000, 0.0) for _ in range(6)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_another_shape_is_for_what_is_to_come() -> None:
    changed = link(BYTES_PER_S)
    assert changed.arrival(1000, 0.0) == 1.0
    changed.set(Shape(rate_bits_per_s=16000.0))
    assert changed.arrival(1000, 0.0) == 1.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rate_bits_per_s", 0.0),
        ("rate_bits_per_s", -1.0),
        ("rate_bits_per_s", float("inf")),
        ("delay_s", -0.1),
        ("delay_s", float("nan")),
        ("jitter_s", -0.1),
        ("loss", -0.1),
        ("loss", 1.0),
        ("loss", float("nan")),
        ("queue_bytes", -1),
    ],
)
def test_a_shape_that_cannot_be_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidConfig, match=field) as refusal:
        Shape(**{field: value})  # type: ignore[arg-type]
    assert isinstance(refusal.value, ValueError)
