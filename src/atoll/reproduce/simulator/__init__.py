"""Driver: what the simulator promises: closed forms, determinism, errors, speed; and how near reality it comes."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
from atoll.reproduce.simulator.collectives import a_thousand_ranks, collectives
from atoll.reproduce.simulator.determinism import determinism
from atoll.reproduce.simulator.laws import laws
from atoll.reproduce.simulator.nearness import nearness
from atoll.reproduce.simulator.pace import pace
from atoll.reproduce.simulator.queues import queues
from atoll.reproduce.simulator.refusals import refusals
from atoll.reproduce.simulator.shares import shares

_NOT_YET = (
    ("6", "a real serving run replayed: the same scheduler decisions"),
    ("7", "published profiles reproduce a published serving run"),
    ("9e", "100,000 requests on 16 engines in less than 60 s"),
)


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order."""
    yield from queues(full, seed, say)
    yield from shares(seed, say)
    yield from collectives(say)
    yield from laws(full, seed, say)
    yield from determinism(say)
    for number, claim in _NOT_YET:
        yield Line(number, claim, "", "needs serve", "not yet", "-")
    yield from nearness(full, say)
    yield from pace(say)
    yield a_thousand_ranks(say)
    yield from refusals(say)
