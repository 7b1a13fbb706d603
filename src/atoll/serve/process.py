"""Driver: the engine's process: requests come by stdin, answers go by stdout, and it ends when stdin does."""

import logging
import os
import select
import sys
from pathlib import Path
from typing import Final

import torch

from atoll.endpoint.api import Delta
from atoll.errors import AnswerFailed, AtollError, Overloaded
from atoll.model import torch_int4
from atoll.model.api import Loaded
from atoll.model.kernel import KernelModel
from atoll.model.loading import load
from atoll.model.paged import PagedModel
from atoll.model.torch_pages import TorchModel
from atoll.serve.engine import Engine
from atoll.serve.messages import Add, Drop, Failed, FromEngine, Ready, Refused, Said, Setup, Unpacker, packed
from atoll.serve.scheduler import Limits
from atoll.serve.step_log import StepLog

log = logging.getLogger(__name__)

_READ: Final = 1 << 16


class Pipes:
    """The process's two ends. What libraries print goes to stderr."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._unpacker = Unpacker.to_engine()

    def say(self, message: FromEngine) -> None:
        data = memoryview(packed(message))
        while data:
            data = data[os.write(self._out, data) :]

    def heard(self, wait: bool) -> list[object] | None:
        """What has come; None at the end. `wait`: until something does."""
        if not select.select([0], [], [], None if wait else 0)[0]:
            return []
        data = os.read(0, _READ)
        return list(self._unpacker.push(data)) if data else None


def main() -> None:
    """Load, then answer until nobody is there to answer to."""
    pipes = Pipes()
    try:
        setup = _setup(pipes)
        if setup is not None:
            _serve(pipes, setup)
    except (AtollError, MemoryError) as error:
        pipes.say(Failed(str(error) or "there is not enough memory"))
        sys.exit(1)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)


def open_model(loaded: Loaded, setup: Setup) -> tuple[PagedModel, str]:
    """The fastest way to compute that was asked for and works here, and its name."""
    torch.set_num_threads(setup.threads)
    why = ""
    if setup.kernel != "torch":
        try:
            model = KernelModel(loaded.weights, setup.pages, integers=setup.kernel == "fast", threads=setup.threads)
            return model, f"C++ kernel, {'8-bit' if model.integers else 'float32'} activations"
        except AtollError as error:
            why = f" ({error})"
    if setup.kernel == "fast" and torch_int4.can(loaded.weights):
        four = torch_int4.in_four_bits(loaded.weights)
        return TorchModel(four, setup.pages), f"PyTorch, 4-bit weights, bfloat16 activations{why}"
    return TorchModel(loaded.weights.transformer(), setup.pages), f"PyTorch, float32{why}"


def _setup(pipes: Pipes) -> Setup | None:
    while (heard := pipes.heard(wait=True)) is not None:
        for message in heard:
            assert isinstance(message, Setup), "the first message is the setup"
            return message
    return None


def _serve(pipes: Pipes, setup: Setup) -> None:
    loaded = load(Path(setup.path))
    model, kernel = open_model(loaded, setup)
    limits = Limits(
        setup.batch, setup.step_tokens, setup.waiting, "swap" if setup.preemption == "swap" else "recompute"
    )
    engine = Engine(model, loaded.tokenizer, limits, setup.guesses)
    _tell(engine, pipes, [])
    steps = StepLog(Path(setup.record), engine, kernel) if setup.record else None
    pipes.say(Ready(kernel))
    while (heard := pipes.heard(wait=not engine.busy)) is not None:
        if steps:
            steps.mark()
        for message in heard:
            _do(engine, pipes, steps, message)
        said = engine.step() if engine.busy else []
        if said or heard:
            _tell(engine, pipes, said)
        if steps:
            steps.said(said)
            if not engine.busy:
                steps.mark()


def _do(engine: Engine, pipes: Pipes, steps: StepLog | None, message: object) -> None:
    if isinstance(message, Drop):
        engine.drop(message.id)
        if steps:
            steps.dropped(message.id)
    elif isinstance(message, Add):
        try:
            engine.add(message.request)
            if steps:
                steps.came(message.request)
        except AtollError as error:
            pipes.say(_refused(message.request.id, error))
        except Exception as error:
            log.exception("request %s can't be begun", message.request.id)
            pipes.say(_refused(message.request.id, AnswerFailed(f"it could not be begun: {error}")))


def _refused(id: str, error: AtollError) -> Refused:
    return Refused(
        id=id,
        error=type(error).__name__,
        message=str(error),
        field=getattr(error, "field", ""),
        retry_s=error.retry_s if isinstance(error, Overloaded) else 1.0,
    )


def _tell(engine: Engine, pipes: Pipes, said: list[tuple[str, Delta]]) -> None:
    pipes.say(Said(deltas=tuple(said), load=engine.load()))


if __name__ == "__main__":
    main()
