"""A program on a grid of two rows and two columns that heals when a peer is lost or joins. For both worlds.

python -m tests.group.grid HOST:PORT ROUNDS --min-world 4
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import atoll
from atoll.errors import PeerLost
from atoll.group.facade import Group
from atoll.group.work import Work, wait_all

ROWS = COLUMNS = 2
NOWHERE = ROWS * COLUMNS
Say = Callable[..., None]


class Grid:
    """One peer. Place p is in row p // 2, column p % 2, and adds 2**p, so that a sum tells whose it is.

    A column shares a state, as the peers that hold the same shard of a model do.
    """

    def __init__(self, group: Group, rounds: int, say: Say, size: int = 4) -> None:
        self.group, self.rounds, self.say, self.size = group, rounds, say, size
        self.values = np.zeros(3)
        self.state = atoll.SharedState({"values": self.values})
        self.place, self.fresh, self.seen = NOWHERE, True, -1
        self.row = self.column = group

    def run(self) -> None:
        """The loop as a user would write it."""
        group = self.group
        while self.state.revision < self.rounds:
            epoch = group.epoch
            try:
                if group.peers_pending():
                    group.update_topology()
                    self.fresh = True
                if self.fresh:  # all agree on it, since only what concerns all decides it
                    self.make()
                    self.fresh = False
                if group.epoch != self.seen:
                    self.column.sync(self.state)
                    self.seen = group.epoch
                    continue
                self.round()
            except PeerLost as error:
                self.say("lost", epoch=epoch, now=group.epoch, world=group.world, message=str(error))

    def make(self) -> None:
        """Who has a place keeps it; newcomers take the free ones."""
        places = [said[0] for said in self.group.gather_bytes(bytes([self.place]))]
        free = [p for p in range(NOWHERE) if p not in places]
        if self.place == NOWHERE:
            self.place = free[places[: self.group.rank].count(NOWHERE)]
        row, column = divmod(self.place, COLUMNS)
        self.row = self.group.subgroup(f"row {row}", order=column)
        self.column = self.group.subgroup(f"column {column}", order=row)
        self.say("made", place=self.place, ranks=[self.row.rank, self.column.rank])

    def round(self) -> None:
        axes = (self.row, self.column)
        sums = [np.full(self.size, float(1 << self.place)) for _ in axes]
        works = [axis.all_reduce_async(x, "sum", tag=1) for axis, x in zip(axes, sums, strict=True)]
        for axis in axes:
            works += self.exchange(axis)
        try:
            wait_all(works)
        except PeerLost:
            outcomes = [outcome(work) for work in works[:2]]
            untouched = [bool((x == 1 << self.place).all()) for x in sums]
            self.say("failed", place=self.place, outcomes=outcomes, untouched=untouched)
            raise
        self.group.barrier()  # commit: decided for all, or for none
        row, column = (int(x[0]) for x in sums)
        self.values[0] += 1
        self.values[1] += column
        self.state.revision += 1
        world = self.group.world
        at = {"epoch": self.group.epoch, "place": self.place, "revision": self.state.revision, "world": world}
        self.say("round", **at, row=row, column=column, hash=self.state.digest())

    def exchange(self, axis: Group) -> list[Work]:
        """With the other one of the axis, if there is one."""
        if axis.world == 1:
            return []
        mine, other = np.full(2, float(self.place)), 1 - axis.rank
        return [axis.send_async(mine, other, tag=1), axis.recv_async(np.zeros(2), other, tag=1)]


def outcome(work: Work) -> str:
    error = work.ticket.outcome.error if work.ticket.outcome else None
    return type(error).__name__ if error else "ok"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("rounds", type=int)
    parser.add_argument("--min-world", type=int, default=1)
    options = parser.parse_args()

    def say(event: str, **more: Any) -> None:
        print(json.dumps({"event": event, "at": time.time(), **more}), flush=True)

    with atoll.join(options.address, min_world=options.min_world) as group:
        Grid(group, options.rounds, say).run()
        try:
            group.barrier()
        except PeerLost:
            pass


if __name__ == "__main__":
    main()
