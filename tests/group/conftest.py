"""What several tests of groups start."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.group.peer_process import PeerProcess


@pytest.fixture
def peers() -> Iterator[Callable[..., PeerProcess]]:
    started: list[PeerProcess] = []

    def start(*args: Any) -> PeerProcess:
        started.append(PeerProcess(*args))
        return started[-1]

    yield start
    for peer in started:
        if peer.process.poll() is None:
            peer.process.send_signal(signal.SIGCONT)
            peer.process.kill()
        peer.process.wait()
