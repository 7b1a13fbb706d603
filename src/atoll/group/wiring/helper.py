"""Driver: starts the helper process that speaks for this one while it is stopped or gone, and starts it again if it
dies."""

import json
import logging
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Final

from atoll.group import messages
from atoll.group.messages import Beat
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER
from atoll.net.guard import OPEN, Guard
from atoll.net.handshake import CHALLENGE_BYTES, PROOF_BYTES
from atoll.net.loop import Address
from atoll.net.preamble import Greeting
from atoll.version import VERSION

log = logging.getLogger("atoll.group")

_SCRIPT: Final = str(Path(__file__).with_name("liveness.py"))
_COUNTER: Final = struct.Struct("<Q")


class Helper:
    """One per peer: about 10 MiB, no torch. On Windows it has no page to share and reports no progress."""

    def __init__(self, master: Address, guard: Guard = OPEN) -> None:
        self._master, self._guard = master, guard
        self._process: subprocess.Popen[bytes] | None = None
        self._member = 0, b""
        self._told = b""
        self._count = 0
        self._file: IO[bytes] | None = None
        self._page: mmap.mmap | None = None
        if os.name != "nt":
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the helper lives)
            self._file.truncate(_COUNTER.size)
            self._page = mmap.mmap(self._file.fileno(), _COUNTER.size)

    def start(self, member: int, secret: bytes) -> None:
        """Begin to beat for this member."""
        self._stop()
        self._member = member, secret
        beats = {
            state: _frame(Beat(member, secret, state, bytes(_COUNTER.size))) for state in ("running", "stopped", "gone")
        }
        key, tls = self._guard.key, self._guard.tls
        greeting = Greeting(VERSION, (), bytes(CHALLENGE_BYTES) if key else b"")
        told = {
            "master": self._master,
            "greeting": preamble.encode(greeting).hex(),
            "key": key.hex(),
            "proof": HEADER.pack(CONTROL, PROOF_BYTES, 0).hex(),
            "tls": [str(Path(path).absolute()) for path in (tls.cert, tls.key, tls.ca)] if tls else [],
            "beats": beats,
        }
        self._told = json.dumps(told).encode() + b"\n"
        self._spawn()

    def move(self, master: Address) -> None:
        """Go on at another master."""
        self._master = master
        self.start(*self._member)

    def _spawn(self) -> None:
        page = self._file.fileno() if self._file else -1
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", _SCRIPT, str(os.getpid()), str(page)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(page,) if page >= 0 else (),
                start_new_session=True,  # Ctrl-C is the parent's business
            )
        except OSError as error:  # no memory, process or descriptor is left just now: `keep` tries again
            log.warning("no helper process: nobody would tell the group if this process stopped (%s)", error)
            return
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(self._told)
            self._process.stdin.flush()
        except OSError:  # it died at once: `keep` will see
            pass

    def keep(self) -> None:
        """Start it again if it has died, or could not be started."""
        if self._told and (self._process is None or self._process.poll() is not None):
            self._stop()
            self._spawn()

    def progress(self) -> None:
        """The program went one operation further."""
        self._count += 1
        if self._page is not None:
            self._page[:] = _COUNTER.pack(self._count)

    def close(self) -> None:
        """End it."""
        self._stop()
        self._told = b""
        if self._page is not None and self._file is not None:
            self._page.close()
            self._file.close()
            self._page = self._file = None

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.close()
        except OSError:
            pass
        process.kill()
        process.wait()


def _frame(message: Beat) -> str:
    body = messages.encode(message)
    return (HEADER.pack(CONTROL, len(body), 0) + body).hex()
