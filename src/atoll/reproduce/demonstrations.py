"""Driver: which systems can be demonstrated, and by what."""

from typing import Final

from atoll.errors import InvalidConfig
from atoll.reproduce import burstgpt, co2, one_byte, pccl, simulator, streaming_diloco
from atoll.reproduce.api import Demonstration
from atoll.reproduce.systems import by_slug

DEMONSTRATIONS: Final[dict[str, Demonstration]] = {
    "pccl": pccl.demonstrate,
    "simulator": simulator.demonstrate,
    "burstgpt": burstgpt.demonstrate,
    "one-byte": one_byte.demonstrate,
    "streaming-diloco": streaming_diloco.demonstrate,
    "co2": co2.demonstrate,
}


def find(slug: str) -> Demonstration:
    """The demonstration of a system. InvalidConfig: there is no such system, or none of it runs yet."""
    system = by_slug(slug)
    if slug not in DEMONSTRATIONS:
        raise InvalidConfig(f"{slug} is {system.status}; what can be run now: {', '.join(DEMONSTRATIONS)}")
    return DEMONSTRATIONS[slug]
