"""Settings for all tests."""

import gc


def pytest_collection_finish() -> None:
    """What collecting has made (tests, torch, hypothesis) stays to the end: no collection need look at it again."""
    gc.collect()
    gc.freeze()
