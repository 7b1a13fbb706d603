"""Driver: what a training run can be told, paths included; the single source of flags, configuration files and their
documentation."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from atoll.errors import InvalidConfig
from atoll.train.one_byte.settings import OneByteSettings


@dataclass(frozen=True)
class ModelSettings:
    """The transformer that is trained: a decoder of the Llama family over bytes, or a published one."""

    name: str = ""
    """Start from that model (as in `atoll model list`, or a path) instead of a new one; its shape is its own."""
    width: int = 128
    """Size of the residual stream."""
    layers: int = 4
    heads: int = 4
    context: int = 128
    """Bytes, or tokens of a published model, that are seen at once."""


@dataclass(frozen=True)
class TrainSettings:
    """The same on all peers but for `text`, which each reads where it runs."""

    text: tuple[Path, ...] = ()
    """Files and folders to learn from. Without any: the sources of the Python standard library."""
    strategy: Literal["diloco", "ddp", "one-byte"] = "diloco"
    """diloco: exchange every `every` steps. ddp: exchange gradients at every step. one-byte: no gradients, but forward
    passes along random directions, and one byte for each."""
    task: str = ""
    """Learn to label texts (one-byte): a file of lines LABEL<tab>TEXT, or `docstrings`, those of Python's own library.
    Without one: to go on with the text."""
    every: int = 20
    """Local steps between exchanges (diloco)."""
    delay: Literal[0, 1] = 0
    """1: apply each exchange one exchange later, so that it travels while the next steps compute."""
    codec: Literal["none", "bf16", "uint8", "uint8-zero", "int4", "e3m0"] = "none"
    """How numbers travel: as they are, in 2 bytes (bf16), in 1 (uint8), or in half a one (int4, e3m0)."""
    steps: int = 200
    """Local steps of each peer."""
    batch: int = 8
    """Sequences per step and peer."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    warm_up: int = 20
    """Steps until it is reached."""
    outer_lr: float = 0.7
    """Learning rate of the outer Nesterov step (diloco)."""
    outer_momentum: float = 0.9
    save_every: int = 100
    """Steps between checkpoints, at the next exchange; 0: only at the end, and when told to leave."""
    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    one_byte: OneByteSettings = field(default_factory=OneByteSettings)

    def __post_init__(self) -> None:
        for name in ("every", "steps", "batch"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "outer_lr"):
            if not getattr(self, name) > 0:
                raise InvalidConfig(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        for name in ("warm_up", "save_every", "outer_momentum"):
            if not getattr(self, name) >= 0:
                raise InvalidConfig(f"--{name.replace('_', '-')} can't be negative: {getattr(self, name)}")
        self.one_byte.check()
        if self.strategy == "one-byte" and self.batch % self.one_byte.samples:
            raise InvalidConfig(f"--batch {self.batch} can't be shared by --one-byte.samples {self.one_byte.samples}")
        for name, value in (("task", self.task), ("model.name", self.model.name)):
            if value and self.strategy != "one-byte":
                raise InvalidConfig(f"--{name} is for --strategy one-byte, not {self.strategy}")
