"""Driver: what a TCP connection can be asked and told, where the system can."""

import ipaddress
import socket
import struct
from contextlib import suppress
from typing import Final

_RTT_AT: Final = 68  # tcpi_rtt in Linux's struct tcp_info: microseconds, smoothed
_WATCH: Final = {"TCP_KEEPIDLE": 1, "TCP_KEEPALIVE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 4000}
_NEAR_BUFFER: Final = 512 << 10
"""Bytes; on one machine more only drives what is on its way out of the processor's cache."""


def round_trip_s(sock: socket.socket, otherwise: float) -> float:
    """As the kernel measured it; `otherwise` where it doesn't say."""
    info = getattr(socket, "TCP_INFO", None)
    if info is None:
        return otherwise
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, info, _RTT_AT + 4)
    except OSError:
        return otherwise
    if len(data) < _RTT_AT + 4:
        return otherwise
    return int(struct.unpack_from("<I", data, _RTT_AT)[0]) * 1e-6


def keep_watch(sock: socket.socket) -> None:
    """Notice within some four seconds that the other machine has vanished without a word, though nobody writes."""
    _wish(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _WATCH.items():
        if hasattr(socket, option):
            _wish(sock, socket.IPPROTO_TCP, getattr(socket, option), value)


def tune(sock: socket.socket) -> None:
    """No waiting for company; and small buffers on one machine. Elsewhere the system finds the right ones itself."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    _wish(sock, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        here, there = sock.getsockname()[0], sock.getpeername()[0]
    except OSError:
        return
    if here == there or ipaddress.ip_address(str(there).split("%")[0]).is_loopback:
        _wish(sock, socket.SOL_SOCKET, socket.SO_SNDBUF, _NEAR_BUFFER)
        _wish(sock, socket.SOL_SOCKET, socket.SO_RCVBUF, _NEAR_BUFFER)
        if hasattr(socket, "TCP_CONGESTION"):  # nobody shares the way: one that paces itself only costs timers
            _wish(sock, socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def _wish(sock: socket.socket, level: int, option: int, value: int | bytes) -> None:
    """Set an option that a system may lack, and some refuse where the other side has hung up already (macOS)."""
    with suppress(OSError):
        sock.setsockopt(level, option, value)
