"""Program: an outer optimiser whose memory is split among peers: each takes the step of its shard, and tells it.

    1  everybody's contributions to a shard go to its owners, who sum them in the order of ranks
    2  sums of squares go to all: the norm says how stale the step is
    3  the owner's step of a shard goes to all

As many bytes as an all-reduce, but 1 / shards of the momentum on each peer (ZeRO: Rajbhandari et al. 2020, arXiv
1910.02054; for CO2: Sun et al. 2024, 2401.16265). Each stage travels while steps are taken. With fewer shards than
peers several own the same one. Where all owners are lost, the momentum of that shard begins anew.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from math import sqrt

import msgspec
import torch

from atoll.errors import Diverged, InvalidData, PeerLost
from atoll.group.facade import Group
from atoll.group.work import Result, Work
from atoll.runtime.api import here
from atoll.train.exchange import Exchange, Exchanged, finite
from atoll.train.momentum import BLOCK, Momentum, squares, staleness, total

_Stages = Generator[Work, Result, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """Who of `world` owns which of `n` numbers, in at most `shards` shards of whole blocks. Rank r has number r mod
    shards."""

    n: int
    world: int
    shards: int

    @property
    def count(self) -> int:
        """Of shards."""
        return min(self.shards, self.world)

    def shard(self, number: int) -> slice:
        """Where it lies."""
        size = -(-self.n // (self.count * BLOCK)) * BLOCK
        return slice(min(number * size, self.n), min((number + 1) * size, self.n))

    def of(self, rank: int) -> slice:
        """What that rank owns."""
        return self.shard(rank % self.count)

    def source(self, number: int, rank: int) -> int:
        """From whom that rank gets a shard: one of its row, or where the last row is not full, of the first."""
        row = rank - rank % self.count
        return row + number if row + number < self.world else number


class Taken(Momentum):
    """What all share, moved by steps that come as they are to be taken."""

    def __init__(self, parameters: torch.Tensor) -> None:
        super().__init__(parameters, 1.0, penalty=None)

    def step(self, part: slice, gradient: torch.Tensor, step: int) -> None:
        self.move(part, gradient)


class ShardedExchange(Exchange):
    """One fragment, the whole model, whose mean comes back as a step for `Taken`. `of`: an optimiser of some of its
    parameters, new. What is lost on the way goes again among those who are left."""

    def __init__(self, outer: Taken, of: Callable[[torch.Tensor], Momentum], shards: int, tag: int = 1) -> None:
        super().__init__(tag=tag)
        self.outer, self.of, self.shards = outer, of, shards
        self.mine = of(outer.parameters[:0])
        """The optimiser of our shard."""
        self._held = slice(0, 0)
        """Where that lies."""
        self._whole: torch.Tensor | None = None
        """The momentum of all, for a checkpoint."""
        self._before: torch.Tensor | None = None
        """Our momentum before the step that is on its way."""
        self._vector = torch.empty(0)
        self._stages: _Stages | None = None
        self._work: Work | None = None
        self._step: torch.Tensor | None = None
        """What came of the last stage."""
        self._tells = False
        self._mean: torch.Tensor | None = None
        """Of all, where owners tell it."""
        self._done = Exchanged(None, 0, 0, 0.0)

    @property
    def under_way(self) -> list[int]:
        return [] if self._stages is None else [0]

    def enter(self, group: Group) -> None:
        super().enter(group)
        self._undo()
        self._stages, self._work, self._tells = None, None, False  # one may come from the midst of a `wait`

    def meet(self) -> None:
        self._share_out()

    def start(self, fragment: int, vector: torch.Tensor, seed: int | None = None, note: bytes = b"") -> bool:
        fit = finite(vector)
        self._vector, self._whole = vector if fit else vector.zero_(), None
        self._done = Exchanged(None, self.world, 0, 0.0, fit=fit)
        self._begin()
        return fit

    def landed(self) -> bool:
        return self._stages is None or self._step is not None or (self._work is not None and self._work.done())

    def advance(self) -> None:
        if self._stages is not None and self._step is None:
            self._next()

    def finish(self, fragment: int, again: Callable[[torch.Tensor], torch.Tensor | None]) -> Exchanged:
        while self._step is None:
            self._next()
        self._stages = self._before = None
        return replace(self._done, mean=self._step)

    def wait(self, fragment: int, again: Callable[[torch.Tensor], torch.Tensor | None]) -> Exchanged:
        """With a stage more, in which owners tell the means."""
        self._tells, before = True, self._done
        while self._mean is None:
            self._next()
        self._tells = False
        done, self._done = self._done, replace(self._done, bytes_sent=0, waited_s=0.0, losses=(), fit=True)
        return replace(done, mean=self._mean, fit=before.fit)

    def collect(self) -> None:
        if self.mine.velocity is not None:
            self._whole = self._gathered()

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        if self.mine.velocity is None:
            return {}
        if self._whole is None:
            self._whole = torch.zeros_like(self.outer.parameters)
            self._whole[self._held] = self.mine.velocity
        return {f"{prefix}momentum": self._whole}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._stages, self._step, self._mean = self._run(), None, None
        self._work = next(self._stages)

    def _next(self) -> None:
        """Wait for the stage under way and begin another; after the last there is the step."""
        assert self._stages is not None
        assert self._work is not None
        began = here().now()
        try:
            result = self._work.wait()
            self._done = replace(self._done, bytes_sent=self._done.bytes_sent + result.bytes_sent)
            self._work = self._stages.send(result)
        except StopIteration as end:
            self._step = end.value
        except PeerLost as error:
            self._again(error)
        self._done = replace(self._done, waited_s=self._done.waited_s + here().now() - began)

    def _again(self, error: PeerLost | None) -> None:
        """Among those who are left."""
        self._undo()
        while error is not None:
            self._done = replace(self._done, losses=(*self._done.losses, str(error)))
            try:
                self._share_out()
                error = None
            except PeerLost as another:
                error = another
        self._begin()

    def _run(self) -> _Stages:
        group = self._group
        assert group is not None
        layout = Layout(len(self.outer.parameters), group.world, self.shards)
        fit = torch.tensor([float(self._done.fit)])
        given = [torch.cat([self._vector[layout.of(rank)], fit]) for rank in range(group.world)]
        got = yield group.all_to_all_async(given, tag=self.tag)
        mean = self._mean_of(got.value)
        if self._tells:
            got = yield self._to_all(mean, layout, self.tag + 3)
            self._mean = self._in_order(got.value, layout)
        if self.mine.penalty is None:
            got = yield self._to_all(squares(mean), layout, self.tag + 1)
            length = sqrt(total(self._in_order(got.value, layout)))
            stale = staleness(self.outer.moved(slice(0, layout.n)), length)
        else:
            stale = self.mine.penalty
        self._before = None if self.mine.velocity is None else self.mine.velocity.clone()
        step = self.mine.direction(slice(0, len(mean)), mean, stale)
        got = yield self._to_all(step, layout, self.tag + 2)
        return self._in_order(got.value, layout)

    def _mean_of(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """In the order of ranks. Diverged: nobody's could be taken."""
        refused = tuple(rank for rank, part in enumerate(parts) if not part[-1])
        fit = [part[:-1] for rank, part in enumerate(parts) if rank not in refused]
        if not fit:
            raise Diverged("no peer has numbers to exchange: lower --lr, or look at the text")
        self._done = replace(self._done, world=len(parts), refused=refused)
        mean = fit[0].clone()
        for part in fit[1:]:
            mean += part
        return mean / len(fit)

    def _to_all(self, mine: torch.Tensor, layout: Layout, tag: int) -> Work:
        """To whoever gets our shard from us."""
        assert self._group is not None
        rank = self._group.rank
        number = rank % layout.count
        return self._group.all_to_all_async(
            [mine if layout.source(number, other) == rank else mine[:0] for other in range(layout.world)], tag=tag
        )

    def _in_order(self, parts: list[torch.Tensor], layout: Layout) -> torch.Tensor:
        assert self._group is not None
        return torch.cat([parts[layout.source(number, self._group.rank)] for number in range(layout.count)])

    def _undo(self) -> None:
        if self._before is not None and self.mine.velocity is not None:
            self.mine.velocity.copy_(self._before)
        self._before = None

    def _share_out(self) -> None:
        """The momentum anew, among those who are here now."""
        assert self._group is not None
        whole = None if self.mine.velocity is None else self._gathered()
        part = Layout(len(self.outer.parameters), self._group.world, self.shards).of(self._group.rank)
        self.mine, self._held, self._whole = self.of(self.outer.parameters[part]), part, None
        if whole is not None and self.mine.velocity is not None:
            self.mine.velocity.copy_(whole[part])

    def _gathered(self) -> torch.Tensor:
        """All that is left of the momentum: each place from the lowest rank that holds it."""
        group = self._group
        assert group is not None
        n = len(self.outer.parameters)
        held = slice(0, n) if self._whole is not None else self._held
        mine = self.mine.velocity if self._whole is None else self._whole
        assert mine is not None
        told = [_range(said, n) for said in group.gather_bytes(msgspec.msgpack.encode((held.start, held.stop)))]
        free = torch.ones(n, dtype=torch.bool)
        for other in told[: group.rank]:
            free[other] = False
        whole = torch.zeros(n)
        whole[held] = torch.where(free[held], mine, 0.0)
        group.all_reduce(whole, "sum", tag=self.tag)
        return whole


def _range(said: bytes, n: int) -> slice:
    """Of what another peer holds. InvalidData: there is no such range."""
    try:
        start, stop = msgspec.msgpack.decode(said, type=tuple[int, int])
    except msgspec.MsgspecError as error:
        raise InvalidData("a peer doesn't say what it holds of the momentum: all need the same atoll") from error
    if not 0 <= start <= stop <= n:
        raise InvalidData(f"a peer holds {start} to {stop} of a momentum of {n}: all need the same model")
    return slice(start, stop)
