"""Open and closed loops, alone and together, and their unrolling into a trace."""

from itertools import islice, pairwise

from atoll.workload.api import Arrival, Demand
from atoll.workload.generate.lengths import Empirical, Joint, LogNormal
from atoll.workload.generate.loops import ClosedLoop, Replay, Together, open_loop, unrolled
from atoll.workload.generate.processes import Poisson

TEN = Empirical([10])


def at(number: int, at_s: float, session: str = "") -> Demand:
    return Demand(Arrival(number, at_s, 1, session or str(number)), 1)


def test_an_open_loop_takes_answers_by_their_prompts() -> None:
    joint = Joint([1, 100], [Empirical([1]), Empirical([7])])
    demands = list(islice(open_loop(Poisson(1), Empirical([5, 500]), joint, seed=0, service="conversation"), 100))
    assert {(d.arrival.prompt_tokens, d.output_tokens) for d in demands} == {(5, 1), (500, 7)}
    assert {d.arrival.service for d in demands} == {"conversation"}


def test_a_replay_says_what_it_was_given_and_waits_for_nobody() -> None:
    demands = [at(0, 0.0), at(1, 2.0)]
    assert list(Replay(demands).start()) == demands
    assert Replay(demands).handle(demands[0].arrival, 1.0) == ()


def test_together_is_in_order_of_time_and_numbered_through() -> None:
    both = Together([Replay([at(0, 0.0, "a"), at(1, 2.0, "b")]), Replay([at(0, 1.0, "c"), at(1, 2.0, "d")])])
    started = list(both.start())
    assert [(d.arrival.number, d.arrival.at_s, d.arrival.session) for d in started] == [
        (0, 0.0, "a"),
        (1, 1.0, "c"),
        (2, 2.0, "b"),
        (3, 2.0, "d"),
    ]


def test_together_an_answer_goes_to_whom_it_belongs() -> None:
    loops = [ClosedLoop(2, 1.0, TEN, TEN, seed=0, name=name) for name in ("a", "b")]
    both = Together([*loops, Replay([at(0, 0.5, "c")])])
    for demand in list(both.start()):
        followers = both.handle(demand.arrival, 10.0)
        assert [f.arrival.session for f in followers] == [demand.arrival.session][: len(followers)]
        assert len(followers) == (demand.arrival.session != "c")
        assert all(f.arrival.turn == 1 and f.arrival.at_s >= 10 for f in followers)


def test_unrolled_each_user_asks_again_after_the_answer_and_a_thought() -> None:
    demands = list(islice(unrolled(ClosedLoop(3, 2.0, TEN, LogNormal(50, 1), seed=1), lambda d: 5.0), 60))
    assert [d.arrival.number for d in demands] == list(range(60))
    assert all(a.arrival.at_s <= b.arrival.at_s for a, b in pairwise(demands))
    for user in "012":
        own = [d.arrival for d in demands if d.arrival.session == user]
        assert [a.turn for a in own] == list(range(len(own)))
        assert all(b.at_s >= a.at_s + 5.0 for a, b in pairwise(own))


def test_unrolled_an_open_loop_is_itself() -> None:
    demands = list(islice(open_loop(Poisson(1), TEN, TEN, seed=0), 20))
    assert list(unrolled(Replay(demands), lambda d: 1e9)) == demands
