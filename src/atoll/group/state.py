"""Program: the state all peers share, bit for bit: named tensors, a revision, their digests, staging before commit."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from atoll.errors import InvalidTensor
from atoll.group.membership.election import Plan, StateNote, TensorNote
from atoll.group.tensors import flat_view, name_of

Bytes = NDArray[np.uint8]
Strategy = Literal["popular", "send", "receive"]


def digest(data: Bytes) -> bytes:
    """128 bits that two different contents share only by a chance nobody will see (xxh3; not against forgers)."""
    return xxhash.xxh3_128_digest(data.data)


class StateTensors:
    """The tensors of a state as bytes, in the order of their names. Valid while nobody writes to them."""

    def __init__(self, tensors: Mapping[str, Any], free: Collection[str] = ()) -> None:
        self.names = sorted(tensors)
        self._tensors = [tensors[name] for name in self.names]
        self._bytes: list[Bytes] = [
            flat_view(t, name).view(np.uint8) for name, t in zip(self.names, self._tensors, strict=True)
        ]
        self.notes = tuple(
            TensorNote(name, name_of(t.dtype), tuple(t.shape), b"" if name in free else digest(data))
            for name, t, data in zip(self.names, self._tensors, self._bytes, strict=True)
        )

    def check_writable(self) -> None:
        """InvalidTensor: one that must be equal on all can't be written."""
        for note, data in zip(self.notes, self._bytes, strict=True):
            if note.digest and not data.flags.writeable:
                raise InvalidTensor(f"{note.key} is read-only, but may have to take another's contents: share a copy")

    def nbytes(self, which: Sequence[int]) -> int:
        """Size of these tensors together."""
        return sum(self._bytes[i].size for i in which)

    def pack(self, which: Sequence[int]) -> Bytes:
        """These tensors, one behind the other."""
        return np.concatenate([self._bytes[i] for i in which]) if which else np.empty(0, np.uint8)

    def check(self, which: Sequence[int], digests: Sequence[bytes], staged: Bytes) -> str:
        """What is wrong with received bytes; empty: nothing."""
        at = 0
        for i, expected in zip(which, digests, strict=True):
            if digest(staged[at : at + self._bytes[i].size]) != expected:
                return f"the bytes received for {self.names[i]!r} are not those that were elected"
            at += self._bytes[i].size
        return ""

    def commit(self, which: Sequence[int], digests: Sequence[bytes], staged: Bytes) -> int:
        """Copy those that differ from what is here; returns how many bytes changed owner."""
        at = changed = 0
        for i, elected in zip(which, digests, strict=True):
            size = self._bytes[i].size
            if self.notes[i].digest != elected:
                self._bytes[i][:] = staged[at : at + size]
                changed += size
            at += size
        return changed


class SharedState:
    """Named tensors (NumPy, torch on the CPU) that all peers hold in the same bits, and how far they have come.

    `revision` counts agreed changes: raise it by the same amount on all peers with every step. `free` names tensors
    whose contents may differ from peer to peer. `strategy`: "popular" (the content most peers hold wins), "send"
    (ours must win), "receive" (ours never stands). After Keiblinger et al. 2025, arXiv 2505.14065.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        *,
        revision: int = 0,
        strategy: Strategy = "popular",
        free: Collection[str] = (),
    ) -> None:
        if strategy not in ("popular", "send", "receive"):
            raise ValueError(f"strategy must be popular, send or receive, not {strategy!r}")
        if unknown := sorted(set(free) - set(tensors)):
            raise InvalidTensor(f"free names no tensor of the state: {', '.join(unknown)}")
        self.tensors = dict(tensors)
        self.revision, self.strategy, self.free = revision, strategy, frozenset(free)

    def digest(self) -> str:
        """One hex digest of everything that must be equal on all peers."""
        return self.digest_of(StateTensors(self.tensors, self.free))

    def digest_of(self, tensors: StateTensors) -> str:
        """The same, of tensors hashed already."""
        return xxhash.xxh3_128_hexdigest(b"".join(n.digest for n in tensors.notes))

    def note(self, tensors: StateTensors) -> StateNote:
        """This peer's vote."""
        return StateNote(self.revision, self.strategy, tensors.notes)

    def adopt(self, plan: Plan, tensors: StateTensors, staged: Bytes | None) -> None:
        """Take the elected state."""
        if staged is not None and staged.size:
            tensors.commit(plan.dirty, plan.digests, staged)
        self.revision = plan.revision
