"""Settings for all tests."""

import gc

import pytest


@pytest.fixture(scope="module", autouse=True)
def _nothing_old_is_collected() -> None:
    """What stands before a module (tests, torch, hypothesis) stays to the end: no collection need look at it again."""
    gc.collect()
    gc.freeze()
