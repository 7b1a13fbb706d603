"""Driver: a transfer between two hosts of the network lab, over one connection and over four, beside its prediction.

Each is measured in a lab of its own, since Linux remembers what it knew of a host; and the lab's seed draws the losses.
Run as a module it is one of the two peers.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

import atoll
from atoll import fabric
from atoll.errors import AtollError
from atoll.net import lab
from atoll.net.lab import Shape
from atoll.reproduce.api import Say
from atoll.reproduce.calibration.api import Point
from atoll.reproduce.calibration.rounds import HEADER_BYTES, SEGMENT_BYTES, Control, LongLink, expected_seconds
from atoll.reproduce.crew import crew_in, on
from atoll.sim.loop import Loop
from atoll.sim.net import Network, Tcp

NBYTES: Final = 32 << 20
SHAPE: Final = Shape(rate_bits_per_s=300e6, delay_s=0.05, loss=1e-4)
STREAMS: Final = (1, 4)
CONTROLS: Final[tuple[Control, ...]] = ("cubic", "reno")
START_ENDS: Final = (0.5, 1.125)
_PATIENCE_S: Final = 180.0
_WINDOW: Final = 4 << 20


def unavailable() -> str:
    """Why there is no lab of packets here; "" if there is."""
    reasons = lab.available()
    return "" if not reasons["netem"] or not reasons["tun"] else f"netem: {reasons['netem']}; tun: {reasons['tun']}"


def points(
    say: Say = lambda text: None, shape: Shape = SHAPE, nbytes: int = NBYTES, rounds: int = 5
) -> Iterator[Point]:
    """Medians, for each congestion control and number of streams; with the losses, and without any."""
    clean = Shape(shape.rate_bits_per_s, shape.delay_s)
    for control in CONTROLS:
        start_ends = START_ENDS[0]
        for each, times in ((clean, max(1, rounds // 2)), (shape, rounds)):
            for streams in STREAMS:
                seconds = _several(each, nbytes, streams, control, times, say)
                if not seconds:
                    continue
                took_s, fitted = statistics.median(seconds), each is clean and streams == 1 and control == "cubic"
                if fitted:
                    start_ends = start_ends_of(took_s, each, nbytes)
                name = f"{each.rate_bits_per_s / 1e6:.0f} Mbit/s, {2e3 * each.delay_s:.0f} ms, loss {each.loss:g}"
                what = f"transfer, {name}, {control}, {streams} stream{'s' * (streams > 1)}"
                expected_s = predicted(each, nbytes, streams, control, start_ends)
                yield Point(f"{what}, round by round", nbytes, took_s, expected_s, fitted, "simulated")
                yield Point(f"{what}, as a flow", nbytes, took_s, as_a_flow(each, nbytes, streams), kind="simulated")


def _several(shape: Shape, nbytes: int, streams: int, control: Control, times: int, say: Say) -> list[float]:
    """Those that came to an end."""
    seconds = []
    for seed in range(1, times + 1):
        try:
            seconds.append(measured(shape, nbytes, streams, control, seed))
        except AtollError as error:
            say(f"a transfer with {control} over {streams} connections failed: {error}")
    return seconds


def as_a_flow(shape: Shape, nbytes: int, streams: int) -> float:
    """By the simulator's own network, which bounds a connection by window and long-run losses, as Reno's are."""
    loop = Loop()
    between = [[shape.rate_bits_per_s / 8] * 2] * 2, [[2 * shape.delay_s] * 2] * 2
    tcp = Tcp(window_bytes=window_bytes(), slow_start=True, efficiency=SEGMENT_BYTES / (SEGMENT_BYTES + HEADER_BYTES))
    network = Network(loop, fabric.wan(*between, loss=shape.loss), tcp=tcp)
    network.send("host0", "host1", nbytes, lambda: None, streams=streams)
    loop.run()
    return loop.now_s + 2 * shape.delay_s


def start_ends_of(took_s: float, clean: Shape, nbytes: int) -> float:
    """By which of its two signs cubic has ended slow start here, seen by one transfer without losses."""
    return min(START_ENDS, key=lambda ends: abs(predicted(clean, nbytes, 1, "cubic", ends) - took_s))


def predicted(shape: Shape, nbytes: int, streams: int, control: Control, start_ends: float = START_ENDS[0]) -> float:
    """A broadcast: the other peer begins half a round trip later, its vote takes as long, and so does the word that it
    has all."""
    link = LongLink(shape.rate_bits_per_s, 2 * shape.delay_s, shape.loss, shape.room_bytes, window_bytes(), start_ends)
    return expected_seconds(link, nbytes, streams, control) + 3 * shape.delay_s


def window_bytes() -> float:
    """Of one connection: the buffers that the system takes at most, half of which is the bookkeeping of packets."""
    try:
        most = [float(Path(f"/proc/sys/net/ipv4/tcp_{way}mem").read_text().split()[2]) for way in "rw"]
    except (OSError, ValueError, IndexError):
        return _WINDOW
    return min(most[0] / 2, most[1] / 2)


def measured(shape: Shape, nbytes: int, streams: int, control: Control, seed: int) -> float:
    """Of the giver's call, in a new lab. AtollError: it failed."""
    with lab.open_lab(2, shape, congestion=control, seed=seed) as network:
        if network.congestion != control:
            raise AtollError(f"this system has no {control}, but {network.congestion}")
        with crew_in(network, "--no-measure") as (peers, address):
            for host in (0, 1):
                argv = ("-m", "atoll.reproduce.calibration.wan", address, str(nbytes), str(streams))
                peers.start(f"peer {host}", *argv, by=on(network, host))
            peers.until_ended("peer 0", "peer 1", seconds=_PATIENCE_S)
            return float(peers.of("moved")[0]["seconds"])


def main(argv: list[str]) -> None:
    """Give, or take."""
    address, nbytes, streams = argv[0], int(argv[1]), int(argv[2])
    with atoll.join(address, min_world=2, connections=streams, timeout_s=60.0) as group:
        x = np.ones(nbytes // 4, np.float32)
        group.barrier()
        took = group.broadcast(x, 0)  # its pieces may land in any order, those of a `send` may not
        if group.rank == 0:
            sys.stdout.write(json.dumps({"event": "moved", "seconds": took.seconds}) + "\n")
        group.barrier()


if __name__ == "__main__":
    main(sys.argv[1:])
