"""Bytes that come slowly, too large, too small, in another order or twice, and callers without end.

On control connections and on data links, to the master and to a peer. Who sends them may be lost for it; the others go
on.
"""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest

import atoll
from atoll.errors import AtollError, MasterLost, PeerLost
from atoll.group import messages
from atoll.group.api import Series, unvoted_seq
from atoll.group.messages import (
    Beat,
    Broken,
    Bye,
    Commence,
    Complete,
    Filled,
    Filler,
    Hello,
    Initiate,
    Linked,
    Probed,
    Verdict,
    View,
    Welcome,
)
from atoll.group.wiring import links as links_module
from atoll.group.wiring.asking import StatusClient
from atoll.group.wiring.wire import parse_address
from atoll.group.work import wait_all
from atoll.net import loop as loop_module
from atoll.net import preamble
from atoll.net.arena import available
from atoll.net.channel import CONTROL, HEADER, LARGEST_CONTROL, LENT, WHERE, Channel
from atoll.reproduce.threads import run_peers
from tests.group.company import PORT, Caller, Company
from tests.group.test_hostile import FIRST, Training, assert_closed, framed, said

SIZES = (100, 8_000, 50_000)


@pytest.fixture(scope="module")
def trainings() -> Iterator[list[Training]]:
    made: list[Training] = []
    yield made
    for training in made:
        training.end()


@pytest.fixture
def training(trainings: list[Training]) -> Iterator[Training]:
    """Two peers that reduce; nobody is lost, not even a link is made anew."""
    if not trainings or trainings[-1].problems:
        trainings.append(Training())
    running = trainings[-1]
    yield running
    running.go_on()
    status = running.status()
    assert (status.epoch, status.forming, [m.id for m in status.members]) == (running.epoch, False, running.ids)


def eventually(wanted: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20.0
    while not wanted():
        assert time.monotonic() < end, what
        time.sleep(0.005)


# -- slowly -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["master", "peer"])
def test_a_greeting_that_trickles_is_cut_off_at_the_same_time_as_none(
    training: Training, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_GREETING_S", 0.2)
    head = preamble.HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 1000)
    with training.connect(target) as stranger:
        for byte in head + bytes(999):
            training.go_on(1)
            try:
                stranger.sendall(bytes([byte]))
            except ConnectionError:
                return
    pytest.fail("a greeting may take for ever")


@pytest.mark.parametrize("target", ["master", "peer"])
def test_a_message_that_trickles_keeps_nobody_waiting(training: Training, target: str) -> None:
    with training.connect(target) as stranger:
        stranger.sendall(FIRST + HEADER.pack(CONTROL, LARGEST_CONTROL, 0))
        for _ in range(30):
            stranger.sendall(b"x")
            training.go_on(1)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not available(), reason="no /proc here")
@pytest.mark.parametrize("target", ["master", "peer"])
def test_messages_that_are_promised_take_no_memory_before_they_come(training: Training, target: str) -> None:
    before = resident_bytes()
    strangers = [training.connect(target) for _ in range(100)]
    for stranger in strangers:
        stranger.sendall(FIRST + HEADER.pack(CONTROL, LARGEST_CONTROL, 0) + b"x")
    training.go_on(20)
    assert resident_bytes() - before < 100 * LARGEST_CONTROL / 4
    for stranger in strangers:
        stranger.close()


# -- without end ------------------------------------------------------------------------------------------------------


def hang_up_rudely(sock: socket.socket) -> None:
    """With a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("target", ["master", "peer"])
def test_a_flood_of_callers_holds_nobody_up_and_leaves_nothing(training: Training, target: str) -> None:
    wanted, called, over = 200, [0], threading.Event()
    first_words = [b"", FIRST[:5], FIRST, FIRST + HEADER.pack(CONTROL, 100, 0), b"GET / HTTP/1.1\r\n\r\n"]
    channels = training.master._net.channels
    before = len(channels)

    def flood() -> None:
        while not over.is_set():
            with training.connect(target) as stranger:
                stranger.sendall(first_words[called[0] % len(first_words)])
                if called[0] % 3 == 0:
                    hang_up_rudely(stranger)
            called[0] += 1

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        while called[0] < wanted:
            training.go_on(5)
    finally:
        over.set()
        thread.join(10.0)
    training.go_on(5)
    eventually(lambda: len(channels) <= before, "connections of strangers are kept")


# -- a member of three that says what no member says ------------------------------------------------------------------


class Peer:
    """Joins, and reduces until it may not any more."""

    def __init__(self, address: str, min_world: int, stop: threading.Event) -> None:
        self.steps, self.world = 0, 0
        self.group: atoll.Group | None = None
        self.error: AtollError | None = None
        self.wrong = ""
        self._epoch = self._turn = 0
        self._address, self._min_world, self._stop = address, min_world, stop
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with atoll.join(self._address, min_world=self._min_world, timeout_s=30.0) as self.group:
                while not self._stop.is_set():
                    self._step(self.group)
        except AtollError as error:
            self.error = error

    def _step(self, group: atoll.Group) -> None:
        try:
            if group.peers_pending():
                group.update_topology(timeout_s=30.0)
            if group.epoch != self._epoch:
                self._epoch, self._turn = group.epoch, 0  # the same on all, whenever they came
            x = np.ones(SIZES[self._turn % 3])
            result = group.all_reduce(x, "sum", timeout_s=30.0)
        except PeerLost:
            return
        if not (x == result.world).all():
            self.wrong = f"{x} among {result.world}"
        self.world = result.world
        self.steps += 1
        self._turn += 1


class Trio:
    """A master, two peers that go on, and odd ones that come and are lost."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.master = atoll.Master()
        self.master.__enter__()
        self.steady = [Peer(self.master.address, 2, self.stop) for _ in range(2)]
        self.go_on()
        self.ids = sorted(peer.group.id for peer in self.steady if peer.group)

    def go_on(self, steps: int = 5) -> None:
        goal = max(peer.steps for peer in self.steady) + steps
        eventually(lambda: min(peer.steps for peer in self.steady) >= goal, "they stand still")
        assert not any(peer.wrong or peer.error for peer in self.steady), [vars(peer) for peer in self.steady]

    def odd_one(self) -> Peer:
        odd = Peer(self.master.address, 1, self.stop)
        eventually(lambda: (odd.steps > 2 and odd.world == 3) or odd.error is not None, "it is not let in")
        assert odd.error is None
        return odd

    def members(self) -> list[int]:
        client = StatusClient(self.master.address)
        try:
            return sorted(member.id for member in client.ask().members)
        finally:
            client.close()

    @property
    def epoch(self) -> int:
        return self.master._policy.epoch

    def say(self, odd: Peer, data: bytes) -> None:
        """On its connection to the master, between two messages of its own."""
        assert odd.group is not None
        wire: Any = odd.group._membership.port
        with wire._loop._lock:
            put(wire._net, wire._control, data)

    def tell(self, odd: Peer, data: bytes) -> None:
        """On the same connection, from the master: at its next tick."""
        assert odd.group is not None
        master: Any = self.master
        tick, told, to = master._tick, threading.Event(), odd.group.id

        def tick_and_tell() -> None:
            master._tick = tick
            put(master._net, master._channels[to], data)
            told.set()
            tick()

        master._tick = tick_and_tell
        assert told.wait(10.0)

    def end(self) -> None:
        self.stop.set()
        for peer in self.steady:
            peer.thread.join(30.0)
        self.master.close()


def put(net: Any, channel: Channel, data: bytes) -> None:
    channel.outgoing.append(memoryview(data))
    channel.backlog += len(data)
    net.write(channel)


@pytest.fixture(scope="module")
def trios() -> Iterator[list[Trio]]:
    made: list[Trio] = []
    yield made
    for trio in made:
        trio.end()


@pytest.fixture
def trio(trios: list[Trio]) -> Iterator[Trio]:
    """The same for all tests until one breaks it; the two that keep the rules are in it all the time."""
    if not trios or any(peer.error or peer.wrong for peer in trios[-1].steady):
        trios.append(Trio())
    running = trios[-1]
    yield running
    eventually(lambda: running.members() == running.ids, "somebody else is lost, or stays")
    running.go_on()
    assert all(peer.world == 2 for peer in running.steady)


LENT_FRAME: Final = HEADER.pack(5, LENT | 100, 0) + WHERE.pack(0)
ON_NO_CONNECTION: dict[str, bytes] = {
    "a message of 4 GiB": HEADER.pack(CONTROL, 2**32 - 1, 0),
    "a message one byte too large": HEADER.pack(CONTROL, LARGEST_CONTROL + 1, 0),
    "a message of no bytes": framed(b""),
    "an unknown kind": framed(b"\x91\x63"),
    "garbage": framed(b"\xc1" * 50),
    "data": framed(b"data", 5),
    "lent data": LENT_FRAME,
}
COSTS_ITSELF: dict[str, Callable[[int], bytes]] = {
    **{what: lambda epoch, data=data: data for what, data in ON_NO_CONNECTION.items()},  # type: ignore[misc]
    "a second hello": lambda epoch: said(Hello("127.0.0.1", 1)),
    "a second hello that is unfit": lambda epoch: said(Hello("nowhere", 1)),
    "a vote cast twice": lambda epoch: 2 * said(Initiate(epoch, 9, "twice", b"", False)),
    "a vote of 1 MiB": lambda epoch: said(Initiate(epoch, 9, "large", bytes(1 << 20), False)),
    "a reason of 1 MiB": lambda epoch: said(Broken(epoch, 1, 2, "x" * (1 << 20))),
    "a link that is none of its own": lambda epoch: said(Broken(epoch, 1, 1, "cut")),
    "a farewell": lambda epoch: said(Bye()),
    "the words of another master": lambda epoch: said(View(epoch, (1,), True)),
}
COSTS_NOBODY: dict[str, Callable[[int], bytes]] = {
    "an end before its beginning": lambda epoch: said(Complete(1 << 40)),
    "the same end twice": lambda epoch: 2 * said(Complete(1)),
    "a fault of what is long decided": lambda epoch: said(Complete(1, "wrong")),
    "a link of an epoch long past": lambda epoch: said(Linked(0)),
    "a link of an epoch to come": lambda epoch: said(Linked(epoch + 1)),
    "a vote of an epoch long past": lambda epoch: said(Initiate(0, 0, "all_reduce")),
    "a vote of an epoch to come": lambda epoch: said(Initiate(epoch + 1, 0, "all_reduce")),
    "a broken link of an epoch long past": lambda epoch: said(Broken(0, 1, 2, "cut")),
    "a measurement nobody asked for": lambda epoch: said(Probed(epoch, 1, 1.0, 1.0)),
    "beats without proof": lambda epoch: said(Beat(1, b"guessed", "gone", bytes(8))),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("what", COSTS_ITSELF)
def test_a_member_that_breaks_the_rules_is_lost_alone(trio: Trio, what: str) -> None:
    odd = trio.odd_one()
    trio.say(odd, COSTS_ITSELF[what](trio.epoch))
    odd.thread.join(20.0)
    assert odd.error is not None


@pytest.mark.parametrize("what", ON_NO_CONNECTION)
def test_one_that_waits_to_be_let_in_and_breaks_the_rules_is_lost_alone(trio: Trio, what: str) -> None:
    with socket.create_connection(parse_address(trio.master.address), 5.0) as waiting:
        waiting.sendall(FIRST + said(Hello("127.0.0.1", 1, min_world=9)) + ON_NO_CONNECTION[what])
        assert_closed(waiting)


def test_words_out_of_order_or_said_twice_cost_nobody_a_thing(trio: Trio) -> None:
    odd = trio.odd_one()
    epoch = trio.epoch
    for what, words in COSTS_NOBODY.items():
        trio.say(odd, words(epoch))
        trio.go_on(2)
        assert (trio.epoch, odd.error) == (epoch, None), what
    assert odd.world == 3
    trio.say(odd, said(Bye()))
    odd.thread.join(20.0)


FROM_THE_MASTER: dict[str, Callable[[int], bytes]] = {
    "a second welcome": lambda epoch: said(Welcome(99, b"secret")),
    "a verdict on nothing": lambda epoch: said(Verdict(9, False)),
    "the beginning of nothing": lambda epoch: said(Commence(9, 1)),
    "the same view twice": lambda epoch: said(View(epoch, (1, 2, 3), False)),
    "a view before its establishing": lambda epoch: said(View(epoch + 1, (1, 2, 3), False)),
}
FRAMED_WRONGLY = [what for what in ON_NO_CONNECTION if what != "garbage"]
"""The same code refuses it on every connection."""


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", [*FROM_THE_MASTER, "garbage", *FRAMED_WRONGLY])
def test_a_peer_to_whom_the_master_speaks_nonsense_leaves_and_says_so(trio: Trio, what: str) -> None:
    odd = trio.odd_one()
    words = ON_NO_CONNECTION[what] if what in ON_NO_CONNECTION else FROM_THE_MASTER[what](trio.epoch)
    trio.tell(odd, words)
    odd.thread.join(20.0)
    assert isinstance(odd.error, MasterLost)
    assert "please report" not in str(odd.error), "it took the peer by surprise"


@pytest.mark.parametrize("accepts", [True, False], ids=["silent", "deaf"])
def test_a_newcomer_that_never_makes_its_links_is_lost_alone(
    trio: Trio, accepts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the call of its neighbour, who must not be lost with it for a link that doesn't stand."""
    monkeypatch.setattr(links_module, "ACKNOWLEDGED_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(parse_address(trio.master.address), 5.0) as newcomer,
    ):
        host, port = listener.getsockname()
        newcomer.sendall(FIRST + said(Hello(host, port, "silent")))
        if not accepts:
            listener.close()
        newcomer.settimeout(20.0)
        assert_closed(newcomer)
    reasons = {loss.reason for _, loss in trio.master._policy.losses if loss.name == "silent"}
    assert reasons
    assert all(reason.endswith("can't reach it") for reason in reasons)


@pytest.mark.parametrize("host", ["::1%\0", "::1%" + "ö" * 50, "::1%nowhere"], ids=ascii)
def test_a_newcomer_at_an_address_nobody_can_dial_is_lost_alone(trio: Trio, host: str) -> None:
    with socket.create_connection(parse_address(trio.master.address), 5.0) as newcomer:
        newcomer.sendall(FIRST + said(Hello(host, 9, "nowhere")))
        newcomer.settimeout(20.0)
        assert_closed(newcomer)


# -- on data links ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def companies() -> Iterator[list[Company]]:
    if not available():
        pytest.skip("no shared memory here")
    made: list[Company] = []
    yield made
    for company in made:
        company.end()


@pytest.fixture
def company(companies: list[Company]) -> Iterator[Company]:
    """Three peers that reduce over TCP; all are there in the end, with right results."""
    if not companies or companies[-1].problems:
        companies.append(Company("TCP"))
    running = companies[-1]
    running.awake.set()
    running.go_on(1)
    yield running
    running.go_on(2)
    assert running.members() == running.ids
    running.awake.clear()


def test_a_frame_that_trickles_on_a_link_holds_nothing_else_up(company: Company) -> None:
    epoch = company.epoch
    with Caller(company, PORT) as insider:
        insider.enter(company.groups[1].id)
        filler = said(Filler(bytes(20)))
        for byte in filler:
            company.go_on(1)
            insider.sendall(bytes([byte]))
        insider.heard(Filled())
        assert company.epoch == epoch
    company.renew()


def test_a_hello_that_trickles_at_a_port_holds_nothing_up(company: Company) -> None:
    epoch = company.epoch
    with Caller(company, PORT) as stranger:
        for byte in FIRST + HEADER.pack(CONTROL, 100, 0) + bytes(20):
            stranger.sendall(bytes([byte]))
            company.go_on(1)
        assert company.epoch == epoch


FAR = (1 << 30) - 1
EMPTY: dict[str, bytes] = {
    "of an operation long over": framed(b"", 1),
    "of an operation far ahead": framed(b"", FAR),
    "of a small operation": framed(b"", unvoted_seq(Series(0, 4), FAR)),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", EMPTY)
def test_an_empty_frame_of_what_nobody_runs_costs_nothing(company: Company, what: str) -> None:
    epoch = company.epoch
    with Caller(company, PORT) as insider:
        insider.enter(company.groups[1].id)
        insider.sendall(2 * EMPTY[what])
        company.go_on(10)
        assert company.epoch == epoch
    company.renew()


def test_empty_frames_in_the_place_of_data_cost_the_link_and_nothing_else(company: Company) -> None:
    epoch = company.epoch
    ids = [group.id for group in company.groups]
    first = ids.index(min(ids))  # to whom the others' first pieces go
    with Caller(company, PORT, first) as insider:
        insider.enter(max(ids))
        now = company.master._policy.votes.seq
        insider.sendall(b"".join(HEADER.pack(now + ahead, 0, 1) for ahead in range(1, 30)))
        assert_closed(insider)
    company.come_to(lambda: company.epoch > epoch, "no new epoch")


def swap_pairs(wire: Any, swapped: list[int]) -> None:
    """On each link that stands: the second of two frames leaves before the first, unless it is long in coming."""
    for out in wire._links._out.values():
        kept: list[Any] = []

        def later(channel: Channel, to: int, *frame: Any, put: Any = out.way.put, kept: list[Any] = kept) -> None:
            def give() -> None:
                while kept:
                    put(*kept.pop())
                wire._net.write(channel)

            if kept:
                swapped.append(to)
                put(channel, to, *frame)
                give()
            else:
                kept.append((channel, to, *frame))
                wire._net.after(0.05, give)

        out.way.put = later


def test_frames_in_another_order_find_their_places_or_cost_the_link() -> None:
    """Two operations at once; whoever is lost for it is not, in the end."""
    swapped: list[int] = []

    def body(group: atoll.Group) -> int:
        wire: Any = group._membership.port
        group.all_reduce(np.ones(50_000), algorithm="direct")  # now all links stand
        if group.rank == 1:
            with wire._loop._lock:
                swap_pairs(wire, swapped)
        done = 0
        while done < 10:
            tensors = [np.full(50_000, 1.0 + tag) for tag in range(3)]
            works = [group.all_reduce_async(x, "sum", tag=tag, algorithm="direct") for tag, x in enumerate(tensors)]
            try:
                wait_all(works, timeout_s=30.0)
            except PeerLost:
                continue
            assert [set(x) for x in tensors] == [{3.0}, {6.0}, {9.0}]
            done += 1
        return group.world

    assert run_peers(3, body) == [3, 3, 3]
    assert swapped


def test_a_flood_of_half_hellos_at_a_peer_holds_no_link_up(company: Company) -> None:
    epoch, retries = company.epoch, company.retries
    for number in range(200):
        with Caller(company, PORT) as stranger:
            stranger.sendall((FIRST + said(messages.LinkHello(company.epoch + number % 3, number)))[: number % 90])
        if number % 10 == 0:
            company.go_on(1)
    company.go_on(5)
    assert (company.epoch, company.retries) == (epoch, retries)
