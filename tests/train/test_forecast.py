"""What is foretold of a strategy on a link is what training there, in virtual time, comes to."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.train.asynchronous.local import Local
from atoll.train.forecast import Forecast, Link, Transfer, exchange, forecast, held_up, needed, say, served
from atoll.train.schedule import FragmentSchedule
from atoll.train.settings import ModelSettings
from tests.train.test_asynchronous import Run as Served
from tests.train.tiny import STEP_S, group_of, tiny

TWO_LAYERS = ModelSettings(width=16, layers=2, heads=2, context=16)
STEPS = 24
HOW: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp, late": {"strategy": "ddp", "delay": 1},
    "ddp, bf16": {"strategy": "ddp", "codec": "bf16"},
    "local-sgd": {"strategy": "local-sgd"},
    "diloco, uint8": {"codec": "uint8"},
    "diloco, late": {"delay": 3},
    "streaming": {"strategy": "streaming", "fragments": 2, "delay": 1, "model": TWO_LAYERS},
    "streaming, e3m0": {
        "strategy": "streaming", "fragments": 2, "delay": 1, "model": TWO_LAYERS, "codec": "e3m0", "down": "bf16"
    },
    "eager": {"strategy": "eager", "consensus": 2},
    "co2": {"strategy": "co2"},
    "one-byte": {"strategy": "one-byte"},
}  # fmt: skip
LINKS = {"a home": (Link(2e6, 20e-3), 100), "an office": (Link(1e8, 1e-3), 1000)}
"""And as how many numbers each of the tiny model counts."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", HOW)
@pytest.mark.parametrize("place", LINKS)
@pytest.mark.parametrize("world", [3, 8])
def test_bytes_and_waits_are_those_of_a_run(name: str, place: str, world: int) -> None:
    """Within 2 % and 5 %. (The last of ddp's late exchanges is no step's: it counts for 1/24.)"""
    chosen, (link, volume) = tiny(**HOW[name], steps=STEPS), LINKS[place]
    network = {"latency_s": link.trip_s / 2, "bytes_per_s": link.bytes_per_s, "one_machine": False, "volume": volume}
    peer = group_of(world, chosen, **network).run().peers[0]
    assert peer.done
    if chosen.strategy == "one-byte":
        volume, parts = 1, [say(1, world, link)]
    else:
        down = None if chosen.down == "same" else chosen.down
        sizes = [part.stop - part.start for part in peer.trainer.strategy.model.fragments]  # type: ignore[attr-defined]
        parts = [exchange(size * volume, world, link, chosen.codec, down) for size in sizes]
    told = forecast(replace(chosen.schedule, steps=STEPS), STEP_S, parts)
    steps, slack = peer.events("step"), 1 / STEPS if name == "ddp, late" else 0
    assert told.sent_bytes / volume == pytest.approx(steps[-1]["sent"], rel=0.02 + slack)
    assert told.waited_s == pytest.approx(sum(step["waited"] for step in steps), rel=0.05 + slack)
    assert told.step_s * STEPS == pytest.approx(sum(step["seconds"] for step in steps), rel=0.05 + slack)


SERVED = {"a home": (Link(2e6, 20e-3), 4), "a flat": (Link(2e7, 20e-3), 10), "an office": (Link(2e7, 1e-3), 10)}
"""And how many steps a round has."""


def served_run(
    workers: int, place: str, slow: Callable[[int], float], monkeypatch: pytest.MonkeyPatch
) -> tuple[Forecast, float, float]:
    """What is foretold, and of a run: seconds of waiting and bytes of a round. It takes the time of steps, but none is
    taken."""
    monkeypatch.setattr(Local, "step", lambda *of: (1.0, 8))
    link, every = SERVED[place]
    model = ModelSettings(width=32, layers=1, heads=2, context=8)
    chosen = tiny(strategy="diloco-server", codec="uint8", model=model, batch=1, every=every, steps=30 * every)
    run = Served(chosen, latency_s=link.trip_s / 2, bytes_per_s=link.bytes_per_s)
    run.serve()
    for i in range(workers):
        run.work(f"w{i}", workers, slow=slow(i))
    run.run()
    waits = [[e["waited"] for e in run.events("step", f"w{i}") if e["waited"]][1:-1] for i in range(workers)]
    sent = sum(e["sent"] for e in run.events("done")) / len(run.events("applied"))
    told = served(every, STEP_S, run.parameters.numel(), workers, link, "uint8")
    return told, float(np.mean([np.mean(each) for each in waits])), sent


@pytest.mark.sampled(2)
@pytest.mark.parametrize("place", SERVED)
@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_a_server_s_workers_wait_as_long_as_in_a_run(workers: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 10 %, if their speeds differ: so they come at any time."""
    told, waited_s, sent = served_run(workers, place, lambda i: 1 + 0.13 * i, monkeypatch)
    assert told.waited_s == pytest.approx(waited_s, rel=0.1)
    assert told.sent_bytes == pytest.approx(sent, rel=0.02)


def test_workers_that_are_exactly_alike_come_together_and_wait_for_each_other_s_transfers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link, _ = SERVED["a home"]
    told, waited_s, _ = served_run(3, "a home", lambda i: 1.0, monkeypatch)
    assert waited_s == pytest.approx(3 * told.sent_bytes / link.bytes_per_s + link.trip_s, rel=0.02)
    assert told.waited_s < waited_s


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_the_mean_of_many_numbers_takes_two_halves_of_them_and_a_vote() -> None:
    link = Link(1e6, 0.1)
    plain = exchange(10**8, 4, link)
    assert plain.sent_bytes == 2 * 3 / 4 * 4e8
    assert plain.link_s == plain.sent_bytes / 1e6
    assert plain.way_s == pytest.approx(0.2, rel=0.01)  # the vote; two ways of half a round trip
    assert exchange(10**8, 4, link, "e3m0").sent_bytes == pytest.approx(plain.sent_bytes / 32 * 4.125, rel=1e-3)
    mixed = exchange(10**8, 4, link, "e3m0", "none")
    assert mixed.sent_bytes == pytest.approx(plain.sent_bytes * (1 + 4.125 / 32) / 2, rel=1e-3)
    assert exchange(10**8, 1, link) == Transfer(0.0, 0.0, 0.0)
    assert exchange(100, 4, link).way_s == 0.1  # in the vote


PART = Transfer(sent_bytes=1000.0, link_s=2.0, way_s=0.5)


@pytest.mark.parametrize(
    ("schedule", "waits_s", "sent"),
    [
        (FragmentSchedule(4), 2.5, 1000),  # every fourth step, all of it
        (FragmentSchedule(4, delay=2), 0.5, 1000),
        (FragmentSchedule(4, delay=3), 0.0, 1000),
        (FragmentSchedule(4, late=True), 0.0, 1000),
        (FragmentSchedule(2, late=True), 0.5, 1000),
        (FragmentSchedule(2, late=True, first_waits=True), 0.5, 1000),
        (FragmentSchedule(4, late=True, consensus=2), 2.5 / 2, 1000),
        (FragmentSchedule(4, fragments=2), 5.0, 2000),
        (FragmentSchedule(4, fragments=2, delay=1), 3.0, 2000),
        (FragmentSchedule(), 2.5, 1000),
        (FragmentSchedule(late=True), 1.5, 1000),
    ],
    ids=str,
)
def test_a_round_waits_for_what_steps_of_a_second_do_not_hide(
    schedule: FragmentSchedule, waits_s: float, sent: float
) -> None:
    told = forecast(schedule, 1.0, [PART] * schedule.fragments)
    rounds = told.steps / schedule.every
    assert told.waited_s / rounds == pytest.approx(waits_s)
    assert told.sent_bytes / rounds == pytest.approx(sent)
    assert told.step_s == pytest.approx(1 + waits_s / schedule.every)
    assert told.utilisation == pytest.approx(1 / told.step_s)


def test_a_run_ends_with_one_more_exchange() -> None:
    told = forecast(FragmentSchedule(4, steps=6), 1.0, [PART])
    assert (told.steps, told.sent_bytes, told.waited_s) == (6, 2000.0, 5.0)


def test_the_busiest_second_is_a_fragment_s_and_not_the_whole_model_s() -> None:
    whole, part = Transfer(8e6, 0.8, 0.0), Transfer(1e6, 0.1, 0.0)
    diloco = forecast(FragmentSchedule(80), 0.2, [whole])
    streaming = forecast(FragmentSchedule(80, 8, 5), 0.2, [part] * 8)
    assert (diloco.peak_bytes_per_s, streaming.peak_bytes_per_s) == (pytest.approx(8e6), pytest.approx(1e6))
    assert diloco.sent_bytes / diloco.steps == pytest.approx(streaming.sent_bytes / streaming.steps)
    long = forecast(FragmentSchedule(80), 1.0, [Transfer(8e6, 4.0, 0.0)])
    assert long.peak_bytes_per_s == pytest.approx(2e6)
    always = forecast(FragmentSchedule(), 1e-3, [Transfer(1e3, 1e-3, 0.0)])
    assert always.peak_bytes_per_s == pytest.approx(5e5, rel=0.01)


@settings(deadline=None, max_examples=50)
@given(
    every=st.integers(1, 30), delay=st.integers(0, 29), late=st.booleans(), numbers=st.integers(1, 10**10),
    peers=st.integers(1, 64), trip_s=st.floats(0, 1), step_s=st.floats(1e-3, 100),
)  # fmt: skip
def test_more_bandwidth_never_makes_it_worse(
    every: int, delay: int, late: bool, numbers: int, peers: int, trip_s: float, step_s: float
) -> None:
    schedule = FragmentSchedule(every, delay=0 if late else delay % every, late=late)

    def share(rate: float) -> float:
        return forecast(schedule, step_s, [exchange(numbers, peers, Link(rate, trip_s))]).utilisation

    shares = [share(10.0**decade) for decade in range(3, 13, 3)]
    assert all(0 < a <= b + 1e-9 <= 1 + 2e-9 for a, b in pairwise(shares))


def test_a_server_s_queues_are_those_of_the_textbook() -> None:
    """Seconds: 2 down, 0.5 up, 4 of steps. One worker never waits for another; two do for who happens to be there:
    each arrives at what the other one alone leaves (2 + 2 * 2 / 7, 0.5 + 0.5 * 0.5 / 7, on a way of 0.5)."""
    link, numbers = Link(1e6, 0.5), 500_000
    alone, two = served(4, 1.0, numbers, 1, link, "uint8"), served(4, 1.0, numbers, 2, link, "uint8")
    up_s = (alone.sent_bytes - 4 * numbers) / 1e6
    assert up_s == pytest.approx(0.5, rel=0.02)
    assert alone.waited_s == pytest.approx(0.5 + 2 + up_s)
    cycle_s = 4 + alone.waited_s
    assert two.waited_s == pytest.approx(0.5 + 2 * (1 + 2 / cycle_s) + up_s * (1 + up_s / cycle_s))
    many = served(4, 1.0, numbers, 500, link, "uint8")
    assert many.waited_s + 4 == pytest.approx(500 * 2, rel=0.01), "its link gives without a pause"
    assert (alone.peak_bytes_per_s, many.peak_bytes_per_s) == (1e6, 1e6)
    assert served(4, 100.0, 1000, 3, link).peak_bytes_per_s == 12000


def test_in_rounds_the_others_wait_for_the_slowest() -> None:
    told = held_up(forecast(FragmentSchedule(4), 3.0, [PART]), 3.0)
    assert told.computed_s / told.steps == pytest.approx(1.0)
    assert told.step_s == pytest.approx(3 + 2.5 / 4)
    assert told.utilisation == pytest.approx(1 / (3 + 2.5 / 4))


def test_what_is_needed_is_just_enough() -> None:
    def make(link: Link) -> Forecast:
        return forecast(FragmentSchedule(20), 1.0, [exchange(10**9, 8, link)])

    rate = needed(make, 0.1, 0.95)
    assert make(Link(rate, 0.1)).utilisation >= 0.95 > make(Link(rate / 1.02, 0.1)).utilisation
    assert needed(make, 10.0, 0.95) == math.inf


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Link(0.0, 0.1), "bandwidth of a link must be above 0"),
        (lambda: Link(math.inf, 0.1), "bandwidth of a link must be above 0 and finite"),
        (lambda: Link(1.0, -0.1), "round trip of a link must be at least 0"),
        (lambda: forecast(FragmentSchedule(), 0.0, [PART]), "a step must take a time above 0"),
        (lambda: exchange(10**6, 2, Link(1.0, 0.0), "uint9"), "unknown codec"),
    ],
)
def test_links_that_can_not_be_are_refused(make: Any, says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        make()
