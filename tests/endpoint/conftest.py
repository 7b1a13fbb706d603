"""A server before an endpoint that says what it is told, for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.endpoint.scripted import Scripted, served


@pytest.fixture(scope="module")
def parrot() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def url(parrot: Scripted) -> Iterator[str]:
    with served(parrot) as (url, _):
        yield url
