"""Driver: TLS over a non-blocking socket: what the channel writes leaves encrypted, what it reads has been.

TLS 1.3 only; both sides show a certificate of the group's own CA, and that is all that is checked: host names are not,
as members come from anywhere, and the CA makes certificates for nobody else. No session is ever resumed.

The engine works between two buffers in memory, so the socket stays an ordinary one for the selector: nothing is ever
waited for but bytes that come, and room for bytes that leave.
"""

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from atoll.errors import InvalidConfig, Refused

_RECORD: Final = 16 << 10
"""Bytes that are encrypted as one."""
_AHEAD: Final = 64 << 10
"""Bytes that are encrypted before the socket has taken those before: few enough for the processor's cache."""
_A_CALL: Final = 256 << 10
"""Bytes that leave before others get their turn."""
_OVERHEAD: Final = 512
_LARGEST_READ: Final = 64 << 10

_EXPIRED: Final = 10
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED."""
_ALERT: Final = bytes.fromhex("15 0303 0002 02 46")
"""Fatal, protocol version. The engine says nothing to one that speaks no TLS."""
_ALL_ALIKE: Final = "give all of the group certificates of the same CA (--tls-cert, --tls-key, --tls-ca)"
_WHY: Final = {
    "WRONG_VERSION_NUMBER": f"the other side speaks plain, this one TLS: {_ALL_ALIKE}, or none",
    "HTTP_REQUEST": "the other side is not atoll: it speaks HTTP",
    "TLSV1_ALERT_UNKNOWN_CA": f"the other side doesn't take our certificate: it is of another CA; {_ALL_ALIKE}",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other side doesn't take our certificate: it has expired; make new ones",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": f"the other side wants a certificate: {_ALL_ALIKE}",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": f"the other side shows no certificate: {_ALL_ALIKE}",
}


@dataclass(frozen=True)
class Tls:
    """Files in PEM: our certificate, its key (without a password), and the CA whose certificates we take.

    The CA must be the group's own: whoever has a certificate of it is let in, from whatever host. `atoll master
    --make-cert DIR` makes all three; one certificate may serve all members.
    """

    cert: str | Path
    key: str | Path
    ca: str | Path


class Wrapper:
    """What is read from the files once. InvalidConfig: it can't be."""

    def __init__(self, tls: Tls) -> None:
        self._dials = context(tls, server_side=False)
        self._listens = context(tls, server_side=True)
        self._ours = certificate(tls)

    def wrap(self, sock: socket.socket, dialled: bool) -> "TlsStream":
        """A stream over a connected socket that doesn't block."""
        return TlsStream(sock, self._dials if dialled else self._listens, not dialled, self._ours)


def context(tls: Tls, server_side: bool) -> ssl.SSLContext:
    """What both a stream here and the helper process use. InvalidConfig names the file that is no good."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    if server_side:
        made.num_tickets = 0
    try:
        made.load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    except OSError as error:  # and SSLError, which is one
        raise _unreadable(error, f"the certificate {tls.cert} with the key {tls.key}") from None
    try:
        made.load_verify_locations(tls.ca)
    except OSError as error:
        raise _unreadable(error, f"the CA {tls.ca}") from None
    return made


def certificate(tls: Tls) -> bytes:
    """The first one in our file, in DER."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    text = Path(tls.cert).read_text("latin-1")
    return ssl.PEM_cert_to_DER_cert(begin + text.split(begin)[1].split(end)[0] + end)


def binding(server: bytes, client: bytes) -> bytes:
    """What only a connection between these two certificates has (as RFC 5929's tls-server-end-point, for both)."""
    return sha256(server).digest() + sha256(client).digest()


def explain(error: ssl.SSLError) -> Refused:
    """In one line, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            return Refused("the other side's certificate has expired: make new ones for all of the group")
        return Refused(f"the other side's certificate is not of this CA ({error.verify_message}): {_ALL_ALIKE}")
    reason = error.reason or str(error)
    return Refused(_WHY.get(reason, f"TLS failed: {reason.replace('_', ' ').lower()}"))


def _unreadable(error: OSError, what: str) -> InvalidConfig:
    why = getattr(error, "reason", None) or error.strerror
    return InvalidConfig(f"can't use {what}: {str(why).replace('_', ' ').lower()}")


class TlsStream:
    """Reads and writes like a socket that doesn't block, but for these: the handshake goes on in `recv_into`, and a
    `send` that was begun must be repeated with the same bytes in front, as a channel's queue has them."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server_side: bool, ours: bytes) -> None:
        self._sock, self._server_side, self._ours = sock, server_side, ours
        self._coming, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._engine = context.wrap_bio(self._coming, self._leaving, server_side=server_side)
        self._decrypt: Callable[[int, memoryview], int] = self._engine.read  # type: ignore[assignment]
        self._ready = False
        self._unsent = memoryview(b"")
        self._sealed = 0
        """Bytes that were encrypted, but have not been reported as sent."""
        self.binding = b""
        """What only this connection has; once something has been read."""
        self.more = False
        """The last read was ended by its end, not by a lack of bytes: some may be here that wake no selector."""
        with contextlib.suppress(ssl.SSLWantReadError):  # a dialler's first words
            self._engine.do_handshake()

    @property
    def stuck(self) -> bool:
        """Can nothing leave before something has come?"""
        return not (self._ready or self._unsent or self._leaving.pending)

    # -- out ------------------------------------------------------------------------------------------------------

    def send(self, data: memoryview) -> int:
        """As `socket.send`."""
        return self.sendmsg([data])

    def sendmsg(self, parts: Sequence[memoryview]) -> int:
        """As `socket.sendmsg`: how many bytes have left, encrypted. BlockingIOError: none has yet."""
        sent = 0
        try:
            self._push()
            if self._ready:
                sent, self._sealed = self._sealed, 0
                for chunk in _chunks(parts, sent):
                    self._seal(chunk)
                    self._sealed = len(chunk)
                    self._push()
                    sent, self._sealed = sent + self._sealed, 0
                    if sent >= _A_CALL:
                        break
        except BlockingIOError:
            pass
        except OSError:
            self._sealed = 0  # nothing will leave any more, and whoever hears of it forgets what is queued
            raise
        if not sent:
            raise BlockingIOError
        return sent

    def _seal(self, chunk: memoryview) -> None:
        at = 0
        while at < len(chunk):
            at += self._engine.write(chunk[at : at + _RECORD])

    def _push(self) -> None:
        """Hand over to the socket all that is encrypted. BlockingIOError: it doesn't take all."""
        while self._unsent or self._leaving.pending:
            if not self._unsent:
                self._unsent = memoryview(self._leaving.read())
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    # -- in -------------------------------------------------------------------------------------------------------

    def recv_into(self, view: memoryview) -> int:
        """As `socket.recv_into`, but returns less than asked for only if there is no more. Refused: not our group."""
        self.more = False
        try:
            if not self._ready and not self._shake(len(view)):
                return 0
            got = self._read(view)
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):  # tell the other side why
                if error.reason == "WRONG_VERSION_NUMBER":
                    self._leaving.write(_ALERT)
                self._push()
            raise explain(error) from None
        self.more = got == len(view)
        return got

    def _shake(self, wanted: int) -> bool:
        """Go on with the handshake; False: the other side has ended it."""
        while True:
            try:
                self._engine.do_handshake()
                break
            except ssl.SSLWantReadError:
                with contextlib.suppress(BlockingIOError):
                    self._push()
                self._pull(wanted)
            except ssl.SSLEOFError:
                return False
        self._ready = True
        theirs = self._engine.getpeercert(binary_form=True) or b""
        self.binding = binding(self._ours, theirs) if self._server_side else binding(theirs, self._ours)
        with contextlib.suppress(BlockingIOError):
            self._push()
        return True

    def _read(self, view: memoryview) -> int:
        got = 0
        while got < len(view):
            try:
                n = self._decrypt(len(view) - got, view[got:])
            except ssl.SSLWantReadError:
                try:
                    self._pull(len(view) - got)
                except OSError:
                    if got:  # the next call will tell
                        return got
                    raise
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                n = 0
            if not n:
                break
            got += n
        return got

    def _pull(self, wanted: int) -> None:
        """Take from the socket about as much as makes so many bytes. BlockingIOError: nothing has come."""
        data = self._sock.recv(min(max(wanted, _RECORD) + _OVERHEAD, _LARGEST_READ))
        if data:
            self._coming.write(data)
        else:
            self._coming.write_eof()


def _chunks(parts: Sequence[memoryview], skip: int) -> Iterator[memoryview]:
    """All bytes but so many in front, in pieces of a good size."""
    if len(parts) > 1 and sum(map(len, parts)) <= _AHEAD:  # small ones share a record
        parts = [memoryview(b"".join(parts))]
    for part in parts:
        for at in range(skip, len(part), _AHEAD):
            yield part[at : at + _AHEAD]
        skip = max(0, skip - len(part))
