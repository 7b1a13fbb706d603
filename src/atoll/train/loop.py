"""Program: the training loop: enter the group, agree on the state, step, save; go on whoever comes and goes.

batch -> strategy.step -> exchange -> group.all_reduce -> wire thread -> ring over links -> the same bits on
every peer
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from atoll.errors import Expelled, InvalidConfig, InvalidData, MasterLost, PeerLost, Unfit
from atoll.group.facade import Group
from atoll.group.state import SharedState
from atoll.model.saved import save_model
from atoll.runtime.api import here
from atoll.train import essentials
from atoll.train.api import Logged, Strategy
from atoll.train.checkpoint import load_newest, save_checkpoint
from atoll.train.one_byte.strategy import one_byte
from atoll.train.settings import TrainSettings
from atoll.train.shards import Shards
from atoll.train.strategies import make_strategy
from atoll.train.tasks import task_for
from atoll.train.text import Corpus

Report = Callable[..., None]
"""Called with an event's name and its fields."""

MOST_FRUITLESS = 3
"""Times in a row a peer comes back after an expulsion without having taken a step."""
PAUSE_S = 1.0
"""Before the second of them, and twice that before the third: a group that is just taking shape has settled by then."""


class Trainer:
    """One peer's part in a run. `save_to`: the run's folders for checkpoints and the model; None: nothing is saved."""

    def __init__(
        self, settings: TrainSettings, corpus: Corpus, report: Report, save_to: "Folders | None" = None
    ) -> None:
        self.settings, self.report, self.save_to = settings, report, save_to
        s = settings
        self.task = task_for(s, corpus)
        self.model = self.task.model
        self.strategy: Strategy = one_byte(s, self.task) if s.strategy == "one-byte" else make_strategy(s, self.model)
        self.logged = self.strategy if isinstance(self.strategy, Logged) else None
        self.shards = Shards(self.task.examples, s.seed)
        self.cursor = torch.zeros(1, dtype=torch.int64)
        """Windows of the text the group has used."""
        self.saved_at = torch.zeros(1, dtype=torch.int64)
        """Steps at the last checkpoint; shared, for all drain before one."""
        self.state = SharedState({**self.strategy.shared(), "cursor": self.cursor, "saved_at": self.saved_at})
        self.sent = self.ddp_would_send = 0
        self._whole_at = 0, 0
        """Steps and cursor when the shared parameters were last up to date."""
        self._settled = True
        """Was nothing exchanged since all had the same? Only then may peers look who has come: they do it together."""
        self._place = 0, 1
        """Rank and world when peers last agreed: by them they share out the text."""
        self._in_group = self._leaving = False

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return int(self.strategy.steps)

    def run(self, join: Callable[[], Group]) -> bool:
        """Train, joining again when the group has gone on without us. True: to the end; False: until told to leave.

        Expelled: too often, for nothing.
        """
        fruitless = 0
        while True:
            before = self.steps
            try:
                with join() as group:
                    self.report("joined", id=group.id, world=group.world, rank=group.rank, epoch=group.epoch)
                    self._in_group = True
                    return self._train(group)
            except Unfit:
                raise
            except Expelled as error:
                self.report("expelled", message=str(error))
                fruitless = fruitless + 1 if self.steps == before else 0
                if fruitless >= MOST_FRUITLESS:
                    raise
            finally:
                self._in_group = False
            if self._leaving:
                return False
            if fruitless:
                here().sleep(PAUSE_S * 2 ** (fruitless - 1))

    def leave(self) -> bool:
        """Leave the group after the step under way, and save before if that is for us to do. Safe in a signal handler.

        False: we are in no group, so `run` may not return for long, and there is nothing to save.
        """
        self._leaving = True
        return self._in_group

    def resume(self, folder: Path) -> None:
        """Go on from the newest checkpoint in `folder`, or from a log, where that is what the strategy keeps."""
        if self.logged is not None:
            self._check_resumed(folder, self.logged.resume(folder))
            self.logged.replay()
            self.cursor.fill_(self.logged.batches * self.settings.batch)
            self.saved_at.fill_(self.steps)
            self._resumed()
            return
        tensors, about = load_newest(folder)
        self._check_resumed(folder, about)
        for name, tensor in {**self.state.tensors, **self.strategy.local()}.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise InvalidData(f"{folder}: the checkpoint holds no {name} of shape {list(tensor.shape)}")
        for name, tensor in self.state.tensors.items():
            tensor.copy_(tensors[name])
        self.strategy.reload()
        self.strategy.load_local(tensors)
        self._resumed()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check_resumed(self, folder: Path, about: dict[str, Any]) -> None:
        if difference := essentials.difference(about, self._essentials()):
            raise InvalidConfig(f"{folder}: the checkpoint is of another run: {difference}; resume with the same flags")

    def _resumed(self) -> None:
        self.state.revision = self.steps
        self._whole_at = self.steps, int(self.cursor)
        self.report("resumed", step=self.steps)

    def _train(self, group: Group) -> bool:
        """True: to the end."""
        self.strategy.enter(group)
        seen, self._settled = -1, True
        while True:
            try:
                if self._leaving:
                    self._save_before_leaving(group)
                    return False
                if self._settled and group.peers_pending():
                    self._drain(group)  # newcomers were no part of it: they get what came of it by the sync
                    group.update_topology()
                if self._settled and group.epoch != seen:
                    self._drain(group)
                    self._agree(group)
                    seen = group.epoch
                if self.steps >= self.settings.steps:
                    self._end(group)
                    return True
                self._step(group)
            except PeerLost as error:
                self._tell_losses(group, (str(error),))

    def _agree(self, group: Group) -> None:
        """Somebody came or went: the same intentions on all, and the same state."""
        mine = self._essentials()
        oldest = essentials.read(group.gather_bytes(json.dumps(mine).encode())[0])
        if difference := essentials.difference(oldest, mine, self.settings.own):
            raise InvalidConfig(f"the group trains something else: {difference}; join with the same flags and text")
        self.strategy.meet(group)
        if self.logged is not None:
            self.cursor.fill_(self.logged.batches * self.settings.batch)
            self.state.revision = self.steps
        result = group.sync(self.state)
        if result.bytes_received:
            self.strategy.reload()
        self._whole_at, self._place = (self.steps, int(self.cursor)), (group.rank, group.world)
        self.report(
            "synced",
            revision=self.state.revision,
            received=result.bytes_received,
            world=group.world,
            rank=group.rank,
            epoch=group.epoch,
            hash=self.state.digest(),
        )
        if self.steps == 0 and group.rank == 0:
            self.report("evaluated", step=0, **self.task.evaluate())

    def _step(self, group: Group) -> None:
        s, (rank, world), step = self.settings, self._place, self.steps
        began = here().now()
        indices = self.shards.indices(int(self.cursor), rank, world, s.batch)
        info = self.strategy.step(self.task.batch(indices))
        self.cursor += world * s.batch
        self.state.revision = self.steps
        self.sent += info.bytes_sent
        self.ddp_would_send += 8 * sum(p.numel() for p in self.model.parameters()) * (world - 1) // world
        seconds = here().now() - began
        self._tell_losses(group, info.losses)
        for rank in info.refused:
            self.report("refused", who=rank, step=step + 1)
        self.report(
            "step",
            step=step + 1,
            loss=info.loss,
            tokens=info.tokens,
            seconds=seconds,
            waited=info.exposed_wait_s,
            sent=self.sent,
            ddp=self.ddp_would_send,
            world=group.world,
            rank=group.rank,
            epoch=group.epoch,
            **({"hash": self.state.digest(), "revision": self.state.revision} if info.boundary else {}),
        )
        self._settled = info.boundary
        if info.boundary:
            self._whole_at = self.steps, int(self.cursor)
        if not info.agreed:
            self._agree(group)
        due = s.save_every and self.steps - int(self.saved_at) >= s.save_every
        if info.boundary and due and self.steps < s.steps:
            self._drain(group)  # by all, so that a run that saves and one that resumes take the same steps
            self.strategy.collect()
            self._save(group)

    def _drain(self, group: Group) -> None:
        drained = self.strategy.drain()
        self.sent += drained.bytes_sent
        self._tell_losses(group, drained.losses)

    def _tell_losses(self, group: Group, losses: tuple[str, ...]) -> None:
        for message in losses:
            self.report("lost", message=message, world=group.world, epoch=group.epoch)

    def _save(self, group: Group) -> None:
        self.saved_at.fill_(self.steps)
        if group.rank == 0 and self.save_to is not None:
            folder, about = self.save_to.checkpoint, self._essentials()
            if self.logged is not None:
                path = self.logged.save(folder, about)
            else:
                path = save_checkpoint(folder, self.steps, {**self.state.tensors, **self.strategy.local()}, about)
            self.report("saved", path=str(path), step=self.steps)

    def _save_before_leaving(self, group: Group) -> None:
        """As of the last exchange: the local steps since then end with us, and so does what others remember."""
        steps, cursor = self._whole_at
        self.strategy.steps.fill_(steps)
        self.cursor.fill_(cursor)
        self._drain(group)
        if steps > int(self.saved_at):
            self._save(group)

    def _end(self, group: Group) -> None:
        """Save and go. PeerLost: begin again, for it may have been the one that saves."""
        self._drain(group)
        self.strategy.reload()
        self.strategy.collect()
        self._save(group)
        if group.rank == 0:
            self.report("evaluated", step=self.steps, **self.task.evaluate())
            if self.save_to is not None:
                save_model(self.save_to.model, self.model, self.task.tokenizer)
                self.report("saved", path=str(self.save_to.model), step=self.steps)
        try:
            group.barrier()
        except (Expelled, MasterLost):
            pass  # the others are done: so are we
        self.report("done", step=self.steps, hash=self.state.digest(), sent=self.sent, ddp=self.ddp_would_send)

    def evaluate(self) -> float:
        """Loss on what is held out, in nats."""
        return self.task.evaluate()["loss"]

    def _essentials(self) -> dict[str, Any]:
        """What must be the same on all peers."""
        logged = {} if self.logged is None else self.logged.essentials()
        return {**essentials.of(self.settings, self.task), **logged}


class Folders:
    """Where a run saves: `checkpoint` and `model`, made when needed."""

    def __init__(self, checkpoint: Path, model: Path) -> None:
        self.checkpoint, self.model = checkpoint, model
