"""Program: fine-tuning by forward passes, one byte per gradient on the wire (Zelikman et al., 2023, arXiv 2306.10015).

    each peer    z = noise(seed, round, rank, sample)
                 g = (loss(theta + epsilon z) - loss(theta - epsilon z)) / 2 epsilon
                 say g in one byte, hear the bytes of all
    all peers    theta <- theta - lr / sqrt(n) * the sum of what each byte stands for times its noise, in rank order

The estimator is SPSA (Spall, 1992), in place as in MeZO (Malladi et al., 2023, arXiv 2305.17333). What was said, and
the base weights, say where everybody stands: who comes late reads it and follows. What is sent is neither data nor a
gradient; that is no proof of privacy, for a byte depends on the data.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from math import sqrt
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import numpy as np
import torch
import xxhash

from atoll.cost import Op
from atoll.errors import InvalidConfig, InvalidData, Mismatch
from atoll.group.facade import Group
from atoll.rng import stream
from atoll.runtime.api import here
from atoll.train.api import Drained, StepInfo, Task
from atoll.train.one_byte.code import ByteCode, Code
from atoll.train.one_byte.rounds import NAME, LogFile, Round, decode, encode, read
from atoll.train.one_byte.settings import OneByteSettings
from atoll.train.one_byte.weights import Move, Noise, Weights, digest_of
from atoll.train.settings import TrainSettings

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger("atoll.train")

Loss = Callable[[torch.Tensor], torch.Tensor]
FLOPS_OF_A_NORMAL = 60.0
LARGEST_LOG = 1 << 30
"""Bytes that another's log may have: of some hundred million gradients."""
GUESSED_S = 10e-9
"""For a normal, until some have been made."""


class _Note(msgspec.Struct, frozen=True, array_like=True):
    """What a peer says of itself when somebody has come or gone."""

    steps: Annotated[int, msgspec.Meta(ge=0)]
    rounds: Annotated[int, msgspec.Meta(ge=0)]
    nbytes: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_LOG)]
    """Of its log."""
    digest: bytes
    """Of that too."""


class OneByte:
    """A `Strategy`, and `Logged`. `parameters`: all of the model's, in order; `restart` writes the base weights to
    them. `loss` sees a batch; `code`: how gradients travel. InvalidConfig names a setting that makes no sense."""

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        loss: Loss,
        restart: Callable[[], None],
        settings: OneByteSettings,
        seed: int = 0,
        code: Code | None = None,
    ) -> None:
        s = settings
        s.check()
        self.settings, self.seed, self.loss, self._restart = s, seed, loss, restart
        self.code: Code = code or ByteCode(s.reference, s.rounding == "stochastic")
        for tensor in parameters.values():
            tensor.requires_grad_(False)
        self._all = dict(parameters)
        self.weights = Weights(_chosen(parameters, s.trainable), s.epsilon, s.noise)
        self.base = self._digest().hex()
        """Hash of the weights all begin with, those that aren't trained included."""
        self.steps = torch.zeros(1, dtype=torch.int64)
        """Rounds taken, one int64; part of what is shared."""
        self.rounds: list[Round] = []
        """The log. Longer than `steps` while what lies between is about to be fetched."""
        self._read: list[Round] = []
        self._owed: list[Move] = []
        """What leads back to the parameters all share."""
        self._files: dict[Path, LogFile] = {}
        self._normals, self._seconds = 0, 0.0
        self._group: Group | None = None

    # -- a round --------------------------------------------------------------------------------------------------

    def enter(self, group: Group) -> None:
        """Train with this group from now on."""
        self._group = group

    def step(self, batch: torch.Tensor) -> StepInfo:
        """One round. An error leaves the parameters as they were, to the bit."""
        assert self._group is not None, "enter a group first"
        now, rank = int(self.steps), self._group.rank
        parts = batch.chunk(self.settings.samples)
        if len(parts) != self.settings.samples:
            raise InvalidData(f"a batch of {len(batch)} can't be cut in {self.settings.samples} samples")
        digest = self.weights.digest() if now and now % self.settings.hash_every == 0 else b""
        try:
            losses, gradients = here().compute(self._op(batch), lambda: self.estimate(parts, now, rank))
            said = self.code.encode(gradients, stream(self.seed, "one-byte rounding", now, rank))
            heard = self._group.gather_bytes_async(said + digest).wait()
            spoken = self._spoken(heard.value, len(said), len(digest))
        except BaseException:
            self._move(lambda: self.weights.perturb(self._owed), len(self._owed))
            self._owed = []
            raise
        self._follow(Round(heard.world, spoken))
        agreed = len({payload[len(said) :] for payload in heard.value}) == 1
        if not agreed:
            self._mend(heard.value, len(said), digest)
        tokens = int((batch[:, 1:] >= 0).sum())
        return StepInfo(float(np.mean(losses)), tokens, heard.bytes_sent, heard.seconds, agreed=agreed)

    def estimate(self, parts: Sequence[torch.Tensor], now: int, rank: int) -> tuple[list[float], list[float]]:
        """Loss and gradient along a noise of its own for each part. Leaves a move that is `_owed`."""
        epsilon, losses, gradients = self.settings.epsilon, [], []
        for sample, part in enumerate(parts):
            noise = self._noise(now, rank, sample)
            self._perturb(Move(noise, epsilon), leads_back=-1)
            above = self._look(part)
            self._perturb(Move(noise, epsilon, -2), leads_back=1)
            below = self._look(part)
            losses.append((above + below) / 2)
            gradients.append((above - below) / (2 * epsilon))
        if not np.isfinite(gradients).all():
            log.warning("the loss is no number at round %d: this peer says nothing; lower --one-byte.lr", now)
        return losses, gradients

    def _perturb(self, move: Move, leads_back: int) -> None:
        """Away from where the last one led, which was taken back if it was along another noise."""
        other = [owed for owed in self._owed if owed.noise != move.noise]
        self._move(lambda: self.weights.perturb([*other, move]), len(other) + 1)
        self._owed = [Move(move.noise, move.size, leads_back)]

    def _look(self, part: torch.Tensor) -> float:
        with torch.inference_mode():
            loss = self.loss(part)
        assert not loss.requires_grad
        return float(loss)

    def _follow(self, said: Round) -> None:
        """Take back what is owed, and go where all have pointed."""
        moves = self._moves(len(self.rounds), said)
        self._move(lambda: self.weights.update(self._owed, moves), len({m.noise for m in (*self._owed, *moves)}))
        self._owed = []
        self.rounds.append(said)
        self.steps += 1

    def _moves(self, now: int, said: Round) -> list[Move]:
        """What a round's bytes come to; from them alone, so that a replay does the same."""
        s, gradients = self.settings, self.code.decode(said.said)
        if s.clip and (spoken := np.abs(gradients[gradients != 0])).size:
            bound = s.clip * float(np.median(spoken))
            gradients = np.clip(gradients, -bound, bound)
        rate = s.lr / (sqrt(len(gradients)) if s.scale == "sqrt" else len(gradients))
        return [
            Move(self._noise(now, *divmod(i, s.samples)), -rate * float(gradient))
            for i, gradient in enumerate(gradients)
            if gradient
        ]

    def _noise(self, now: int, rank: int, sample: int) -> Noise:
        return self.seed, "one-byte", now, rank, sample

    def _spoken(self, payloads: list[bytes], said: int, digest: int) -> bytes:
        for rank, payload in enumerate(payloads):
            if len(payload) != said + digest:
                raise Mismatch(f"rank {rank} said {len(payload)} bytes, not {said + digest}: all need the same atoll")
        return b"".join(payload[:said] for payload in payloads)

    # -- who comes, who differs -----------------------------------------------------------------------------------

    def collect(self) -> None:
        """Nothing is split."""

    def meet(self, group: Group) -> None:
        """Somebody has come or gone: all take the longest log. Who lacks rounds replays them, or is sent the
        parameters by the `sync` that follows, whatever takes less time."""
        mine, _ = encode(self.rounds)
        note = _Note(int(self.steps), len(self.rounds), len(mine), xxhash.xxh3_128_digest(mine))
        notes = [_note(said) for said in group.gather_bytes(msgspec.msgpack.encode(note))]
        rank = max(range(len(notes)), key=lambda r: (notes[r].rounds, -r))
        longest = notes[rank]
        if any(each.digest != longest.digest for each in notes):
            data = np.frombuffer(mine.ljust(longest.nbytes)[: longest.nbytes], np.uint8).copy()
            group.broadcast(data, root=rank)
            self._adopt(decode(data.tobytes(), "the log of the group")[0])
        if int(self.steps) < longest.rounds:
            alone = not any(each.steps == longest.rounds for each in notes)
            if alone or self._replays():
                self._replay()

    def _adopt(self, rounds: list[Round]) -> None:
        """The log of the group, which goes on from ours; else we begin again."""
        if rounds[: int(self.steps)] != self.rounds[: int(self.steps)]:
            self._begin_again()
        self.rounds = rounds

    def _replays(self) -> bool:
        """Does it take less time to replay what we lack than to be sent the parameters?"""
        s = self.settings
        if s.catch_up != "auto":
            return s.catch_up == "replay"
        lacking = sum(len(each.said) // self.code.nbytes for each in self.rounds[int(self.steps) :])
        replayed_s = lacking * self.weights.numbers * self._seconds_of_a_normal
        return replayed_s <= 4 * self.weights.numbers * 8 / (s.link_mbit * 1e6)

    @property
    def _seconds_of_a_normal(self) -> float:
        return self._seconds / self._normals if self._normals else GUESSED_S

    def _replay(self) -> None:
        """Go through the rounds that the log has and we have not."""
        rounds, self.rounds = self.rounds, self.rounds[: int(self.steps)]
        for said in rounds[int(self.steps) :]:
            self._follow(said)

    def _begin_again(self) -> None:
        self._restart()
        self.weights.snap()
        self.rounds = []
        self.steps.zero_()

    def _mend(self, payloads: list[bytes], said: int, digest: bytes) -> None:
        """The parameters differ. The `sync` that follows gives all what most hold; where no majority agrees, a replay
        of the log shows everybody what is right."""
        held = [payload[said:] for payload in payloads]
        common = max(set(held), key=lambda each: (held.count(each), each))
        if held.count(common) * 2 > len(held):
            others = [str(rank) for rank, each in enumerate(held) if each != common]
            log.warning("the parameters of rank %s are not those of the others: they are mended", ", ".join(others))
            return
        log.warning("the peers' parameters differ, and no majority agrees: all replay the log")
        rounds = self.rounds
        self._begin_again()
        self.rounds = rounds
        self._replay()

    # -- what is kept ---------------------------------------------------------------------------------------------

    def essentials(self) -> dict[str, Any]:
        """What must be the same on all peers: how one catches up is its own business."""
        own = ("catch_up", "link_mbit")
        same = {f"one_byte.{name}": value for name, value in asdict(self.settings).items() if name not in own}
        return {**same, "base": self.base}

    def save(self, folder: "Path", about: dict[str, Any]) -> "Path":
        """Append what is new to the log in `folder`."""
        file = self._files.setdefault(folder, LogFile(folder / NAME))
        file.write(about, self.rounds[: int(self.steps)])
        return file.path

    def resume(self, place: "Path") -> dict[str, Any]:
        """Read the log at `place`, or the one in that folder; returns what it says of its run."""
        about, self._read = read(place)
        return about

    def replay(self) -> None:
        """From the base weights to where the log that was read leads."""
        self._begin_again()
        self.rounds = self._read
        self._replay()

    @property
    def batches(self) -> int:
        """How many all peers together have used so far."""
        return sum(each.peers for each in self.rounds[: int(self.steps)])

    def drain(self) -> Drained:
        """Nothing is ever in flight."""
        return Drained()

    def shared(self) -> dict[str, torch.Tensor]:
        """The parameters that are trained, their grids, and the step."""
        return {**self.weights.tensors, "grids": self.weights.grids, "steps": self.steps}

    def local(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_local(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

    def reload(self) -> None:
        """The parameters have been fetched: they are what the log leads to."""

    # -- inside ---------------------------------------------------------------------------------------------------

    def _move(self, move: Callable[[], None], noises: int) -> None:
        began = here().now()
        move()
        self._seconds += here().now() - began
        self._normals += noises * self.weights.numbers

    def _digest(self) -> bytes:
        return digest_of(tensor.numpy().reshape(-1) for tensor in self._all.values())

    def _op(self, batch: torch.Tensor) -> Op:
        """Two looks at the batch, and the noise of a round."""
        tokens = batch.shape[0] * (batch.shape[1] - 1)
        numbers = sum(tensor.numel() for tensor in self._all.values())
        normals = 3.0 * self.settings.samples * self.weights.numbers
        return Op("train_step", flops=4.0 * numbers * tokens + FLOPS_OF_A_NORMAL * normals, tokens=tokens)


def one_byte(settings: TrainSettings, task: Task) -> OneByte:
    """The strategy as the settings of a run have it."""
    parameters = dict(task.model.named_parameters())
    return OneByte(parameters, task.loss, task.restart, settings.one_byte, settings.seed)


def _note(said: bytes) -> _Note:
    try:
        return msgspec.msgpack.decode(said, type=_Note)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Mismatch(f"what a peer says of its log can't be read: {error}; all need the same atoll") from None


def _chosen(parameters: Mapping[str, torch.Tensor], patterns: str) -> dict[str, torch.Tensor]:
    wanted = [pattern.strip() for pattern in patterns.split(",")]
    found = {name: t for name, t in parameters.items() if any(fnmatchcase(name, pattern) for pattern in wanted)}
    if not found:
        raise InvalidConfig(
            f"--one-byte.trainable {patterns!r} names no parameter; there are: {', '.join(list(parameters)[:4])} ..."
        )
    return found
