from dataclasses import replace

import numpy as np
import pytest

from atoll.errors import InvalidConfig
from atoll.reproduce.calibration.rounds import SEGMENT_BYTES, Control, LongLink, expected_seconds, transfer_seconds

LINK = LongLink(100e6, 0.1, 0.0, 1 << 20, 64 << 20)
CONTROLS: tuple[Control, ...] = ("reno", "cubic")


@pytest.mark.parametrize("control", CONTROLS)
def test_ten_segments_take_half_a_round_trip(control: Control) -> None:
    seconds = transfer_seconds(LINK, 10 * SEGMENT_BYTES, 1, control, np.random.default_rng(0))
    assert seconds == pytest.approx(0.05 + 10 / LINK.segments_per_s)


def test_slow_start_doubles_every_round_trip() -> None:
    """10 + 20 + 40 + 80 segments: the last byte of the fourth window leaves after three round trips."""
    seconds = transfer_seconds(LINK, 150 * SEGMENT_BYTES, 1, "reno", np.random.default_rng(0))
    assert seconds == pytest.approx(3 * 0.1 + 80 / LINK.segments_per_s + 0.05)


@pytest.mark.parametrize("control", CONTROLS)
def test_without_loss_a_long_transfer_fills_the_link(control: Control) -> None:
    nbytes = 400 << 20
    at_full_rate_s = nbytes / SEGMENT_BYTES / LINK.segments_per_s
    assert expected_seconds(LINK, nbytes, 4, control, draws=1) == pytest.approx(at_full_rate_s, rel=0.1)


def test_the_long_run_of_reno_is_that_of_mathis() -> None:
    """1.22 segments / sqrt(loss) per round trip (Mathis et al., 1997), within what models of losses differ by."""
    link = replace(LINK, bits_per_s=10e9, loss=1e-3)
    nbytes = 200 << 20
    rate = 1.22 * SEGMENT_BYTES / (link.rtt_s * link.loss**0.5)
    assert expected_seconds(link, nbytes, 1, "reno", draws=5) == pytest.approx(nbytes / rate, rel=0.2)


def test_more_streams_suffer_less_from_losses() -> None:
    link = replace(LINK, bits_per_s=300e6, loss=1e-3)
    one, four = (expected_seconds(link, 32 << 20, streams, "reno", draws=50) for streams in (1, 4))
    assert one > 2.5 * four


def test_a_window_bounds_the_rate() -> None:
    link = replace(LINK, window_bytes=1e5)
    assert expected_seconds(link, 20 << 20, 1, "reno", draws=1) == pytest.approx((20 << 20) / (1e5 / 0.1), rel=0.1)


def test_no_stream_carries_nothing() -> None:
    with pytest.raises(InvalidConfig, match="0 streams"):
        transfer_seconds(LINK, 1, 0, "reno", np.random.default_rng(0))
