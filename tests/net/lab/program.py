"""What the hosts of a lab run in these tests: `python program.py WHAT IP PORT ...`; answers are lines on stdout."""

import json
import socket
import sys
import time

WAIT_S = 20.0


def echo(ip: str, port: int) -> None:
    """Send back what comes, for one connection after the other; says which congestion control each has."""
    with socket.create_server((ip, port)) as server:
        say("listening")
        while True:
            line, _ = server.accept()
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            say(congestion(line))
            try:
                while data := line.recv(1000):
                    line.sendall(data)
            except OSError:
                pass


def ping(ip: str, port: int, count: str) -> None:
    """Round trips over TCP, in seconds, the first not counted; then the congestion control."""
    line = dialled(ip, port)
    trips = []
    for _ in range(int(count) + 1):
        began = time.monotonic()
        line.sendall(b"x")
        assert line.recv(10) == b"x"
        trips.append(time.monotonic() - began)
    say(trips[1:])
    say(congestion(line))


def chat(ip: str, port: int) -> None:
    """Send each line of stdin to an echo; say what comes back, or why nothing will."""
    line = dialled(ip, port)
    line.settimeout(None)
    say("connected")
    try:
        for text in sys.stdin:
            line.sendall(text.encode())
            say("sent")
            say(line.recv(1000).decode())
    except OSError as error:
        say(str(error))


def sink(ip: str, port: int, warm_s: str, measure_s: str) -> None:
    """Bits per second that come in, after a while."""
    with socket.create_server((ip, port)) as server:
        say("listening")
        line, _ = server.accept()
    buffer = bytearray(1 << 18)
    nbytes, since, began = 0, 0.0, time.monotonic()
    while True:
        got = line.recv_into(buffer)
        now = time.monotonic()
        if not since:
            since = now if now - began > float(warm_s) else 0.0
            continue
        nbytes += got
        if now - since > float(measure_s):
            say(nbytes * 8 / (now - since))
            return


def pour(ip: str, port: int) -> None:
    """As much as goes, until the other side has enough."""
    line = dialled(ip, port)
    try:
        while True:
            line.sendall(bytes(1 << 16))
    except OSError:
        pass


def count(ip: str, port: int, quiet_s: str) -> None:
    """The numbers of the UDP packets that come in, once no more do."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((ip, port))
        say("listening")
        numbers = []
        sock.settimeout(WAIT_S)
        try:
            while True:
                numbers.append(int.from_bytes(sock.recv(2000)[:4]))
                sock.settimeout(float(quiet_s))
        except TimeoutError:
            say(numbers)


def throw(ip: str, port: int, packets: str, nbytes: str, rate: str) -> None:
    """Numbered UDP packets of so many bytes, at this rate per second."""
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        for number in range(int(packets)):
            sock.sendto(number.to_bytes(4) + bytes(int(nbytes) - 4), (ip, port))
            if number % 20 == 19:
                time.sleep(20 / float(rate))


def sleep(*_: object) -> None:
    """With a child that does so too."""
    import subprocess

    child = subprocess.Popen(["sleep", "1000"])
    say(child.pid)
    time.sleep(1000)


def parent(ip: str, port: int) -> None:
    """A chat in a child."""
    import subprocess

    subprocess.run([sys.executable, __file__, "chat", ip, str(port)], check=False)


def dialled(ip: str, port: int) -> socket.socket:
    line = socket.create_connection((ip, port), timeout=WAIT_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def congestion(line: socket.socket) -> str:
    return line.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    what, ip, port, *more = sys.argv[1:]
    globals()[what](ip, int(port), *more)
