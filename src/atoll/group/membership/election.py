"""Policy: whose shared state wins, who has to receive what, and who broke a rule. Pure: votes in, plan or expulsions
out.

After PCCL (Keiblinger et al. 2025, arXiv 2505.14065): the most popular content wins. A revision ahead of what the
incumbents (those who agreed last time) hold is a rule broken; one behind is dragged along. At a group's first
election any revision may stand and the highest wins, so that a run resumes from its newest checkpoint.
"""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

MOST_GIVERS: Final = 4
"""Holders of the elected content that share the work of giving it."""
MOST_REVISIONS: Final = 1 << 62
"""Beyond that the next ones would soon have no number."""
POPULAR, SEND_ONLY, RECEIVE_ONLY = "popular", "send", "receive"


class TensorNote(msgspec.Struct, frozen=True, array_like=True):
    """One tensor of a state. `digest` is empty where contents may differ from peer to peer."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    digest: bytes

    @property
    def signature(self) -> tuple[str, str, tuple[int, ...], bool]:
        """What must be equal on all."""
        return self.key, self.dtype, self.shape, not self.digest

    def __str__(self) -> str:
        free = "" if self.digest else ", free"
        return f"{self.key}: {self.dtype}{list(self.shape)}{free}"


class StateNote(msgspec.Struct, frozen=True, array_like=True):
    """One peer's vote: what it holds."""

    revision: Annotated[int, msgspec.Meta(ge=0, lt=MOST_REVISIONS)]
    strategy: str
    tensors: tuple[TensorNote, ...]

    @property
    def digests(self) -> tuple[bytes, ...]:
        """The content."""
        return tuple(t.digest for t in self.tensors)


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """Who sends what: the tensors `dirty` (numbers, in the order of the notes), cut into as many parts as there are
    chains of ranks; each part goes along its chain, from the first rank to the last."""

    revision: int
    chains: tuple[tuple[int, ...], ...] = ()
    dirty: tuple[int, ...] = ()
    digests: tuple[bytes, ...] = ()
    """Of the dirty tensors, as elected."""


@dataclass(frozen=True)
class Election:
    """`plan` is None while somebody has to go first: reasons by rank."""

    plan: Plan | None
    expelled: dict[int, str] = field(default_factory=dict)


def elect(notes: Sequence[StateNote], incumbents: Set[int], most_givers: int = MOST_GIVERS) -> Election:
    """`notes` by rank; `incumbents`: the ranks that took part in the last agreement. `most_givers` 1: along the ring
    only."""
    world = range(len(notes))
    for rule in (
        _mixed_strategies(notes),
        _nobody_stands(notes),
        _skipped_revision(notes, incumbents),
        _misfits(notes, incumbents),
    ):
        if rule:
            return Election(None, rule)
    winner = _winner(notes)
    expelled = {
        r: "it may only send its state, but another one was elected"
        for r in world
        if notes[r].strategy == SEND_ONLY and not _same(notes[r], notes[winner])
    }
    if expelled:
        return Election(None, expelled)
    won = notes[winner]
    dirty = tuple(i for i, t in enumerate(won.tensors) if any(n.tensors[i].digest != t.digest for n in notes))
    behind = [r for r in world if notes[r].digests != won.digests]
    if not behind:
        return Election(Plan(won.revision))
    holders = [r for r in world if _same(notes[r], won)]
    chains = _chains(behind, holders, len(notes), most_givers)
    return Election(Plan(won.revision, chains, dirty, tuple(won.tensors[i].digest for i in dirty)))


def _chains(takers: list[int], holders: list[int], world: int, most_givers: int) -> tuple[tuple[int, ...], ...]:
    """One giver: along the ring, as few links as will do. Several: each gives its part to another taker first, and the
    takers pass it on, so that all of them take and give alike."""
    givers = holders[:most_givers]
    if len(givers) == 1:
        hops, root = min((max((r - h) % world for r in takers), h) for h in holders)
        return (tuple((root + i) % world for i in range(hops + 1)),)
    turns = [i % len(takers) for i in range(len(givers))]
    return tuple((giver, *takers[turn:], *takers[:turn]) for giver, turn in zip(givers, turns, strict=True))


def _mixed_strategies(notes: Sequence[StateNote]) -> dict[int, str]:
    """The fewer have to go: one alone must not cost all others their places."""
    popular = [r for r, n in enumerate(notes) if n.strategy == POPULAR]
    others = [r for r, n in enumerate(notes) if n.strategy != POPULAR]
    if not popular or not others:
        return {}
    few, many = (popular, others) if len(popular) < len(others) else (others, popular)
    return {r: f"strategy {notes[r].strategy!r} can't be mixed with {notes[many[0]].strategy!r}" for r in few}


def _nobody_stands(notes: Sequence[StateNote]) -> dict[int, str]:
    if any(n.strategy != RECEIVE_ONLY for n in notes):
        return {}
    return dict.fromkeys(range(len(notes)), "everybody wants to receive, nobody has a state to give")


def _expected(notes: Sequence[StateNote], incumbents: Set[int]) -> int | None:
    said = Counter(notes[r].revision for r in incumbents)
    return min(said, key=lambda revision: (-said[revision], revision)) if said else None


def _skipped_revision(notes: Sequence[StateNote], incumbents: Set[int]) -> dict[int, str]:
    expected = _expected(notes, incumbents)
    return {
        r: f"its state is at revision {n.revision}, ahead of the group's {expected}"
        for r, n in enumerate(notes)
        if expected is not None and n.revision > expected
    }


def _misfits(notes: Sequence[StateNote], incumbents: Set[int]) -> dict[int, str]:
    """Whose tensors are others than most incumbents have, or than most have who were there first."""
    signatures = [tuple(t.signature for t in n.tensors) for n in notes]
    among_incumbents = Counter(signatures[r] for r in incumbents)
    among_all = Counter(signatures)
    model = min(range(len(notes)), key=lambda r: (-among_incumbents[signatures[r]], -among_all[signatures[r]], r))
    return {r: why for r, note in enumerate(notes) if (why := _difference(note, notes[model]))}


def _winner(notes: Sequence[StateNote]) -> int:
    """The lowest rank that holds the winning content: newest revision first, then most votes."""
    standing = [r for r, n in enumerate(notes) if n.strategy != RECEIVE_ONLY]
    votes = Counter((notes[r].revision, notes[r].tensors) for r in standing)

    def order(rank: int) -> tuple[int, int, int]:
        n = notes[rank]
        return -n.revision, -votes[n.revision, n.tensors], rank

    return min(standing, key=order)


def _same(one: StateNote, other: StateNote) -> bool:
    return one.revision == other.revision and one.digests == other.digests


def _difference(note: StateNote, won: StateNote) -> str:
    """Why the tensors of `note` can't take the elected state; empty: they can."""
    mine, theirs = {t.key: t for t in note.tensors}, {t.key: t for t in won.tensors}
    for key in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(key), theirs.get(key)
        if a is None or b is None or a.signature != b.signature:
            return f"its state doesn't fit the group's: here {a or f'no {key}'}, there {b or f'no {key}'}"
    if [t.key for t in note.tensors] != [t.key for t in won.tensors]:
        return "its state names the same tensors in another order"
    return ""
