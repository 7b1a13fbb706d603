"""Driver: what the simulator promises: closed forms, determinism, errors, speed; and how near reality it comes."""

from atoll.reproduce.api import Part, Say
from atoll.reproduce.simulator.collectives import a_thousand_ranks, collectives
from atoll.reproduce.simulator.determinism import determinism
from atoll.reproduce.simulator.laws import laws
from atoll.reproduce.simulator.nearness import nearness
from atoll.reproduce.simulator.nvlink import nvlink
from atoll.reproduce.simulator.others import others
from atoll.reproduce.simulator.pace import many_requests, pace
from atoll.reproduce.simulator.queues import queues
from atoll.reproduce.simulator.refusals import refusals
from atoll.reproduce.simulator.replay import replay
from atoll.reproduce.simulator.serving import serving
from atoll.reproduce.simulator.shares import shares


def demonstrate(full: bool, seed: int, say: Say) -> dict[str, Part]:
    """As the sheet has them."""
    return {
        "1": Part("queues", lambda: queues(full, seed, say)),
        "2": Part("max-min fair shares", lambda: shares(seed, say)),
        "3": Part("collectives", lambda: collectives(say)),
        "4": Part("known laws", lambda: laws(full, seed, say)),
        "5": Part("determinism", lambda: determinism(say)),
        "6": Part("the same decisions as a real server", lambda: replay(seed, say)),
        "7": Part("what others measured of servers", lambda: others(say)),
        "7c": Part("what others measured of all-reduces", lambda: nvlink(say)),
        "8": Part("groups on this machine", lambda: nearness(full, say)),
        "8s": Part("servers on this machine", lambda: serving(full, seed, say)),
        "9": Part("speed", lambda: pace(say)),
        "9d": Part("a thousand ranks", lambda: a_thousand_ranks(say)),
        "9e": Part("100,000 requests", lambda: many_requests(say)),
        "10": Part("refusals", lambda: refusals(say)),
    }
