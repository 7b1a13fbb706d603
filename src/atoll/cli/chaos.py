"""Policy: `atoll train --chaos`: whom to kill and when to send another peer, from what the run has come to."""

from dataclasses import dataclass
from typing import Literal

from atoll import rng
from atoll.cli.history import History


@dataclass(frozen=True)
class Move:
    """What chaos does next, and to whom."""

    action: Literal["start", "kill"]
    name: str


class Chaos:
    """Decides: after a third of the steps one peer is killed, and another one starts.

    A run of one peer first gets a second, so that nothing is lost.
    """

    def __init__(self, peers: int, seed: int) -> None:
        self._next = peers
        self._rng = rng.stream(seed, "chaos")
        self._victim = ""
        self._replaced = False

    def decide(self, history: History) -> Move | None:
        """What is due now; counts as done once told."""
        if 3 * history.step < history.steps or any(peer.state == "done" for peer in history.peers.values()):
            return None
        if self._victim:
            return None if self._replaced else self._start()
        if self._next == 1:
            return self._start()
        training = history.training()
        if len(training) < 2 or any(peer.loss is None or peer.epoch != history.epoch for peer in training):
            return None  # who holds the state is not settled
        self._victim = training[int(self._rng.integers(len(training)))].name
        return Move("kill", self._victim)

    def _start(self) -> Move:
        self._replaced = bool(self._victim)
        self._next += 1
        return Move("start", f"peer-{self._next - 1}")
