"""Driver: how processes of one machine meet: Unix sockets with abstract names, over which memory is passed.

The first byte of a connection carries the descriptor of the dialler's arena; then it is a channel like any other. Only
processes of the same user are let in.
"""

import logging
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from atoll.errors import ProtocolError
from atoll.net.arena import Arena, Tenant
from atoll.net.channel import Channel
from atoll.net.loop import SocketLoop

log = logging.getLogger("atoll.net")

_PATIENCE_S: Final = 10.0
_CREDENTIALS: Final = struct.Struct("iii")  # pid, uid, gid


def open_door(loop: SocketLoop, slot_bytes: int, accepted: Callable[[Channel], None]) -> str:
    """Let processes of this machine in; returns the door's name, which nobody can guess."""
    name = f"atoll-{os.urandom(12).hex()}"
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"\0{name}")
    server.listen(256)
    strangers: dict[Channel, None] = {}

    def came(sock: socket.socket) -> None:
        sock.setblocking(False)
        pid, uid = _who_dials(sock)
        if uid != os.getuid():
            log.info("a local connection of another user's process was closed")
            sock.close()
            return

        def readable() -> None:
            loop.cancel(expiry)
            loop.unwatch(sock)
            try:
                tenant = Tenant(_receive_memory(sock), slot_bytes)
            except (OSError, ProtocolError) as error:
                log.info("a local connection ended unused: %s", error)
                sock.close()
                return
            channel = loop.channel(sock)
            channel.lender, channel.pid = tenant, pid
            loop.greet(channel, strangers, accepted)

        def expire() -> None:
            loop.unwatch(sock)
            sock.close()

        expiry = loop.after(_PATIENCE_S, expire)
        loop.watch(sock, readable)

    loop.accept_from(server, came)
    return name


def knock(
    loop: SocketLoop, name: str, memory: Arena, connected: Callable[[Channel], None], failed: Callable[[str], None]
) -> Callable[[], None]:
    """As `SocketLoop.dial`, at a door of this machine; what we lend lies in `memory`."""
    try:
        sock = _at_door(name, memory)
    except OSError as error:
        return loop.fail(failed, error.strerror or str(error))
    channel = loop.channel(sock, dialled=True)
    token = loop.after(0.0, lambda: connected(channel))

    def cancel() -> None:
        loop.cancel(token)
        sock.close()

    return cancel


def _at_door(name: str, memory: Arena) -> socket.socket:
    """Connected, at once or not at all; our memory is on its way."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        sock.connect(f"\0{name}")
        socket.send_fds(sock, [b"\0"], [memory.fd])
    except OSError:
        sock.close()
        raise
    return sock


def _who_dials(sock: socket.socket) -> tuple[int, int]:
    """Process and user, as the kernel knows them."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


def _receive_memory(sock: socket.socket) -> int:
    """The descriptor that came with the first byte."""
    data, fds, _, _ = socket.recv_fds(sock, 1, 1, socket.MSG_CMSG_CLOEXEC)
    for extra in fds[1:]:
        os.close(extra)
    if not data or not fds:
        raise ProtocolError("no memory came with the first byte")
    return fds[0]
