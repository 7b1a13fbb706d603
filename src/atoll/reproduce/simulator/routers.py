"""Driver: two engines behind one address, and an engine that is killed: real ones against virtual ones on this machine.
(Simulator, "Done when" 8, routers and recovery.)"""

import os
import signal
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from atoll.endpoint.driving import Prompts
from atoll.model.loading import load
from atoll.model.paged import PAGE_TOKENS, page_bytes, pages_in
from atoll.model.store import find
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.calibration.engines import EngineCosts
from atoll.reproduce.server import driven, serving
from atoll.rng import stream
from atoll.route.balance import BALANCES, Name
from atoll.route.dispatch import Dispatch
from atoll.serve.scheduler import Limits
from atoll.serve.virtual import VirtualDrive, VirtualEngine
from atoll.sim.loop import Loop
from atoll.workload.api import BLOCK_TOKENS, Arrival, Demand, Outcome
from atoll.workload.generate.loops import Replay
from atoll.workload.slo import Account, Report

LIMITS: Final = Limits(batch=16, step_tokens=64, waiting=256)
"""As `atoll serve` has them."""
PATIENCE_S: Final = 300.0
ROUNDS: Final = 3
SHARE: Final = 0.7
"""Of what two virtual engines can take that are asked in turns."""
KILLED_S: Final = 35.0
"""An engine that lived so long is started again at once."""

Means = dict[Name, float]
"""Time to the first token, by policy."""


@dataclass(frozen=True)
class Questions:
    """Prompts of a few words after one of `documents`, if there are any; answers differ in length. Medians, in tokens.

    `room`: documents that an engine's memory holds: fewer than there are, so that it matters who is asked, and more
    than half of them.
    """

    documents: int = 12
    room: int = 8
    question_tokens: float = 24.0
    answer_tokens: float = 24.0
    spread: float = 1.0
    """Of the logarithm of both."""
    most_tokens: int = 160
    """Of either."""

    def asked(self, rate_per_s: float, seconds: float, seed: int) -> list[Demand]:
        """All that come in that time."""
        rng = stream(seed, "questions")
        found = list[Demand]()
        at_s = rng.exponential(1 / rate_per_s)
        while at_s < seconds:
            blocks = (int(rng.integers(self.documents)),) if self.documents else ()
            session = f"document {blocks[0]}" if blocks else f"{len(found)}"
            question, answer = (self._tokens(rng, median) for median in (self.question_tokens, self.answer_tokens))
            prompt = len(blocks) * BLOCK_TOKENS + question
            found.append(Demand(Arrival(len(found), float(at_s), prompt, session, blocks), answer))
            at_s += rng.exponential(1 / rate_per_s)
        return found

    def _tokens(self, rng: np.random.Generator, median: float) -> int:
        return max(2, min(self.most_tokens, round(median * rng.lognormal(0, self.spread))))


SHORT: Final = Questions(documents=0, question_tokens=8, answer_tokens=8, most_tokens=16)


def ranking(
    model: str, costs: EngineCosts, seed: int, say: Say, *, questions: Questions = Questions(), seconds: float = 90.0
) -> Line:
    """8r. `costs`: of an engine with one thread."""
    config = load(find(model)).weights.config
    memory = questions.room * (BLOCK_TOKENS // PAGE_TOKENS) * page_bytes(config)
    pages = pages_in(memory, config, LIMITS.batch)
    full = simulated(costs, 2, "turns", questions.asked(100.0, 5.0, seed), pages=pages)
    rate_per_s = SHARE * full.answered / full.span_s
    real, virtual = list[Means](), list[Means]()
    for number in range(ROUNDS):
        some = questions.asked(rate_per_s, seconds, seed + number)
        virtual.append({name: simulated(costs, 2, name, some, pages=pages).ttft_s.mean for name in BALANCES})
        real.append({})
        for name in list(BALANCES)[number:] + list(BALANCES)[:number]:
            say(f"{len(some)} requests to two engines of {model}, {name}, {number + 1} of {ROUNDS}")
            flags = ("--engines", "2", "--threads", "2", "--kv-memory", f"{2 * memory >> 10}KiB", "--balance", name)
            with serving(model, *flags) as there:
                report = driven(there.url, Replay(some), Prompts(seed), patience_s=PATIENCE_S)
            real[-1][name] = report.ttft_s.mean
    pairs = distinct(real)
    right = sum(before(pair, virtual) for pair in pairs)
    return Line(
        "8r",
        f"two engines: real and simulated routers rank alike by TTFT; {ROUNDS} rounds, {rate_per_s:.2f} requests/s",
        "the same order wherever all real rounds agree on it",
        f"{right} of {len(pairs)} pairs that really differ; real {ranked(real)}; simulated {ranked(virtual)}",
        judged(bool(pairs) and right == len(pairs)),
        "simulated",
    )


def _mean(rounds: Sequence[Means], name: Name) -> float:
    return statistics.fmean(means[name] for means in rounds)


def distinct(rounds: Sequence[Means]) -> list[tuple[Name, Name]]:
    """Pairs of policies of which the first was better in every round."""
    names = list(rounds[0])
    both = [pair for one, other in combinations(names, 2) for pair in ((one, other), (other, one))]
    return [pair for pair in both if all(means[pair[0]] < means[pair[1]] for means in rounds)]


def before(pair: tuple[Name, Name], rounds: Sequence[Means]) -> bool:
    """Is the first one better in the mean over all rounds?"""
    return _mean(rounds, pair[0]) < _mean(rounds, pair[1])


def ranked(rounds: Sequence[Means]) -> str:
    """In a line, the best first."""
    names = sorted(rounds[0], key=lambda name: _mean(rounds, name))
    return ", ".join(f"{name} {_mean(rounds, name):.2f} s" for name in names)


def recovery(model: str, costs: EngineCosts, seed: int, say: Say, killed_s: float = KILLED_S) -> Line:
    """8k. `costs`: of `atoll serve MODEL`."""
    full = simulated(costs, 1, "fewest", SHORT.asked(200.0, 1.0, seed))
    rate_per_s = 0.5 * full.answered / full.span_s
    real, virtual = list[Recovery](), list[Recovery]()
    assert costs.restart is not None
    until_s = killed_s + 10 + 4 * costs.restart.ready_s
    for number in range(ROUNDS):
        some = SHORT.asked(rate_per_s, until_s, seed + number)
        say(f"killing the engine of {model} under {rate_per_s:.1f} requests/s, {number + 1} of {ROUNDS}")
        real.append(_killed(model, some, killed_s, seed))
        heard = list[Outcome]()
        simulated(costs, 1, "fewest", some, heard.append, crash_s=real[-1].killed_s)
        virtual.append(Recovery.of(heard, real[-1].killed_s))
    back_s = [statistics.fmean(each.back_s for each in recoveries) for recoveries in (real, virtual)]
    lost = [sum(each.lost for each in recoveries) for recoveries in (real, virtual)]
    error = back_s[1] / back_s[0] - 1
    each = ", ".join(f"{one.back_s:.2f} ({other.back_s:.2f})" for one, other in zip(real, virtual, strict=True))
    return Line(
        "8k",
        f"from kill -9 of an engine under load to the first token again, {rate_per_s:.1f} requests/s, {ROUNDS} kills",
        "<= 20 %",
        f"{error:+.1%}: real {back_s[0]:.2f} s, simulated {back_s[1]:.2f} s; each, real (simulated): {each} s; "
        f"nobody waits that long: {lost[0]} ({lost[1]}) requests got an error at once",
        judged(abs(error) <= 0.20),
        "simulated",
    )


@dataclass(frozen=True, slots=True)
class Recovery:
    """Of a server whose engine was killed at `killed_s`."""

    killed_s: float
    back_s: float
    """From then to the first token of one who asked after it."""
    lost: int
    """Requests that were ended or refused."""

    @classmethod
    def of(cls, heard: Sequence[Outcome], killed_s: float) -> "Recovery":
        """From how requests ended."""
        firsts = [each.first_s for each in heard if each.end == "answered" and each.sent_s > killed_s]
        return cls(killed_s, min(firsts) - killed_s, sum(each.end != "answered" for each in heard))


def _killed(model: str, some: Sequence[Demand], killed_s: float, seed: int) -> Recovery:
    """Really: at the first answer after `killed_s`."""
    heard, at_s = list[Outcome](), list[float]()
    with serving(model) as there:

        def told(outcome: Outcome) -> None:
            heard.append(outcome)
            if not at_s and outcome.last_s >= killed_s:
                at_s.append(outcome.last_s)
                os.kill(there.engine_pid, signal.SIGKILL)

        driven(there.url, Replay(some), Prompts(seed), patience_s=PATIENCE_S, told=told)
    return Recovery.of(heard, at_s[0])


def simulated(
    costs: EngineCosts,
    engines: int,
    balance: Name,
    some: Sequence[Demand],
    told: Callable[[Outcome], object] = lambda outcome: None,
    *,
    pages: int | None = None,
    crash_s: float | None = None,
) -> Report:
    """The same on virtual engines; the first crashes then."""
    loop, account = Loop(), Account()
    made = [VirtualEngine(loop, costs.step, pages or costs.pages, LIMITS) for _ in range(engines)]
    if crash_s is not None:
        assert costs.restart is not None
        loop.post(round(crash_s * 1e9), made[0].crash, costs.restart.ready_s, costs.restart.cold_s)

    def heard(arrival: Arrival, outcome: Outcome) -> None:
        account.handle(outcome)
        told(outcome)

    dispatch = Dispatch([str(number) for number in range(engines)], BALANCES[balance]())
    drive = VirtualDrive(
        made, dispatch, Replay(some), heard, account.offer,
        patience_s=PATIENCE_S, most_tokens=costs.context, ask_s=costs.ask_s, answer_s=costs.answer_s,
    )  # fmt: skip
    drive.run()
    return account.report(loop.now_s)
