"""What the master knows of links: which it has measured, which it avoids for a while, and who goes if that won't do."""

import math

import pytest

from atoll.group.membership.admission import FIRST_WAIT_S, LONGEST_WAIT_S, MOST_MEMBERS, Patience
from atoll.group.membership.breaks import AVOIDED_S, LONGEST_S, QUIET_S, Breaks
from atoll.group.membership.rings import edges
from atoll.group.membership.topology import LinkMap


def nowhere(a: int, b: int) -> bool:
    """No two are on one machine."""
    return False


def pairs(links: LinkMap, *ids: int) -> set[tuple[int, int]]:
    """What is still to be measured between these."""
    return {pair for turn in links.to_measure(ids) for pair in turn}


def test_each_direction_is_measured_once_the_newest_counts_and_who_is_gone_is_forgotten() -> None:
    links = LinkMap(nowhere)
    assert pairs(links, 3, 1) == {(3, 1), (1, 3)}
    links.note(1, 3, 5.0, 0.1, 0.0)
    links.note(1, 3, 7.0, 0.2, 0.0)
    assert (links.rate(1, 3), links.rate(3, 1)) == (7.0, None)
    assert pairs(links, 1, 3, 4) == {(1, 4), (3, 1), (3, 4), (4, 1), (4, 3)}
    links.forget({1, 99})
    assert links.rate(1, 3) is None


def test_members_on_one_machine_are_never_measured() -> None:
    links = LinkMap(lambda a, b: a // 10 == b // 10)
    assert pairs(links, 1, 2, 11) == {(1, 11), (2, 11), (11, 1), (11, 2)}


@pytest.mark.parametrize("nonsense", [0.0, -1.0, -math.inf, math.inf, math.nan])
def test_a_rate_that_makes_no_sense_is_none_and_the_pair_is_avoided(nonsense: float) -> None:
    links = LinkMap(nowhere)
    links.note(1, 2, nonsense, 0.1, 0.0)
    assert links.rate(1, 2) is None
    assert links.breaks.avoided(1, 2)
    assert (1, 2) not in pairs(links, 1, 2, 3)


def test_a_pair_that_can_not_link_is_avoided_for_a_while_and_then_tried_again() -> None:
    links = LinkMap(nowhere)
    assert links.order([1, 2, 3, 4]) == (1, 2, 3, 4)
    links.broke(1, 2, made=False, now=100.0)
    ring = links.order([1, 2, 3, 4])
    assert (1, 2) not in edges(ring)
    pace = links.pace(ring, 0.0)
    assert not pace.mesh
    assert not links.even(ring)
    links.tick(100.0 + AVOIDED_S - 1)
    assert not links.mesh(ring)
    links.tick(100.0 + AVOIDED_S)
    assert links.mesh(ring)
    assert links.order([1, 2, 3, 4]) == (1, 2, 3, 4)


def test_what_is_avoided_makes_no_other_link_look_slow() -> None:
    links = LinkMap(nowhere)
    for a, b in ((1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)):
        links.note(a, b, 1e6, 0.1, 0.0)
    links.broke(1, 2, made=False, now=0.0)
    pace = links.pace(links.order([1, 2, 3]), 0.1)
    assert (pace.ring_bytes_per_s, pace.any_bytes_per_s, pace.mesh) == (1e6, 1e6, False)


def test_neighbours_of_a_ring_of_two_are_all_there_is() -> None:
    links = LinkMap(nowhere)
    links.broke(1, 2, made=False, now=0.0)
    assert links.mesh([1, 2]), "there is nobody who is no neighbour"


def test_a_link_that_broke_once_is_made_again_at_once() -> None:
    breaks = Breaks()
    breaks.note(1, 2, made=True, now=0.0)
    breaks.note(1, 2, made=True, now=1.0)
    assert not breaks.avoided(1, 2)
    breaks.note(1, 2, made=True, now=2.0)
    assert breaks.avoided(1, 2), "three times in a row"
    assert not breaks.avoided(2, 1)


def test_links_that_break_while_data_moves_cost_nobody_anything() -> None:
    breaks = Breaks()
    for i in range(50):
        breaks.note(1, 2, made=True, now=float(i))
        breaks.data_moved()
    assert not breaks.avoided(1, 2)


def test_breaks_far_apart_do_not_add_up() -> None:
    breaks = Breaks()
    for i in range(50):
        breaks.note(1, 2, made=True, now=i * (QUIET_S + 1))
    assert not breaks.avoided(1, 2)


def test_a_pair_is_avoided_longer_each_time() -> None:
    breaks, now, spans = Breaks(), 0.0, []
    for _ in range(12):
        breaks.note(1, 2, made=False, now=now)
        began = now
        while not breaks.lapse(now):
            now += 1.0
        spans.append(now - began)
    assert spans[:3] == [AVOIDED_S, 2 * AVOIDED_S, 4 * AVOIDED_S]
    assert max(spans) == LONGEST_S


def test_one_whom_two_can_not_reach_goes_where_no_ring_is_left() -> None:
    links = LinkMap(nowhere)
    links.broke(1, 2, made=False, now=0.0)
    assert links.culprit([1, 2, 3]) is None, "the other way round it may work"
    links.broke(3, 2, made=False, now=0.0)
    assert links.culprit([1, 2, 3]) == 2


def test_one_who_accuses_two_goes_himself() -> None:
    links = LinkMap(nowhere)
    links.broke(1, 2, made=False, now=0.0)
    links.broke(1, 3, made=False, now=0.0)
    assert links.culprit([1, 2, 3]) == 1


def test_of_two_who_can_not_link_at_all_the_newer_goes() -> None:
    links = LinkMap(nowhere)
    for _ in range(2):
        links.broke(1, 2, made=False, now=0.0)
        assert links.culprit([1, 2]) is None
    links.broke(1, 2, made=False, now=0.0)
    assert links.culprit([1, 2]) == 2


def test_a_pair_that_is_avoided_and_yet_asked_for_again_and_again_costs_one_of_them_its_place() -> None:
    links = LinkMap(nowhere)
    for _ in range(2):
        links.broke(1, 3, made=False, now=0.0)
        assert links.culprit([1, 2, 3, 4]) is None
    links.broke(1, 3, made=False, now=0.0)
    assert links.culprit([1, 2, 3, 4]) == 3


def test_whoever_is_gone_has_no_trouble_left() -> None:
    links = LinkMap(nowhere)
    for _ in range(3):
        links.broke(1, 3, made=False, now=0.0)
    links.forget({3})
    assert links.culprit([1, 2, 4]) is None
    assert links.breaks.of(1) == ([], [])


def test_who_could_not_be_reached_waits_longer_each_time_and_nobody_else() -> None:
    patience, now, waits = Patience(), 100.0, []
    assert not patience.waits(("10.0.0.1", "anna"), now)
    for _ in range(12):
        patience.dropped(("10.0.0.1", "anna"), now)
        began = now
        while patience.waits(("10.0.0.1", "anna"), now):
            assert not patience.waits(("10.0.0.1", "bob"), now)
            now += FIRST_WAIT_S
        waits.append(now - began)
    assert waits[:4] == [FIRST_WAIT_S * n for n in (1, 2, 4, 8)]
    assert max(waits) == LONGEST_WAIT_S
    now += 11 * LONGEST_WAIT_S
    patience.dropped(("10.0.0.1", "anna"), now)
    assert not patience.waits(("10.0.0.1", "anna"), now + FIRST_WAIT_S), "long ago is forgotten"


def test_what_is_remembered_of_those_who_could_not_be_reached_is_bounded() -> None:
    patience = Patience()
    for i in range(3 * MOST_MEMBERS):
        patience.dropped(("10.0.0.1", str(i)), 0.0)
    assert len(patience._dropped) == MOST_MEMBERS
