"""Driver: does it learn as much as data-parallel training, of a hundredth of the bytes? (Streaming DiLoCo, "Done when"
2.)"""

from collections.abc import Iterator

from atoll.net.lab import Shape
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.streaming_diloco.islands import train

EVERY, FRAGMENTS = 32, 4
MODEL = ("--model.width", "64", "--model.context", "64", "--lr", "0.004", "--warm-up", "60", "--save-every", "0")
WAYS = {
    "data-parallel": ("--strategy", "ddp"),
    "DiLoCo": ("--strategy", "diloco", "--every", str(EVERY)),
    "streaming": (
        *("--strategy", "streaming", "--every", str(EVERY), "--fragments", str(FRAGMENTS), "--delay", "2"),
        *("--mix", "0.5", "--codec", "e3m0"),
    ),
}


def learning(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Two islands, the same text: loss, bytes on the wire, the busiest moment."""
    steps = 120 * EVERY if full else 10 * EVERY
    usual = (*MODEL, "--steps", str(steps), "--batch", "4", "--seed", str(seed))
    found = {}
    for name, how in WAYS.items():
        say(f"{name}, {steps} steps")
        found[name] = train(Shape(), (*usual, *how))
    parallel, diloco, streaming = found.values()
    worse = streaming.loss / parallel.loss - 1
    losses = ", ".join(f"{name} {run.loss:.3f}" for name, run in found.items())
    claim = f"byte-level model, 2 islands, {steps} steps of the same text, H={EVERY}, P={FRAGMENTS}, delay 2, E3M0"
    yield Line(
        "2a",
        f"{claim}: loss on held-out text",
        "<= 3 % above data-parallel",
        f"{losses}: {worse:+.1%}" + ("" if full else "; too few exchanges to tell, see --full"),
        judged(worse <= 0.03) if full else "not yet",
    )
    fewer = parallel.bytes_sent / streaming.bytes_sent
    yield Line(
        "2b",
        "the same: bytes that left an island, headers and votes included",
        ">= 100x fewer",
        ", ".join(f"{name} {run.bytes_sent / 1e6:.1f} MB" for name, run in found.items()) + f": {fewer:.0f}x fewer",
        judged(fewer >= 100),
    )
    window_s = streaming.seconds / (steps - 1) * EVERY / FRAGMENTS
    peak = streaming.peak(window_s) / diloco.peak(window_s)
    yield Line(
        "2c",
        f"the same: the most bytes in any {window_s:.2f} s, the time from one fragment to the next",
        f"<= 1.3 / {FRAGMENTS} of DiLoCo's",
        f"{streaming.peak(window_s) / 1e3:.0f} kB against {diloco.peak(window_s) / 1e3:.0f} kB: {peak:.3f} of it",
        judged(peak <= 1.3 / FRAGMENTS),
    )
