"""Driver: what conversations leave in the prefix cache of a real server. (BurstGPT, "Done when" 4.)"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from atoll.endpoint.driving import Prompts
from atoll.model.transformer import TransformerConfig
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.server import Server, driven, random_model, serving
from atoll.rng import stream
from atoll.workload.api import Arrival, Demand
from atoll.workload.generate.conversations import Conversations, LogNormalTime, Talk
from atoll.workload.generate.lengths import Geometric, LogNormal
from atoll.workload.generate.processes import Poisson

SHAPE = TransformerConfig(width=64, layers=2, heads=4, context=2048)
SESSIONS_PER_S = 10.0
TALK = Talk(
    turns=Geometric(3.0),
    think=LogNormalTime(0.1, 1.0),
    first=LogNormal(75, 1.0, high=512),
    more=LogNormal(15, 1.0, high=256),
    output=LogNormal(50, 0.8, high=256),
    most_tokens=1024,
)
"""A quarter of what 4a has, so that a server of this machine is through with it while somebody waits."""


class Sessions:
    """A workload of the first `n` sessions."""

    def __init__(self, world: Conversations, n: int) -> None:
        self._world, self._n = world, n

    def start(self) -> Iterator[Demand]:
        return islice(self._world.start(), self._n)

    def handle(self, answered: Arrival, now_s: float) -> Sequence[Demand]:
        return self._world.handle(answered, now_s)


class Shuffled(Prompts):
    """The same tokens in an order of their own each time: nothing begins as anything before."""

    def of(self, arrival: Arrival) -> tuple[int, ...]:
        rng = stream(arrival.number, "shuffled")
        return tuple(rng.permutation(super().of(arrival)).tolist())


def sharing(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Hits by the engine's own count."""
    sessions = 1000 if full else 60
    say(f"{sessions:,} conversations with a server, and the same shuffled")
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder, "model"), seed, SHAPE)
        with serving(model, "--threads", "1") as server:
            talked, turns = _hit_rate(server, sessions, seed, Prompts(seed))
            shuffled, _ = _hit_rate(server, sessions, seed, Shuffled(seed))
    yield Line(
        "4b",
        f"{sessions:,} sessions against `atoll serve`: tokens of prompts found in its cache, and of the same shuffled",
        "> 0.6, about 0",
        f"{talked:.2f} of all in {turns:,} turns, {shuffled:.3f} shuffled",
        judged(talked > 0.6 and shuffled < 0.01),
    )


def _hit_rate(server: Server, sessions: int, seed: int, prompts: Prompts) -> tuple[float, int]:
    """And how many turns were answered."""
    before = server.counts()
    world = Sessions(Conversations(Poisson(SESSIONS_PER_S), TALK, seed), sessions)
    answered = driven(server.url, world, prompts).answered
    hits, queries = (
        server.counts()[name] - before[name]
        for name in ("atoll_prefix_cache_hits_total", "atoll_prefix_cache_queries_total")
    )
    return hits / queries, answered
