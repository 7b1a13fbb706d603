"""The log of a run: whole or refused in one line that says what to do, and appended, not written anew."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InvalidData
from atoll.train.one_byte.rounds import MAGIC, NAME, LogFile, Round, decode, encode, read

ROUNDS = [Round(2, b"ab"), Round(2, b"cd"), Round(3, b"efg")]
ABOUT = {"seed": 3, "base": "ab12"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    LogFile(tmp_path / NAME).write(ABOUT, ROUNDS)
    return tmp_path / NAME


def test_what_was_written_is_read(log: Path) -> None:
    assert read(log) == (ABOUT, ROUNDS)
    assert read(log.parent) == (ABOUT, ROUNDS)


def test_a_round_costs_twelve_bytes_and_what_was_said() -> None:
    data, _ = encode(ROUNDS)
    assert len(data) == 12 * 3 + 7


def test_what_is_new_is_appended_and_another_process_writes_the_same(tmp_path: Path) -> None:
    file, path = LogFile(tmp_path / NAME), tmp_path / NAME
    file.write(ABOUT, ROUNDS[:1])
    first = path.stat().st_ino, path.read_bytes()
    file.write(ABOUT, ROUNDS)
    assert path.stat().st_ino == first[0]
    assert path.read_bytes().startswith(first[1])
    grown = path.read_bytes()
    LogFile(path).write(ABOUT, ROUNDS)
    assert path.read_bytes() == grown


def test_one_that_has_taken_another_turn_is_written_anew(tmp_path: Path) -> None:
    file = LogFile(tmp_path / NAME)
    file.write(ABOUT, ROUNDS)
    file.write(ABOUT, [*ROUNDS[:1], Round(1, b"x")])
    assert read(tmp_path) == (ABOUT, [ROUNDS[0], Round(1, b"x")])


def test_one_that_somebody_else_has_written_is_written_anew(tmp_path: Path) -> None:
    file = LogFile(tmp_path / NAME)
    file.write(ABOUT, ROUNDS[:1])
    (tmp_path / NAME).write_bytes(b"")
    file.write(ABOUT, ROUNDS)
    assert read(tmp_path) == (ABOUT, ROUNDS)


@pytest.mark.parametrize("lost", range(1, 15))
def test_a_last_round_without_its_end_is_dropped(log: Path, lost: int) -> None:
    log.write_bytes(log.read_bytes()[:-lost])
    assert read(log) == (ABOUT, ROUNDS[:2])


def test_any_flipped_bit_is_found(log: Path) -> None:
    whole = log.read_bytes()
    for at in range(len(whole)):
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused, rounds = "", []
        try:
            rounds = read(log)[1]
        except InvalidData as error:
            refused = str(error)
        assert rounds == []
        assert refused.startswith(str(log))
        assert "take another copy" in refused
        assert len(refused.splitlines()) == 1


def test_damage_says_where_to_cut(log: Path) -> None:
    whole = bytearray(log.read_bytes())
    start = len(whole) - len(encode(ROUNDS)[0])
    whole[start + 14 + 8] ^= 255  # said in round 1
    log.write_bytes(whole)
    with pytest.raises(InvalidData, match=rf"round 1 is damaged.* first {start + 14} bytes"):
        read(log)
    log.write_bytes(whole[: start + 14])
    assert read(log) == (ABOUT, ROUNDS[:1])


@pytest.mark.parametrize("data", [b"", b"no log at all", MAGIC, MAGIC + bytes(5), MAGIC + bytes(12)])
def test_what_is_no_log_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(InvalidData, match="take another copy"):
        read(tmp_path)


def test_no_log_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="begin without --resume"):
        read(tmp_path)


@given(st.binary(max_size=120), st.integers(0, 40))
def test_any_bytes_are_rounds_or_damage(noise: bytes, kept: int) -> None:
    data = encode(ROUNDS)[0][:kept] + noise
    with suppress(InvalidData):
        rounds, end = decode(data, "here")
        assert encode(rounds)[0] == data[:end]


@pytest.mark.parametrize("head", [b"no JSON", b"[1]", b"[" * 4000])
def test_a_head_that_says_nothing_is_refused(head: bytes, tmp_path: Path) -> None:
    sound = struct.pack("<IQ", len(head), xxhash.xxh3_64_intdigest(head))
    (tmp_path / NAME).write_bytes(MAGIC + sound + head)
    with pytest.raises(InvalidData, match="doesn't say of which run"):
        read(tmp_path)


def test_rounds_of_nobody_are_damage() -> None:
    with pytest.raises(InvalidData, match="round 0 is damaged"):
        decode(bytes(20), "here")
