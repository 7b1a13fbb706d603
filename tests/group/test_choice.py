"""Which way an operation goes, against plain arithmetic for links of known pace."""

from hypothesis import given
from hypothesis import strategies as st

from atoll.group.api import EAGER_BYTES, EAGER_BYTES_SENT, IN_VERDICT_BYTES, IN_VOTE_BYTES, LOCAL_PACE
from atoll.group.collectives.choice import choose
from atoll.group.messages import Pace

FAR = Pace(ring_trip_s=0.1, any_trip_s=0.1, ring_bytes_per_s=12.5e6, any_bytes_per_s=12.5e6)


def test_a_few_bytes_travel_in_the_votes() -> None:
    assert choose("all_reduce", 4, 2, FAR) == "votes"
    assert choose("all_reduce", IN_VOTE_BYTES, 16, FAR) != "votes", "the verdict carries those of all"
    assert choose("all_reduce", IN_VOTE_BYTES + 4, 2, FAR) == "eager"


def test_two_never_wait_for_the_votes_while_it_costs_no_byte() -> None:
    for nbytes in (8 << 10, EAGER_BYTES):
        assert choose("all_reduce", nbytes, 2, FAR) == "eager"
    assert choose("all_reduce", EAGER_BYTES + 4, 2, FAR) != "eager"


def test_a_slow_link_is_not_asked_for_more_bytes_to_save_a_round() -> None:
    slow = Pace(0.02, 0.02, 0.6e6, 0.6e6)
    assert choose("all_reduce", 200_000, 4, slow) == "direct"
    assert choose("all_reduce", 200_000, 4, Pace(0.02, 0.02, 600e6, 600e6)) == "eager"


def test_an_unmeasured_long_link_is_taken_for_a_slow_one() -> None:
    assert choose("all_reduce", 200_000, 5, Pace(ring_trip_s=0.02)) == "direct"
    assert choose("all_reduce", 100_000, 3, Pace(ring_trip_s=50e-6)) == "eager"


def test_where_some_pair_is_slow_only_the_ring_can_avoid_it() -> None:
    pair = Pace(0.01, 0.01, 100e6, 1e6)
    assert choose("all_reduce", 64 << 20, 6, pair) == "ring"
    assert choose("all_reduce", 64 << 20, 6, Pace(0.01, 0.01, 100e6, 100e6)) == "direct"


def test_many_peers_halve() -> None:
    assert choose("all_reduce", 1 << 20, 64, LOCAL_PACE) == "halving"
    assert choose("all_reduce", 1 << 20, 4, LOCAL_PACE) == "direct"


def test_what_may_be_encoded_only_once_goes_to_its_owner_directly() -> None:
    for world in range(2, 9):
        for nbytes in (100_000, 64 << 20):
            assert choose("all_reduce", nbytes, world, Pace(0.01, 0.01, 100e6, 1e3), hops=False) in ("eager", "direct")


@given(
    st.sampled_from(["all_reduce", "reduce_scatter", "all_gather", "broadcast"]),
    st.integers(0, 1 << 30),
    st.integers(2, 64),
    st.builds(Pace, *[st.floats(0, 10)] * 2, *[st.floats(0, 1e10)] * 2),
    st.booleans(),
)
def test_what_is_kept_for_those_who_come_late_is_bounded(
    kind: str, nbytes: int, world: int, pace: Pace, hops: bool
) -> None:
    way = choose(kind, nbytes, world, pace, hops)  # type: ignore[arg-type]
    if way == "eager":
        assert nbytes <= EAGER_BYTES
        assert nbytes * (world - 1) <= EAGER_BYTES_SENT
    if way == "votes":
        assert nbytes * world <= IN_VERDICT_BYTES
    assert hops or way in ("votes", "eager", "direct")
    assert kind == "all_reduce" or way != "halving"
