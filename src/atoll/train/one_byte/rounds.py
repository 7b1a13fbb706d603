"""Program: what all peers have said, round by round: with the base weights it is the whole state of a run.

    file     MAGIC, u32 length and u64 xxh3 of what follows: a JSON object that says what the run is; then rounds
    round    u16 peers, u32 bytes, u16 check of these two; the bytes in order of rank; u32 check of all up to here

A round is appended in one write. One that a power cut has left without its end is dropped; any other damage is refused.
"""

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import xxhash

from atoll.config import atomic_write
from atoll.errors import InvalidData, SaveFailed

MAGIC: Final = b"atoll one-byte log 1\n"
NAME: Final = "rounds.log"
LARGEST_HEAD: Final = 1 << 20
_HEAD: Final = struct.Struct("<IQ")
_ROUND: Final = struct.Struct("<HI")
_SHORT: Final = struct.Struct("<H")
_CHECK: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Round:
    """What `peers` said, each as many bytes, in order of rank."""

    peers: int
    said: bytes


def encode(rounds: Sequence[Round], check: int = 0) -> tuple[bytes, int]:
    """Rounds as they stand in a log behind those whose check is `check`, and the new check."""
    parts = []
    for each in rounds:
        size = _ROUND.pack(each.peers, len(each.said))
        record = size + _short(size) + each.said
        check = _next(check, record)
        parts += [record, _CHECK.pack(check)]
    return b"".join(parts), check


def decode(data: bytes, name: str, start: int = 0) -> tuple[list[Round], int]:
    """All whole rounds from `start` on, and where they end. InvalidData: one is damaged; `name` tells the user of
    what."""
    rounds: list[Round] = []
    check = 0
    while len(data) >= (body := start + _ROUND.size + _SHORT.size):
        size = data[start : start + _ROUND.size]
        peers, nbytes = _ROUND.unpack(size)
        sound = peers and nbytes % peers == 0 and data[start + _ROUND.size : body] == _short(size)
        end = body + nbytes + _CHECK.size
        if sound and len(data) < end:
            break
        check = _next(check, data[start : body + nbytes])
        if not sound or (check,) != _CHECK.unpack_from(data, body + nbytes):
            raise InvalidData(
                f"{name}: round {len(rounds)} is damaged: take another copy, or cut the file to its first {start} "
                "bytes to go on from there"
            )
        rounds.append(Round(peers, data[body : body + nbytes]))
        start = end
    return rounds, start


def read(place: Path) -> tuple[dict[str, Any], list[Round]]:
    """What a log, or the one in a folder, says of its run, and its rounds. InvalidData: none, damaged, or no such."""
    path = place / NAME if place.is_dir() else place
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidData(f"{path}: can't be read: {error.strerror}; begin without --resume, or name a log") from error
    body = len(MAGIC) + _HEAD.size
    if not data.startswith(MAGIC) or len(data) < body:
        raise InvalidData(f"{path}: is no log of the strategy one-byte, or its head is cut off; take another copy")
    length, digest = _HEAD.unpack_from(data, len(MAGIC))
    head = data[body : body + length]
    if length > LARGEST_HEAD or len(head) < length or xxhash.xxh3_64_intdigest(head) != digest:
        raise InvalidData(f"{path}: what it says of its run is damaged; take another copy")
    try:
        about = json.loads(head)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise InvalidData(f"{path}: doesn't say of which run it is; take another copy")
    rounds, _ = decode(data, str(path), body + length)
    return about, rounds


class LogFile:
    """Where one process writes a log that grows: whole at first, then only what is new."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: list[Round] = []
        self._check = self._nbytes = 0

    def write(self, about: dict[str, Any], rounds: Sequence[Round]) -> None:
        """Make the file hold these. SaveFailed: the disk refuses; whole rounds that were there are intact."""
        try:
            if self._nbytes and self._is_ours() and list(rounds[: len(self._written)]) == self._written:
                self._append(rounds[len(self._written) :])
            else:
                self._replace(about, rounds)
        except OSError as error:
            self._nbytes = 0
            raise SaveFailed(f"{self.path}: can't be written: {error}; choose another folder") from error
        self._written = list(rounds)

    def _is_ours(self) -> bool:
        return self.path.exists() and self.path.stat().st_size == self._nbytes

    def _append(self, rounds: Sequence[Round]) -> None:
        data, self._check = encode(rounds, self._check)
        with self.path.open("ab", buffering=0) as file:
            written = file.write(data)
            os.fsync(file.fileno())
        if written != len(data):
            raise OSError("the disk took only a part")
        self._nbytes += len(data)

    def _replace(self, about: dict[str, Any], rounds: Sequence[Round]) -> None:
        head = json.dumps(about).encode()
        data, self._check = encode(rounds)
        data = MAGIC + _HEAD.pack(len(head), xxhash.xxh3_64_intdigest(head)) + head + data
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, data)
        self._nbytes = len(data)


def _short(size: bytes) -> bytes:
    return _SHORT.pack(xxhash.xxh3_64_intdigest(size) & 0xFFFF)


def _next(check: int, record: bytes) -> int:
    return xxhash.xxh3_64_intdigest(record, seed=check) & 0xFFFFFFFF
