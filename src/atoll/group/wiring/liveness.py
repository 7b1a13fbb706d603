"""Driver: the helper process: tells the master whether its parent runs, is stopped or gone. Standard library only,
run by path.

The parent sends one line of JSON on standard input: where the master listens, the bytes to say first and for each
state, and what the group knows its own by: a key, certificates. The last eight bytes of each state are overwritten with
the progress counter from the page both share. The end of standard input, or another parent id, means that the parent is
gone.
"""

import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import types

BEAT_S = 0.5
_HEAD = 8
"""Bytes of a greeting's head; the last two say how many follow."""


def state_of(pid: int) -> str:
    """running, stopped or gone."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            letter = stat.read().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return _state_without_proc(pid)
    except ProcessLookupError:
        return "gone"
    return "stopped" if letter in "Tt" else "gone" if letter in "ZX" else "running"


def _state_without_proc(pid: int) -> str:
    """macOS: ask ps. Windows: only the end of standard input is a sign."""
    if os.path.isdir("/proc/self"):
        return "gone"
    if os.name == "nt":
        return "running"
    out = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return "gone" if not out.strip() else "stopped" if out.strip()[0] == "T" else "running"


def _wait_for_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


def _enter(
    master: tuple[str, int], greeting: bytes, key: bytes, frame: bytes, certificates: list[str]
) -> socket.socket:
    """Connect to the master, greet, and prove that we know the key, in a `frame`."""
    sock = socket.create_connection(master, 10)
    sock.settimeout(10)
    binding = b""
    if certificates:
        from atoll.net import tls  # some MiB

        files = tls.Tls(*certificates)
        encrypted = tls.context(files, server_side=False).wrap_socket(sock)
        binding = tls.binding(encrypted.getpeercert(binary_form=True) or b"", tls.certificate(files))
        sock = encrypted
    if not key:
        sock.sendall(greeting)
        return sock
    from atoll.net.handshake import CHALLENGE_BYTES, PROOF_BYTES, Handshake

    greeting = greeting[:-CHALLENGE_BYTES] + os.urandom(CHALLENGE_BYTES)
    handshake = Handshake(key, True, greeting)
    sock.sendall(greeting)
    head = _read(sock, _HEAD)
    theirs = head + _read(sock, int.from_bytes(head[-2:], "little"))
    sock.sendall(frame + (handshake.greeted(theirs, True, binding) or b""))
    if _read(sock, len(frame)) != frame:
        raise ConnectionError("denied")
    handshake.hear(_read(sock, PROOF_BYTES))
    return sock


def _read(sock: socket.socket, nbytes: int) -> bytes:
    data = b""
    while len(data) < nbytes:
        more = sock.recv(nbytes - len(data))
        if not more:
            raise ConnectionError("closed by the master")
        data += more
    return data


def main(parent: int, page_fd: int) -> None:
    """Beat until the parent or the master is gone."""
    told = json.loads(sys.stdin.readline() or "null")
    if told is None:
        return
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    page = mmap.mmap(page_fd, 8) if page_fd >= 0 else None
    greeting, key, frame = (bytes.fromhex(told[name]) for name in ("greeting", "key", "proof"))
    sock = _enter(tuple(told["master"]), greeting, key, frame, told["tls"])
    state = "running"
    while state != "gone":
        gone = ended.wait(BEAT_S) or (os.name != "nt" and os.getppid() != parent)
        state = "gone" if gone else state_of(parent)
        beat = bytes.fromhex(told["beats"][state])
        sock.sendall(beat[:-8] + (page[:8] if page else bytes(8)))
    sock.shutdown(socket.SHUT_WR)
    while sock.recv(4096):  # to close with its greeting unread could take the last beat back
        pass


if __name__ == "__main__":
    # The rooms below, without the front door of the package, which would load all of torch.
    sys.modules["atoll"] = types.ModuleType("atoll")
    sys.modules["atoll"].__path__ = [os.path.abspath(os.path.join(__file__, "..", "..", ".."))]
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except (OSError, KeyboardInterrupt):
        pass
