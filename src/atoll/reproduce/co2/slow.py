"""Driver: an exchange that takes most of a round, hidden and not. (CO2, "Done when" 2.)"""

from collections.abc import Iterator
from typing import Final

from atoll.errors import LabUnavailable
from atoll.net.lab import Shape
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.streaming_diloco.islands import Trained, train

EVERY: Final = 16
DELAY_S: Final = 0.01
SHARE: Final = 0.8
"""Of the computing of a round, that an exchange takes."""
PARAMETERS: Final = 467_808
SETTINGS: Final = ["--model.width", "96", "--model.context", "64", "--batch", "16", "--save-every", "0"]


def slow_link(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The link is made as slow as this machine computes."""
    steps = EVERY * (24 if full else 8)
    usual = [*SETTINGS, "--every", str(EVERY), "--steps", str(steps), "--seed", str(seed)]

    def run(strategy: str, shape: Shape) -> Trained:
        say(f"{strategy} over {shape.rate_bits_per_s / 1e6:.3g} Mbit/s")
        return train(shape, [*usual, "--strategy", strategy], say)

    try:
        alone = run("co2", Shape())
        round_s = alone.seconds / (steps - 1) * EVERY
        rate = 32 * PARAMETERS / (SHARE * round_s - 4 * DELAY_S)
        shape = Shape(rate_bits_per_s=rate, delay_s=DELAY_S)
        late, waiting = run("co2", shape), run("local-sgd", shape)
    except LabUnavailable as error:
        yield Line("2", "round time on a slow link", "", f"not yet: needs {error}", "not yet", "-")
        return
    link = f"{rate / 1e6:.1f} Mbit/s and {2 * DELAY_S * 1e3:g} ms there and back, over which an exchange takes "
    link += f"{SHARE:.0%} of a round's computing ({round_s:.2f} s)"
    longer = {name: found.seconds / alone.seconds - 1 for name, found in (("late", late), ("waiting", waiting))}
    yield Line(
        "2a",
        f"two islands, {link}: {steps} steps, exchanges every {EVERY}, against 1 Gbit/s",
        "<= 5 % longer",
        f"{late.seconds:.1f} s against {alone.seconds:.1f} s: {longer['late']:+.1%}",
        judged(longer["late"] <= 0.05 and late.equal),
    )
    yield Line(
        "2b",
        "Local SGD there, exchanges as often",
        ">= 35 % longer",
        f"{waiting.seconds:.1f} s: {longer['waiting']:+.0%}",
        judged(longer["waiting"] >= 0.35),
    )
    waits = {name: found.waited_s / found.seconds for name, found in (("late", late), ("waiting", waiting))}
    yield Line(
        "2c",
        "share of the time in which CO2 waits there",
        "< 5 %",
        f"{waits['late']:.1%} ({late.waited_s:.2f} s); Local SGD {waits['waiting']:.0%}",
        judged(waits["late"] < 0.05),
    )
