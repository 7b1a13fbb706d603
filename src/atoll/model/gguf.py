"""Driver: reads GGUF files, version 2 and 3, for who loads a model: metadata, and tensors as they lie or as float32.

The file is mapped into memory, not read: what nobody asks for is never loaded. Nothing in it is trusted: each count and
length is held against the bytes there are before anything is made from it. Format: `docs/gguf.md` of ggml.
"""

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidData
from atoll.model.quants import PACKINGS, Packing, unpacked

T = TypeVar("T")

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
ALIGNMENT: Final = 32
MOST_STRINGS: Final = 1 << 22
"""In one list: some 250 MB of Python's strings. The largest vocabularies have a tenth of it."""
MOST_TENSORS: Final = 1 << 16
_MOST_ALIGNMENT: Final = 1 << 20
_MOST_NESTING: Final = 4
_MOST_DIMENSIONS: Final = 4
_SCALARS: Final = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4"} | {
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL, _STRING, _LIST = 7, 8, 9
_SMALLEST: Final = {kind: int(form[2]) for kind, form in _SCALARS.items()} | {_BOOL: 1, _STRING: 8, _LIST: 12}
"""Bytes of the shortest value of each kind."""

Value = bool | int | float | str | NDArray[Any] | list[Any]


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies. `shape` as in NumPy, rows first; the file has it the other way round."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


class GGUF:
    """One file. Its arrays are views of the mapping, read-only, and keep it alive."""

    def __init__(self, path: Path, data: "mmap.mmap | bytes") -> None:
        """Reads what comes before the tensors. InvalidData names the file and what in it is wrong."""
        self.path = path
        self._bytes = np.frombuffer(data, np.uint8)
        reader = _Reader(path, memoryview(data))
        counted = reader.header()
        self.metadata: dict[str, Value] = dict(reader.metadata(counted.entries))
        self.tensors: dict[str, Stored] = dict(reader.tensors(counted.tensors))
        self._base = self._start(reader.at)
        for tensor in self.tensors.values():
            self._check(tensor)

    @classmethod
    def open(cls, path: Path) -> "GGUF":
        """The file at `path`. InvalidData where it can't be read or isn't sound."""
        try:
            with path.open("rb") as file:
                return cls(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise InvalidData(f"{path}: can't be read ({error.strerror or error})") from error
        except ValueError as error:
            if isinstance(error, InvalidData):
                raise
            raise InvalidData(f"{path}: is empty") from error

    def required(self, key: str, kind: type[T]) -> T:
        """The metadata of this name. InvalidData where it is missing or of another type."""
        if key not in self.metadata:
            raise InvalidData(f"{self.path}: has no {key}")
        return self._typed(key, kind)

    def optional(self, key: str, default: T) -> T:
        """The same, or `default`, whose type it must have."""
        return self._typed(key, type(default)) if key in self.metadata else default

    def packing(self, name: str) -> Packing:
        """How the tensor is packed. InvalidData for one that isn't there, or is packed in a way not known here."""
        if name not in self.tensors:
            raise InvalidData(f"{self.path}: has no tensor {name}")
        kind = self.tensors[name].kind
        if kind not in PACKINGS:
            known = ", ".join(packing.name for packing in PACKINGS.values())
            raise InvalidData(f"{self.path}: {name} is packed in way {kind}, which isn't known here; known: {known}")
        return PACKINGS[kind]

    def rows(self, name: str) -> NDArray[np.uint8]:
        """The tensor as it lies: [rows, bytes of a row], a view. One of a single dimension is one row."""
        packing, tensor = self.packing(name), self.tensors[name]
        nbytes = packing.row_bytes(tensor.shape[-1])
        rows = tensor.numbers // tensor.shape[-1]
        begin = self._base + tensor.offset
        return self._bytes[begin : begin + rows * nbytes].reshape(rows, nbytes)

    def numbers(self, name: str) -> NDArray[np.float32]:
        """The tensor unpacked, in its shape; memory of its own."""
        return unpacked(self.packing(name), self.rows(name)).reshape(self.tensors[name].shape)

    def _typed(self, key: str, kind: type[T]) -> T:
        value: Any = self.metadata[key]
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InvalidData(f"{self.path}: {key} is no {_WORDS.get(kind, kind.__name__)}")
        found: T = value
        return found

    def _start(self, end: int) -> int:
        """Where the tensors begin, given where the descriptions end."""
        alignment = self.optional("general.alignment", ALIGNMENT)
        if alignment % 8 or not 0 < alignment <= _MOST_ALIGNMENT:
            raise InvalidData(f"{self.path}: general.alignment is {alignment}; it must be a multiple of 8")
        return -(-end // alignment) * alignment

    def _check(self, tensor: Stored) -> None:
        packing = PACKINGS.get(tensor.kind)
        if packing is None:  # said when it is asked for
            return
        if tensor.shape[-1] % packing.numbers:
            raise InvalidData(
                f"{self.path}: {tensor.name} has rows of {tensor.shape[-1]}, no multiple of {packing.name}'s block"
            )
        end = self._base + tensor.offset + tensor.numbers // packing.numbers * packing.nbytes
        if end > len(self._bytes):
            raise InvalidData(
                f"{self.path}: {tensor.name} ends at byte {end} of {len(self._bytes)}; the file is cut off or damaged"
            )


_WORDS: Final[dict[Any, str]] = {str: "text", int: "whole number", float: "number", bool: "truth value", list: "list"}


@dataclass(frozen=True)
class _Counted:
    tensors: int
    entries: int


class _Reader:
    """Goes through a file from its start. `doing` is what an error names."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.at = 0
        self._path, self._data, self._doing = path, data, "the header"

    def header(self) -> _Counted:
        if bytes(self._data[:4]) != MAGIC:
            raise InvalidData(f"{self._path}: is no GGUF file (it doesn't begin with {MAGIC.decode()})")
        self.at = 4
        version = self._number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "is big-endian" if swapped else f"is GGUF version {version}"
            raise InvalidData(f"{self._path}: {what}; versions 2 and 3, little-endian, can be read")
        counted = _Counted(self._number("<Q"), self._number("<Q"))
        if counted.tensors > MOST_TENSORS:
            raise self._wrong(f"{counted.tensors} tensors")
        # Name, number of dimensions, one dimension, kind, offset; key, kind, a byte.
        self._there(counted.tensors * 32 + counted.entries * 13)
        return counted

    def metadata(self, entries: int) -> Iterator[tuple[str, Value]]:
        seen = set[str]()
        for i in range(entries):
            self._doing = f"metadata entry {i + 1}"
            key = self._text()
            if key in seen:
                raise self._wrong(f"{key!r} for the second time")
            seen.add(key)
            self._doing = repr(key)[1:-1][:100]
            yield key, self._value(self._number("<I"), _MOST_NESTING)

    def tensors(self, count: int) -> Iterator[tuple[str, Stored]]:
        seen = set[str]()
        for i in range(count):
            self._doing = f"tensor {i + 1}"
            name = self._text()
            if name in seen:
                raise self._wrong(f"{name!r} for the second time")
            seen.add(name)
            self._doing = repr(name)[1:-1][:100]
            dimensions = self._number("<I")
            if not 0 < dimensions <= _MOST_DIMENSIONS:
                raise self._wrong(f"{dimensions} dimensions")
            shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
            if min(shape) == 0 or math.prod(shape) >= 1 << 63:
                raise self._wrong(f"the shape {list(shape)}")
            kind, offset = self._number("<I"), self._number("<Q")
            yield name, Stored(name, shape, kind, offset)

    def _value(self, kind: int, nesting: int) -> Value:
        if kind in _SCALARS:
            value: bool | int | float = self._array(kind, 1)[0].item()
            return value
        if kind == _BOOL:
            return bool(self._array(kind, 1)[0])
        if kind == _STRING:
            return self._text()
        if kind == _LIST and nesting:
            return self._list(nesting - 1)
        raise self._wrong(f"a value of kind {kind}")

    def _list(self, nesting: int) -> Value:
        kind, length = self._number("<I"), self._number("<Q")
        if kind not in _SMALLEST:
            raise self._wrong(f"a list of values of kind {kind}")
        self._there(length * _SMALLEST[kind])
        if kind in _SCALARS or kind == _BOOL:
            return self._array(kind, length)
        if length > MOST_STRINGS:
            raise self._wrong(f"a list of {length}")
        if kind == _STRING:
            return [self._text() for _ in range(length)]
        return [self._value(kind, nesting) for _ in range(length)]

    def _array(self, kind: int, length: int) -> NDArray[Any]:
        """A view."""
        form = np.dtype(_SCALARS.get(kind, "?"))
        return np.frombuffer(self._take(length * form.itemsize), np.uint8).view(form)

    def _text(self) -> str:
        length = self._number("<Q")
        try:
            return str(self._take(length), "utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong("a text that is no UTF-8") from error

    def _number(self, form: str) -> int:
        self._there(size := struct.calcsize(form))
        number: int = struct.unpack_from(form, self._data, self.at)[0]
        self.at += size
        return number

    def _take(self, nbytes: int) -> memoryview:
        self._there(nbytes)
        taken = self._data[self.at : self.at + nbytes]
        self.at += nbytes
        return taken

    def _there(self, nbytes: int) -> None:
        """InvalidData where less is left."""
        if nbytes > len(self._data) - self.at:
            raise self._wrong(f"{nbytes} bytes to come, where {len(self._data) - self.at} are left")

    def _wrong(self, claim: str) -> InvalidData:
        return InvalidData(f"{self._path}: {self._doing} claims {claim}; the file is cut off or damaged")
