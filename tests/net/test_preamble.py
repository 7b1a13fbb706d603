"""The first bytes on every connection: golden, and refused with a reason when they are anything else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import AtollError, ProtocolError, Refused
from atoll.net import preamble
from atoll.net.preamble import HEAD, Greeting

GOLDEN = bytes.fromhex(
    "41544f4c 0500 2800 83 a5 61746f6c6c a3 312e32 a8 6665617475726573 92 a2 7a31 a3 746c73 a9 6368616c6c656e6765 c4 00"
)
CHALLENGE = bytes(range(32))


def test_the_greeting_has_these_bytes_in_every_version() -> None:
    greeting = Greeting("1.2", ("z1", "tls"))
    assert preamble.encode(greeting) == GOLDEN
    assert preamble.body_size(GOLDEN[: HEAD.size]) == len(GOLDEN) - HEAD.size
    assert preamble.decode(GOLDEN[HEAD.size :]) == greeting


def test_a_challenge_is_the_last_of_all_bytes() -> None:
    """The helper process puts a new one there without reading the rest."""
    said = preamble.encode(Greeting("1.2", (), CHALLENGE))
    assert said.endswith(b"\xa9challenge\xc4\x20" + CHALLENGE)
    assert preamble.decode(said[HEAD.size :]).challenge == CHALLENGE


@pytest.mark.parametrize("nbytes", [1, 31, 33, 64])
def test_a_challenge_of_another_size_is_refused(nbytes: int) -> None:
    with pytest.raises(ProtocolError, match=f"a challenge of {nbytes} bytes"):
        preamble.decode(preamble.encode(Greeting("1.2", (), bytes(nbytes)))[HEAD.size :])


def test_a_later_version_may_say_more_of_itself() -> None:
    body = b"\x82\xa5atoll\xa19\xa3new\x93\x01\x02\x03"
    assert preamble.decode(body) == Greeting("9")


@pytest.mark.parametrize("head", [b"GET / HT", b"SSH-2.0-", bytes(8)])
def test_what_is_not_atoll_is_named(head: bytes) -> None:
    with pytest.raises(ProtocolError, match=f"not atoll.*{re.escape(repr(head))}"):
        preamble.body_size(head)


@pytest.mark.parametrize("head", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"\x15\x03\x03\x00\x02\x02\x28\x00"])
def test_tls_where_plain_is_expected_is_named(head: bytes) -> None:
    with pytest.raises(Refused, match="speaks TLS, this one plain"):
        preamble.body_size(head)


def test_another_wire_version_is_refused_in_one_line_that_says_what_to_do() -> None:
    with pytest.raises(Refused) as refusal:
        preamble.body_size(preamble.encode(Greeting("9"), wire_version=7)[: HEAD.size])
    assert f"wire version 7, this one {preamble.WIRE_VERSION}" in str(refusal.value)
    assert "install the same atoll" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_greeting_is_short() -> None:
    assert preamble.body_size(HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 1024)) == 1024
    with pytest.raises(ProtocolError, match="1025 bytes"):
        preamble.body_size(HEAD.pack(b"ATOL", preamble.WIRE_VERSION, 1025))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x80", b"\x81\xa5atoll\x01", b"\x81\xa5atoll\xa2\xff\xfe", b"\x81\xa1x" + b"\x91" * 1021],
    ids=["empty", "never used", "no version", "a number", "not utf-8", "deeply nested"],
)
def test_an_unreadable_greeting_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="unreadable greeting"):
        preamble.decode(body)


@given(st.binary(min_size=HEAD.size, max_size=HEAD.size), st.binary(max_size=1024))
def test_any_bytes_give_a_greeting_or_an_error_of_ours(head: bytes, body: bytes) -> None:
    for read in (lambda: preamble.body_size(head), lambda: preamble.decode(body)):
        try:
            read()
        except AtollError:
            pass
