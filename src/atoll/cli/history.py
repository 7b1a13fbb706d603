"""Policy: what a training run has come to, from the events of its peers; for whoever shows it or judges it.

The kinds of events and their fields are those `train/loop.py` reports; `atoll train` adds `started`, `killed`, `failed`
and `late` for what it does to peers or sees of their ends. What is unknown is passed over.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

Event = Mapping[str, Any]
State = Literal["joining", "training", "serving", "lost", "killed", "done", "failed", "late"]

RECENT_STEPS = 20


@dataclass
class Peer:
    """What is known of one peer."""

    name: str
    state: State = "joining"
    pid: int | None = None
    step: int = 0
    loss: float | None = None
    """Of its last step here; None: it has taken none."""
    sent: int = 0
    """Bytes."""
    ddp: int = 0
    """Bytes that plain data-parallel training would have sent."""
    tokens: int = 0
    rank: int | None = None
    world: int | None = None
    epoch: int = -1
    revision: int | None = None
    hash: str = ""
    entered: int | None = None
    """Revision of the state it began with."""
    reason: str = ""
    """Why it failed."""
    spoken_for: bool = False
    """All that is known of it is what its server says."""
    recent: deque[tuple[float, int, float]] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    """Time, tokens and loss of its last steps."""

    @property
    def smoothed_loss(self) -> float | None:
        """Mean over the last steps."""
        losses = [loss for _, _, loss in self.recent if isfinite(loss)]
        return sum(losses) / len(losses) if losses else None

    @property
    def tokens_per_s(self) -> float | None:
        """Over the last steps; None until there are two."""
        if len(self.recent) < 2 or (seconds := self.recent[-1][0] - self.recent[0][0]) <= 0:
            return None
        return sum(tokens for _, tokens, _ in list(self.recent)[1:]) / seconds


@dataclass(frozen=True)
class Agreement:
    """The newest state that peers have told each other's observer the hash of."""

    revision: int
    hash: str
    peers: int


class History:
    """All peers of a run of `steps` steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.peers: dict[str, Peer] = {}
        self.loss_before: float | None = None
        """On held-out text before the first step, nats per byte."""
        self.loss_after: float | None = None
        self.right_before: float | None = None
        """Share of held-out texts that were given their label, before the first step; None: the task is another."""
        self.right_after: float | None = None
        self.checkpoint: int | None = None
        """Step of the newest checkpoint."""
        self.model_saved = False
        self._losses: dict[int, dict[str, float]] = {}
        self._hashes: dict[tuple[int | None, int], dict[str, str]] = {}
        self._gone: dict[str, int] = {}  # peers that went, and the epoch they were last seen in
        self._joined_in: list[int] = []  # epochs
        self._began_in: int | None = None  # the epoch of the first step
        self._left: set[str] = set()  # by a server that went on with others
        self._came_to: list[bool] = []  # a server: was that after the first step?
        self._first: tuple[int, float] | None = None  # step and time of the first step
        self._last: tuple[int, float] | None = None
        self._worlds: dict[int, int] = {}  # by epoch
        self._told_losses: set[int] = set()  # epochs
        self._told_refusals: set[tuple[int, int]] = set()  # step and rank
        self._handlers: dict[str, Callable[[Peer, Event], str | None]] = {
            "started": self._started,
            "joined": self._joined,
            "resumed": self._resumed,
            "synced": self._synced,
            "evaluated": self._evaluated,
            "step": self._step,
            "lost": self._lost,
            "refused": self._refused,
            "expelled": self._expelled,
            "saved": self._saved,
            "done": self._done,
            "killed": self._killed,
            "failed": self._failed,
            "late": self._late,
            "listening": self._listening,
            "came": self._came,
            "went": self._server_lost,
            "applied": self._applied,
            "dropped": self._dropped,
            "alone": self._alone,
        }

    def add(self, event: Event) -> str | None:
        """Take in what happened; returns a sentence where people will want to know."""
        handle, name = self._handlers.get(event.get("event", "")), event.get("peer")
        if handle is None or not isinstance(name, str):
            return None
        peer = self.peers.setdefault(name, Peer(name))
        for part in ("rank", "world", "epoch"):
            if part in event:
                setattr(peer, part, event[part])
        if "epoch" in event and "world" in event:
            self._worlds[event["epoch"]] = event["world"]
        return handle(peer, event)

    # -- over all peers -----------------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Of the peer that has come farthest."""
        return max((peer.step for peer in self.peers.values()), default=0)

    @property
    def epoch(self) -> int:
        """The newest any peer has spoken of; -1: none."""
        return max((peer.epoch for peer in self.peers.values()), default=-1)

    @property
    def world(self) -> int | None:
        """Peers in the newest group any of them has spoken of; None: nobody has. Those we hear of may be fewer."""
        return self._worlds.get(self.epoch)

    @property
    def sent(self) -> int:
        """Bytes sent by all peers."""
        return sum(peer.sent for peer in self.peers.values())

    @property
    def ddp(self) -> int:
        """Bytes plain data-parallel training would have sent for the same steps."""
        return sum(peer.ddp for peer in self.peers.values())

    @property
    def tokens(self) -> int:
        """Learnt from by all peers."""
        return sum(peer.tokens for peer in self.peers.values())

    def ratio(self) -> float | None:
        """How many times more plain data-parallel training would have sent; None: nothing was sent."""
        return self.ddp / self.sent if self.sent else None

    def training(self) -> list[Peer]:
        """The peers that are in the group."""
        return [peer for peer in self.peers.values() if peer.state == "training"]

    def tokens_per_s(self) -> float:
        """Of all peers that train."""
        return sum(peer.tokens_per_s or 0.0 for peer in self.training())

    def seconds_left(self) -> float | None:
        """At the pace so far; None: too early to say, or none are left."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        (first, began), (last, now) = self._first, self._last
        return (now - began) / (last - first) * (self.steps - last) if last < self.steps else None

    def loss_curve(self) -> dict[int, float]:
        """Training loss by step, mean over the peers that took it; steps in order."""
        return {step: sum(of.values()) / len(of) for step, of in sorted(self._losses.items())}

    def agreement(self) -> Agreement | None:
        """The newest state whose hash two peers have told, else the newest one told."""
        compared = self._compared() or self._hashes
        if not compared:
            return None
        (_, revision), hashes = max(compared.items(), key=lambda item: item[0][1])
        return Agreement(revision, next(iter(hashes.values())), len(hashes))

    def disagreements(self) -> list[int]:
        """Revisions of which peers told different hashes in the same epoch. Must be empty."""
        return sorted({revision for (_, revision), hashes in self._hashes.items() if len(set(hashes.values())) > 1})

    def survived(self, name: str) -> bool:
        """Did this peer go, and do others speak of a group without it?"""
        if name in self._left:
            return True
        seen = self._gone.get(name)
        return seen is not None and any(p.epoch > seen for p in self.peers.values() if p.name != name)

    def failures_survived(self) -> int:
        """Peers that went and without which the others went on."""
        return sum(self.survived(name) for name in self._gone.keys() | self._left)

    def joins(self) -> int:
        """How often a peer joined after the first step."""
        if self._came_to:
            return sum(self._came_to)
        return sum(self._began_in is not None and epoch > self._began_in for epoch in self._joined_in)

    def marks(self) -> dict[str, float]:
        """Who went and who came after the start, with the step."""
        went: dict[str, float] = {
            f"{peer.name} {peer.state}": peer.step
            for peer in self.peers.values()
            if peer.state in ("killed", "failed") and peer.name in self._gone
        }
        start = self._first[0] if self._first else 0
        came = {f"{p.name} joined": p.entered for p in self.peers.values() if p.entered and p.entered >= start}
        return went | came

    def summary(self) -> dict[str, Any]:
        """What a program would want to know of the run."""
        return {
            "loss_before": self.loss_before,
            "loss_after": self.loss_after,
            "steps": self.step,
            "tokens": self.tokens,
            "bytes_sent": self.sent,
            "bytes_ddp": self.ddp,
            "ratio": self.ratio(),
            "failures_survived": self.failures_survived(),
            "joins": self.joins(),
            "hashes_compared": len(self._compared()),
            "hashes_equal": not self.disagreements(),
        } | ({} if self.right_after is None else {"right_before": self.right_before, "right_after": self.right_after})

    # -- one kind of event each ---------------------------------------------------------------------------------------

    def _started(self, peer: Peer, event: Event) -> None:
        peer.state, peer.pid = "joining", event.get("pid")

    def _joined(self, peer: Peer, event: Event) -> str | None:
        self._move(peer, "training")
        self._joined_in.append(peer.epoch)
        return f"{peer.name} joined: rank {peer.rank} of {peer.world}"

    def _resumed(self, peer: Peer, event: Event) -> str | None:
        first = self.step < event["step"]
        peer.step = event["step"]
        self.checkpoint = event["step"]
        return f"resumed from the checkpoint of step {peer.step}" if first else None

    def _synced(self, peer: Peer, event: Event) -> str | None:
        self._compare(peer, peer.epoch, event["revision"], event["hash"])
        if peer.entered is None:
            peer.entered = event["revision"]
        if event.get("received"):
            return f"{peer.name} received the state of step {event['revision']}"
        return self._goes_on(peer) if self._has_shrunk(peer.epoch) else None

    def _evaluated(self, peer: Peer, event: Event) -> str | None:
        right = event.get("accuracy")
        found = f"the loss on held-out text is {event['loss']:.3f} nats per byte"
        if right is not None:
            found = f"{right:.1%} of the held-out texts get their label, the loss is {event['loss']:.3f} nats"
        if event["step"] == 0:
            self.loss_before, self.right_before = event["loss"], right
            return f"before training, {found}"
        self.loss_after, self.right_after = event["loss"], right
        return f"after {event['step']} steps, {found}"

    def _step(self, peer: Peer, event: Event) -> None:
        step, at, loss = event["step"], event["at"], event["loss"]
        loss = float("nan") if loss is None else loss  # strict JSON has no other word for it
        peer.step, peer.loss = step, loss
        peer.sent, peer.ddp = event["sent"], event["ddp"]
        peer.tokens += event["tokens"]
        peer.recent.append((at, event["tokens"], loss))
        if isfinite(loss):
            self._losses.setdefault(step, {})[peer.name] = loss
        if self._first is None or at < self._first[1]:
            self._first, self._began_in = (step, at), peer.epoch
        if self._last is None or step > self._last[0]:
            self._last = (step, at)
        if "hash" in event:
            self._compare(peer, peer.epoch, event["revision"], event["hash"])

    def _lost(self, peer: Peer, event: Event) -> str | None:
        goes_on = self._goes_on(peer)
        return f"{peer.name}: {event['message'].partition('; now epoch')[0]}; {goes_on}" if goes_on else None

    def _refused(self, peer: Peer, event: Event) -> str | None:
        """Told by the first of all."""
        told = event["step"], event["who"]
        if told in self._told_refusals:
            return None
        self._told_refusals.add(told)
        who = event["who"] if isinstance(event["who"], str) else f"rank {event['who']}"
        return f"step {event['step']}: what {who} came to was no number, and was left out"

    def _expelled(self, peer: Peer, event: Event) -> str | None:
        self._move(peer, "lost")
        self._gone[peer.name] = peer.epoch
        return f"{peer.name}: {event['message']}; it joins again"

    def _saved(self, peer: Peer, event: Event) -> str | None:
        if event["path"].endswith((".safetensors", ".log")):
            self.checkpoint = event["step"]
            return f"checkpoint saved at step {event['step']}"
        self.model_saved = True
        return f"model saved: {event['path']}"

    def _done(self, peer: Peer, event: Event) -> None:
        if peer.state == "serving":
            peer.step = event["step"]
            for other in self.peers.values():
                if other.spoken_for:
                    self._move(other, "done")
        self._move(peer, "done")
        peer.sent, peer.ddp = event["sent"], event["ddp"]
        if not event["hash"]:  # there is no state that all share
            return
        self._compare(peer, None, event["step"], event["hash"])

    def _killed(self, peer: Peer, event: Event) -> str | None:
        self._went(peer, "killed")
        return f"{peer.name} was killed (SIGKILL) at step {peer.step}"

    def _failed(self, peer: Peer, event: Event) -> str | None:
        if peer.state in ("killed", "failed"):
            return None
        self._went(peer, "failed")
        peer.reason = event["message"]
        return f"{peer.name} failed: {peer.reason}"

    def _late(self, peer: Peer, event: Event) -> str | None:
        peer.state = "late"
        return f"{peer.name} came too late: the training was over"

    # -- what a server says (--strategy diloco-server) -----------------------------------------------------------------

    def _listening(self, peer: Peer, event: Event) -> None:
        peer.state = "serving"

    def _came(self, peer: Peer, event: Event) -> str:
        self._came_to.append(self._first is not None)
        return f"{event['message']}; there are {event['world']} now"

    def _server_lost(self, peer: Peer, event: Event) -> str:
        worker = self.peers.get(event["who"])
        if worker is not None and worker.spoken_for:
            self._move(worker, "lost")
        if event["world"]:
            self._left.add(event["who"])
        return f"{event['message']} is gone; {event['world']} go on"

    def _applied(self, peer: Peer, event: Event) -> None:
        """What a worker has pushed; most of them say themselves what they do."""
        worker = self.peers.setdefault(event["who"], Peer(event["who"], spoken_for=True))
        if worker.spoken_for:
            self._move(worker, "training")
            worker.epoch = peer.epoch
            self._step(worker, {**event, "sent": worker.sent, "ddp": worker.ddp})

    def _dropped(self, peer: Peer, event: Event) -> str:
        return f"what {event['who']} learnt was dropped: {event['staleness']} versions old (--max-staleness)"

    def _alone(self, peer: Peer, event: Event) -> str:
        self._move(peer, "lost")
        return f"{peer.name}: {event['message']}; it looks for the server"

    # -- inside -------------------------------------------------------------------------------------------------------

    def _move(self, peer: Peer, state: State) -> None:
        """What a peer said before it was ended may arrive after that."""
        if peer.state in ("joining", "training", "serving", "lost"):
            peer.state = state

    def _went(self, peer: Peer, state: State) -> None:
        peer.state = state
        if peer.epoch >= 0:
            self._gone[peer.name] = peer.epoch

    def _has_shrunk(self, epoch: int) -> bool:
        before = max((e for e in self._worlds if e < epoch), default=epoch)
        return self._worlds[epoch] < self._worlds[before]

    def _goes_on(self, peer: Peer) -> str | None:
        """Told by the first of the survivors only."""
        if peer.epoch in self._told_losses:
            return None
        self._told_losses.add(peer.epoch)
        return f"{peer.name} goes on alone" if peer.world == 1 else f"the group goes on with {peer.world}"

    def _compare(self, peer: Peer, epoch: int | None, revision: int, digest: str) -> None:
        """Within an epoch: after a loss, what was in flight is settled under the same revision."""
        peer.revision, peer.hash = revision, digest
        self._hashes.setdefault((epoch, revision), {})[peer.name] = digest

    def _compared(self) -> dict[tuple[int | None, int], dict[str, str]]:
        return {key: hashes for key, hashes in self._hashes.items() if len(hashes) > 1}
