"""Driver: asks a server in rounds of so many at once, so that its engine takes steps of all kinds.

The steps are timed in the engine's own process while the server and this client share the machine with it, as they do
when it is used.
"""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from atoll.endpoint.api import Request, Sampling, Tokens
from atoll.endpoint.upstream import Upstream
from atoll.reproduce.api import Say
from atoll.reproduce.calibration.engines import Heard
from atoll.reproduce.server import Server
from atoll.rng import stream

_LETTERS: Final = (33, 127)
ALONE: Final = 12
"""Requests to an engine that does nothing else, to see how long the way is."""


@dataclass(frozen=True)
class Rounds:
    """Each of `batches` with each of `prompts` tokens, at most `most_tokens` in all; answers of `output` tokens."""

    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    most_tokens: int
    output: int


FULL: Final = Rounds((1, 2, 3, 4, 6, 8, 12, 16), (16, 48, 128, 320, 768), 4096, 24)
QUICK: Final = Rounds((1, 2, 3, 4, 6), (16, 48, 96), 400, 6)


async def ask(server: Server, rounds: Rounds, say: Say) -> list[Heard]:
    """All rounds, in an order that no drift of the machine goes with. What those heard who were asked alone, first."""
    upstream = Upstream(server.url)
    try:
        await upstream.start()
        (served,) = upstream.describe()
        numbers = iter(range(1 << 30))

        async def one(prompt: int, output: int) -> Heard:
            number = next(numbers)
            tokens = tuple(stream(0, "calibration", number).integers(*_LETTERS, size=prompt).tolist())
            sampling = Sampling(temperature=0.0)
            request = Request(
                id=f"calibration-{number}",
                model=served.name,
                prompt=Tokens(tokens),
                max_tokens=output,
                ignore_end=True,
                sampling=sampling,
            )
            sent_ns, times_ns = time.monotonic_ns(), list[int]()
            async with aclosing(upstream.generate(request)) as answer:
                async for _ in answer:
                    times_ns.append(time.monotonic_ns())
            return Heard(sent_ns, times_ns[0], times_ns[-1])

        alone = [await one(rounds.prompts[0], rounds.output) for _ in range(ALONE)]
        plan = [(b, p) for b in rounds.batches for p in rounds.prompts if b * p <= rounds.most_tokens]
        order = stream(0, "calibration", "order").permutation(len(plan)).tolist()
        for done, i in enumerate(order):
            batch, prompt = plan[i]
            say(f"round {done + 1} of {len(plan)}: {batch} prompts of {prompt} tokens")
            await asyncio.gather(*(one(prompt, rounds.output) for _ in range(batch)))
        return alone
    finally:
        await upstream.close()
