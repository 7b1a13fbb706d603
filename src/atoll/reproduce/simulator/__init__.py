"""Driver: what the simulator promises: closed forms, determinism, errors, speed; and how near reality it comes."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
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


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order."""
    yield from queues(full, seed, say)
    yield from shares(seed, say)
    yield from collectives(say)
    yield from laws(full, seed, say)
    yield from determinism(say)
    yield from replay(seed, say)
    yield from others(say)
    yield from nvlink(say)
    yield from nearness(full, say)
    yield from serving(full, seed, say)
    yield from pace(say)
    yield a_thousand_ranks(say)
    yield many_requests(say)
    yield from refusals(say)
