"""Driver: traces and models in files, plain or gzip; line by line, so that none needs to fit into memory."""

import gzip
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from atoll.errors import InvalidData, SaveFailed
from atoll.workload.api import Demand, Tally
from atoll.workload.trace import adapters

LONGEST_LINE: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"


class TraceFile:
    """The requests of a file, read anew by each iteration; `tally` is of the last one."""

    def __init__(self, path: Path, source: str = "") -> None:
        self.path, self.source = path, source
        self.tally = Tally()

    def __iter__(self) -> Iterator[Demand]:
        """Raises `InvalidData` naming file, line and column."""
        self.tally = Tally()
        try:
            yield from adapters.read(_lines(self.path), self.tally, self.source)
        except InvalidData as error:
            raise InvalidData(f"{self.path}: {error}") from error


def save(path: Path, parts: Iterable[bytes]) -> None:
    """Write `path` piece by piece, aside until it is whole; with gzip where its name ends in .gz.

    Raises `SaveFailed`; what was there is then as it was.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb") as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                    packed.writelines(parts)
            else:
                file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise SaveFailed(f"can't write {path}: {error.strerror}; choose another folder") from error
    finally:
        with suppress(OSError):
            aside.unlink()


def _lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == _GZIP
            stream: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
            while line := stream.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE:
                    raise InvalidData(f"line {number} is longer than {LONGEST_LINE} bytes")
                yield line.decode()
    except UnicodeDecodeError as error:
        raise InvalidData(f"line {number} is no UTF-8: {error}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidData(f"after line {number}: broken gzip: {error}") from error
    except OSError as error:
        raise InvalidData(f"can't be read: {error.strerror or error}") from error
