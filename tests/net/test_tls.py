"""TLS between loops on real sockets: the same frames, nothing readable on the way, nobody of another CA, and nothing
left lying where no selector sees it."""

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from atoll.errors import Refused
from atoll.net import preamble
from atoll.net import tls as tls_module
from atoll.net.bucket import TokenBucket
from atoll.net.channel import CONTROL, HEADER, Channel, Frame
from atoll.net.guard import OPEN, Guard
from atoll.net.loop import Address, SocketLoop
from atoll.net.preamble import Greeting
from atoll.net.tls import binding, certificate, context
from tests.net.certified import certified
from tests.net.test_channel import anywhere
from tests.net.test_loop import Dialled, Ends, assert_sleeps, message, serve, turn_until

GREETING = Greeting("test")
TOKEN = "the token of this group"


@pytest.fixture
def guard() -> Guard:
    return Guard(None, certified())


class Two:
    """Two ends of one connection, each in a loop of its own."""

    def __init__(self, listens: Guard, dials: Guard, relay: Callable[[Address], Address] | None = None) -> None:
        self.near, self.far = SocketLoop(GREETING, dials), SocketLoop(GREETING, listens)
        address, self.served = serve(self.far)
        self.ends, dialled = Ends(), Dialled()
        dialled.dial(self.near, relay(address) if relay else address)
        turn_until(self.near, lambda: dialled.connected)
        self.channel = dialled.connected[0]
        self.channel.place = anywhere
        self.near.add(self.channel, self.ends.frame, self.ends.lost)
        turn_until(self.far, lambda: self.served.channels)
        self.other = self.served.channels[0]
        self.other.place = anywhere

    def until(self, wanted: Callable[[], Any], within_s: float = 10.0) -> None:
        end = time.monotonic() + within_s
        while not wanted():
            assert time.monotonic() < end, f"didn't happen; broken: {self.ends.broken} {self.served.broken}"
            self.near.turn(0.002)
            self.far.turn(0.002)

    def admitted(self) -> "Two":
        self.until(lambda: self.channel.admitted and self.other.admitted)
        return self

    def both_end(self) -> tuple[str, str]:
        """What the one who dialled is told, and the other."""
        self.near.send(self.channel, CONTROL, b"a secret")
        self.until(lambda: self.ends.broken and self.served.broken)
        assert not self.served.frames
        assert not self.ends.frames
        return self.ends.broken[0], self.served.broken[0]

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def two(guard: Guard) -> Iterator[Two]:
    made = Two(guard, guard)
    yield made
    made.close()


# -- members -----------------------------------------------------------------------------------------------------------


def test_frames_of_all_sizes_go_both_ways_in_order(two: Two) -> None:
    rng = random.Random(1)
    sizes = [
        0,
        1,
        15,
        16_383,
        16_384,
        16_385,
        70_000,
        300_000,
        3 << 20,
        0,
        5,
        *[rng.randrange(40_000) for _ in range(60)],
    ]
    frames = [(n % 3, rng.randbytes(size)) for n, size in enumerate(sizes)]
    for sequence, data in frames:
        two.near.send(two.channel, sequence, data)
        two.far.send(two.other, sequence, data)
    two.until(lambda: len(two.served.frames) == len(two.ends.frames) == len(frames))
    assert two.served.frames == frames
    assert two.ends.frames == frames
    assert two.channel.backlog == two.other.backlog == 0
    for loop in (two.near, two.far):
        assert_sleeps(loop)


def test_small_frames_that_came_in_one_piece_are_all_read_though_nothing_more_comes(two: Two) -> None:
    """More than a turn takes: what is decrypted wakes no selector."""
    two.admitted()
    for n in range(5000):
        two.channel.put(CONTROL, n.to_bytes(4, "big"))
    while two.channel.outgoing:
        two.channel.flush()
    turn_until(two.far, lambda: len(two.served.frames) == 5000)
    assert two.served.frames == [(CONTROL, n.to_bytes(4, "big")) for n in range(5000)]
    assert_sleeps(two.far)


def test_a_flood_lets_others_be_heard_in_between(two: Two) -> None:
    two.admitted()
    for _ in range(5000):
        two.channel.put(CONTROL, b"x")
    while two.channel.outgoing:
        two.channel.flush()
    ticks: list[int] = []
    two.far.after(0.0, lambda: ticks.append(len(two.served.frames)))
    turn_until(two.far, lambda: len(two.served.frames) == 5000)
    assert ticks[0] < 1000


def test_a_held_channel_sleeps_and_goes_on_where_it_was(two: Two) -> None:
    two.admitted()
    memory: list[bytearray] = []
    two.other.place = lambda sequence, word, nbytes: memoryview(memory[-1])[:nbytes] if memory else None
    for n in range(200):
        two.near.send(two.channel, 7, bytes([n]) * 1000)
    two.until(lambda: two.other.held)
    turn_until(two.near, lambda: not two.channel.outgoing)
    two.far.turn(0.0)
    assert_sleeps(two.far)
    memory.append(bytearray(1000))
    two.far.resume(two.other)
    turn_until(two.far, lambda: len(two.served.frames) == 200)
    assert [data[0] for _, data in two.served.frames] == list(range(200))


def test_one_who_does_not_read_blocks_nobody_and_gets_it_all_later(two: Two) -> None:
    two.admitted()
    data = random.Random(2).randbytes(20 << 20)
    two.near.send(two.channel, 1, data)
    for _ in range(20):  # the system finds room for some
        two.near.turn(0.02)
    assert two.channel.outgoing
    assert_sleeps(two.near)
    two.until(lambda: two.served.frames, 20.0)
    assert two.served.frames[0][1] == data


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x03\x00"], ids=["silent", "unfinished"])
def test_a_handshake_under_way_is_waited_for_asleep(guard: Guard, said: bytes) -> None:
    """The socket has room, but there is nothing to say before the other side has answered."""
    loop, dialled, ends = SocketLoop(GREETING, guard), Dialled(), Ends()
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialled.dial(loop, server.getsockname())
        turn_until(loop, lambda: dialled.connected)
        other, _ = server.accept()
    loop.add(dialled.connected[0], ends.frame, ends.lost)
    other.sendall(said)
    for _ in range(5):
        loop.turn(0.02)
    assert dialled.connected[0].outgoing
    assert other.recv(1) == b"\x16", "its first words have left"
    assert_sleeps(loop)
    loop.close(), other.close()


def test_a_rate_is_kept(two: Two) -> None:
    two.admitted()
    two.channel.bucket = TokenBucket(4e6)
    data = random.Random(3).randbytes(1 << 20)
    began = time.monotonic()
    for _ in range(2):
        two.near.send(two.channel, 1, data)
    two.until(lambda: len(two.served.frames) == 2)
    assert time.monotonic() - began > 0.8 * (2 * len(data) - two.channel.bucket.burst) / 4e6
    assert two.served.frames == [(1, data)] * 2


def test_what_was_said_before_the_end_is_heard(two: Two) -> None:
    two.admitted()
    two.near.send(two.channel, CONTROL, b"bye")
    two.near.retire(two.channel)
    two.until(lambda: two.served.broken)
    assert two.served.frames == [(CONTROL, b"bye")]
    assert two.served.broken == ["closed by the other side"]


def test_an_answer_to_one_who_has_gone_harms_nobody(two: Two) -> None:
    """Its last words and its end came together, so that the engine takes nothing more by the time we answer."""
    two.admitted()
    heard: list[bytes] = []

    def answer(channel: Channel, frame: Frame) -> None:
        heard.append(bytes(frame.here))
        for nbytes in (100, 10, 1):
            two.far.send(channel, CONTROL, bytes(nbytes))

    two.far.add(two.other, answer, two.served.lost)
    for n in range(500):
        two.channel.put(CONTROL, n.to_bytes(4, "big"))
    while two.channel.outgoing:
        two.channel.flush()
    two.channel.finish()
    turn_until(two.far, lambda: two.served.broken)
    assert heard == [n.to_bytes(4, "big") for n in range(500)]


def test_a_connection_that_is_cut_is_an_error_and_not_an_end(two: Two) -> None:
    two.admitted()
    two.channel.put(CONTROL, bytes(100_000))
    two.near.remove(two.channel)
    two.until(lambda: two.served.broken)
    assert two.served.frames == []


def test_a_token_and_tls_together(two: Two) -> None:
    guard = Guard(TOKEN, certified())
    both = Two(guard, guard)
    both.near.send(both.channel, CONTROL, b"hello")
    both.until(lambda: both.served.frames)
    assert both.channel.admitted
    both.close()


# -- on the way --------------------------------------------------------------------------------------------------------


class Relay:
    """Stands between the two, sees all bytes and may do to them what it likes."""

    def __init__(self, change: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.seen = b""
        self._change = change
        self._sockets: list[socket.socket] = []

    def __call__(self, address: Address) -> Address:
        server = socket.create_server(("127.0.0.1", 0))
        self._sockets.append(server)
        threading.Thread(target=self._serve, args=(server, address), daemon=True).start()
        name = server.getsockname()
        return name[0], name[1]

    def _serve(self, server: socket.socket, address: Address) -> None:
        near, _ = server.accept()
        far = socket.create_connection(address)
        self._sockets += [near, far]
        threading.Thread(target=self._copy, args=(far, near, lambda data: data), daemon=True).start()
        self._copy(near, far, self._change)

    def _copy(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.seen += data
                target.sendall(change(data))
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


@pytest.mark.parametrize("encrypted", [True, False])
def test_who_listens_in_reads_nothing(guard: Guard, encrypted: bool) -> None:
    relay = Relay()
    used = guard if encrypted else OPEN
    two = Two(used, used, relay)
    two.near.send(two.channel, CONTROL, b"the weights of the model")
    two.until(lambda: two.served.frames)
    assert (b"the weights of the model" in relay.seen) is not encrypted
    assert (b"ATOL" in relay.seen) is not encrypted
    two.close(), relay.close()


def test_a_byte_changed_on_the_way_ends_the_connection(guard: Guard) -> None:
    changes = [False]

    def change(data: bytes) -> bytes:
        return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:] if changes[0] else data

    relay = Relay(change)
    two = Two(guard, guard, relay).admitted()
    changes[0] = True
    two.near.send(two.channel, CONTROL, b"the weights of the model")
    two.until(lambda: two.served.broken)
    assert two.served.frames == []
    two.close(), relay.close()


class Terminating(Relay):
    """Has certificates, and speaks TLS with both sides."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self._by = certified(by)

    def _serve(self, server: socket.socket, address: Address) -> None:
        near, _ = server.accept()
        far = socket.create_connection(address)
        self._sockets += [near, far]
        with contextlib.suppress(OSError):
            inner = context(self._by, server_side=True)
            outer = context(self._by, server_side=False)
            inner.verify_mode = outer.verify_mode = ssl.CERT_NONE  # it takes whatever it gets
            near, far = inner.wrap_socket(near, server_side=True), outer.wrap_socket(far)
            threading.Thread(target=self._copy, args=(far, near, lambda data: data), daemon=True).start()
            self._copy(near, far, lambda data: data)
        near.close()
        far.close()


def test_a_man_in_the_middle_with_a_certificate_of_another_ca_gets_nowhere(guard: Guard) -> None:
    relay = Terminating("another CA")
    two = Two(guard, guard, relay)
    near, far = two.both_end()
    assert "certificate is not of this CA" in near
    assert "certificate" in far or "closed" in far or "reset" in far
    assert relay.seen == b""
    two.close(), relay.close()


def test_a_man_in_the_middle_with_another_certificate_of_the_same_ca_cannot_pass_the_proof_on() -> None:
    """The proof is for the certificates that its two sides see."""
    two = Two(Guard(TOKEN, certified()), Guard(TOKEN, certified()))
    for stream, sides in ((two.channel._tls, (b"the relay's", b"ours")), (two.other._tls, (b"ours", b"the relay's"))):
        assert stream is not None
        shake = stream._shake

        def shaken(wanted: int, stream: Any = stream, shake: Any = shake, sides: Any = sides) -> bool:
            done = shake(wanted)
            stream.binding = binding(*sides)
            return bool(done)

        stream._shake = shaken  # type: ignore[method-assign]
    near, far = two.both_end()
    assert "another token" in near
    assert "another token" in far
    two.close()


def test_what_binds_a_proof_is_both_certificates_as_both_sides_see_them(two: Two) -> None:
    two.admitted()
    assert two.channel._tls is not None
    assert two.other._tls is not None
    ours = certificate(certified())
    assert two.channel._tls.binding == two.other._tls.binding == binding(ours, ours)
    assert binding(b"a", b"b") != binding(b"b", b"a")


# -- who is not of the group -------------------------------------------------------------------------------------------


def test_a_dialler_of_another_ca_is_refused_on_both_sides(guard: Guard) -> None:
    two = Two(guard, Guard(None, certified("another CA")))
    near, far = two.both_end()
    assert "certificate is not of this CA" in near
    assert "doesn't take our certificate" in far
    assert two.channel.refused
    two.close()


def test_a_dialler_that_takes_any_certificate_is_refused_by_the_listener(guard: Guard) -> None:
    false = Guard(None, certified("another CA"))
    assert false._wrapper is not None
    false._wrapper._dials.verify_mode = ssl.CERT_NONE
    two = Two(guard, false)
    near, far = two.both_end()
    assert "doesn't take our certificate" in near
    assert "certificate is not of this CA" in far
    two.close()


def test_a_dialler_without_a_certificate_is_refused(guard: Guard, two: Two) -> None:
    address, served = serve(two.far)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    with socket.create_connection(address) as sock:
        sock.setblocking(False)
        stream = tls_module.TlsStream(sock, bare, False, b"")
        why = ""
        end = time.monotonic() + 5.0
        while not why and time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                stream.send(memoryview(preamble.encode(GREETING)))
            try:
                stream.recv_into(memoryview(bytearray(10)))
            except BlockingIOError:
                pass
            except Refused as error:
                why = str(error)
            two.far.turn(0.01)
    assert "wants a certificate" in why
    turn_until(two.far, lambda: served.broken)
    assert "shows no certificate" in served.broken[0]
    assert served.frames == []


def test_tls_1_2_is_not_spoken(two: Two) -> None:
    address, served = serve(two.far)
    old = context(certified(), server_side=False)  # it has all it needs, but for the version
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    thread = threading.Thread(target=lambda: turn_until(two.far, lambda: served.broken))
    thread.start()
    with socket.create_connection(address) as sock, pytest.raises(ssl.SSLError):
        old.wrap_socket(sock)
    thread.join()


def test_plain_where_tls_is_expected_is_said_on_both_sides(guard: Guard) -> None:
    two = Two(guard, OPEN)
    near, far = two.both_end()
    assert near.startswith("the other side speaks TLS, this one plain")
    assert far.startswith("the other side speaks plain, this one TLS")
    assert two.channel.refused
    two.close()


def test_tls_where_plain_is_expected_is_said_on_both_sides(guard: Guard) -> None:
    two = Two(OPEN, guard)
    near, far = two.both_end()
    assert near.startswith("the other side speaks plain, this one TLS")
    assert far.startswith("the other side speaks TLS, this one plain")
    assert two.channel.refused
    two.close()


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", random.Random(4).randbytes(600), b"\x16\x03\x01\xff\xff" + bytes(500), bytes(9)]
)
def test_nonsense_ends_its_own_connection_only(two: Two, said: bytes) -> None:
    two.admitted()
    name = two.other.sock.getsockname()
    with socket.create_connection((name[0], name[1])) as stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        turn_until(two.far, lambda: two.served.broken)
    two.near.send(two.channel, CONTROL, b"still here")
    two.until(lambda: two.served.frames)


def test_any_cut_of_what_a_member_says_breaks_nothing_else(guard: Guard) -> None:
    """The handshake of a member, recorded, and played again up to each of some places: no admission, no crash."""
    relay = Relay()
    two = Two(guard, guard, relay).admitted()
    recorded = relay.seen
    address, served = serve(two.far)
    cuts = [1, 5, 6, 100, 300, len(recorded) // 2, len(recorded) - 1, len(recorded)]
    for n, cut in enumerate(cuts):
        with socket.create_connection(address) as again:
            again.sendall(recorded[:cut])
            again.shutdown(socket.SHUT_WR)
            turn_until(two.far, lambda n=n: len(served.broken) == n + 1)  # type: ignore[misc]
    assert served.frames == []
    assert not any(channel.admitted for channel in served.channels)
    two.close(), relay.close()


def test_within_one_machine_a_pair_stays_plain(guard: Guard) -> None:
    ours, other = socket.socketpair()
    channel = Channel(ours, GREETING, guard=guard)
    channel.put(CONTROL, b"hello")
    channel.flush()
    assert other.recv(100) == preamble.encode(GREETING) + message(b"hello")
    assert HEADER.size
    channel.close(), other.close()
