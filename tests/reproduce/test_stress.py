"""Stress: the harness itself, and short and long runs of it."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest

from atoll.reproduce.stress.gates import Gate, Street
from atoll.reproduce.stress.gauges import growth
from atoll.reproduce.stress.run import Result, stress
from atoll.reproduce.stress.strangers import words
from atoll.reproduce.stress.traces import MARK, left_behind, shared

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="its peers have loopback addresses of their own")


def assert_survived(result: Result) -> None:
    assert not result.report.failures
    assert not result.report.differing
    assert not result.left
    assert result.ok


@pytest.mark.slow
def test_some_seconds_of_stress() -> None:
    result = stress(4.5, seed=7)
    assert_survived(result)
    assert result.report.steps > 20
    assert result.report.compared > 50
    assert sum(result.report.done.values()) > 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_of_stress() -> None:
    result = stress(600.0, seed=6)
    assert_survived(result)
    assert {growth.name for growth in result.growths} >= {"master", "peer-0", "peer-1"}
    done = result.report.done
    for what in ("killed", "stopped", "links stalled", "links cut", "links slowed", "masters killed", "strangers"):
        assert done[what], what


# -- the harness -------------------------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that says again what it hears."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while data := sock.recv(1 << 16):
                sock.sendall(data)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()
    server.close()


@pytest.fixture
def gate(echo: tuple[str, int]) -> Iterator[Gate]:
    with Street() as street:
        yield street.gate(*echo)


def dial(gate: Gate) -> socket.socket:
    host, port = gate.address.split(":")
    return socket.create_connection((host, int(port)), timeout=5.0)


def ask(sock: socket.socket, text: bytes) -> bytes:
    sock.sendall(text)
    return sock.recv(1 << 16)


def test_an_open_gate_passes_bytes_on_and_the_end_of_them(gate: Gate) -> None:
    with dial(gate) as sock:
        assert ask(sock, b"hello") == b"hello"
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_a_stalled_gate_keeps_what_comes_until_it_is_healed(gate: Gate) -> None:
    with dial(gate) as sock:
        assert ask(sock, b"1") == b"1"
        gate.stall()
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            ask(sock, b"2")
        gate.heal()
        sock.settimeout(5.0)
        assert sock.recv(1) == b"2"


def test_a_reset_breaks_what_passes_and_lets_others_in(gate: Gate) -> None:
    with dial(gate) as sock:
        assert ask(sock, b"1") == b"1"
        gate.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with dial(gate) as sock:
        assert ask(sock, b"2") == b"2"


def test_a_gate_that_refuses_lets_nobody_in_until_it_is_healed(gate: Gate) -> None:
    gate.refuse()
    with pytest.raises(OSError), dial(gate) as sock:  # noqa: PT011, PT012  (reset at once, or when first used)
        if not ask(sock, b"1"):
            raise ConnectionResetError
    gate.heal()
    with dial(gate) as sock:
        assert ask(sock, b"2") == b"2"


def test_a_slow_gate_lets_everything_through(gate: Gate) -> None:
    gate.slow(1e6)
    with dial(gate) as sock:
        sock.sendall(bytes(200_000))
        received = 0
        while received < 200_000:
            received += len(sock.recv(1 << 16))


def test_growth_sees_through_what_comes_and_goes() -> None:
    dice = np.random.default_rng(1)
    at_s = np.arange(300.0)
    peers = 10e6 * dice.integers(0, 5, 300)
    assert abs(growth(at_s, 50e6 + peers, 600.0)) < 1e6
    assert growth(at_s, 50e6 + peers + 1e5 * at_s, 600.0) == pytest.approx(60e6, rel=0.1)


def test_what_a_run_leaves_behind_is_found() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, MARK: "here"})
    try:
        (found,) = left_behind("here", shared(), patience_s=0.5)
        assert str(child.pid) in found
    finally:
        child.kill()
        child.wait()
    assert not left_behind("here", shared())


def test_strangers_say_the_same_for_the_same_seed() -> None:
    one, other = ([words(np.random.default_rng(seed)) for seed in range(50)] for _ in range(2))
    assert one == other
    assert len({text[:4] for text in one}) > 5
