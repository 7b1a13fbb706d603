"""Driver: how much memory a round takes beyond that of plain inference. (Just One Byte, "Done when" 7.)

python -m atoll.reproduce.one_byte.memory inference|one-byte [MODEL]    # prints what it took, as JSON
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch

from atoll.errors import InvalidConfig
from atoll.group.local import LocalGroup
from atoll.model.loading import load
from atoll.model.store import find
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.reproduce.api import Line, Say, judged, missing
from atoll.reproduce.crew import Event, crew
from atoll.rng import stream
from atoll.train.one_byte.settings import OneByteSettings
from atoll.train.one_byte.strategy import OneByte

SHAPE: Final = TransformerConfig(vocab_size=4096, width=512, layers=8, heads=8)
BATCH, TIME = 8, 64
PUBLISHED: Final = "smollm2"
DEADLINE_S: Final = 600.0


def memory(full: bool, say: Say) -> Iterator[Line]:
    """Of a model of 28 million parameters; of SmolLM2-135M too, if asked for all."""
    if not Path("/proc/self/clear_refs").exists():
        yield missing("7", "memory above the weights", "<= 1.3", "Linux's /proc")
        return
    yield _compared("7a", "", say)
    if full:
        try:
            find(PUBLISHED)
        except InvalidConfig as error:
            yield missing("7b", "the same for SmolLM2-135M", "<= 1.3", f"SmolLM2: {error}")
        else:
            yield _compared("7b", PUBLISHED, say)


def _compared(number: str, model: str, say: Say) -> Line:
    say(f"memory {model}")
    plain, ours = (_child(mode, model) for mode in ("inference", "one-byte"))
    above = [each["peak"] - each["weights"] for each in (plain, ours)]
    own = [each["peak"] - each["loaded"] for each in (plain, ours)]
    ratio = above[1] / above[0]
    return Line(
        number,
        f"peak memory above the weights ({plain['weights'] / 1e6:.0f} MB): a round, and plain inference; no autograd",
        "<= 1.3 of it",
        f"{above[1] / 1e6:.0f} and {above[0] / 1e6:.0f} MB: {ratio:.2f}; beyond the process once loaded "
        f"{own[1] / 1e6:.1f} and {own[0] / 1e6:.1f} MB; gradients: {ours['gradients']}",
        judged(ratio <= 1.3 and not ours["gradients"]),
    )


def _child(mode: str, model: str) -> Event:
    with crew() as found:
        found.start(mode, "-m", "atoll.reproduce.one_byte.memory", mode, model, env={})
        found.until_ended(seconds=DEADLINE_S)
        return found.of("")[0]


def main(mode: str, name: str) -> None:
    """Load, forget the peak so far, work, and say what it took."""
    model = load(find(name)).weights.transformer() if name else Transformer(SHAPE)
    tokens = torch.from_numpy(stream(1, "memory").integers(0, model.config.vocab_size, (BATCH, TIME + 1)))
    strategy = OneByte(dict(model.named_parameters()), model.loss, lambda: None, OneByteSettings(lr=1e-6))
    strategy.enter(LocalGroup())
    with torch.inference_mode():
        model.loss(tokens[:1, :9])  # what is made once
    loaded = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        if mode == "one-byte":
            strategy.step(tokens)
        else:
            with torch.inference_mode():
                model.loss(tokens)
    weights = 4 * sum(p.numel() for p in model.parameters())
    gradients = sum(p.requires_grad or p.grad is not None for p in model.parameters())
    found = {"loaded": loaded, "peak": _status("VmHWM"), "weights": weights, "gradients": gradients}
    sys.stdout.write(json.dumps(found) + "\n")


def _status(field: str) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
