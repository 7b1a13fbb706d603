"""Notes on states as foreign peers send them, into the master's election, with honest ones; plans of a foreign master.

Each note is understood or refused, and what is elected is checked by other means than it is made. A plan that isn't one
is an error of the protocol before any data moves.
"""

import msgspec
import numpy as np

from atoll.errors import ProtocolError
from atoll.group.api import Start, Ticket
from atoll.group.collectives.memory import Memory
from atoll.group.collectives.rounds import execution_for
from atoll.group.membership.ballots import Ballot, Commenced, Decided, step
from atoll.group.membership.election import MOST_GIVERS, Plan, StateNote, TensorNote, elect
from atoll.group.messages import Initiate
from atoll.group.state import StateTensors
from tests.fuzzers.choices import recorded, records
from tests.fuzzers.mutation import record_mutator

HONEST, WORLD = (1, 2, 3), 3


def note(revision: int, content: int, strategy: str = "popular", shape: tuple[int, ...] = (2, 2)) -> bytes:
    tensors = (TensorNote("a", "float32", shape, bytes([content]) * 16), TensorNote("b", "int64", (), b""))
    return msgspec.msgpack.encode(StateNote(revision, strategy, tensors))


def check(plan: Plan, notes: dict[int, StateNote]) -> None:
    """All who lack the elected content get it from who has it, and nothing else moves."""
    ranked = list(notes.values())
    world = range(len(ranked))
    assert plan.revision in {n.revision for n in ranked}
    assert (not plan.dirty) == (len({tuple(t.digest for t in n.tensors) for n in ranked}) == 1)
    if not plan.dirty:
        assert not plan.chains
        return
    elected = dict(zip(plan.dirty, plan.digests, strict=True))
    right = [r for r in world if all(ranked[r].tensors[i].digest == d for i, d in elected.items())]
    behind = set(world) - set(right)
    for chain in plan.chains:
        assert len(set(chain)) == len(chain)
        assert set(chain) <= set(world)
        assert chain[0] in right
        assert behind <= set(chain)
    assert 1 <= len(plan.chains) <= MOST_GIVERS


def run_plan(plan: bytes) -> None:
    """Of a master: for each rank a data phase, or an error of the protocol."""
    state = StateTensors({"a": np.ones(5), "b": np.ones(3)})
    for rank in range(WORLD):
        start = Start((1, 0), Ticket("sync", 1, tensor=state), tuple(range(WORLD)), rank, plan)
        try:
            execution = execution_for(start, Memory())
        except ProtocolError:
            continue
        for leaving in execution.begin():
            assert leaving.to in range(WORLD)
            execution.outgoing(leaving.piece)


def vote(members: dict[int, bytes], incumbents: set[int], givers: int) -> None:
    """As the master does: until there is a plan, or nobody is left."""
    left = dict(members)
    while left:
        ballot = Ballot(tuple(left))
        for i, payload in left.items():
            ballot.votes[i] = Initiate(1, 0, "sync", payload)
        result = step(0, ballot, incumbents & set(left), givers)
        if isinstance(result, dict):
            assert result, "nobody expelled, nothing decided"
            assert set(result) <= set(left)
            for why in result.values():
                assert why
                msgspec.msgpack.encode(why)
            left = {i: payload for i, payload in left.items() if i not in result}
            continue
        assert isinstance(result, Commenced | Decided)
        plan = msgspec.msgpack.decode(ballot.plan, type=Plan)
        check(plan, {i: msgspec.msgpack.decode(payload, type=StateNote) for i, payload in left.items()})
        return


def fuzz(data: bytes) -> None:
    foreign = list(records(data))[:6]
    how = foreign[0][0] if foreign else 0
    members = {i: note(how >> 4 & 3, i if how & 8 else 0) for i in HONEST[: 1 + (how & 3)]}
    for i, (_, payload) in enumerate(foreign, 10):
        members[i] = payload
        run_plan(payload)
    order = sorted(members, key=lambda i: (i * (1 + (how >> 6))) % 7)
    vote({i: members[i] for i in order}, set(HONEST) if how & 4 else set(), MOST_GIVERS if how & 16 else 1)
    try:
        notes = [msgspec.msgpack.decode(payload, type=StateNote) for _, payload in foreign]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    if notes:
        elect(notes, {r for r in range(len(notes)) if how >> r & 1})


def seeds() -> list[bytes]:
    return [
        recorded((0x11, note(0, 1))),
        recorded((0x17, note(1, 1)), (0, note(2, 5)), (0, note(1, 5, shape=(3,)))),
        recorded((0x0B, note(3, 0, "send")), (0, note(3, 0, "receive"))),
        recorded((0x1F, note(1 << 63, 0)), (0, note(-5, 2, "other"))),
        recorded((0, b"\x93\x00\xa7popular\x90")),
        recorded((2, b"\xc1")),
        *[recorded((3, msgspec.msgpack.encode(plan))) for plan in PLANS],
    ]


PLANS = [
    Plan(1, ((0, 1, 2),), (0, 1), (bytes(16), bytes(16))),
    Plan(1, ((2, 0), (1, 0)), (1,), (bytes(16),)),
    Plan(1, ((0, 1), (1, 0)), (), ()),
    Plan(1, (), (0,), (b"",)),
    Plan(1, ((0, 9),), (7,), (b"",)),
]

mutate = record_mutator(seeds())
