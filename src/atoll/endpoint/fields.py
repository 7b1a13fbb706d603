"""Policy: the fields of a request's body, each taken as what it must be; the error names the one that isn't."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from atoll.errors import InvalidRequest

LARGEST_TOKEN: Final = (1 << 31) - 1
_LOOKED_AT: Final = 1 << 16
"""Bytes of a body in which it is worth while to look for what is wrong."""


def body(data: bytes) -> "Fields":
    """A JSON object. InvalidRequest for anything else."""
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if (name := _no_number(data)) is not None:
            raise InvalidRequest(name, f"{name} is no finite number, and JSON has no others") from error
        raise InvalidRequest("", f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequest("", "the body must be a JSON object")
    return Fields(found)


def _no_number(data: bytes) -> str | None:
    """A field that is NaN or infinite, as careless clients write it; None where that isn't what is wrong."""
    if len(data) > _LOOKED_AT:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    open_fields = [(name, value) for name, value in found.items()] if isinstance(found, dict) else []
    while open_fields:
        name, value = open_fields.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return str(name)
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        open_fields += [
            (f"{name}.{key}" if isinstance(value, dict) else f"{name}[{key}]", each) for key, each in inside
        ]
    return None


class Fields:
    """An object of a body. null counts as not there; what isn't asked for is ignored."""

    def __init__(self, values: Mapping[str, Any], within: str = "") -> None:
        self._values, self._within = values, within

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def get(self, name: str) -> Any:
        """As it is; None where it isn't there."""
        return self._values.get(name)

    def within(self, name: str) -> str:
        """What errors call this field."""
        return f"{self._within}{name}"

    def wrong(self, name: str, message: str) -> InvalidRequest:
        """An error about this field."""
        return InvalidRequest(self.within(name), f"{self.within(name)} {message}")

    def required(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise self.wrong(name, "is missing")
        return value

    def required_text(self, name: str) -> str:
        if not isinstance(value := self.required(name), str):
            raise self.wrong(name, "must be a text")
        return value

    def text(self, name: str, default: str = "") -> str:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "must be a text")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        """A whole number in this range."""
        value = self.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(name, f"must be a whole number from {least} to {most}")
        return value

    def number(self, name: str, least: float, most: float, default: float) -> float:
        """A finite number in this range."""
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.wrong(name, f"must be a number from {least:g} to {most:g}")
        return float(value)

    def share(self, name: str, default: float) -> float:
        """A number above 0, and at most 1."""
        value = self.number(name, 0.0, 1.0, default)
        if value == 0:
            raise self.wrong(name, "must be above 0")
        return value

    def list(self, name: str) -> list[Any]:
        value = self.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        return value

    def object(self, name: str) -> "Fields | None":
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "must be an object")
        return Fields(value, self.within(f"{name}."))

    def tokens(self, name: str) -> tuple[int, ...]:
        """A list of token ids."""
        return token_ids(self.list(name), self, name)


def token_ids(values: "list[Any]", fields: Fields, name: str) -> tuple[int, ...]:
    """All of them, or an error."""
    found = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    if not all(type(value) is int and 0 <= value <= LARGEST_TOKEN for value in found):
        raise fields.wrong(name, "must hold token ids, whole numbers from 0 on")
    return tuple(found)
