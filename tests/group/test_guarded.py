"""A whole group with a token, with TLS, with both: members do all they ever could, and nobody else gets in."""

import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import atoll
from atoll.cli.main import run
from atoll.errors import InvalidConfig, Refused
from atoll.group import messages
from atoll.group.messages import AskStatus, Hello, LinkHello
from atoll.group.wiring.asking import StatusClient
from atoll.group.wiring.helper import Helper
from atoll.group.wiring.wire import GREETING, parse_address
from atoll.net import preamble
from atoll.net.arena import available
from atoll.net.channel import CONTROL, HEADER
from atoll.net.guard import Guard
from atoll.net.preamble import HEAD
from tests.group.test_hostile import assert_closed, said
from tests.group.test_liveness import Listener
from tests.group.test_real import assert_equal_histories, helpers_of
from tests.net.certified import certified
from tests.net.test_loop import receive

TOKEN, OTHER = "7c5f7e1dc0de51a9b2aa0c1b9e6d3f48", "another token than the one of the group"


def files(tls: bool) -> atoll.Tls | None:
    return certified() if tls else None


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "team.token"
    file.write_text(TOKEN + "\n")
    file.chmod(0o600)
    return file


# -- members -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared_memory", [True, False])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_members_reduce_on_every_way_and_can_be_asked_about(tls: bool, shared_memory: bool) -> None:
    results: list[float] = []
    lanes: list[str] = []

    def member(address: str) -> None:
        with atoll.join(
            address, min_world=3, token=TOKEN, tls=files(tls), shared_memory=shared_memory, timeout_s=20.0
        ) as group:
            for size in (10, 8_000, 1_000_000):
                x = np.full(size, float(group.rank))
                group.all_reduce(x, "sum", timeout_s=20.0)
                results.append(float(x.min() + x.max()))
            if group.rank == 0:
                client = StatusClient(address, Guard(TOKEN, files(tls)))
                lanes.extend(m.lane for m in client.ask().members)
                client.close()
            group.barrier()

    with atoll.Master(token=TOKEN, tls=files(tls)) as master:
        threads = [threading.Thread(target=member, args=(master.address,), daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40.0)
    assert results == [6.0] * 9
    assert len(lanes) == 3
    assert ("TCP" in lanes[0]) == (not (shared_memory and available()))


def test_a_file_with_white_space_and_a_string_without_are_the_same_token(token_file: Path) -> None:
    with atoll.Master(token=token_file.read_bytes()) as master, atoll.join(master.address, token=TOKEN) as group:
        assert group.world == 1


# -- who is not of the group -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("master_token", "token", "told", "logged"),
    [
        (TOKEN, OTHER, "the other side has another token", "the other side has another token"),
        (TOKEN, None, "the other side wants a token: give --token-file", "the other side has no token"),
        (None, TOKEN, "the other side has no token", "the other side wants a token"),
    ],
    ids=["another token", "none here", "none there"],
)
def test_a_token_that_does_not_fit_is_one_clear_line_on_both_sides(
    caplog: pytest.LogCaptureFixture, master_token: str | None, token: str | None, told: str, logged: str
) -> None:
    caplog.set_level(logging.INFO, "atoll")
    with atoll.Master(token=master_token) as master:
        began = time.monotonic()
        with pytest.raises(Refused, match=told) as error:
            atoll.join(master.address, token=token, timeout_s=10.0)
        with pytest.raises(Refused, match=told):
            StatusClient(master.address, Guard(token)).ask()
        assert time.monotonic() - began < 3.0
        assert "\n" not in str(error.value)
        assert master._policy.roster.members == {}
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "atoll.net"]
    assert re.match(rf"127\.0\.0\.1:\d+ was refused: {logged}", lines[0])
    assert TOKEN not in caplog.text
    assert OTHER not in caplog.text


@pytest.mark.parametrize(
    ("masters", "ours", "told"),
    [
        ("our CA", "another CA", "certificate is not of this CA"),
        ("our CA", "", "speaks TLS, this one plain"),
        ("", "our CA", "speaks plain, this one TLS"),
    ],
    ids=["another CA", "TLS there only", "TLS here only"],
)
def test_certificates_that_do_not_fit_are_one_clear_line(masters: str, ours: str, told: str) -> None:
    with atoll.Master(token=TOKEN, tls=certified(masters) if masters else None) as master:
        with pytest.raises(Refused, match=told) as error:
            atoll.join(master.address, token=TOKEN, tls=certified(ours) if ours else None, timeout_s=10.0)
        assert "\n" not in str(error.value)
        with pytest.raises(Refused, match=told):
            StatusClient(master.address, Guard(TOKEN, certified(ours) if ours else None)).ask()
        assert master._policy.roster.members == {}


def test_another_wire_version_is_refused_before_any_proof() -> None:
    with atoll.Master(token=TOKEN) as master, socket.create_connection(parse_address(master.address)) as old:
        old.settimeout(5.0)
        old.sendall(preamble.encode(GREETING, wire_version=2))
        theirs = receive(old, HEAD.size)
        assert HEAD.unpack(theirs)[1] == preamble.WIRE_VERSION
        receive(old, preamble.body_size(theirs))
        assert old.recv(1) == b""


FIRST = preamble.encode(preamble.Greeting("stranger", (), bytes(range(32))))
WORDS = {
    "a hello": said(Hello("127.0.0.1", 1)),
    "a question": said(AskStatus()),
    "a link": said(LinkHello(1, 1)),
    "data": HEADER.pack(7, 100, 0) + bytes(100),
    "4 MiB": HEADER.pack(CONTROL, 4 << 20, 0),
    "a false proof and a hello": HEADER.pack(CONTROL, 32, 0) + bytes(32) + said(Hello("127.0.0.1", 1)),
}


@pytest.mark.parametrize("target", ["master", "peer"])
@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("challenges", [True, False])
def test_a_stranger_is_not_heard_by_the_master_nor_by_a_peer(words: str, target: str, challenges: bool) -> None:
    with atoll.Master(token=TOKEN) as master, atoll.join(master.address, token=TOKEN) as group:
        seat = group._membership.port._peer.seat  # type: ignore[attr-defined]
        at = parse_address(master.address) if target == "master" else (seat.host, seat.port)
        with socket.create_connection(at) as stranger:
            stranger.settimeout(5.0)
            stranger.sendall((FIRST if challenges else preamble.encode(GREETING)) + WORDS[words])
            greeting = receive(stranger, HEAD.size)
            receive(stranger, preamble.body_size(greeting))
            assert stranger.recv(HEADER.size) in (b"", HEADER.pack(CONTROL, 0, 0)), "it is told nothing but no"
            assert_closed(stranger)
        x = np.ones(5)
        group.all_reduce(x)
        assert list(master._policy.roster.members) == [group.id]


def test_all_that_a_member_said_said_again_lets_nobody_in() -> None:
    """On the wire, with a real member: its bytes are recorded on the way and played once more."""
    recorded = b""

    def relay(server: socket.socket, to: tuple[str, int]) -> None:
        nonlocal recorded
        near, _ = server.accept()
        with near, socket.create_connection(to) as far:
            back = threading.Thread(target=copy, args=(far, near, False), daemon=True)
            back.start()
            copy(near, far, True)

    def copy(source: socket.socket, target: socket.socket, keep: bool) -> None:
        nonlocal recorded
        try:
            while data := source.recv(1 << 16):
                recorded += data if keep else b""
                target.sendall(data)
        except OSError:
            pass

    with atoll.Master(token=TOKEN) as master, socket.create_server(("127.0.0.1", 0)) as server:
        to = parse_address(master.address)
        threading.Thread(target=relay, args=(server, to), daemon=True).start()
        client = StatusClient("{}:{}".format(*server.getsockname()), Guard(TOKEN))
        assert client.ask().members == ()
        client.close()
        assert messages.encode(AskStatus()) in recorded
        with socket.create_connection(to) as thief:
            thief.settimeout(5.0)
            thief.sendall(recorded)
            greeting = receive(thief, HEAD.size)
            receive(thief, preamble.body_size(greeting))
            assert receive_all(thief) == HEADER.pack(CONTROL, 0, 0)  # no, and nothing else


def receive_all(sock: socket.socket) -> bytes:
    data = b""
    try:
        while more := sock.recv(1 << 16):
            data += more
    except ConnectionError:
        pass
    return data


# -- where a master may listen -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.1.2.3:0"])
def test_a_master_without_a_token_keeps_to_loopback_and_says_what_to_do(address: str) -> None:
    with pytest.raises(InvalidConfig, match=r"--token-file.*or --insecure \(`insecure=True`\)") as error:
        atoll.Master(address)
    assert "\n" not in str(error.value)
    assert address in str(error.value)


@pytest.mark.parametrize("options", [{"token": TOKEN}, {"insecure": True}], ids=["a token", "insecure"])
def test_with_a_token_or_on_purpose_it_listens_everywhere(options: dict[str, Any]) -> None:
    with atoll.Master("0.0.0.0:0", **options) as master:
        address = f"127.0.0.1:{parse_address(master.address)[1]}"
        with atoll.join(address, token=options.get("token")) as group:
            assert group.world == 1


# -- the helper --------------------------------------------------------------------------------------------------------


def options(token_file: Path, tls: bool) -> list[str]:
    return ["--token-file", str(token_file), *(["--certificates", str(Path(certified().ca).parent)] if tls else [])]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_helper_proves_it_too_stays_small_and_comes_back(tls: bool) -> None:
    heard = Listener(Guard(TOKEN, files(tls)))
    helper = Helper(heard.address, Guard(TOKEN, files(tls)))
    helper.start(7, bytes(16))
    try:
        heard.until(lambda: heard.beats)
        assert heard.channels[0].admitted
        assert helper._process is not None
        child = psutil.Process(helper._process.pid)
        assert child.memory_info().rss < 25 << 20
        child.kill()
        heard.until(lambda: heard.ended)
        psutil.wait_procs([child], 1.0)
        helper.keep()
        heard.until(lambda: len(heard.channels) == 2 and heard.next_state() == "running")
    finally:
        helper.close()
        heard.net.close()


def test_a_helper_says_nothing_to_who_does_not_know_the_token() -> None:
    """Its beats carry the secret of its member."""
    heard = Listener(Guard(OTHER))
    helper = Helper(heard.address, Guard(TOKEN))
    helper.start(7, bytes(16))
    heard.until(lambda: heard.ended)
    assert not heard.beats
    helper.close()
    heard.net.close()


def test_a_helper_takes_no_made_up_proof_for_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10.0)
        name = server.getsockname()
        helper = Helper((name[0], name[1]), Guard(TOKEN))
        helper.start(7, bytes(16))
        false, _ = server.accept()
    with false:
        false.settimeout(10.0)
        false.sendall(FIRST + HEADER.pack(CONTROL, 32, 0) + bytes(32))
        head = receive(false, HEAD.size)
        receive(false, preamble.body_size(head) + HEADER.size + 32)
        assert receive_all(false) == b"", "it goes without a beat"
    helper.close()


@pytest.mark.slow  # without a token: test_real.py
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_stopped_peer_is_noticed_and_comes_back(peers: Any, token_file: Path, tls: bool) -> None:
    with atoll.Master(token=TOKEN, tls=files(tls)) as master:
        flags = ["--pace", "0.01", "--min-world", "2", "--rejoin", *options(token_file, tls)]
        two = [peers(master.address, 10**6, *flags) for _ in range(2)]
        for peer in two:
            peer.reach(5)
        two[1].process.send_signal(signal.SIGSTOP)
        lost = two[0].wait_for(lambda s: s["event"] == "lost")
        assert "stopped" in lost["message"]
        two[1].process.send_signal(signal.SIGCONT)
        two[1].wait_for(lambda s: s["event"] == "expelled")
        two[1].wait_for(lambda s: s["event"] == "step" and s["at"] > lost["at"] and s["world"] == 2)
    assert_equal_histories(*two)


def test_a_whole_group_under_tls_survives_a_kill_and_a_late_joiner(peers: Any, token_file: Path) -> None:
    with atoll.Master(token=TOKEN, tls=certified()) as master:
        flags = ["--pace", "0.01", "--size", "200000", *options(token_file, tls=True)]
        three = [peers(master.address, 80, "--min-world", "3", *flags) for _ in range(3)]
        three[0].reach(10)
        late = peers(master.address, 80, *flags)
        late.reach(1)
        three[1].process.kill()
        assert [p.finish() for p in (three[0], three[2], late)] == [0, 0, 0]
    assert_equal_histories(*three, late)
    assert {3, 4} <= {s["world"] for s in three[0].events("step")}
    assert max(three[0].hashes()) == 80


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="nothing to look at")
def test_the_token_is_in_no_command_line_environment_or_log(peers: Any, token_file: Path, tmp_path: Path) -> None:
    key = Guard(TOKEN).key.hex()
    said = tmp_path / "said"
    argv = [sys.executable, "-m", "atoll", "master", "--listen", "127.0.0.1:0", "--json", "--debug"]
    with said.open("wb") as out:
        master = subprocess.Popen([*argv, "--token-file", str(token_file)], stdout=subprocess.PIPE, stderr=out)
        assert master.stdout is not None
        address = json.loads(master.stdout.readline())["address"]
    peer = peers(address, 10**6, "--pace", "0.01", *options(token_file, tls=False))
    peer.reach(5)
    helpers = helpers_of(peer.process.pid)
    assert helpers
    for pid in (master.pid, peer.process.pid, *helpers):
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{pid}/{name}").read_bytes()
            assert TOKEN.encode() not in shown
            assert key.encode() not in shown
    assert run(["status", address, "--token-file", str(token_file)]) == 0
    master.terminate()
    rest = master.communicate(timeout=10)[0] + said.read_bytes() + json.dumps(peer.said).encode()
    assert TOKEN.encode() not in rest
    assert key.encode() not in rest


# -- floods ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", ["master", "peer"])
def test_ten_thousand_half_open_connections_stop_nobody_and_keep_nobody_out(target: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = 10_000
    if hard != resource.RLIM_INFINITY and hard < many + 2000:
        pytest.skip("this system gives us too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, many + 2000), hard))
    steps, stop, problems = [0], threading.Event(), []

    def member(address: str) -> None:
        try:
            with atoll.join(address, token=TOKEN, timeout_s=20.0) as group:
                ports.append(group._membership.port)
                while not stop.is_set():
                    with suppress(atoll.PeerLost):  # a newcomer that left again
                        if group.peers_pending():
                            group.update_topology(timeout_s=20.0)
                        group.all_reduce(np.ones(1000), timeout_s=20.0)
                        steps[0] += 1
        except atoll.AtollError as error:
            problems.append(repr(error))

    ports: list[Any] = []
    strangers: list[socket.socket] = []
    try:
        with atoll.Master(token=TOKEN) as master:
            thread = threading.Thread(target=member, args=(master.address,))
            thread.start()
            end = time.monotonic() + 20.0
            while not steps[0]:
                assert time.monotonic() < end
                time.sleep(0.01)
            seat = ports[0]._peer.seat
            at = parse_address(master.address) if target == "master" else (seat.host, seat.port)
            for number in range(many):
                strangers.append(socket.create_connection(at, 20.0))
                if number % 2:
                    strangers[-1].sendall(FIRST)
                if number % 1000 == 500:
                    before = steps[0]
                    with atoll.join(master.address, token=TOKEN, timeout_s=20.0) as newcomer:
                        assert newcomer.world == 2
                    assert steps[0] >= before
            assert not problems
            before, end = steps[0], time.monotonic() + 20.0
            while steps[0] < before + 20:
                assert not problems
                assert time.monotonic() < end, "the member stands still"
                time.sleep(0.01)
            assert len((master if target == "master" else ports[0])._net.channels) <= 256 + 10
            stop.set()
            thread.join(20.0)
            assert not problems
    finally:
        stop.set()
        for stranger in strangers:
            stranger.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- the command line --------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_token_or_a_certificate_is_said_in_one_line(
    tmp_path: Path,
    token_file: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.ERROR, "atoll.net")  # what the master says of it, which elsewhere is another process
    monkeypatch.chdir(tmp_path)
    wrong = tmp_path / "wrong.token"
    wrong.write_text(OTHER)
    wrong.chmod(0o600)
    (tmp_path / "empty.token").touch(0o600)
    with atoll.Master(token=TOKEN) as master:
        for argv, code, words in [
            (["status", master.address], 1, "the other side wants a token: give --token-file"),
            (["status", master.address, "--token-file", str(wrong)], 1, "the other side has another token"),
            (["status", master.address, "--token-file", "missing.token"], 2, "token_hex(32)"),
            (["status", master.address, "--token-file", "empty.token"], 2, "has 0 bytes"),
            (["join", master.address, "--token-file", "empty.token"], 2, "has 0 bytes"),
            (["master", "--token-file", "empty.token"], 2, "has 0 bytes"),
            (["status", master.address, "--tls-ca", "ca.pem"], 2, "--tls-cert and --tls-key missing"),
            (["join", master.address, "--tls-cert", "c", "--tls-key", "k"], 2, "--tls-ca missing"),
            (["master", "--listen", "0.0.0.0:0"], 2, "or --insecure"),
        ]:
            assert run(argv) == code, argv
            err = capsys.readouterr().err
            assert err.startswith("atoll: ")
            assert len(err.strip().splitlines()) == 1
            assert words in err
        assert run(["status", master.address, "--token-file", str(token_file)]) == 0


@pytest.mark.slow  # it loads torch; `status` says the same by the same means
def test_join_with_a_wrong_token_ends_with_one_line_and_code_1(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.token"
    wrong.write_text(OTHER)
    wrong.chmod(0o600)
    (tmp_path / "text.txt").write_text("the ring between them is thin. " * 100)
    with atoll.Master(token=TOKEN) as master:
        argv = [sys.executable, "-m", "atoll", "join", master.address, "--token-file", str(wrong), "--text", "text.txt"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("atoll: the other side has another token")
    assert len(done.stderr.strip().splitlines()) == 1


def master_says(*flags: str) -> tuple[list[str], str]:
    """The first lines of `atoll master`, and what it wrote to stderr."""
    argv = [sys.executable, "-m", "atoll", "master", *flags]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    while lines[-1] and "Ctrl-C" not in lines[-1]:
        lines.append(process.stdout.readline())
    process.terminate()
    out, err = process.communicate(timeout=10)
    return [*lines, *out.splitlines(keepends=True)], err


def test_a_master_says_how_to_join_it_and_who_can(token_file: Path) -> None:
    lines, err = master_says("--listen", "0.0.0.0:0", "--token-file", str(token_file))
    assert re.search(rf"atoll join 0\.0\.0\.0:\d+ --token-file {token_file}", lines[0])
    assert not err
    lines, err = master_says("--listen", "127.0.0.1:0")
    assert "only processes of this computer can join" in "".join(lines)
    assert not err
    lines, err = master_says("--listen", "0.0.0.0:0", "--insecure")
    assert err.startswith("warning: there is no token, so whoever reaches this address can join")
    assert "only processes" not in "".join(lines)


def test_make_cert_prints_commands_that_work(
    tmp_path: Path, token_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    monkeypatch.chdir(tmp_path)
    assert run(["master", "--make-cert", "certs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (status,) = [line.split() for line in lines if line.strip().startswith("atoll status")]
    assert sum(line.strip().startswith(("atoll master", "atoll join")) for line in lines) == 2
    assert any("token_hex" in line for line in lines)
    tls = atoll.Tls("certs/cert.pem", "certs/key.pem", "certs/ca.pem")
    with atoll.Master(token=token_file.read_bytes(), tls=tls) as master:
        assert run([master.address if word == "HOST:48148" else word for word in status[1:]]) == 0
    assert run(["master", "--make-cert", "certs"]) == 2
    assert "certs/ca.pem exists" in capsys.readouterr().err
