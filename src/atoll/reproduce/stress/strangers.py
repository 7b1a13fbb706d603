"""Driver: strangers: connections that say nothing, nonsense, or begin like one of ours and go on with nonsense."""

import asyncio
import struct
from contextlib import suppress
from typing import Final

import numpy as np

from atoll.group import messages
from atoll.group.messages import AskStatus
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER, LENT
from atoll.net.preamble import Greeting
from atoll.version import VERSION

_LARGEST_NOISE: Final = 64 << 10
_QUESTIONS: Final = 20


def words(dice: np.random.Generator) -> bytes:
    """What one of them says."""
    noise = dice.bytes(int(dice.integers(1, _LARGEST_NOISE)))
    greeting = preamble.encode(Greeting(VERSION))
    question = messages.encode(AskStatus())
    return (
        b"",
        noise,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        greeting[: int(dice.integers(1, len(greeting)))],
        greeting + noise,
        greeting + HEADER.pack(CONTROL, 0x7FFFFFFF, 0),  # a message of 2 GiB
        greeting + HEADER.pack(7, 1 << 20, 1) + noise,  # data nobody has asked for
        greeting + HEADER.pack(7, LENT | 64, 1) + struct.pack("<Q", 0),  # in memory nobody has lent
        greeting + HEADER.pack(CONTROL, len(noise), 0) + noise,  # a whole message, of nothing
        greeting + (HEADER.pack(CONTROL, len(question), 0) + question) * _QUESTIONS,
    )[int(dice.integers(10))]


async def visit(host: str, port: int, says: bytes, stays_s: float) -> None:
    """Dial, speak, listen for a while, go."""
    with suppress(OSError):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(says)
            with suppress(TimeoutError):
                async with asyncio.timeout(stays_s):
                    while await reader.read(1 << 16):
                        pass
        finally:
            writer.transport.abort()
