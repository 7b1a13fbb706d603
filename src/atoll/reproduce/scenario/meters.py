"""Driver: a world that keeps books: every message on a connection arrives, is dropped, or is still on its way; links
carried what connections gave them; Little's law holds for all on their way."""

from collections.abc import Callable
from typing import Any

from atoll.group.virtual import World
from atoll.reproduce.scenario.api import Check, volume
from atoll.sim.connection import Connection
from atoll.sim.loop import Loop
from atoll.sim.queue import Census


class Meter:
    """Of all messages of a world."""

    def __init__(self, loop: Loop) -> None:
        self.sent = self.arrived = self.dropped = 0
        """Bytes."""
        self.census = Census(loop)
        self.streams: list[_Metered] = []

    def arrive(self, nbytes: int, entered_ns: int, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """A message has come."""
        self.arrived += nbytes
        self.census.leave(entered_ns)
        fn(*args)


class _Metered(Connection):
    """A connection whose messages are counted."""

    __slots__ = ("_meter", "_partly", "_pending")

    def __init__(self, meter: Meter, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._meter = meter
        self._partly = 0
        """Bytes that left of messages that were then dropped."""
        meter.streams.append(self)

    def carry(self, nbytes: int, fn: Callable[..., object], *args: Any) -> None:
        self._meter.sent += nbytes
        super().carry(nbytes, self._meter.arrive, nbytes, self._meter.census.enter(), fn, args)

    def abort(self) -> None:
        self._partly += self.left() - self._left
        for nbytes, _, (_, entered_ns, *_) in (*self._waiting, *([self._leaving] if self._leaving else [])):
            self._meter.dropped += nbytes
            self._meter.census.leave(entered_ns)
        super().abort()

    def on_links(self) -> int:
        """Bytes that links should have carried for it."""
        return (self.left() + self._partly) * len(self._way.resources)

    def staying(self) -> int:
        """Bytes that have not left."""
        return sum(nbytes for nbytes, _, _ in (*self._waiting, *([self._leaving] if self._leaving else [])))


class MeteredWorld(World):
    """`World` with a meter. `over`: the run is. `ticked` is called every half second of virtual time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.meter = Meter(self.loop)
        self.over = False
        self.ticked: Callable[[], object] = _nothing

    def connection(
        self, source: str, target: str, streams: int = 1, ready: Callable[[], object] | None = None
    ) -> Connection:
        return _Metered(self.meter, self.network, source, target, streams=streams, jitter=self._jitter, ready=ready)

    def checks(self) -> list[Check]:
        """The laws of this world's messages."""
        meter = self.meter
        on_links = sum(self.network.usage(link).work for link in self.network.fabric.links.values())
        given = sum(stream.on_links() for stream in meter.streams)
        staying = sum(stream.staying() for stream in meter.streams)
        in_the_air = sum(stream._left for stream in meter.streams) - meter.arrived
        return [
            Check(
                "bytes sent = arrived + dropped + on their way",
                meter.sent == meter.arrived + meter.dropped + staying + in_the_air and in_the_air >= 0,
                f"{volume(meter.sent)} = {volume(meter.arrived)} + {volume(meter.dropped)} + "
                f"{volume(staying + in_the_air)}",
            ),
            Check(
                "links carried what connections sent, link by link",
                abs(on_links - given) <= 1 + 1e-9 * given + len(meter.streams),
                f"{volume(on_links)} over {len(self.network.fabric.links)} links",
            ),
            Check(
                "Little's law for messages on their way",
                meter.census.follows_little(),
                f"L = {meter.census.mean_inside():.3g}, W = {1e3 * meter.census.mean_stay_s():.3g} ms",
            ),
        ]

    def _going(self) -> bool:
        return not self.over and (super()._going() or self.loop.pending() > 1)

    def _tick(self) -> None:
        self.ticked()
        super()._tick()


def _nothing() -> None: ...
