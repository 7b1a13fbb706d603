"""Who fails is gone round, tried by one request at a time, and comes back."""

from hypothesis import example, given
from hypothesis import strategies as st

from atoll.route.balance import Fewest, Turns
from atoll.route.dispatch import Dispatch
from atoll.route.health import WAITS_S

ALL = (0, 1)


def test_after_a_failure_others_are_asked_until_one_request_may_try():
    dispatch = Dispatch(["a", "b"], Fewest())
    assert dispatch.choose("", ALL, (), 0.0) == 0
    dispatch.failed(0, 10.0)
    dispatch.ended(0)
    assert [dispatch.choose("", ALL, (), 10.0 + 0.4 * i * WAITS_S[0]) for i in range(3)] == [1, 1, 1]
    assert dispatch.wait_s(10.0) == 0.0, "the other one is there"
    later = 10.0 + WAITS_S[0]
    assert [dispatch.choose("", ALL, (), later) for _ in range(2)] == [0, 1]
    dispatch.answered(0)
    assert dispatch.choose("", ALL, (), later) == 0
    assert dispatch.open == [2, 4]


def test_what_fails_again_and_again_is_left_alone_for_longer():
    dispatch, now = Dispatch(["a"], Turns()), 0.0
    dispatch.choose("", (0,), (), now)
    dispatch.failed(0, now)
    for wait in [*WAITS_S, WAITS_S[-1]]:
        assert dispatch.choose("", (0,), (), now + 0.999 * wait) is None
        assert dispatch.wait_s(now) == wait
        now += wait
        assert dispatch.choose("", (0,), (), now) == 0
        dispatch.failed(0, now)
    assert dispatch.failures == [len(WAITS_S) + 2]


def test_all_requests_that_one_death_ends_are_one_failure():
    dispatch = Dispatch(["a", "b"], Fewest())
    for _ in range(20):
        dispatch.choose("", (0,), (), 0.0)
    for _ in range(20):
        dispatch.failed(0, 1.0)
        dispatch.ended(0)
    assert dispatch.wait_s(1.0) == 0.0
    assert dispatch.choose("", (0,), (), 1.0 + WAITS_S[0]) == 0
    assert dispatch.open == [1, 0]


def test_who_has_too_many_is_there():
    dispatch = Dispatch(["a"], Fewest())
    dispatch.choose("", (0,), (), 0.0)
    dispatch.refused(0)
    assert dispatch.choose("", (0,), (), 0.0) == 0
    assert dispatch.failures == [1]


def test_a_try_that_nobody_waited_for_is_no_answer():
    """Its client went: another one tries when as much time has passed again."""
    dispatch = Dispatch(["a"], Fewest())
    dispatch.choose("", (0,), (), 0.0)
    dispatch.failed(0, 0.0)
    dispatch.ended(0)
    assert dispatch.choose("", (0,), (), 1.0) == 0
    dispatch.ended(0)
    assert dispatch.choose("", (0,), (), 1.0 + 0.9 * WAITS_S[1]) is None
    assert dispatch.choose("", (0,), (), 1.0 + WAITS_S[1]) == 0


@example([("ask", 0.0), ("ask", 0.0), ("failed", 0.0), ("failed", 1.0)])
@given(st.lists(st.tuples(st.sampled_from(["ask", "answered", "failed", "refused"]), st.floats(0, 3)), max_size=60))
def test_nobody_is_asked_who_is_not_ready_or_was_tried_and_counts_balance(events):
    """Against a count by hand; whatever happens, each try is left within the longest wait."""
    dispatch, now, under_way, asked = Dispatch(["a", "b", "c"], Turns()), 0.0, list[int](), 0
    for what, passed in events:
        now += passed
        if what == "ask":
            which = dispatch.choose("k", (0, 2), (2,), now)
            assert which in (0, None)
            if which is not None:
                asked += 1
                under_way.append(which)
        elif under_way:
            which = under_way.pop()
            if what == "failed":
                dispatch.failed(which, now)
                assert not dispatch.reachable(which, now)
            else:
                getattr(dispatch, what)(which)
                assert dispatch.reachable(which, now)
            dispatch.ended(which)
    assert dispatch.open == [len(under_way), 0, 0]
    assert dispatch.asked == [asked, 0, 0]
    assert dispatch.reachable(0, now + WAITS_S[-1])
