"""Policy: how long TCP takes over a long link, round trip by round trip: slow start, losses by chance, a full queue.

For transfers too short for the long-run rates of Mathis et al. (1997), which `sim/net.py` has. Reno after RFC 5681;
cubic after RFC 9438, with the end of slow start that Linux's HyStart finds (Ha and Rhee, 2011): when the answers of one
round come for half a round trip, the window is half of what the link holds.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from atoll.errors import InvalidConfig

Control = Literal["reno", "cubic"]
SEGMENT_BYTES: Final = 1448
HEADER_BYTES: Final = 52
INITIAL_WINDOW: Final = 10
_C: Final = 0.4
_BETA: Final = {"reno": 0.5, "cubic": 0.7}
_MOST_ROUNDS: Final = 100_000


@dataclass(frozen=True, slots=True)
class LongLink:
    """One direction between two hosts."""

    bits_per_s: float
    rtt_s: float
    loss: float
    queue_bytes: float
    window_bytes: float
    """What one connection may have on its way."""
    start_ends: float = 0.5
    """With cubic slow start ends when so much of what the link holds is on its way: as HyStart sees it by the train of
    answers; or more, where that is torn: 1.125, by their delay."""

    @property
    def segments_per_s(self) -> float:
        """At full rate."""
        return self.bits_per_s / 8 / (SEGMENT_BYTES + HEADER_BYTES)


class _Connection:
    """Its window, in segments, as time goes by."""

    def __init__(self, control: Control, link: LongLink) -> None:
        self.control, self.link = control, link
        self.window = float(INITIAL_WINDOW)
        self.most = link.window_bytes / SEGMENT_BYTES
        self.threshold = math.inf
        if control == "cubic":
            self.threshold = max(INITIAL_WINDOW, link.start_ends * link.segments_per_s * link.rtt_s)
        self._peak, self._since_s, self._reno = 0.0, 0.0, 0.0

    def lose(self, now_s: float) -> None:
        """A loss is noticed, and mended while others go on."""
        beta = _BETA[self.control]
        self._peak = self.window if self.window > self._peak else self.window * (1 + beta) / 2
        self.window = self._reno = max(2.0, self.window * beta)
        self.threshold, self._since_s = self.window, now_s

    def grow(self, now_s: float, rtt_s: float) -> None:
        """A round without loss is over."""
        if self.window < self.threshold:
            self.window = min(2 * self.window, self.threshold)
            self._reno, self._since_s = self.window, now_s
        elif self.control == "reno":
            self.window += 1
        else:
            self._reno += 3 * (1 - 0.7) / (1 + 0.7)
            peak = max(self._peak, self.window if not self._peak else 0.0)
            self._peak = peak
            wait_s = math.cbrt(peak * (1 - 0.7) / _C) if self.threshold < peak else 0.0
            cubic = _C * (now_s + rtt_s - self._since_s - wait_s) ** 3 + peak
            self.window = max(self.window, min(cubic, 1.5 * self.window), self._reno)
        self.window = min(self.window, self.most)


def transfer_seconds(link: LongLink, nbytes: int, streams: int, control: Control, rng: np.random.Generator) -> float:
    """From the first byte's leaving until the last one's arrival, over fresh connections that share what is to be sent.

    InvalidConfig: no stream, or it would never end.
    """
    if streams < 1:
        raise InvalidConfig(f"{streams} streams: there must be at least 1")
    connections = [_Connection(control, link) for _ in range(streams)]
    held = link.segments_per_s * link.rtt_s
    queue = link.queue_bytes / (SEGMENT_BYTES + HEADER_BYTES)
    left, now_s = nbytes / SEGMENT_BYTES, 0.0
    for _ in range(_MOST_ROUNDS):
        windows = sum(c.window for c in connections)
        sent = min(windows, left)
        round_s = link.rtt_s + min(queue, max(0.0, windows - held)) / link.segments_per_s
        full = windows > held + queue
        lost = [_lost(c, sent / windows, link.loss, full and c.window >= windows / streams, rng) for c in connections]
        left -= sent - min(sent, max(0.0, windows - held - queue))  # what finds the queue full goes again
        if left <= 0:
            again = link.rtt_s if any(lost) else 0.0
            return now_s + max(sent / link.segments_per_s, 0.0) + again + link.rtt_s / 2
        now_s += max(round_s, sent / link.segments_per_s)
        for connection, loses in zip(connections, lost, strict=True):
            if loses:
                connection.lose(now_s)
            else:
                connection.grow(now_s, round_s)
    raise InvalidConfig(f"{nbytes} bytes over {link} would take for ever")


def _lost(connection: _Connection, share: float, loss: float, dropped: bool, rng: np.random.Generator) -> bool:
    return dropped or rng.random() > (1 - loss) ** (connection.window * share)


def expected_seconds(
    link: LongLink, nbytes: int, streams: int, control: Control, seed: int = 0, draws: int = 400
) -> float:
    """The median of as many transfers with other losses."""
    rng = np.random.default_rng(seed)
    return float(np.median([transfer_seconds(link, nbytes, streams, control, rng) for _ in range(draws)]))
