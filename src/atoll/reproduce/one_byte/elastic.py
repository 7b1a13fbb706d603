"""Driver: peers that are killed, come late, are spoilt or have another base. (Just One Byte, "Done when" 6 and 8.)"""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.one_byte.peers import Peers, peers

STEPS = 300
PACE_S = 0.05
"""Of rest after each round: on a quick machine all would else be over before a newcomer has loaded torch."""
HASH_EVERY = 32


def elastic(seed: int, say: Say) -> Iterator[Line]:
    """Kill one of four; let one come by replay and one by fetch."""
    say("four processes: one is killed, two come late")
    with peers() as found:
        _start(found, 4, seed)
        found.crew.until(lambda: found.step("peer-0") >= 10, "round 10")
        for way in ("replay", "fetch"):
            found.start(f"by-{way}", *_options(seed), "--catch-up", way)
        found.crew.until(lambda: found.step("peer-0") >= 40, "round 40")
        found.crew.kill("peer-3")
        found.all_ended()
        ends = found.crew.of("ended")
        hashes = {end["sha256"] for end in ends}
        entered = {way: found.crew.of("synced", f"by-{way}")[0] for way in ("replay", "fetch")}
        yield Line(
            "6a",
            "kill -9 one of 4, one newcomer replays the log, one is sent the parameters: SHA-256 at the end",
            "equal on 5",
            f"{'equal' if len(hashes) == 1 else 'different'} on {len(ends)}; came at rounds "
            + " and ".join(f"{each['revision']} ({each['received']:,} bytes)" for each in entered.values()),
            judged(
                len(hashes) == 1
                and len(ends) == 5
                and entered["replay"]["received"] < 1000 < entered["fetch"]["received"]
            ),
        )
        losses = [event["loss"] for event in found.crew.of("step", "peer-0")]
        parts = [sum(losses[at : at + 40]) / 40 for at in range(0, STEPS - 39, 40)]
        yield Line(
            "6b",
            "and the loss, means of 40 rounds",
            "falls on",
            ", ".join(f"{part:.3f}" for part in parts),
            judged(parts[-1] < parts[1] < parts[0]),
        )


def faults(seed: int, say: Say) -> Iterator[Line]:
    """Spoilt parameters, another base."""
    say("spoilt parameters, another base")
    with peers() as found:
        for i in range(3):
            spoilt = ["--corrupt-at", str(HASH_EVERY + 5)] if i == 1 else []
            found.start(f"peer-{i}", *_options(seed), "--min-world", "3", *spoilt)
        found.crew.until(lambda: found.step("peer-0") >= 2 * HASH_EVERY + 20, "the comparison")
        found.start("other", *_options(seed), "--other-base")
        found.all_ended()
        ends = found.crew.of("ended")
        hashes = {end["sha256"] for end in ends}
        mended = [e["revision"] for e in found.crew.of("synced", "peer-1") if e["received"]]
        yield Line(
            "8a",
            f"a parameter of one of 3 is spoilt after round {HASH_EVERY + 5}; hashes are compared every {HASH_EVERY}",
            f"mended after round {2 * HASH_EVERY}",
            f"mended after {mended}; at the end {'equal' if len(hashes) == 1 else 'different'}",
            judged(mended == [2 * HASH_EVERY + 1] and len(hashes) == 1 and len(ends) == 3),
        )
        refused = [*found.crew.of("failed", "other"), {"error": "nothing", "message": ""}][0]
        base = str(refused["message"])
        yield Line(
            "8b",
            "one that has other base weights",
            "refused, both hashes told",
            f"{refused['error']}: {base[base.find('base') : base.find(';')]}",
            judged(refused["error"] == "InvalidConfig" and "base" in base and "there" in base),
        )


def _start(found: Peers, n: int, seed: int) -> None:
    for i in range(n):
        found.start(f"peer-{i}", *_options(seed), "--min-world", str(n))


def _options(seed: int) -> list[str]:
    same = ["--steps", str(STEPS), "--seed", str(seed), "--hash-every", str(HASH_EVERY)]
    return [*same, "--pace", str(PACE_S)]
