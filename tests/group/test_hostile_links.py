"""Hostile bytes at a peer's data port and at its local door, from strangers and from members who know the key, while
three peers reduce: results stay right, nobody is lost, and nothing grows."""

import itertools
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import PeerLost
from atoll.group import operations
from atoll.group import station as station_module
from atoll.group.api import LARGEST_FRAME, Series, unvoted_seq
from atoll.group.membership import stalls as stalls_module
from atoll.group.membership.stalls import Stalls
from atoll.group.messages import (
    Bye,
    Establish,
    Filled,
    Filler,
    Initiate,
    LinkAck,
    LinkHello,
    Returned,
    Seat,
)
from atoll.group.wiring import links as links_module
from atoll.group.wiring import wire as wire_module
from atoll.net.arena import available
from atoll.net.channel import CONTROL, HEADER, LARGEST_CONTROL, Channel
from atoll.net.neighbour import Neighbour
from atoll.reproduce.threads import run_peers
from tests.group.company import KNOCK, PORT, SIZES, WAYS, Caller, Company, lent
from tests.group.test_hostile import ANYWHERE, FIRST, TO_A_PEER, assert_closed, framed, said
from tests.net.holdings import descriptors, mapped_arenas

pytestmark = pytest.mark.skipif(not available(), reason="no shared memory here")

FAR = (1 << 30) - 1
"""The last of a series."""
NOWHERE = 1 << 30
"""A word that names no piece of any operation here."""


@pytest.fixture(scope="module")
def companies() -> Iterator[dict[str, Company]]:
    made: dict[str, Company] = {}
    yield made
    for company in made.values():
        company.end()


@pytest.fixture
def way() -> str:
    return WAYS[0]


@pytest.fixture(scope="module", autouse=True)
def _middle_size_is_eager() -> Iterator[None]:
    """Whatever was measured: those who went round a pair for a while would take a ring."""
    given = operations.choose

    def choose(kind: Any, nbytes: int, *more: Any) -> Any:
        return "eager" if nbytes == 8 * SIZES[1] else given(kind, nbytes, *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "choose", choose)
        yield


@pytest.fixture
def company(companies: dict[str, Company], way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Company]:
    """The same for all tests of one way, until one of them breaks it. Afterwards it goes on and holds no more than
    before."""
    if way == "shared memory":
        monkeypatch.setattr(Neighbour, "holds", lambda *_: False)
    if way not in companies or companies[way].problems:
        companies[way] = Company(way)
    running = companies[way]
    running.awake.set()
    running.go_on(1)
    assert running.ways() == {way}
    before, held, mapped = running.holds(), descriptors(), mapped_arenas()
    yield running
    running.go_on(2)
    assert running.members() == running.ids
    running.come_to(lambda: running.settled() and running.holds() == before, "somebody holds more than before")
    running.come_to(lambda: (descriptors(), mapped_arenas()) == (held, mapped), "descriptors or maps are left")
    running.awake.clear()


@pytest.fixture
def unnoticed(company: Company) -> Iterator[Company]:
    """Not even a link is made anew."""
    epoch, retries = company.epoch, company.retries
    yield company
    company.go_on(2)
    assert (company.epoch, company.retries) == (epoch, retries)


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.mark.sampled(8)
@pytest.mark.parametrize("attack", [*ANYWHERE, *TO_A_PEER])
def test_nonsense_at_a_door_ends_its_own_connection_only(unnoticed: Company, attack: str) -> None:
    with Caller(unnoticed, KNOCK) as stranger:
        stranger.sendall({**ANYWHERE, **TO_A_PEER}[attack])
        assert_closed(stranger)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("at", [PORT, KNOCK])
@pytest.mark.parametrize("key", [b"", b"guessed", bytes(16), bytes(1 << 20)], ids=len)
def test_a_stranger_with_a_wrong_key_is_hung_up_on_whoever_it_says_it_is(
    unnoticed: Company, at: str, key: bytes
) -> None:
    for source in (*unnoticed.ids, 0, -1, 999, 1 << 63):
        with Caller(unnoticed, at) as stranger:
            stranger.sendall(FIRST + said(LinkHello(unnoticed.epoch, source, key)) + framed(bytes(800), 3))
            assert_closed(stranger)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("at", [PORT, KNOCK])
@pytest.mark.parametrize("epoch", [-(1 << 63), -1, 0])
def test_a_link_of_an_epoch_long_past_is_hung_up_on_though_the_key_is_right(
    unnoticed: Company, at: str, epoch: int
) -> None:
    _, key = unnoticed.told(0)
    with Caller(unnoticed, at) as stranger:
        stranger.sendall(FIRST + said(LinkHello(epoch, unnoticed.groups[1].id, key)))
        assert_closed(stranger)


TOO_EARLY = {
    "data": framed(bytes(50_000), 1),
    "data of a small operation": framed(bytes(800), unvoted_seq(Series(0, 0), 1)),
    "lent data": lent(1, 50_000, 0),
    "filler": said(Filler(bytes(1000))),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize(("at", "ahead"), [(PORT, 1), (KNOCK, 1 << 62)])
@pytest.mark.parametrize("words", TOO_EARLY)
def test_a_link_of_an_epoch_to_come_may_wait_but_not_speak(unnoticed: Company, at: str, ahead: int, words: str) -> None:
    """Nobody has anything to send before all have made their links."""
    with Caller(unnoticed, at) as stranger:
        stranger.enter(unnoticed.ids[1], ahead, key=b"any")
        unnoticed.go_on(2)
        stranger.sendall(TOO_EARLY[words])
        assert_closed(stranger)


@pytest.mark.parametrize("at", [PORT, KNOCK])
def test_filler_before_a_hello_is_not_answered(unnoticed: Company, at: str) -> None:
    with Caller(unnoticed, at) as stranger:
        stranger.sendall(FIRST + said(Filler(bytes(1 << 20))))
        assert_closed(stranger)


@pytest.mark.parametrize("at", [PORT, KNOCK])
def test_lent_frames_before_a_hello_are_refused(unnoticed: Company, at: str) -> None:
    for seq in (1, unvoted_seq(Series(0, 0), 1), 2**64 - 1):
        with Caller(unnoticed, at) as stranger:
            stranger.sendall(FIRST + lent(seq, 100, 0))
            assert_closed(stranger)


def test_no_more_early_links_are_kept_than_allowed(unnoticed: Company) -> None:
    most = links_module._MOST_EARLY
    early = []
    for number in range(most + 20):
        early.append(Caller(unnoticed, PORT))
        early[-1].enter(number % 3, 1 + number // 3, key=b"any")
    for stranger in early[:20]:
        assert_closed(stranger)  # who has waited longest makes room
    _, _, connections, _ = unnoticed.holds()[0]
    assert most <= connections <= most + 2
    unnoticed.go_on()
    for stranger in early:
        stranger.close()


def test_a_key_longer_than_any_is_not_remembered(unnoticed: Company) -> None:
    with Caller(unnoticed, PORT) as stranger:
        stranger.sendall(FIRST + said(LinkHello(unnoticed.epoch + 1, 1, bytes(1 << 20))))
        assert_closed(stranger)


def test_early_strangers_keep_no_member_out_of_the_next_epoch(company: Company) -> None:
    """As many as may wait, in the place of each member."""
    retries = company.retries
    early = []
    for which in range(3):
        for number in range(links_module._MOST_EARLY):
            early.append(Caller(company, PORT, which))
            early[-1].enter(company.ids[number % 3], 1 + number // 12, key=b"any")
    company.renew()
    company.go_on()
    assert company.members() == company.ids
    assert company.retries > retries
    for stranger in early:
        stranger.close()


# -- members who know the key ------------------------------------------------------------------------------------------

NOT_ON_A_LINK: dict[str, bytes] = {
    "another hello": said(LinkHello(1, 1)),
    "an acknowledgement": said(LinkAck(1)),
    "slots that come back to one who lent none": said(Returned((0,))),
    "filler that was not asked for": said(Filled()),
    "the master's words": said(Establish(9, (Seat(1, "127.0.0.1", 1),))),
    "a vote": said(Initiate(1, 0, "all_reduce")),
    "a farewell": said(Bye()),
    "garbage": framed(random.Random(3).randbytes(100)),
    "an empty message": framed(b""),
    "a message of 4 GiB": HEADER.pack(CONTROL, 2**32 - 1, 0),
    "a message larger than any": HEADER.pack(CONTROL, LARGEST_CONTROL + 1, 0),
    "a frame larger than any": HEADER.pack(FAR, LARGEST_FRAME + 1, NOWHERE),
    "a small operation's frame that is large": framed(bytes(1 << 20), unvoted_seq(Series(0, 0), FAR)),
    "a frame of 2 GiB": HEADER.pack(FAR, 2**31 - 1, NOWHERE),
}
NO_SUCH_PLACE: dict[str, bytes] = {
    "a slot beyond the last": lent(FAR, 10_000, 1),
    "a slot far beyond": lent(FAR, 10_000, 2**64 - 1),
    "more than a slot holds": lent(FAR, LARGEST_FRAME + 4096, 0),
    "2 GiB": lent(FAR, 2**31 - 1, 0),
}
TOO_LARGE: dict[str, bytes] = {
    "more than any frame holds": lent(unvoted_seq(Series(0, 5), 1), LARGEST_FRAME + 1, 4096),
    "2 GiB": lent(unvoted_seq(Series(0, 5), 1), 2**31 - 1, 4096),
}


@pytest.fixture
def renewed(company: Company) -> Iterator[Company]:
    """The links are made anew; nobody is lost for it."""
    epoch = company.epoch
    yield company
    company.come_to(lambda: company.epoch > epoch, "no new epoch")


@pytest.mark.sampled(8)
@pytest.mark.parametrize("words", NOT_ON_A_LINK)
def test_what_has_no_business_on_a_link_costs_the_link_and_nothing_else(renewed: Company, words: str) -> None:
    with Caller(renewed, KNOCK if len(words) % 2 else PORT) as insider:
        insider.enter(renewed.groups[1].id)
        insider.sendall(NOT_ON_A_LINK[words])
        assert_closed(insider)


def test_memory_lent_through_a_port_is_refused(renewed: Company) -> None:
    with Caller(renewed, PORT) as insider:
        insider.enter(renewed.groups[1].id)
        insider.sendall(lent(FAR, 10_000, 0))
        assert_closed(insider)


@pytest.mark.parametrize("words", NO_SUCH_PLACE)
def test_lent_slots_that_are_none_cost_the_link_and_nothing_else(renewed: Company, words: str) -> None:
    with Caller(renewed, KNOCK) as insider:
        insider.enter(renewed.groups[1].id)
        insider.sendall(NO_SUCH_PLACE[words])
        assert_closed(insider)


@pytest.mark.parametrize("words", TOO_LARGE)
def test_too_much_lent_memory_costs_the_link_and_nothing_else(renewed: Company, words: str) -> None:
    with Caller(renewed, KNOCK) as insider:
        insider.enter(renewed.groups[1].id, proof=b"this can be read")
        insider.sendall(TOO_LARGE[words])
        assert_closed(insider)


def lend_until_closed(company: Company, insider: Caller, frames: Callable[[], list[bytes]]) -> None:
    """Before the true frames, which come late; again, for some operations are over by then."""
    company.late = 1
    try:
        _lend(insider, frames)
    finally:
        company.late = None


def _lend(insider: Caller, frames: Callable[[], list[bytes]]) -> None:
    end = time.monotonic() + 10.0
    with suppress(ConnectionError):
        while time.monotonic() < end:
            insider.settimeout(10.0)
            insider.sendall(b"".join(frames()))
            insider.settimeout(0.02)
            with suppress(TimeoutError):
                if not insider.recv(1 << 16):
                    return
        raise AssertionError("the link still stands")


@pytest.mark.parametrize("where", [0, 2**64 - 1])
def test_lent_memory_that_is_none_costs_the_link_and_not_the_small_operation_that_needs_it(
    renewed: Company, where: int
) -> None:
    """It begins in the program's thread, which must not suffer for it."""
    series, word = Series(0, 0), renewed.groups[1].rank << 1

    def frames() -> list[bytes]:
        now = renewed.wire(0)._station._started[series]
        return [lent(unvoted_seq(series, now + ahead), 8 * SIZES[1], where, word) for ahead in range(1, 30)]

    with Caller(renewed, KNOCK) as insider:
        insider.enter(renewed.groups[1].id, proof=b"this can be read")
        lend_until_closed(renewed, insider, frames)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("where", [8, 2**64 - 1])
@pytest.mark.parametrize("too_much", [0, 8])
def test_memory_gone_when_its_turn_comes_costs_the_link_and_not_the_one_who_brought_the_turn(
    renewed: Company, where: int, too_much: int
) -> None:
    """The operation begins with a word of the master, whose connection must not suffer for it."""
    rank = renewed.groups[0].rank
    nbytes = np.array_split(np.empty(SIZES[2]), 3)[rank].nbytes + too_much

    def frames() -> list[bytes]:
        """Of each that comes: what is to be added to the chunk of that rank."""
        now = renewed.master._policy.votes.seq
        return [lent(now + ahead, nbytes, where, rank << 1 | 1) for ahead in range(1, 30)]

    with Caller(renewed, KNOCK) as insider:
        insider.enter(renewed.groups[1].id, proof=b"this can be read")
        lend_until_closed(renewed, insider, frames)


def again(call: Callable[[], Any]) -> Any:
    """Until nobody is lost meanwhile."""
    while True:
        with suppress(PeerLost):
            return call()


def test_a_member_that_is_in_no_subgroup_cannot_disturb_it() -> None:
    """Its frames wait for operations that begin in a program's thread, which must not suffer for them."""
    series = [Series(1, tag, way) for tag in (0, 1) for way in (0, 1, 2, 3)]

    def body(group: atoll.Group) -> int:
        pair = group.subgroup("pair" if group.rank < 2 else "alone")
        if group.rank == 2:
            wire: Any = group._membership.port
            send = wire._links.send
            for to, nth, one in itertools.product(group._membership.view.ring[:2], (1, 2, 3), series):
                seq = unvoted_seq(one, nth)
                wire._loop.call(lambda to=to, seq=seq: send(to, seq, 1, lambda: memoryview(bytes(800))))
        again(group.barrier)
        if group.rank < 2:
            for tag in (0, 1, 0):
                x = np.ones(8_000)
                again(lambda x=x, tag=tag: pair.all_reduce(x, "sum", tag=tag, timeout_s=20.0))
                assert (x == 2).all()
        again(group.barrier)
        return group.world

    assert run_peers(3, body) == [3, 3, 3]


NOBODY_RUNS: dict[str, list[int]] = {
    "long over": [1],
    "far ahead": [FAR, (1 << 63) - 1],
    "small ones of each kind": [
        unvoted_seq(Series(scope, tag, way), nth)
        for scope, tag, way, nth in itertools.product((0, 7), (0, 9), range(4), (1, 1000, FAR))
    ],
    "the last of all": [2**64 - 1],
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("at", "lending"), [(PORT, False), (KNOCK, False), (KNOCK, True)])
@pytest.mark.parametrize("which", NOBODY_RUNS)
def test_frames_of_an_operation_nobody_runs_are_kept_or_dropped_and_hold_nobody_up(
    company: Company, at: str, lending: bool, which: str
) -> None:
    epoch = company.epoch
    with Caller(company, at) as insider:
        insider.enter(company.groups[1].id)
        for seq in NOBODY_RUNS[which]:
            insider.sendall(lent(seq, 100, 0, NOWHERE) if lending else framed(bytes(100), seq))
        company.go_on(10)
        assert company.epoch == epoch
        company.renew()


def test_small_operations_that_never_come_are_forgotten_and_real_ones_happen(
    company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(station_module, "_MOST_EARLY_BYTES", 2 << 20)
    monkeypatch.setattr(wire_module, "STALL_S", 0.5)  # a real one may be forgotten with them, and is tried again
    monkeypatch.setattr(wire_module, "_CHECK_S", 0.1)
    station = company.wire(0)._station
    with Caller(company, PORT) as insider:
        insider.enter(company.groups[1].id)
        for nth in range(1000, 4000):
            insider.sendall(framed(bytes(100 if nth % 30 else 200_000), unvoted_seq(Series(0, 3), nth)))
            with company.inside(0):
                early = [frame for frames in station._early.values() for frame in frames]
                assert sum(len(data) for _, _, data in early) == station._early_bytes <= 2 << 20
                assert len(early) <= station._most_early_runs
        company.go_on()
        company.renew()


def test_filler_without_end_is_answered_and_not_kept(company: Company) -> None:
    filler, answer = said(Filler(bytes(1 << 20))), said(Filled())
    with Caller(company, PORT) as insider:
        insider.enter(company.groups[1].id)
        for _ in range(50):
            insider.sendall(filler)
            insider.heard(Filled())
        assert len(answer) < 100
        company.go_on()


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("at", "cut"), [(KNOCK, HEADER.size - 1), (PORT, HEADER.size), (PORT, HEADER.size + 5000), (KNOCK, HEADER.size + 5)]
)
@pytest.mark.parametrize("what", ["a message", "a piece that is awaited", "a small operation", "what is lent"])
def test_a_link_that_ends_within_a_frame_costs_the_link_and_nothing_else(
    renewed: Company, at: str, cut: int, what: str
) -> None:
    nbytes = 50_000 // 3 * 8 + 8
    with Caller(renewed, at) as insider:
        insider.enter(renewed.groups[1].id)
        frame = {
            "a message": said(Filler(bytes(10_000))),
            "a piece that is awaited": HEADER.pack(renewed.master._policy.votes.seq + 2, nbytes, 1) + bytes(nbytes),
            "a small operation": framed(bytes(10_000), unvoted_seq(Series(0, 4), 1)),
            "what is lent": lent(FAR, 10_000, 0) if at == KNOCK else said(Filler(bytes(10_000))),
        }[what]
        insider.sendall(frame[: min(cut, len(frame) - 1)])


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", WAYS)
def test_a_frame_that_comes_twice_is_taken_once(company: Company, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "STALL_S", 0.5)  # behind it the next may wait for its turn for ever
    monkeypatch.setattr(stalls_module, "BLAME_S", 0.3)
    monkeypatch.setattr(Stalls, "to_blame", lambda *_: {})  # and then its sender would rightly be expelled
    monkeypatch.setattr(wire_module, "_CHECK_S", 0.1)
    doubled: list[int] = []

    def double(out: Any) -> None:
        put = out.way.put

        def twice(channel: Channel, to: int, seq: int, word: int, take: Any) -> None:
            put(channel, to, seq, word, take)
            if to not in doubled:
                doubled.append(to)
                put(channel, to, seq, word, take)

        out.way.put = twice

    with company.inside(1):
        for out in company.wire(1)._links._out.values():
            double(out)
    company.come_to(lambda: len(doubled) == 2, "nothing was sent twice")
    company.go_on(10)


ANSWERS: dict[str, bytes] = {
    "a slot never lent": said(Returned((31,))),
    "slots out of range": said(Returned((32, 1 << 40))),
    "a slot below the first": said(Returned((-1,))),
    "every slot there is": said(Returned(tuple(range(32)))),
    "another acknowledgement": said(LinkAck(1, True)),
    "filler that was never sent": said(Filled()),
    "a hello": said(LinkHello(1, 1)),
    "filler": said(Filler(b"x")),
    "garbage": framed(b"\xc1"),
    "data": framed(bytes(100), 1),
    "lent data": lent(1, 100, 0),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    ("way", "answer"),
    [("shared memory", answer) for answer in ANSWERS] + [(way, "a slot never lent") for way in WAYS if way[0] != "s"],
)
def test_one_who_answers_what_cannot_be_costs_the_link_and_nothing_else(renewed: Company, answer: str) -> None:
    """The second peer says it to those who send to it."""
    with renewed.inside(1):
        wire = renewed.wire(1)
        for link in wire._links._in.values():
            channel = link.channels[0]
            channel.outgoing.append(memoryview(ANSWERS[answer]))
            channel.backlog += len(ANSWERS[answer])
            wire._net.write(channel)


@pytest.mark.parametrize("at", [PORT, KNOCK])
def test_no_member_has_more_connections_than_allowed(renewed: Company, at: str) -> None:
    callers = []
    for _ in range(links_module.MOST_CONNECTIONS - 1):  # its own is one
        callers.append(Caller(renewed, at))
        callers[-1].enter(renewed.groups[1].id)
    renewed.go_on()
    _, key = renewed.told(0)
    with Caller(renewed, at) as one_more:
        one_more.sendall(FIRST + said(LinkHello(renewed.epoch, renewed.groups[1].id, key)))
        assert_closed(one_more)
    renewed.go_on()
    for caller in callers:
        caller.close()
