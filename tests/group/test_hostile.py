"""Strangers knock at the master and at a peer's port while two peers reduce: the two notice nothing."""

import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import AtollError, DeadlineExceeded, MasterLost
from atoll.group import messages
from atoll.group.api import Close, Say, Series, unvoted_seq
from atoll.group.membership.master import Master as MasterPolicy
from atoll.group.messages import (
    Beat,
    Broken,
    Bye,
    Commence,
    Complete,
    Establish,
    Expel,
    Hello,
    Initiate,
    LinkAck,
    Linked,
    LinkHello,
    Probe,
    Probed,
    Refuse,
    Seat,
    Status,
    Topology,
    Verdict,
    View,
    Welcome,
)
from atoll.group.wiring.asking import StatusClient
from atoll.group.wiring.wire import GREETING, parse_address
from atoll.net import loop as loop_module
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER, Channel
from atoll.net.loop import SocketLoop

FIRST = preamble.encode(GREETING)
SIZES = (100, 8_000, 50_000)  # in the vote; while the votes travel; after them


def framed(body: bytes, sequence: int = CONTROL) -> bytes:
    return HEADER.pack(sequence, len(body), 0) + body


def said(message: messages.Message) -> bytes:
    return framed(messages.encode(message))


class Training:
    """A master and two peers that reduce without a pause and check each result."""

    def __init__(self) -> None:
        self.master = atoll.Master()
        self.master.__enter__()
        self.steps = [0, 0]
        self.problems: list[str] = []
        self._stop = False
        self._threads = [threading.Thread(target=self._train, args=(i,)) for i in range(2)]
        for thread in self._threads:
            thread.start()
        self.go_on()
        members = self.master._policy.roster.members
        while not all(member.beats for member in list(members.values())):  # with a helper each, nobody else connects
            self.go_on()
        status = self.status()
        self.epoch = status.epoch
        self.ids = [member.id for member in status.members]
        self.targets = {
            "master": parse_address(self.master.address),
            "peer": (status.members[0].host, status.members[0].port),
        }

    def status(self) -> Status:
        client = StatusClient(self.master.address)
        try:
            return client.ask()
        finally:
            client.close()

    def _train(self, which: int) -> None:
        try:
            with atoll.join(self.master.address, min_world=2, timeout_s=20.0) as group:
                for step in itertools.count():
                    for size in SIZES:
                        x = np.full(size, float(step + group.rank))
                        x[0] = self._stop
                        group.all_reduce(x, "sum", timeout_s=20.0)
                        if not (x[1:] == 2.0 * step + 1.0).all():
                            self.problems.append(f"step {step}: {x[1:]}")
                    if x[0]:
                        return
                    self.steps[which] += 1
        except AtollError as error:
            self.problems.append(repr(error))

    def go_on(self, steps: int = 5) -> None:
        """Both get on, with right results and nobody lost."""
        goal = max(self.steps) + steps
        end = time.monotonic() + 20.0
        while min(self.steps) < goal:
            assert not self.problems, self.problems
            assert time.monotonic() < end, "they stand still"
            time.sleep(0.005)

    def end(self) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join(30.0)
        self.master.close()

    def connect(self, target: str) -> socket.socket:
        return socket.create_connection(self.targets[target], 5.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[list[Training]]:
    trainings: list[Training] = []
    yield trainings
    for training in trainings:
        training.end()


@pytest.fixture
def training(shared: list[Training]) -> Iterator[Training]:
    """The same for all tests, until one of them breaks it."""
    if not shared or shared[-1].problems:
        shared.append(Training())
    running = shared[-1]
    yield running
    running.go_on()
    status = running.status()
    assert (status.epoch, status.forming, [m.id for m in status.members]) == (running.epoch, False, running.ids)


def assert_closed(sock: socket.socket) -> None:
    """The other side hangs up within five seconds."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass


ANYWHERE = {
    "random bytes": random.Random(1).randbytes(4096),
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n",
    "another wire version": preamble.encode(GREETING, wire_version=9),
    "a greeting too long": preamble.HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 0xFFFF),
    "a greeting of garbage": preamble.HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 4) + b"\xc1" * 4,
    "a greeting nested deeply": preamble.HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 1024)
    + b"\x81\xa1x"
    + b"\x91" * 1021,
    "a length of 2^60": FIRST + (2**60).to_bytes(HEADER.size, "little"),
    "a message of 4 GiB": FIRST + HEADER.pack(CONTROL, 2**32 - 1, 0),
    "data of 4 GiB": FIRST + HEADER.pack(2**60, 2**32 - 1, 0),
    "data before a hello": FIRST + framed(b"data", 5),
    "a garbage message": FIRST + framed(random.Random(2).randbytes(100)),
    "an empty message": FIRST + framed(b""),
    "an unknown kind": FIRST + framed(b"\x91\x63"),
    "the master's words": FIRST + said(Establish(9, (Seat(1, "127.0.0.1", 1),))),
}
TO_A_PEER = {
    "a hello for the master": FIRST + said(Hello("127.0.0.1", 1)),
    "a vote": FIRST + said(Initiate(1, 0, "all_reduce")),
    "the end of an operation": FIRST + said(Complete(1)),
    "an acknowledgement": FIRST + said(LinkAck(1)),
    "a link of an old epoch": FIRST + said(LinkHello(0, 1)),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("target", ["master", "peer"])
@pytest.mark.parametrize("attack", ANYWHERE)
def test_nonsense_ends_its_own_connection_only(training: Training, target: str, attack: str) -> None:
    with training.connect(target) as stranger:
        stranger.sendall(ANYWHERE[attack])
        assert_closed(stranger)


@pytest.mark.parametrize("attack", TO_A_PEER)
def test_what_is_no_link_is_hung_up_on_by_a_peer(training: Training, attack: str) -> None:
    with training.connect("peer") as stranger:
        stranger.sendall(TO_A_PEER[attack])
        assert_closed(stranger)


@pytest.mark.parametrize("target", ["master", "peer"])
@pytest.mark.parametrize("start", [b"", FIRST[:-1]], ids=["silent", "unfinished"])
def test_an_unfinished_greeting_is_not_waited_for(
    training: Training, target: str, start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_GREETING_S", 0.3)
    with training.connect(target) as stranger:
        stranger.sendall(start)
        training.go_on()
        assert_closed(stranger)


@pytest.mark.parametrize("target", ["master", "peer"])
@pytest.mark.parametrize(
    "start", [b"", FIRST, FIRST + HEADER.pack(CONTROL, 100, 0)], ids=["silent", "greeted", "halfway"]
)
def test_two_hundred_idle_connections_disturb_nobody(training: Training, target: str, start: bytes) -> None:
    strangers = [training.connect(target) for _ in range(200)]
    for stranger in strangers:
        stranger.sendall(start)
    training.go_on(20)
    for stranger in strangers:
        stranger.close()


WORDS: dict[str, Callable[[int], messages.Message]] = {
    "done": lambda member: Complete(1),
    "a broken link": lambda member: Broken(1, member, member, "the link broke"),
    "can't dial": lambda member: Broken(1, 1, member, "refused", False),
    "let them in": lambda member: Topology(),
    "a vote": lambda member: Initiate(1, 0, "all_reduce"),
    "a vote of 1 MiB": lambda member: Initiate(1, 0, "all_reduce", bytes(1 << 20)),
    "it is gone": lambda member: Beat(member, b"guessed", "gone", bytes(8)),
    "it is stopped": lambda member: Beat(member, bytes(16), "stopped", bytes(1 << 20)),
    "I leave": lambda member: Bye(),
}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("words", WORDS)
def test_the_words_of_one_who_never_said_hello_do_not_count(training: Training, words: str) -> None:
    with training.connect("master") as stranger:
        stranger.sendall(FIRST + b"".join(said(WORDS[words](member)) for member in training.ids))
        training.go_on()


@pytest.mark.parametrize(
    "second",
    [Hello("127.0.0.1", 1), Initiate(1, 0, "all_reduce"), Topology(), Complete(1), Initiate(1, 0, "x", bytes(1 << 20))],
    ids=lambda m: f"{type(m).__name__} {len(messages.encode(m))}",
)
def test_one_who_waits_to_be_let_in_and_does_not_wait_is_dropped(training: Training, second: messages.Message) -> None:
    with training.connect("master") as stranger:
        stranger.sendall(FIRST + said(Hello("127.0.0.1", 1)) + said(second))
        assert_closed(stranger)


@pytest.mark.parametrize("epochs_ahead", [0, 1, 1000])
def test_a_false_neighbour_can_neither_speak_nor_break_the_ring(training: Training, epochs_ahead: int) -> None:
    for ident in (999, *training.ids):
        with training.connect("peer") as stranger:
            stranger.sendall(FIRST + said(LinkHello(training.epoch + epochs_ahead, ident)))
            stranger.sendall(framed(bytes(800), unvoted_seq(Series(0, 0), (1 << 30) - 1)) + framed(b"false", 3))
            training.go_on()


def test_a_false_neighbour_who_came_early_goes_when_the_epoch_does() -> None:
    with atoll.Master() as master, atoll.join(master.address) as first:
        client = StatusClient(master.address)
        (member,) = client.ask().members
        with socket.create_connection((member.host, member.port), 5.0) as stranger:
            stranger.sendall(FIRST + said(LinkHello(first.epoch + 1, 999)))
            welcome = FIRST + said(LinkAck(first.epoch + 1))
            assert stranger.recv(len(welcome), socket.MSG_PEEK)  # it may be a neighbour we have not been told of
            second = threading.Thread(target=lambda: atoll.join(master.address).close())
            second.start()
            while len(client.ask().members) < 2:
                time.sleep(0.005)
            first.update_topology()
            assert_closed(stranger)
            second.join(10.0)
        client.close()


# -- joining what is no master -----------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_clear_error() -> None:
    with atoll.Master() as master, pytest.raises(AtollError, match=r"can't listen on .* in use") as error:
        atoll.Master(master.address)
    assert master.address in str(error.value)
    assert "\n" not in str(error.value)


def test_where_nobody_listens_join_fails_in_time_and_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
    began = time.monotonic()
    with pytest.raises(MasterLost, match=f"no master answers at {address}"):
        atoll.join(address, timeout_s=0.5)
    assert time.monotonic() - began < 2.0


@pytest.fixture
def impostor() -> Iterator[Callable[[bytes], str]]:
    """Something that isn't atoll; it answers each caller with the given bytes."""
    server = socket.create_server(("127.0.0.1", 0))
    callers: list[socket.socket] = []

    def start(answer: bytes) -> str:
        def serve() -> None:
            try:
                while True:
                    callers.append(server.accept()[0])
                    callers[-1].recv(1)
                    callers[-1].sendall(answer)
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        return "{}:{}".format(*server.getsockname())

    yield start
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for caller in callers:
        caller.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not atoll"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not atoll"),
        (preamble.encode(GREETING, wire_version=99), f"wire version 99, this one {preamble.WIRE_VERSION}"),
        (FIRST + framed(b"garbage"), "unreadable message"),
        (b"", "no greeting"),
        (FIRST + said(View(1, (1,), True)), "View before a welcome"),
        (FIRST + said(Welcome(1, b"s")) + said(View(1, (1,), True)), "epoch 1 stands, which nobody was to establish"),
        (FIRST + said(Welcome(1, b"s")) + said(Commence(0, 1)), "commenced what nobody waits for under tag 0"),
        (FIRST + said(Welcome(1, b"s")) + said(Verdict(7, False)), "decided what nobody asked under tag 7"),
        (FIRST + said(Welcome(1, b"s")) + said(Establish(1, (Seat(2, "127.0.0.1", 1),))), r"a ring of \[2\]"),
        (FIRST + said(Welcome(1, b"s")) + said(Establish(0, (Seat(1, "127.0.0.1", 1),))), "epoch 0 after 0"),
        (FIRST + 2 * said(Welcome(1, b"s")), "welcomed this peer twice"),
    ],
    ids=[
        *(
            "http",
            "ssh",
            "another version",
            "garbage",
            "silence",
            "no welcome",
            "no establishing",
            "no vote",
            "no ticket",
        ),
        *("a ring without us", "no epoch", "two welcomes"),
    ],
)
def test_what_is_no_master_is_named(
    impostor: Callable[[bytes], str], answer: bytes, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_GREETING_S", 0.3)
    began = time.monotonic()
    with pytest.raises(AtollError, match=why) as error:
        atoll.join(impostor(answer), timeout_s=10.0)
    assert not isinstance(error.value, DeadlineExceeded)
    assert "\n" not in str(error.value)
    assert time.monotonic() - began < 5.0


def test_status_of_what_is_no_master_is_named(impostor: Callable[[bytes], str]) -> None:
    client = StatusClient(impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(MasterLost, match="not atoll"):
        client.ask()
    client.close()


def test_one_of_another_wire_version_is_told_ours(training: Training) -> None:
    """So that both sides can print a line."""
    net, why = SocketLoop(GREETING), []
    with training.connect("master") as sock:
        channel = Channel(sock, GREETING)
        channel.outgoing[0] = memoryview(preamble.encode(GREETING, wire_version=99))
        net.add(channel, lambda *_: None, lambda _, reason: why.append(reason))
        end = time.monotonic() + 5.0
        while not why:
            assert time.monotonic() < end
            net.turn(0.1)
        assert channel.greeting == GREETING
    net.close()


# -- what the policy makes of it ---------------------------------------------------------------------------------------


class Policy:
    """The master without sockets; whoever is asked to link or to measure does so at once."""

    def __init__(self) -> None:
        self.policy = MasterPolicy(lambda: b"secret")
        self.heard: dict[int, list[Any]] = {}
        self.closed: list[int] = []

    def __call__(self, who: int, event: Any) -> None:
        for action in self.policy.handle(who, event, 0.0):
            match action:
                case Close(other):
                    self.closed.append(other)
                case Say(other, message):
                    self.heard.setdefault(other, []).append(message)
                    if isinstance(message, Establish):
                        self(other, Linked(message.epoch))
                    elif isinstance(message, Probe):
                        self(other, Probed(message.epoch, message.to, 1e9, 1e-3))


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.mark.parametrize(
    ("first", "second"),
    [("127.0.0.1", "10.0.0.2"), ("10.0.0.2", "127.0.0.1"), ("::1", "10.0.0.2"), ("fd00::1", "127.3.2.1")],
)
def test_peers_that_could_never_reach_each_other_are_not_mixed(policy: Policy, first: str, second: str) -> None:
    policy(1, Hello(first, 5))
    policy(2, Hello(second, 5))
    (refusal,) = policy.heard[2]
    assert isinstance(refusal, Refuse)
    assert first in refusal.reason
    assert second in refusal.reason
    assert policy.closed == [2]
    assert list(policy.policy.roster.members) == [1]


@pytest.mark.parametrize("hosts", [("127.0.0.1", "127.0.0.2"), ("10.0.0.2", "192.168.1.1"), ("10.0.0.2", "fd00::1")])
def test_peers_of_one_sort_are_welcome(policy: Policy, hosts: tuple[str, str]) -> None:
    for who, host in enumerate(hosts, 1):
        policy(who, Hello(host, 5))
        assert isinstance(policy.heard[who][0], Welcome)
    assert policy.closed == []


@pytest.mark.parametrize("host", ["", "localhost", "example.org", "1.2.3", "\0"])
def test_a_host_that_is_no_address_is_refused(policy: Policy, host: str) -> None:
    policy(1, Hello(host, 5))
    assert isinstance(policy.heard[1][0], Refuse)
    assert policy.closed == [1]


def test_a_ring_waits_for_the_largest_min_world_among_those_waiting(policy: Policy) -> None:
    policy(1, Hello("127.0.0.1", 1, min_world=3))
    policy(2, Hello("127.0.0.1", 2, min_world=3))
    assert policy.policy.ring == ()
    policy(3, Hello("127.0.0.1", 3, min_world=1))
    assert policy.policy.ring == (1, 2, 3)


def test_one_that_wants_more_than_there_are_does_not_hold_up_the_rest(policy: Policy) -> None:
    policy(1, Hello("127.0.0.1", 1, min_world=5))
    policy(2, Hello("127.0.0.1", 2, min_world=2))
    assert policy.policy.ring == ()  # without the first there is but one
    policy(3, Hello("127.0.0.1", 3, min_world=2))
    assert policy.policy.ring == (2, 3)


def test_a_loss_among_those_waiting_lets_the_rest_begin(policy: Policy) -> None:
    policy(1, Hello("127.0.0.1", 1, min_world=4))
    policy(2, Hello("127.0.0.1", 2, min_world=2))
    policy(3, Hello("127.0.0.1", 3, min_world=4))
    assert policy.policy.ring == ()
    policy(4, Hello("127.0.0.1", 4, min_world=1))
    assert policy.policy.ring == (1, 2, 3, 4)


@pytest.mark.parametrize(("nbytes", "stays"), [(4096, True), (4097, False), (1 << 20, False)])
def test_a_member_that_adds_too_much_to_a_vote_is_dropped(policy: Policy, nbytes: int, stays: bool) -> None:
    for who in (1, 2):
        policy(who, Hello("127.0.0.1", who, min_world=2))
    policy(1, Initiate(policy.policy.epoch, 0, "gather_bytes", bytes(nbytes), moves_data=False))
    assert policy.policy.ring == ((1, 2) if stays else (2,))
    assert any(isinstance(m, Expel) and str(nbytes) in m.reason for m in policy.heard[1]) is not stays


def test_a_member_that_says_hello_again_is_dropped_even_where_the_hello_is_unfit(policy: Policy) -> None:
    """Else its connection would be closed, but not its place."""
    policy(1, Hello("127.0.0.1", 1))
    policy(1, Hello("nowhere", 1))
    assert list(policy.policy.roster.members) == []
    assert policy.closed == [1]
