"""The real model, once for all tests; those that need it are skipped where nobody has it."""

from pathlib import Path

import pytest

from atoll.errors import Unavailable
from atoll.model import store


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct in the user's cache, fetched if it isn't there."""
    try:
        return store.pull("smollm2", lambda source, there, total: None)
    except Unavailable as error:
        pytest.skip(f"needs the real model: {error}")
