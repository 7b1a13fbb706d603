"""What a token must be, where it may lie, and who is local."""

import os
import pickle
from pathlib import Path

import pytest

from atoll.errors import InvalidConfig
from atoll.net.guard import OPEN, Guard, is_local, read_token

TOKEN = "a token of more than sixteen bytes"


def test_white_space_around_a_token_is_no_part_of_it() -> None:
    assert Guard(TOKEN).key == Guard(f" {TOKEN}\n").key == Guard(TOKEN.encode()).key
    assert Guard(TOKEN).key != Guard(TOKEN + "x").key


@pytest.mark.parametrize("token", ["", " " * 40, "fifteen bytes..", b"\n" * 16], ids=repr)
def test_a_token_that_is_too_short_is_refused_and_the_error_says_how_to_make_one(token: str | bytes) -> None:
    with pytest.raises(InvalidConfig, match=r"at least 16 are needed; make one with: .*token_hex\(32\)") as error:
        Guard(token)
    assert "\n" not in str(error.value)


def test_sixteen_bytes_are_enough() -> None:
    assert Guard("sixteen bytes...").key


def test_nobody_can_read_the_token_from_a_guard() -> None:
    guard = Guard(TOKEN)
    assert TOKEN not in repr(guard)
    assert TOKEN.encode() not in pickle.dumps(vars(guard))
    assert repr(OPEN) == "Guard(no token, plain)"


def test_a_token_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "team.token"
    file.write_text(TOKEN + "\r\n")
    file.chmod(0o600)
    assert read_token(file) == TOKEN.encode()
    assert not caplog.records


@pytest.mark.skipif(os.name == "nt", reason="no such permissions")
def test_a_token_file_that_everybody_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "team.token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    read_token(file)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"chmod 600 {file}" in record.getMessage()
    assert TOKEN not in record.getMessage()


@pytest.mark.parametrize("content", [None, "", "short"])
def test_a_token_file_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "team.token"
    if content is not None:
        file.write_text(content)
        file.chmod(0o600)
    with pytest.raises(InvalidConfig, match=r"team\.token.*make one with") as error:
        read_token(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback_is_local(host: str) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.5", "fe80::1%eth0", "no.such.host.invalid"])
def test_all_else_is_not(host: str) -> None:
    assert not is_local(host)
