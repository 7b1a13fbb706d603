"""Driver: who may connect: what a group's connections are given to know their own kind by, a token and certificates."""

import ipaddress
import logging
import os
import socket
from pathlib import Path
from typing import Final

from atoll.errors import InvalidConfig
from atoll.net.handshake import derive
from atoll.net.tls import Tls, TlsStream, Wrapper

log = logging.getLogger("atoll.net")

LEAST_TOKEN_BYTES: Final = 16
MAKE_TOKEN: Final = 'python -c "import secrets; print(secrets.token_hex(32))" > team.token'


class Guard:
    """Both are optional: `token`, which all members know, without white space around it; `tls`: certificates of one CA.

    InvalidConfig: a token too short, certificates that can't be read. Keeps no token, only the key that it stands for.
    """

    def __init__(self, token: str | bytes | None = None, tls: Tls | None = None) -> None:
        self.key: Final = b"" if token is None else derive(_checked(token, "the token"))
        self.tls: Final = tls
        self._wrapper: Final = None if tls is None else Wrapper(tls)

    def __repr__(self) -> str:
        return f"Guard({'a token' if self.key else 'no token'}, {'TLS' if self.tls else 'plain'})"

    def encrypt(self, sock: socket.socket, dialled: bool) -> TlsStream | None:
        """What to read and write through instead; None: the socket itself. Within one machine nobody listens in."""
        if self._wrapper is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        return self._wrapper.wrap(sock, dialled)


OPEN: Final = Guard()
"""Everybody may connect, everybody may listen in."""


def read_token(path: Path) -> bytes:
    """The token in a file. InvalidConfig: there is none, or it is too short. Warns if everybody can read it."""
    try:
        token = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise InvalidConfig(
            f"can't read the token in {path} ({error.strerror}); make one with:  {MAKE_TOKEN}"
        ) from None
    if os.name != "nt" and mode & 0o004:
        log.warning("every user of this computer can read the token in %s: chmod 600 %s", path, path)
    return _checked(token, str(path))


def is_local(host: str) -> bool:
    """Can only processes of this machine reach that host?"""
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(name[0]).split("%")[0]).is_loopback for *_, name in found)


def _checked(token: str | bytes, what: str) -> bytes:
    plain = (token.encode() if isinstance(token, str) else bytes(token)).strip()
    if len(plain) < LEAST_TOKEN_BYTES:
        raise InvalidConfig(
            f"{what} has {len(plain)} bytes, at least {LEAST_TOKEN_BYTES} are needed; make one with:  {MAKE_TOKEN}"
        )
    return plain
