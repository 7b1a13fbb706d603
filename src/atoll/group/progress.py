"""Policy: does data still come? While operations run and nothing has for too long, somebody keeps it."""

from typing import Final

from atoll.group.api import LARGEST_FRAME, DataOverdue
from atoll.group.station import Station

STALL_S: Final = 10.0
"""Nothing comes in data phases for so long, and the master is told."""
_FRAMES_AWAITED: Final = 4
_SLOWEST: Final = 10e3


class Progress:
    """Of one peer's data phases."""

    def __init__(self, station: Station, now: float) -> None:
        self._station = station
        self._seen = (0, 0)
        self._moved_at = now

    def look(self, now: float, received: int, stall_s: float = STALL_S) -> DataOverdue | None:
        """To be called about once a second; `received`: bytes that have come over links that stand now."""
        station = self._station
        seen = station.progress, received
        if not station.runs or seen != self._seen:
            self._moved_at, self._seen = now, seen
            return None
        patience_s = stall_s + self._more_patience_s()
        if now - self._moved_at <= patience_s:
            return None
        self._moved_at = now
        awaited = tuple(sorted(station.awaited()))
        return DataOverdue(station.epoch, f"no data for {patience_s:.0f} s", awaited, station.received())

    def _more_patience_s(self) -> float:
        """On slow links, where a peer in the middle of a ring may wait for others' frames."""
        views = self._station.peer.views
        slowest = views[-1].pace.any_bytes_per_s if views else 0.0
        return _FRAMES_AWAITED * LARGEST_FRAME / max(slowest, _SLOWEST) if slowest else 0.0
