"""Driver: an exchange that takes most of a round, hidden and not. (CO2, "Done when" 2.)"""

from collections.abc import Iterator
from statistics import median
from typing import Final

from atoll.net.lab import Shape
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.streaming_diloco.islands import Trained, train

EVERY: Final = 16
ROUNDS: Final = 7
"""Of a run. Neither the first counts, which is waited for, nor the last, after which there is nothing to compute."""
FAST: Final = Shape()
DELAY_S: Final = 0.01
SHARE: Final = 0.8
"""Of the computing of a round, that an exchange takes."""
PARAMETERS: Final = 467_808
SETTINGS: Final = ["--model.width", "96", "--model.context", "64", "--batch", "48", "--save-every", "0"]
Rounds = list[tuple[float, float]]


def slow_link(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Over a fast link and a slow one in turns, for a machine does not always keep its pace."""
    late: dict[str, list[Trained]] = {"fast": [], "slow": []}
    fast = _train("co2", FAST, seed, say)
    rate = 32 * PARAMETERS / (SHARE * _usual_s(fast.rounds(EVERY)) - 4 * DELAY_S)
    slow = Shape(rate_bits_per_s=rate, delay_s=DELAY_S)
    late["fast"].append(fast)
    for turn in range(4 if full else 2):
        late["slow"].append(_train("co2", slow, seed + turn, say))
        late["fast"].append(_train("co2", FAST, seed + turn + 1, say))
    waiting = _train("local-sgd", slow, seed, say)
    rounds = {name: [each for run in runs for each in run.rounds(EVERY)] for name, runs in late.items()}
    alone_s, late_s, waiting_s = (_usual_s(some) for some in (rounds["fast"], rounds["slow"], waiting.rounds(EVERY)))
    link = f"{rate / 1e6:.1f} Mbit/s and {2 * DELAY_S * 1e3:g} ms there and back, over which an exchange takes "
    link += f"{SHARE:.0%} of a round's computing"
    spread = ", ".join(f"{min(some)[0]:.2f}-{max(some)[0]:.2f} s" for some in rounds.values())
    yield Line(
        "2a",
        f"two islands, {link}: a round of {EVERY} steps against one over 1 Gbit/s, medians of {len(rounds['slow'])} "
        f"and {len(rounds['fast'])} in runs that take turns",
        "<= 5 % longer",
        f"{late_s:.2f} s against {alone_s:.2f} s: {late_s / alone_s - 1:+.1%} (fast, slow: {spread})",
        judged(late_s <= 1.05 * alone_s and all(run.equal for run in late["slow"])),
    )
    yield Line(
        "2b",
        "Local SGD there, exchanges as often",
        ">= 35 % longer",
        f"{waiting_s:.2f} s: {waiting_s / alone_s - 1:+.0%}",
        judged(waiting_s >= 1.35 * alone_s),
    )
    waits = sum(waited for _, waited in rounds["slow"]) / sum(seconds for seconds, _ in rounds["slow"])
    yield Line("2c", "share of the time in which CO2 waits there", "< 5 %", f"{waits:.1%}", judged(waits < 0.05))


def _train(strategy: str, shape: Shape, seed: int, say: Say) -> Trained:
    say(f"{strategy} over {shape.rate_bits_per_s / 1e6:.3g} Mbit/s")
    flags = [*SETTINGS, "--every", str(EVERY), "--steps", str(EVERY * ROUNDS), "--seed", str(seed)]
    return train(shape, [*flags, "--strategy", strategy])


def _usual_s(rounds: Rounds) -> float:
    return median(seconds for seconds, _ in rounds)
