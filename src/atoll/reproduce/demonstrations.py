"""Driver: which systems can be demonstrated, and by what; their parts one by one."""

import logging
from collections.abc import Iterator, Sequence
from string import ascii_lowercase
from typing import Final

from atoll.errors import AtollError, InvalidConfig, LabUnavailable
from atoll.reproduce import burstgpt, co2, one_byte, pccl, simulator, streaming_diloco
from atoll.reproduce.api import Demonstration, Line, Part, Say, missing
from atoll.reproduce.systems import by_slug

DEMONSTRATIONS: Final[dict[str, Demonstration]] = {
    "pccl": pccl.demonstrate,
    "simulator": simulator.demonstrate,
    "burstgpt": burstgpt.demonstrate,
    "one-byte": one_byte.demonstrate,
    "streaming-diloco": streaming_diloco.demonstrate,
    "co2": co2.demonstrate,
}

_log = logging.getLogger(__name__)


def find(slug: str) -> Demonstration:
    """The demonstration of a system. InvalidConfig: there is no such system, or none of it runs yet."""
    system = by_slug(slug)
    if slug not in DEMONSTRATIONS:
        raise InvalidConfig(f"{slug} is {system.status}; what can be run now: {', '.join(DEMONSTRATIONS)}")
    return DEMONSTRATIONS[slug]


def demonstrated(slug: str, full: bool, seed: int, say: Say, only: Sequence[str] = ()) -> Iterator[Line]:
    """The lines of a system, or `only` of some parts, by their numbers with or without letters. A part that can't be
    run to its end is a line that fails, and doesn't keep others from being run. InvalidConfig: there is no such part.
    """
    parts = find(slug)(full, seed, say)
    for number in only:
        if not any(_names(number, part) for part in parts):
            raise InvalidConfig(f"{slug} has no part {number!r}; there are: {', '.join(parts)}")
    for number, part in parts.items():
        if not only or any(_names(wanted, number) for wanted in only):
            yield from _lines(number, part)


def _names(wanted: str, number: str) -> bool:
    return wanted in (number, number.rstrip(ascii_lowercase))


def _lines(number: str, part: Part) -> Iterator[Line]:
    try:
        yield from part.lines()
    except LabUnavailable as error:
        yield missing(number, part.about, "", f"a lab of networks: {error}")
    except Exception as error:
        _log.exception("part %s, %s, came to no end", number, part.about)
        said = str(error) if isinstance(error, AtollError) else repr(error)
        yield Line(number, part.about, "comes to an end", said, "fail", "-")
