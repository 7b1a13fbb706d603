"""Driver: how much time a slow link costs. (Streaming DiLoCo, "Done when" 3.)"""

from collections.abc import Iterator

from atoll.net.lab import Shape
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.streaming_diloco.islands import Trained, train

FAST, SLOW = Shape(), Shape(rate_bits_per_s=5e6, delay_s=0.025)
TURNS = (FAST, SLOW, SLOW, FAST)
"""A machine doesn't always keep its pace."""
EVERY = 32
STREAMING = ("--strategy", "streaming", "--fragments", "4", "--delay", "5", "--codec", "e3m0")
DILOCO = ("--strategy", "diloco")


def slow_link(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Streaming and blocking, each over 5 Mbit/s and over a link that is no limit."""
    steps = (12 if full else 6) * EVERY  # a short run is mostly its last exchange, behind which nothing is computed
    usual = ["--every", str(EVERY), "--steps", str(steps), "--batch", "16", "--save-every", "0", "--seed", str(seed)]
    usual += ["--model.width", "96", "--model.context", "64"]
    found: dict[tuple[str, Shape], list[Trained]] = {}
    for name, how, shapes in (("streaming", STREAMING, TURNS), ("DiLoCo", DILOCO, TURNS[:2])):
        for shape in shapes:
            say(f"{name} over {shape.rate_bits_per_s / 1e6:g} Mbit/s")
            found.setdefault((name, shape), []).append(train(shape, (*usual, *how)))
    for number, name, expected in (("3a", "streaming", "<= 10 % longer"), ("3b", "DiLoCo", "> 25 % longer")):
        fast, slow = (found[name, shape] for shape in (FAST, SLOW))
        fast_s, slow_s = (sum(run.seconds for run in runs) for runs in (fast, slow))
        longer = slow_s / fast_s - 1
        yield Line(
            number,
            f"two islands, 5 Mbit/s and 50 ms there and back against 1 Gbit/s: {steps} steps of {name}, H={EVERY}"
            + (", P=4, delay 5, E3M0" if name == "streaming" else ", fp32, blocking"),
            expected,
            f"{slow_s:.1f} s against {fast_s:.1f} s (runs of each: {len(slow)}): {longer:+.0%}; "
            f"waited {sum(run.waited_s for run in slow):.1f} s",
            judged(longer <= 0.10 if name == "streaming" else longer > 0.25),
        )
