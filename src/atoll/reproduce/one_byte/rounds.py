"""Driver: four processes, a byte each per round: same bits, counted bytes, a log that is enough. (Just One Byte, "Done
when" 1 and 3.)"""

from collections.abc import Iterator
from typing import Any

from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.crew import Event
from atoll.reproduce.one_byte.peer import settings, sha256, strategy_of, trainer
from atoll.reproduce.one_byte.peers import Peers, peers
from atoll.train.one_byte.rounds import NAME

PEERS = 4
NEVER = 1_000_000


def rounds(n: int, seed: int, say: Say) -> Iterator[Line]:
    """Run them, then replay what is left."""
    say(f"{PEERS} processes, {n} rounds")
    with peers() as found:
        marks = _marked(found, n // 5, n - 10)
        for i in range(PEERS):
            options = ["--steps", str(n), "--seed", str(seed), "--min-world", str(PEERS), "--hash-every", str(NEVER)]
            found.start(f"peer-{i}", *options, "--folder", str(found.crew.folder))
        found.all_ended()
        ends = found.crew.of("ended")
        hashes = {end["sha256"] for end in ends}
        yield Line(
            "1a",
            f"{PEERS} processes on different windows of a text, {n} rounds: SHA-256 of their parameters",
            "equal",
            f"{'equal' if len(hashes) == 1 else 'different'}: {min(hashes)[:16]}",
            judged(len(hashes) == 1 and len(ends) == PEERS),
        )
        sent = [done["sent"] for done in found.crew.of("done")]
        yield Line(
            "1b",
            "bytes each of them said of its gradients",
            f"{n}",
            ", ".join(map(str, sent)),
            judged(set(sent) == {n}),
        )
        yield _framing(marks, n - 10 - n // 5)
        yield from _replayed(found, n, seed, hashes)


def _marked(found: Peers, *steps: int) -> list[list[tuple[int, int]]]:
    """What the relay has counted when the first peer has taken so many steps; filled as they come."""
    marks: list[list[tuple[int, int]]] = []

    def on_event(name: str, event: Event) -> None:
        if name == "peer-0" and event["event"] == "step" and event["step"] in steps:
            marks.append(found.relay.now())

    found.crew.on_event = on_event
    return marks


def _framing(marks: list[list[tuple[int, int]]], n: int) -> Line:
    first, last = marks
    changes: list[Any] = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(first, last[: len(first)], strict=True)]
    busiest = sorted(changes, reverse=True)[:PEERS]  # the others are those of the helpers that watch the peers
    up, down = (sum(change[way] for change in busiest) / PEERS / n for way in (0, 1))
    return Line(
        "1c",
        "with all framing, counted by a relay before the master: bytes a machine sends per round",
        "< 40",
        f"{up:.1f} (and hears {down:.1f})",
        judged(up < 40),
    )


def _replayed(found: Peers, n: int, seed: int, hashes: set[str]) -> Iterator[Line]:
    again = trainer(settings(n, seed, hash_every=NEVER), lambda event, **about: None)
    again.resume(found.crew.folder / "checkpoint")
    strategy = strategy_of(again)
    same = {sha256(strategy)} == hashes
    yield Line("3a", "base weights and log, replayed: SHA-256", "that of the run", "equal" if same else "different",
               judged(same))  # fmt: skip
    nbytes = (found.crew.folder / "checkpoint" / NAME).stat().st_size
    said, heads = sum(len(each.said) for each in strategy.rounds), 12 * len(strategy.rounds)
    numbers = strategy.weights.numbers
    yield Line(
        "3b",
        "size of the log: rounds x machines x samples, a head, 12 bytes around each round",
        f"{n * PEERS} said",
        f"{said} said + {heads} + {nbytes - said - heads} = {nbytes} bytes; the parameters have {4 * numbers}",
        judged(said == n * PEERS and nbytes - said - heads < 4096),
    )
