"""Driver: how much time a slow link costs. (Streaming DiLoCo, "Done when" 3.)"""

from collections.abc import Iterator

from atoll.errors import LabUnavailable
from atoll.net.lab import Shape
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.streaming_diloco.islands import Trained, train

FAST, SLOW = Shape(), Shape(rate_bits_per_s=5e6, delay_s=0.025)
EVERY = 32
STREAMING = ("--strategy", "streaming", "--fragments", "4", "--delay", "5", "--codec", "e3m0")
DILOCO = ("--strategy", "diloco")


def slow_link(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Streaming and blocking, each over 5 Mbit/s and over a link that is no limit."""
    steps = 8 * EVERY if full else 3 * EVERY
    usual = ["--every", str(EVERY), "--steps", str(steps), "--batch", "16", "--save-every", "0", "--seed", str(seed)]
    usual += ["--model.width", "96", "--model.context", "64"]
    try:
        found: dict[str, list[Trained]] = {}
        for name, how, shape in (
            ("streaming", STREAMING, FAST), ("streaming", STREAMING, SLOW),
            ("DiLoCo", DILOCO, FAST), ("DiLoCo", DILOCO, SLOW),
        ):  # fmt: skip
            say(f"{name} over {shape.rate_bits_per_s / 1e6:g} Mbit/s")
            found.setdefault(name, []).append(train(shape, (*usual, *how), say))
    except LabUnavailable as error:
        yield Line("3", "wall-clock on 5 Mbit/s", "", f"not yet: needs {error}", "not yet", "-")
        return
    for number, name, expected in (("3a", "streaming", "<= 10 % longer"), ("3b", "DiLoCo", "> 25 % longer")):
        fast, slow = found[name]
        longer = slow.seconds / fast.seconds - 1
        yield Line(
            number,
            f"two islands, 5 Mbit/s and 50 ms there and back against 1 Gbit/s: {steps} steps of {name}, H={EVERY}"
            + (", P=4, delay 5, E3M0" if name == "streaming" else ", fp32, blocking"),
            expected,
            f"{slow.seconds:.1f} s against {fast.seconds:.1f} s: {longer:+.0%}; waited {slow.waited_s:.1f} s",
            judged(longer <= 0.10 if name == "streaming" else longer > 0.25),
        )
