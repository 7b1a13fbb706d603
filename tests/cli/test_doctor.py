"""`atoll doctor`: what it looks at, and what it advises where something is missing."""

import json

import pytest

from atoll.cli import doctor
from atoll.cli.main import run
from atoll.net import arena, capabilities


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less bytes: speeds are not what is tested."""
    monkeypatch.setattr(capabilities, "_BYTES", 4 << 20)


def found() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.look()}


@pytest.mark.usefixtures("quick")
def test_it_exits_with_zero_where_atoll_can_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    for what in ("addresses", "TCP through loopback", "shared memory", "network lab"):
        assert what in shown


@pytest.mark.usefixtures("quick")
def test_json_is_one_object_per_finding(capsys: pytest.CaptureFixture[str]) -> None:
    run(["doctor", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["state"] for line in lines} <= {"good", "less", "bad"}
    assert all(line["found"] for line in lines)


@pytest.mark.usefixtures("quick")
def test_what_is_missing_is_less_and_says_what_is_done_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "available", lambda: False)
    findings = found()
    assert findings["shared memory"].state == "less"
    assert "TCP" in findings["shared memory"].found
    assert findings["direct reads"].state == "less"
    assert "shard size" not in findings


@pytest.mark.usefixtures("quick")
def test_a_machine_that_can_not_listen_is_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(capabilities, "can_listen", lambda host: "Permission denied")
    assert run(["doctor"]) == 1
    assert "Permission denied" in capsys.readouterr().out


def test_addresses_name_their_interface_and_loopback_comes_last() -> None:
    addresses = [address for _, address in capabilities.addresses()]
    loopback = [address.startswith("127.") or address == "::1" for address in addresses]
    assert loopback == sorted(loopback)


def test_the_shard_is_one_that_was_tried() -> None:
    assert capabilities.best_shard_bytes() in (256 << 10, 512 << 10, 1 << 20)


def test_a_system_that_forbids_direct_reads_costs_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise ConnectionError("not permitted")

    monkeypatch.setattr("atoll.net.neighbour.Remote.read", forbidden)
    assert capabilities.read_bytes_per_s(1 << 20) == 0.0
    capabilities.best_shard_bytes.cache_clear()
    assert capabilities.best_shard_bytes() == 512 << 10
    capabilities.best_shard_bytes.cache_clear()
    assert capabilities.direct_reads()
