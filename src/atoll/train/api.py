"""Interface: what a training loop and a strategy are to each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from atoll.group.facade import Group
from atoll.model.transformer import Transformer

if TYPE_CHECKING:
    from pathlib import Path


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
    """All peers have just brought the shared state up to date (what is in flight, if anything, is so on all)."""
    agreed: bool = True
    """False, on all peers: their shared states differ, and have to be synced."""


class Drained(NamedTuple):
    """What it came to, to finish early what was in flight."""

    losses: tuple[str, ...] = ()
    """Who went meanwhile, in words."""
    bytes_sent: int = 0
    """To other peers, by what was in flight."""


class Strategy(Protocol):
    """Owns all of the update, from batch to new parameters."""

    steps: torch.Tensor
    """Steps taken, one int64; part of what is shared."""

    def enter(self, group: Group) -> None:
        """Train with this group from now on."""

    def meet(self, group: Group) -> None:
        """All peers, before they sync: somebody has come or gone, and nothing is in flight."""

    def step(self, batch: torch.Tensor) -> StepInfo:
        """Learn from `batch` [sequences, time + 1], and exchange what the schedule asks for."""

    def drain(self) -> Drained:
        """Finish what is in flight, so that the shared state may be saved or given to newcomers."""

    def collect(self) -> None:
        """All peers, before a checkpoint: bring together what is split among them. PeerLost: again."""

    def shared(self) -> dict[str, torch.Tensor]:
        """What all peers hold in the same bits."""

    def local(self) -> dict[str, Any]:
        """What a checkpoint needs besides."""

    def load_local(self, state: dict[str, Any]) -> None: ...
    def reload(self) -> None:
        """The shared tensors have been written from outside: go on from them."""


@runtime_checkable
class Logged(Protocol):
    """A strategy whose checkpoint is a log of what all have said, from which it finds the parameters again."""

    def essentials(self) -> dict[str, Any]:
        """What must be the same on all peers, besides the settings."""

    def save(self, folder: "Path", about: dict[str, Any]) -> "Path":
        """Write what is new of the log, and `about` its run."""

    def resume(self, place: "Path") -> dict[str, Any]:
        """Read a log, or the one in a folder; returns what it says of its run. `replay` goes through it."""

    def replay(self) -> None:
        """Go to where the log that was read leads."""

    @property
    def batches(self) -> int:
        """How many all peers together have used so far."""


class SavedTokenizer(Protocol):
    """What a saved model's tokens mean."""

    def encode(self, text: str) -> Any:
        """The tokens of `text`."""

    def to_json(self) -> str:
        """As a `tokenizer.json`."""


class Task(Protocol):
    """What is learnt: examples by number, and a model that learns them."""

    model: Transformer
    tokenizer: SavedTokenizer
    fingerprint: str
    """Peers with the same one have the same examples."""
    examples: int
    """To learn from."""

    def batch(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Those examples [examples, time + 1]; where one is shorter, -1."""

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Of the model, in nats."""

    def evaluate(self) -> Mapping[str, float]:
        """`loss`, and maybe `accuracy`, on examples that nobody learns from."""

    def restart(self) -> None:
        """Give the model the weights with which all begin."""
