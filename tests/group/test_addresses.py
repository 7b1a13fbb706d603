"""Where a peer listens, and what others are told to dial."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import AtollError, InvalidConfig
from atoll.group.wiring.asking import StatusClient
from atoll.net.capabilities import can_listen


def meet(address: str, world: int, options: Callable[[int], dict[str, Any]]) -> list[tuple[str, int]]:
    """So many peers reduce; returns where the master says they are."""
    seen: list[list[tuple[str, int]]] = []
    errors: list[BaseException] = []

    def peer(i: int) -> None:
        try:
            with atoll.join(address, min_world=world, shared_memory=False, **options(i)) as group:
                x = np.full(300_000, float(group.rank + 1))
                group.all_reduce(x, "sum")
                assert x[0] == world * (world + 1) / 2
                client = StatusClient(address)
                seen.append([(m.host, m.port) for m in client.ask().members])
                client.close()
                group.barrier()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=peer, args=(i,)) for i in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    if errors:
        raise errors[0]
    return seen[0]


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.skipif(bool(can_listen("::1")), reason="this machine has no IPv6")
def test_a_group_meets_over_ipv6() -> None:
    with atoll.Master("[::1]:0") as master:
        assert master.address.startswith("[::1]:")
        assert {host for host, _ in meet(master.address, 3, lambda i: {})} == {"::1"}


def test_a_peer_listens_where_it_is_told() -> None:
    ports = [free_port(), free_port()]
    with atoll.Master() as master:
        members = meet(master.address, 2, lambda i: {"listen": f"127.0.0.1:{ports[i]}"})
    assert {port for _, port in members} == set(ports)


def test_others_dial_what_is_advertised() -> None:
    """A forwarder stands for a router: peers meet only through it."""
    hidden = free_port()
    forwarded = 0

    def forward(server: socket.socket) -> None:
        nonlocal forwarded
        while True:
            try:
                outside, _ = server.accept()
            except OSError:
                return
            inside = socket.create_connection(("127.0.0.1", hidden))
            forwarded += 1
            for source, target in ((outside, inside), (inside, outside)):
                threading.Thread(target=pump, args=(source, target), daemon=True).start()

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    with atoll.Master() as master, socket.create_server(("127.0.0.1", 0)) as server:
        door = int(server.getsockname()[1])
        threading.Thread(target=forward, args=(server,), daemon=True).start()
        first = {"listen": f"127.0.0.1:{hidden}", "advertise": f"localhost:{door}"}
        members = meet(master.address, 2, lambda i: first if i == 0 else {})
        server.shutdown(socket.SHUT_RDWR)
    assert ("127.0.0.1", door) in members
    assert forwarded


def test_advertising_port_zero_means_the_one_listened_on() -> None:
    with atoll.Master() as master:
        members = meet(master.address, 2, lambda i: {"advertise": "127.0.0.1:0"})
    assert all(port > 0 for _, port in members)


def test_a_port_in_use_is_said_in_one_line() -> None:
    with atoll.Master() as master, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AtollError, match=rf"can't listen for peers on 127.0.0.1, port {port}"):
            atoll.join(master.address, listen=f"127.0.0.1:{port}")


@pytest.mark.slow
def test_an_upload_limit_is_kept() -> None:
    with atoll.Master() as master:
        began = time.monotonic()
        meet(master.address, 2, lambda i: {"upload_bytes_per_s": 1e6})  # the reduce is 2.4 MB to each other
        assert time.monotonic() - began > 2.0  # and no frame lands within the first second


@pytest.mark.parametrize(
    "options",
    [
        {"listen": "here"},
        {"advertise": "no.such.host.invalid:5"},
        {"connections": 0},
        {"connections": 17},
        {"upload_bytes_per_s": -1.0},
        {"upload_bytes_per_s": float("inf")},
    ],
    ids=str,
)
def test_what_can_not_be_meant_is_named(options: dict[str, Any]) -> None:
    with atoll.Master() as master, pytest.raises(InvalidConfig) as error:
        atoll.join(master.address, **options)
    assert "\n" not in str(error.value)
