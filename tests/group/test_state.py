"""The shared state: who wins, who has to receive what, who broke a rule; and that no peer ever holds half of it."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import atoll
from atoll.errors import Expelled, InvalidTensor, PeerLost
from atoll.group.facade import Group
from atoll.group.membership.ballots import Ballot, step
from atoll.group.membership.election import Election, Plan, StateNote, TensorNote, elect
from atoll.group.membership.votes import Begun, Settled, Votes
from atoll.group.messages import Initiate
from atoll.group.state import SharedState, StateTensors
from atoll.group.station import Take
from atoll.group.virtual import World
from atoll.group.virtual.port import VirtualPort
from tests.group.together import start, together

NOBODY: frozenset[int] = frozenset()


def note(revision: int = 0, strategy: str = "popular", free: str = "", **content: str) -> StateNote:
    """`w="A"` is a tensor w whose content is A; those named in `free` may differ."""
    tensors = (TensorNote(k, "float32", (4,), b"" if k in free else v.encode()) for k, v in sorted(content.items()))
    return StateNote(revision, strategy, tuple(tensors))


def apply(notes: list[StateNote], election: Election) -> list[tuple[int, tuple[bytes, ...]]]:
    """What each peer holds afterwards, if only what the plan names moves, and only along the plan's links."""
    plan = election.plan
    assert plan is not None
    held = []
    for rank, n in enumerate(notes):
        digests = list(n.digests)
        parts = sum(rank in chain for chain in plan.chains)
        gives = any(chain[0] == rank for chain in plan.chains)
        assert gives or parts in (0, len(plan.chains)), "it would get some parts only"
        if parts:
            for i, digest in zip(plan.dirty, plan.digests, strict=True):
                assert not gives or n.digests[i] == digest, "it doesn't hold what it shall send"
                digests[i] = digest
        held.append((plan.revision, tuple(digests)))
    return held


# -- the election ------------------------------------------------------------------------------------------------------


def test_where_all_agree_nothing_moves() -> None:
    assert elect([note(3, w="A")] * 4, {0, 1, 2, 3}) == Election(Plan(3))


def test_the_most_popular_content_wins_over_the_one_that_came_first() -> None:
    notes = [note(w="A"), note(w="B"), note(w="B")]
    plan = elect(notes, NOBODY).plan
    assert plan is not None
    assert (plan.chains, plan.dirty, plan.digests) == (((1, 0), (2, 0)), (0,), (b"B",))


def test_a_tie_goes_to_the_lowest_rank() -> None:
    plan = elect([note(w="A"), note(w="B")], NOBODY).plan
    assert plan is not None
    assert (plan.chains, plan.digests) == (((0, 1),), (b"A",))


def test_only_dirty_tensors_travel() -> None:
    keys = [f"k{i:02}" for i in range(20)]
    clean = dict.fromkeys(keys, "A")
    notes = [
        note(**clean),
        note(**clean),
        note(**{**clean, "k03": "B", "k17": "C"}),
        note(**{**clean, "k05": "D"}),
    ]
    election = elect(notes, {0, 1, 2, 3})
    assert election.plan is not None
    assert election.plan.dirty == (3, 5, 17)
    assert set(apply(notes, election)) == {(0, (b"A",) * 20)}


def test_the_chain_along_the_ring_is_the_shortest_that_reaches_all_who_are_behind() -> None:
    old, new = note(w="old"), note(w="new")
    plan = elect([new, new, new, old, new], {0, 1, 2, 4}, most_givers=1).plan
    assert plan is not None
    assert plan.chains == ((2, 3),)


def test_several_holders_share_the_giving_and_takers_pass_on_what_came() -> None:
    old, new = note(w="old"), note(w="new")
    plan = elect([new, old, new, old, new], {0, 2, 4}).plan
    assert plan is not None
    assert plan.chains == ((0, 1, 3), (2, 3, 1), (4, 1, 3))


def test_one_with_a_stale_revision_is_dragged_along() -> None:
    notes = [note(7, w="A"), note(5, w="old"), note(7, w="A")]
    election = elect(notes, {0, 2})
    assert not election.expelled
    assert set(apply(notes, election)) == {(7, (b"A",))}


def test_many_with_a_stale_revision_do_not_outvote_the_newest() -> None:
    notes = [note(5, w="old"), note(5, w="old"), note(6, w="new")]
    assert set(apply(notes, elect(notes, NOBODY))) == {(6, (b"new",))}


def test_equal_contents_of_an_older_revision_get_the_number_without_any_bytes() -> None:
    plan = elect([note(7, w="A"), note(5, w="A")], {0}).plan
    assert plan == Plan(7)


def test_a_revision_ahead_of_the_incumbents_is_expelled() -> None:
    election = elect([note(7, w="A"), note(9, w="B"), note(7, w="A")], {0, 1, 2})
    assert election.plan is None
    assert election.expelled == {1: "its state is at revision 9, ahead of the group's 7"}


def test_a_newcomer_ahead_of_the_incumbents_is_expelled() -> None:
    assert set(elect([note(7, w="A"), note(7, w="A"), note(100, w="B")], {0, 1}).expelled) == {2}


def test_where_incumbents_differ_the_more_frequent_revision_is_the_groups() -> None:
    assert set(elect([note(8, w="B"), note(7, w="A"), note(7, w="A")], {0, 1, 2}).expelled) == {0}
    assert set(elect([note(8, w="B"), note(7, w="A")], {0, 1}).expelled) == {0}


def test_the_first_election_may_stand_at_any_revision() -> None:
    notes = [note(0, w="fresh"), note(13, w="resumed"), note(0, w="fresh")]
    election = elect(notes, NOBODY)
    assert not election.expelled
    assert set(apply(notes, election)) == {(13, (b"resumed",))}


MISFITS = {
    "key added": (note(w="A", z="A"), "here z: float32[4], there no z"),
    "key missing": (StateNote(0, "popular", ()), "here no w, there w: float32[4]"),
    "dtype": (StateNote(0, "popular", (TensorNote("w", "float64", (4,), b"A"),)), "here w: float64[4]"),
    "shape": (StateNote(0, "popular", (TensorNote("w", "float32", (2, 2), b"A"),)), "here w: float32[2, 2]"),
    "free": (note(free="w", w="A"), "here w: float32[4], free"),
}


@pytest.mark.parametrize("what", MISFITS)
@pytest.mark.parametrize("offender", range(3))
def test_a_state_that_does_not_fit_expels_only_its_owner_and_names_the_tensor(what: str, offender: int) -> None:
    misfit, text = MISFITS[what]
    notes = [note(w="A"), note(w="A"), note(w="A")]
    notes[offender] = misfit
    election = elect(notes, {0, 1, 2})
    assert set(election.expelled) == {offender}
    assert text in election.expelled[offender]


def test_two_that_may_only_send_with_different_contents_expel_one() -> None:
    election = elect(
        [note(strategy="send", w="A"), note(strategy="send", w="B"), note(strategy="receive", w="C")], NOBODY
    )
    assert set(election.expelled) == {1}


def test_what_only_receives_never_wins_however_many_there_are() -> None:
    notes = [note(strategy="receive", w="B"), note(strategy="receive", w="B"), note(strategy="send", w="A")]
    assert set(apply(notes, elect(notes, NOBODY))) == {(0, (b"A",))}


def test_where_all_want_to_receive_all_are_expelled() -> None:
    assert set(elect([note(strategy="receive", w="A")] * 3, {0, 1, 2}).expelled) == {0, 1, 2}


@pytest.mark.parametrize("strategy", ["send", "receive"])
def test_strategies_mixed_with_popular_are_expelled(strategy: str) -> None:
    election = elect([note(w="A"), note(strategy=strategy, w="A"), note(w="A")], NOBODY)
    assert set(election.expelled) == {1}
    assert f"{strategy!r} can't be mixed" in election.expelled[1]


def test_free_tensors_neither_vote_nor_travel() -> None:
    notes = [note(free="x", w="A", x="1"), note(free="x", w="B", x="2"), note(free="x", w="B", x="3")]
    plan = elect(notes, NOBODY).plan
    assert plan is not None
    assert plan.dirty == (0,)
    assert elect([note(free="x", w="A", x=str(i)) for i in range(3)], NOBODY).plan == Plan(0)


contents = st.fixed_dictionaries({k: st.sampled_from("ABC") for k in "uvw"})
states = st.builds(
    lambda revision, strategy, content: note(revision, strategy, **content),
    st.integers(0, 2),
    st.sampled_from(["popular", "popular", "popular", "send", "receive"]),
    contents,
)


@given(st.lists(states, min_size=1, max_size=6), st.data())
def test_whoever_is_not_expelled_ends_with_the_winners_state(notes: list[StateNote], data: st.DataObject) -> None:
    incumbents = data.draw(st.sets(st.integers(0, len(notes) - 1)))
    for _ in range(len(notes) + 1):
        election = elect(notes, incumbents)
        if election.plan is not None:
            break
        assert election.expelled
        stay = [r for r in range(len(notes)) if r not in election.expelled]
        incumbents = {stay.index(r) for r in incumbents if r in stay}
        notes = [notes[r] for r in stay]
        if not notes:
            return  # all wanted to receive
    held = apply(notes, election)
    assert len(set(held)) == 1
    assert held[0] in [(n.revision, n.digests) for n in notes if n.strategy != "receive"]
    assert held[0][0] == max(n.revision for n in notes if n.strategy != "receive")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(election.plan), type=Plan) == election.plan


@given(st.permutations(["b", "a", "layer.10", "layer.9", "z"]))
def test_the_order_in_which_tensors_were_named_plays_no_part(order: list[str]) -> None:
    def vote(names: list[str]) -> StateNote:
        state = SharedState({n: np.full(3, len(n)) for n in names}, free=["z"])
        return state.note(StateTensors(state.tensors, state.free))

    assert vote(order) == vote(sorted(order))


# -- tensors as bytes ------------------------------------------------------------------------------------------------


def test_only_equal_bits_have_equal_digests() -> None:
    def digest(**tensors: Any) -> str:
        return SharedState(tensors).digest()

    assert digest(w=np.zeros(3)) == digest(w=np.zeros(3))
    assert digest(w=np.zeros(3)) != digest(w=-np.zeros(3))
    assert digest(w=np.zeros(3), v=np.ones(2)) == digest(v=np.ones(2), w=np.zeros(3))
    assert digest(w=np.array([1.0, 2.0])) == digest(w=torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_a_tensor_that_has_no_flat_memory_is_named() -> None:
    with pytest.raises(InvalidTensor, match=r"w.* is not contiguous"):
        SharedState({"v": np.ones(2), "w": np.ones((3, 3)).T[:2]}).digest()
    with pytest.raises(InvalidTensor, match="w must be a NumPy array or a torch tensor"):
        SharedState({"w": [1.0]}).digest()


# -- end to end --------------------------------------------------------------------------------------------------------


def test_only_dirty_tensors_move_and_nothing_in_steady_state() -> None:
    def main(group: Group) -> tuple[int, int, int, str]:
        tensors = {f"t{i}": np.full(100, float(i)) for i in range(8)}
        if group.rank == 2:
            tensors["t3"] += 1
            tensors["t6"] += 1
        state = SharedState(tensors)
        first = group.sync(state)
        state.revision += 1
        second = group.sync(state)
        assert (tensors["t3"] == 3).all()
        assert (tensors["t6"] == 6).all()
        return first.bytes_received, first.bytes_sent, second.bytes_received + second.bytes_sent, state.digest()

    results = together(4, main)
    assert [(r[0], r[2]) for r in results] == [(0, 0), (0, 0), (1600, 0), (0, 0)]
    assert [r[1] for r in results] == [534, 533, 0, 533], "who holds it shares the giving"
    assert len({r[3] for r in results}) == 1


def test_all_kinds_of_tensors_travel() -> None:
    def tensors(rank: int) -> dict[str, Any]:
        return {
            "scalar": np.array(float(rank)),
            "empty": np.ones((0, 3)),
            "grid": np.full((3, 5), rank, np.int16),
            "flags": np.array([bool(rank), True]),
            "torch": torch.full((2, 2), float(rank)),
            "bfloat16": torch.full((7,), float(rank), dtype=torch.bfloat16),
            "parameter": torch.nn.Parameter(torch.full((3,), float(rank))),
            "large": np.full(300_000, float(rank)),  # several blocks
        }

    def main(group: Group) -> str:
        mine = tensors(group.rank)
        state = SharedState(mine, revision=1 if group.rank == 1 else 0)
        group.sync(state)
        for name, want in tensors(1).items():
            assert mine[name].tolist() == want.tolist(), name
        return state.digest()

    assert len(set(together(3, main))) == 1


def test_free_tensors_stay_as_they_are() -> None:
    def main(group: Group) -> None:
        w, own = np.full(3, float(group.rank)), np.full(3, float(group.rank))
        group.sync(SharedState({"w": w, "own": own}, free=["own"]))
        assert (w == 0).all()
        assert (own == group.rank).all()

    together(3, main)


def test_a_run_resumes_at_revision_13_and_a_newcomer_gets_it() -> None:
    world = World()

    def incumbent() -> tuple[int, float, int]:
        with atoll.join("master:1", min_world=2) as group:
            resumed = group.rank == 1
            w = np.full(50, 13.0 if resumed else 0.0)
            state = SharedState({"w": w}, revision=13 if resumed else 0)
            group.sync(state)
            assert (state.revision, w[0]) == (13, 13.0)
            w += 1
            state.revision += 1
            while not group.peers_pending():
                group.barrier()
            group.update_topology()
            received = group.sync(state).bytes_received
            group.barrier()
            return state.revision, w[0], received

    def newcomer() -> tuple[int, float, int]:
        with atoll.join("master:1") as group:
            w = np.zeros(50)
            state = SharedState({"w": w})
            received = group.sync(state).bytes_received
            group.barrier()
            return state.revision, w[0], received

    for i in range(2):
        world.start(f"peer-{i}", incumbent)
    world.start("new", newcomer, delay_s=0.05)
    world.run()
    assert [p.program.result for p in world.processes] == [(14, 14.0, 0), (14, 14.0, 0), (14, 14.0, 400)]


EXPELLED: dict[str, tuple[Callable[[], SharedState], str]] = {
    "another key": (lambda: SharedState({"v": np.ones(4)}), r"here v: float64\[4\], there no v"),
    "another shape": (lambda: SharedState({"w": np.ones(5)}), r"here w: float64\[5\], there w: float64\[4\]"),
    "another type": (lambda: SharedState({"w": np.ones(4, np.float32)}), r"here w: float32\[4\]"),
    "ahead": (lambda: SharedState({"w": np.zeros(4)}, revision=9), "at revision 9, ahead of the group's 0"),
    "another rule": (lambda: SharedState({"w": np.ones(4)}, strategy="send"), "'send' can't be mixed"),
}


@pytest.mark.parametrize("what", EXPELLED)
def test_one_that_breaks_a_rule_is_told_why_and_the_others_go_on(what: str) -> None:
    make, reason = EXPELLED[what]
    world = World()

    def main() -> str:
        with atoll.join("master:1", min_world=3) as group:
            good = SharedState({"w": np.ones(4)})
            group.sync(good)
            if group.rank == 1:
                with pytest.raises(Expelled, match=reason):
                    group.sync(make())
                return "out"
            with pytest.raises(PeerLost, match=reason):
                group.sync(good)
            assert group.sync(good).world == 2
            return "in"

    for i in range(3):
        world.start(f"peer-{i}", main)
    world.run()
    assert [p.program.result for p in world.processes] == ["in", "out", "in"]


def test_where_all_want_to_receive_all_are_sent_away() -> None:
    world = World()

    def main() -> None:
        group = atoll.join("master:1", min_world=2)
        with pytest.raises(Expelled, match="nobody has a state to give"):
            group.sync(SharedState({"w": np.ones(4)}, strategy="receive"))

    for i in range(2):
        world.start(f"peer-{i}", main)
    world.run()
    assert not world.master.roster.members


@pytest.mark.parametrize("victim", range(4))
def test_a_crash_at_any_moment_of_a_sync_leaves_no_state_half_old_half_new(victim: int) -> None:
    """Ranks 1 and 3 are behind; tensors of 1 MB and two of 80 bytes at 10 MB/s take some 0.1 s a link."""
    names = ["a", "big", "z"]

    def run(crash_ns: int) -> set[str]:
        world = World(bytes_per_s=1e7)
        outcomes: set[str] = set()

        def main() -> str:
            with atoll.join("master:1", min_world=4) as group:
                new = group.rank in (0, 2)
                tensors = {n: np.full(125_000 if n == "big" else 10, float(new)) for n in names}
                state = SharedState(tensors, revision=int(new))
                while True:
                    before = state.revision, state.digest()
                    try:
                        group.sync(state)
                        outcomes.add("done")
                        break
                    except PeerLost:
                        assert (state.revision, state.digest()) == before
                        outcomes.add("lost")
                values = {v for t in tensors.values() for v in t.tolist()}
                assert (state.revision, values) == (1, {1.0})
                try:
                    group.barrier()
                except PeerLost:
                    outcomes.add("lost later")
                return state.digest()

        for i in range(4):
            world.start(f"peer-{i}", main)
        world.loop.post(crash_ns, world.processes[victim].crash)
        world.run()
        digests = {p.program.result for p in world.processes if not p.dead}
        assert len(digests) == 1
        assert all(p.program.ended for p in world.processes)
        return outcomes

    seen: set[str] = set()
    for crash_ms in (0.5, 1, 2, 20, 50, 100, 102, 150, 205, 400):
        seen |= run(int(crash_ms * 1e6))
    assert {"done", "lost"} <= seen


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The member 1 sends other bytes than it has voted for."""
    send, spoiled = VirtualPort.send, []

    def corrupt(self: VirtualPort, to: int, seq: int, word: int, take: Take) -> None:
        def spoilt() -> memoryview | None:
            data = take()
            if data is not None and self.id == 1 and len(data) > 100:
                spoiled.append(len(data))
                data = memoryview(bytes([data[0] ^ 1]) + bytes(data[1:]))
            return data

        send(self, to, seq, word, spoilt)

    monkeypatch.setattr(VirtualPort, "send", corrupt)
    return spoiled


def held(group: Group, holders: int) -> tuple[SharedState, Any]:
    values = np.full(60, float(group.rank < holders))
    return SharedState({"v": values}, revision=int(group.rank < holders)), values


def test_who_gives_another_state_than_it_voted_for_is_expelled_by_name(liar: list[int]) -> None:
    def program() -> str:
        with atoll.join("master:1", min_world=4) as group:
            state, values = held(group, 1)
            try:
                group.sync(state)
            except Expelled as error:
                return str(error)
            except PeerLost as error:
                assert not values.any(), "committed"
                group.sync(state)
                group.barrier()
                return str(error)
            return "nothing"

    world = World()
    for name in "abcd":
        world.start(name, program)
    world.run()
    gone, *others = [process.program.result for process in world.processes]
    assert gone == "the group went on without this peer: gave another state than it had voted for"
    assert len(set(others)) == 1
    assert others[0].startswith("lost peer-1 (gave another state than it had voted for)")
    assert liar, "nothing was corrupted"


def test_where_several_gave_a_state_that_came_out_wrong_one_gives_next_time(liar: list[int]) -> None:
    def main(group: Group) -> bytes:
        state, values = held(group, 2)
        with pytest.raises(PeerLost, match="a shared state came out wrong"):
            group.sync(state)
        assert values.all() == (group.rank < 2), "committed"
        group.sync(state)
        assert (state.revision, group.world) == (1, 4)
        return state.digest()

    assert len(set(together(4, main))) == 1
    assert liar, "nothing was corrupted"


def test_states_of_one_seed_are_the_same_run() -> None:
    def run() -> tuple[int, int]:
        world = World(3, jitter=2.0, tie_break=3)
        start(world, 3, lambda group: group.sync(SharedState({"w": np.full(9, float(group.rank))})).bytes_received)
        world.run()
        return world.loop.count, world.loop.now_ns

    assert run() == run()


# -- who keeps no rule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("incumbents", [NOBODY, {0, 1, 2, 3}])
@pytest.mark.parametrize("offender", range(4))
def test_one_with_other_tensors_costs_nobody_else_its_place(offender: int, incumbents: set[int]) -> None:
    """Not even where its revision is the newest, or its rank the first."""
    notes = [note(w="A")] * 4
    notes[offender] = note(0 if incumbents else 99, v="A")
    assert set(elect(notes, incumbents).expelled) == {offender}


def test_incumbents_are_not_outnumbered_by_newcomers_with_other_tensors() -> None:
    assert set(elect([note(3, v="A"), note(3, w="A"), note(3, v="A")], {1}).expelled) == {0, 2}


@pytest.mark.parametrize("strategy", ["send", "receive"])
def test_one_popular_among_those_who_only_send_or_receive_goes_alone(strategy: str) -> None:
    others = [note(strategy="send", w="A"), note(strategy=strategy, w="A")]
    assert set(elect([note(w="A"), *others], NOBODY).expelled) == {0}


@pytest.mark.parametrize("revision", [-1, 1 << 62, (1 << 64) - 1])
def test_a_revision_after_which_no_other_could_come_is_unreadable(revision: int) -> None:
    ballot = Ballot((4, 5))
    for member, said in ((4, note(0, w="A")), (5, note(revision, w="A"))):
        ballot.votes[member] = Initiate(1, 0, "sync", msgspec.msgpack.encode(said))
    assert step(0, ballot, set()) == {5: "sent an unreadable note on its state"}


def test_links_are_looked_at_only_once_all_have_voted_on_a_state() -> None:
    """Who looks takes as long as there are pairs: of a thousand members a second."""
    votes, members = Votes(), (4, 5, 6)
    asked: list[Sequence[int]] = []

    def even(ring: Sequence[int]) -> bool:
        asked.append(ring)
        return True

    for member in members:
        vote = Initiate(1, 0, "sync", msgspec.msgpack.encode(note(0, w="A")))
        decided = votes.initiate(member, vote, members, even)
        assert isinstance(decided, Settled | Begun) is (member == members[-1])
    assert asked == [members]
