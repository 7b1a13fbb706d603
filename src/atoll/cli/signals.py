"""Driver: Ctrl-C and SIGTERM: what a person and a supervisor send to have a command end."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

INTERRUPTED: Final = 130
"""The exit code of who was told to end before it was done."""
_ASKING: Final = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]


@contextmanager
def handled(handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Both call `handler`. What is ignored stays so: a shell has Ctrl-C ignored by what it runs in the background."""
    heard = [number for number in _ASKING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def interrupting() -> AbstractContextManager[None]:
    """Both are a KeyboardInterrupt."""
    return handled(interrupt)


def ending() -> AbstractContextManager[None]:
    """Both end the process at once: around imports that take their time, while there is neither child nor thread.

    An import may swallow a KeyboardInterrupt, or make an ImportError of it. The default action is no way out: process 1
    of a container has none.
    """
    return handled(lambda number, frame: os._exit(INTERRUPTED))


def interrupt(number: int, frame: Any) -> None:
    """A handler."""
    raise KeyboardInterrupt
