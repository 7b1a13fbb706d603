"""The lab's links are as they should be, seen by programs on the hosts; the same for each back end."""

from collections.abc import Iterator

import pytest

from atoll.errors import InvalidConfig, LabUnavailable
from atoll.net.lab import Lab, Shape, open_lab
from tests.net.lab.hosts import BACK_ENDS, PACKETS, Program, arrivals, goodput, listening, need, round_trips


@pytest.fixture(scope="module", params=BACK_ENDS)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with open_lab(4, back_end=need(request.param)) as lab:
        yield lab


@pytest.fixture(scope="module", params=PACKETS)
def packets(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose links carry packets."""
    with open_lab(2, back_end=need(request.param)) as lab:
        yield lab


@pytest.mark.sampled(1)
def test_a_round_trip_takes_both_delays_and_other_pairs_are_not_late(lab: Lab) -> None:
    lab.set(0, 1, Shape(delay_s=0.02))
    late = round_trips(lab, 0, 1, 5000)
    assert late[0] >= 0.0399
    assert late[len(late) // 2] < 0.04 * 1.2 + 0.002
    assert round_trips(lab, 2, 3, 5000)[0] < 0.01


@pytest.mark.sampled(1)
def test_jitter_makes_trips_longer_and_unlike(lab: Lab) -> None:
    lab.set(0, 2, Shape(delay_s=0.005, jitter_s=0.02))
    trips = round_trips(lab, 2, 0, 5001)
    assert trips[0] >= 0.0099
    assert trips[-1] - trips[0] > 0.005
    assert trips[len(trips) // 2] < 0.05 * 1.2 + 0.002


@pytest.mark.sampled(1)
def test_one_stream_fills_the_link_and_no_more(lab: Lab) -> None:
    lab.set(0, 3, Shape(rate_bits_per_s=30e6, delay_s=0.005))
    assert goodput(lab, 0, 3, 5002, warm_s=0.5, measure_s=1.0) == pytest.approx(30e6, rel=0.25)


@pytest.mark.sampled(1)
def test_a_shape_can_change_under_a_connection(lab: Lab) -> None:
    lab.set(1, 2, Shape())
    with listening(lab, 2, "echo", 5003), Program(lab, 1, "chat", lab.expose(2, 5003)) as chat:
        assert chat.hear() == "connected"
        chat.tell("one")
        assert [chat.hear(), chat.hear()] == ["sent", "one\n"]
        lab.set(2, 1, Shape(delay_s=0.2))
        chat.tell("two")
        assert chat.hear() == "sent"
        assert not chat.says_something(0.3)
        assert chat.hear() == "two\n"


@pytest.mark.sampled(1)
def test_a_cut_is_silent_and_healed_without_loss(lab: Lab) -> None:
    lab.set(1, 3, Shape(delay_s=0.001))
    with listening(lab, 3, "echo", 5004), Program(lab, 1, "chat", lab.expose(3, 5004)) as chat:
        assert chat.hear() == "connected"
        chat.tell("one")
        assert [chat.hear(), chat.hear()] == ["sent", "one\n"]
        lab.cut(3)
        chat.tell("two")
        assert chat.hear() == "sent"
        assert not chat.says_something(0.5)
        lab.heal(3)
        assert chat.hear() == "two\n"


@pytest.mark.sampled(1)
def test_not_even_the_end_of_a_process_gets_out_of_a_cut(lab: Lab) -> None:
    lab.set(1, 3, Shape(delay_s=0.001))
    with listening(lab, 3, "echo", 5005) as echo, Program(lab, 1, "chat", lab.expose(3, 5005)) as chat:
        assert chat.hear() == "connected"
        chat.tell("one")
        assert [chat.hear(), chat.hear()] == ["sent", "one\n"]
        lab.cut(1)
        chat.tell("two")
        assert chat.hear() == "sent"
        echo.process.kill()
        assert not chat.says_something(0.5)
        lab.heal(1)
        assert chat.hear() != "two\n"  # the end of the connection, or that it is unknown by now


def test_others_talk_while_one_is_cut_off(lab: Lab) -> None:
    lab.set(2, 3, Shape())
    lab.cut(1)
    assert round_trips(lab, 2, 3, 5006)[0] < 0.01
    lab.heal(1)


def test_the_congestion_control_it_tells_is_that_of_both_ends(lab: Lab) -> None:
    lab.set(0, 1, Shape())
    with listening(lab, 1, "echo", 5007) as echo, Program(lab, 0, "ping", lab.expose(1, 5007), 1) as ping:
        assert echo.hear() == lab.congestion
        ping.hear()
        assert ping.hear() == lab.congestion


def test_an_unknown_host_is_named(lab: Lab) -> None:
    for misuse in (lambda: lab.address(4), lambda: lab.cut(-1), lambda: lab.set(0, 4, Shape()), lambda: lab.heal(9)):
        with pytest.raises(InvalidConfig, match="there is no host"):
            misuse()


@pytest.mark.sampled(1)
def test_packets_get_lost_as_often_as_told(packets: Lab) -> None:
    packets.set(0, 1, Shape(loss=0.1))
    got = arrivals(packets, 0, 1, 6000, packets=3000, nbytes=100, rate=4000)
    assert len(got) == pytest.approx(2700, abs=90)


def test_what_does_not_fit_into_the_queue_is_dropped(packets: Lab) -> None:
    packets.set(0, 1, Shape(rate_bits_per_s=8e5, queue_bytes=40_000))
    # Sent in 0.1 s: while 10 kB leave and 40 kB wait, 350 kB find no room. On a busy machine it may take a second more.
    got = arrivals(packets, 0, 1, 6001, packets=400, nbytes=1000, rate=4000)
    assert 30 <= len(got) <= 150


def test_packets_stay_in_order_in_spite_of_jitter(packets: Lab) -> None:
    packets.set(0, 1, Shape(jitter_s=0.01))
    got = arrivals(packets, 0, 1, 6002, packets=200, nbytes=100, rate=2000)
    assert got == list(range(200))


@pytest.mark.slow
def test_the_same_seed_loses_the_same_packets() -> None:
    def lost(seed: int) -> list[int]:
        with open_lab(2, Shape(loss=0.2), back_end=need("tun"), seed=seed) as lab:
            return arrivals(lab, 0, 1, 6000, packets=200, nbytes=100, rate=2000)

    assert lost(1) == lost(1) != lost(2)


@pytest.mark.parametrize("back_end", PACKETS)
def test_a_congestion_control_that_the_kernel_lacks_is_not_claimed(back_end: str) -> None:
    with open_lab(2, back_end=need(back_end), congestion="reno") as lab:
        assert lab.congestion == "reno"
    with open_lab(2, back_end=back_end, congestion="nonesuch") as lab:
        assert lab.congestion not in ("", "nonesuch")


def test_a_relay_refuses_what_streams_cannot_do() -> None:
    with pytest.raises(LabUnavailable, match="loss"):
        open_lab(2, Shape(loss=0.1), back_end=need("relay"))
    with open_lab(2, back_end="relay") as lab, pytest.raises(LabUnavailable, match="loss"):
        lab.set(0, 1, Shape(loss=0.1))
