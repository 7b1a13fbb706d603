"""Driver: the helper process: tells the master whether its parent runs, is stopped or gone. Standard library only,
run by path.

The parent sends one line of JSON on standard input: where the master listens and the bytes to say for each state.
The last eight bytes of each are overwritten with the progress counter from the page both share. The end of standard
input, or another parent id, means that the parent is gone.
"""

import json
import mmap
import os
import socket
import subprocess
import sys
import threading

BEAT_S = 0.5


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


def main(parent: int, page_fd: int) -> None:
    """Beat until the parent or the master is gone."""
    told = json.loads(sys.stdin.readline() or "null")
    if told is None:
        return
    ended = threading.Event()
    threading.Thread(target=_wait_for_end, args=(ended,), daemon=True).start()
    page = mmap.mmap(page_fd, 8) if page_fd >= 0 else None
    sock = socket.create_connection(tuple(told["master"]), 10)
    sock.settimeout(10)
    sock.sendall(bytes.fromhex(told["greeting"]))
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
    try:
        main(int(sys.argv[1]), int(sys.argv[2]))
    except (OSError, KeyboardInterrupt):
        pass
