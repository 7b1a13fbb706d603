"""Driver: the file by which a master that is started again knows whom to expect."""

import logging
from dataclasses import replace
from pathlib import Path

import msgspec

from atoll.config import atomic_write
from atoll.errors import InvalidConfig, SaveFailed
from atoll.group.membership.recovery import Remembered

log = logging.getLogger("atoll.master")


class Memory:
    """A master's, at `path`."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._written: Remembered | None = None

    def read(self) -> Remembered | None:
        """What the master before this one wrote; None: nothing."""
        if not self._path.exists():
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Remembered)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidConfig(f"{self._path} is not what a master wrote ({error}): remove it") from None

    def write(self, now: Remembered) -> None:
        """Keep that, if it is news. The number of data phases is none: members know it better."""
        now = replace(now, seq=0)
        if now == self._written:
            return
        self._written = now
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path, msgspec.json.encode(now))
        except (OSError, SaveFailed) as error:
            log.warning("a master started after this one will not know whom to expect: %s", error)
