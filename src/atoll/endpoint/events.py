"""Policy: the events of a stream as servers of OpenAI's API send it, from its bytes as they come."""

import json
from typing import Any, Final

import msgspec

LARGEST: Final = 4 << 20
"""Bytes of an event."""


class Events:
    """A line ends with a line feed, and with none of the other characters that Python takes for the end of one: in the
    texts of answers they may stand as they are. `over`: the stream has said that it ends."""

    def __init__(self) -> None:
        self._rest = b""
        self.over = False

    def push(self, data: bytes) -> list[dict[str, Any]]:
        """The events that are whole now. ValueError for what is none."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LARGEST:
            raise ValueError(f"an event of more than {LARGEST} bytes")
        found = []
        for line in lines:
            told = line.removeprefix(b"data:").strip()
            self.over |= told == b"[DONE]"
            if self.over or not line.startswith(b"data:"):
                continue
            found.append(_event(told))
        return found


def _event(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.convert(json.loads(data), dict[str, Any])
    except RecursionError as error:
        raise ValueError("an event that is nested too deep") from error
