"""Addresses as people write them, right and wrong."""

import pytest

from atoll.errors import InvalidConfig
from atoll.net.address import parse_address, spelled


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("example.org.:65535", ("example.org.", 65535)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%eth0]:7", ("fe80::1%eth0", 7)),
        (
            "b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example:7",
            ("b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example", 7),
        ),
    ],
)
def test_both_parts_are_found_and_can_be_written_again(written: str, meant: tuple[str, int]) -> None:
    assert parse_address(written) == meant
    assert parse_address(spelled(meant)) == meant


@pytest.mark.parametrize(
    "written",
    [
        *("", ":", "host", "host:", ":80", "[]:80", "host:-1", "host:65536", "host:8o", f"host:{'9' * 5000}"),
        *("a..b:80", ".example.org:80", f"{'x' * 64}.org:80", "a\0b:80"),  # Python's resolver would raise UnicodeError
    ],
    ids=lambda written: ascii(written)[:20],
)
def test_what_is_no_address_is_said_to_be_none(written: str) -> None:
    with pytest.raises(InvalidConfig, match="write HOST:PORT"):
        parse_address(written)
