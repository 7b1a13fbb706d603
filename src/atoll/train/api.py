"""Interface: what a training loop and a strategy are to each other."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from atoll.group.facade import Group


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What one step came to on this peer."""

    loss: float
    tokens: int
    bytes_sent: int = 0
    """To other peers, by the strategy."""
    exposed_wait_s: float = 0.0
    """Time the step stood still for communication."""
    losses: tuple[str, ...] = ()
    """Who went meanwhile, in words."""
    refused: tuple[int, ...] = ()
    """Ranks whose contribution held what is no number and was left out."""
    boundary: bool = True
    """The shared state has just been brought up to date on all peers (nothing may be in flight: see `drain`)."""


class Strategy(Protocol):
    """Owns all of the update, from batch to new parameters."""

    steps: torch.Tensor
    """Steps taken, one int64; part of what is shared."""

    def enter(self, group: Group) -> None:
        """Train with this group from now on."""

    def step(self, batch: torch.Tensor) -> StepInfo:
        """Learn from `batch` [sequences, time + 1], and exchange what the schedule asks for."""

    def drain(self) -> tuple[str, ...]:
        """Finish what is in flight, so that the shared state may be saved or given to newcomers.

        Returns who was lost meanwhile, in words.
        """

    def shared(self) -> dict[str, torch.Tensor]:
        """What all peers hold in the same bits."""

    def local(self) -> dict[str, Any]:
        """What a checkpoint needs besides."""

    def load_local(self, state: dict[str, Any]) -> None: ...
    def reload(self) -> None:
        """The shared tensors have been written from outside: go on from them."""
