"""Driver: a peer is killed while a fragment travels, another one comes. (Streaming DiLoCo, "Done when" 5.)"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.crew import Crew, crew
from atoll.train.schedule import Finish
from atoll.train.settings import TrainSettings

DELAY = 3
SETTINGS = TrainSettings(strategy="streaming", every=16, fragments=4, delay=DELAY, codec="e3m0", steps=2400, batch=4)


@dataclass
class Told:
    """What peers a, b and c, and d who came when a was killed, have said."""

    peers: Crew
    at: int = 0
    """Steps a had taken."""

    @property
    def hashes(self) -> dict[int, set[str]]:
        """Of what is shared, by the step after which; one each, if all is well."""
        found: dict[int, set[str]] = {}
        for said in self.peers.of("step"):
            if "hash" in said:
                found.setdefault(said["revision"], set()).add(said["hash"])
        return found

    @property
    def finals(self) -> set[str]:
        """Hashes at the end."""
        return {said["hash"] for said in self.peers.of("done")}

    def how_many(self, event: str, names: str) -> int:
        """Of these peers have said such a thing."""
        return sum(bool(self.peers.of(event, name)) for name in names)


def kill_one_of_three(flags: Sequence[str], after: int, say: Say) -> Told:
    """`atoll join` by three peers; SIGKILL to one of them once it has taken `after` steps, and one more joins.
    AtollError: they don't get that far, or not to an end."""
    with atoll.Master() as master, crew(look_s=0.01) as peers:

        def start(name: str, min_world: int) -> None:
            run = peers.folder / f"run-{name}"
            run.mkdir()
            argv = ("-m", "atoll", "join", master.address, "--name", name, *flags, "--json")
            peers.start(name, *argv, "--min-world", str(min_world), "--run-dir", str(run))

        def steps() -> int:
            return int(peers.of("step", "a")[-1]["step"]) if peers.of("step", "a") else 0

        for name in "abc":
            start(name, 3)
        peers.until(lambda: steps() >= after or peers.of("failed"), f"{after} steps of three", 200.0)
        told = Told(peers, steps())
        peers.processes.kill("a")
        say("and another one comes")
        start("d", 1)
        peers.until(lambda: all(name in peers.codes for name in "bcd"), "the end of the others", 400.0)
    return told


def killed(seed: int, say: Say) -> Iterator[Line]:
    """SIGKILL one of three in the step after a fragment has left."""
    say("three peers; one is killed while a fragment travels")
    s = SETTINGS
    flags = ["--strategy", s.strategy, "--every", str(s.every), "--fragments", str(s.fragments), "--codec", s.codec]
    flags += ["--delay", str(DELAY), "--steps", str(s.steps), "--batch", str(s.batch), "--seed", str(seed)]
    flags += ["--model.width", "64", "--model.context", "64", "--save-every", "0"]
    leaves = 3 * s.every  # a fragment leaves after this step
    told = kill_one_of_three(flags, leaves, say)
    hashes, ends = told.hashes, told.how_many("done", "bc")
    flown = [t for t in range(told.at + 1, s.steps + 1) if any(isinstance(a, Finish) for a in s.schedule.at(t - 1))]
    lost = told.how_many("lost", "bc")
    differ = [t for t, some in hashes.items() if len(some) > 1]
    yield Line(
        "5a",
        "SIGKILL to one of three while a fragment travels: the others go on to the end, equal at every finish",
        "both end; 0 differ",
        f"killed after step {told.at} (a fragment left after {leaves}, was due after {leaves + DELAY}); {lost} of 2 "
        f"measured it anew; {ends} ended; {len(differ)} of {len(hashes)} finishes differ",
        judged(ends == 2 and not differ and lost == 2 and set(flown) <= hashes.keys()),
    )
    synced = told.peers.of("synced", "d")
    entered = synced[0]["revision"] if synced else -1
    mine = {said["revision"] for said in told.peers.of("step", "d") if "hash" in said}
    after = [t for t in flown if t > entered]
    yield Line(
        "5b",
        "a joiner holds the same at the next finish of every fragment, and at the end",
        "each; one hash",
        f"let in after step {entered}; {len(mine & set(after))} of {len(after)} finishes; {len(told.finals)} final "
        f"hash{'es' if len(told.finals) != 1 else ''}",
        judged(
            told.how_many("done", "d") == 1
            and len(told.finals) == 1
            and mine == set(after)
            and len(after) >= s.fragments
        ),
    )
