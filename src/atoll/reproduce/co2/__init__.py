"""Driver: what CO2 promises (Sun et al. 2024, arXiv 2401.16265), run here."""

from atoll.reproduce.api import Part, Say
from atoll.reproduce.co2.digits import digits
from atoll.reproduce.co2.faults import killed, refusals
from atoll.reproduce.co2.noise import ablation, rate
from atoll.reproduce.co2.parity import parity
from atoll.reproduce.co2.scaling import scaling
from atoll.reproduce.co2.shards import shards
from atoll.reproduce.co2.slow import slow_link


def demonstrate(full: bool, seed: int, say: Say) -> dict[str, Part]:
    """As the sheet has them."""
    return {
        "1": Part("special cases", lambda: parity(seed, say)),
        "2": Part("round time on a slow link", lambda: slow_link(full, seed, say)),
        "3": Part("penalty and clip", lambda: ablation(seed, say)),
        "4": Part("shards", lambda: shards(seed, say)),
        "5": Part("digits", lambda: digits(seed, say)),
        "6": Part("the rate on a convex problem", lambda: rate(full, seed, say)),
        "7": Part("16 to 128 workers", lambda: scaling(say)),
        "8a": Part("a kill while an average travels", lambda: killed(seed, say)),
        "8b": Part("refusals", lambda: refusals(seed, say)),
    }
