"""Driver: files that hold the keys of those who may ask."""

from pathlib import Path

from atoll.errors import InvalidData


def read_keys(path: Path) -> tuple[str, ...]:
    """One a line; empty lines and those that begin with # don't count. InvalidData: it can't be read, or has none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from error
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise InvalidData(f"{path}: has no key in it; write one on a line of its own")
    return keys


def read_key(path: Path) -> str:
    """The first."""
    return read_keys(path)[0]
