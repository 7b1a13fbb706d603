"""Certificates for tests, made once: those of one CA, and those of another."""

import functools
import tempfile
from pathlib import Path

import pytest

from atoll.net import certificates
from atoll.net.tls import Tls

_FOLDER = tempfile.TemporaryDirectory(prefix="atoll-certificates-")


def certified(by: str = "our CA") -> Tls:
    """Of that CA; the test is skipped where none can be made."""
    pytest.importorskip("cryptography")
    return _made(by)


@functools.cache
def _made(by: str) -> Tls:
    return certificates.make(Path(_FOLDER.name) / by)
