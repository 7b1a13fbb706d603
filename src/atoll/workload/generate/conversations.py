"""Policy: conversations, whose every prompt is all that was said before and something new, so that prefixes are really
shared; the next turn comes when the last answer was read and thought about.

After BurstGPT's conversation service (Wang et al., 2025, arXiv 2401.17644): some three turns in the mean, a long tail.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import xxhash

from atoll.errors import InvalidConfig
from atoll.rng import stream
from atoll.workload.api import BLOCK_TOKENS, Arrival, Demand, Process
from atoll.workload.generate.lengths import LONGEST, AnyAnswers, AnyLengths, Joint
from atoll.workload.generate.processes import check_positive


class LogNormalTime(msgspec.Struct, frozen=True, tag_field="kind", tag="log-normal"):
    """Seconds; `sigma` is that of the logarithm."""

    median_s: float
    sigma: float

    def __post_init__(self) -> None:
        check_positive(median_s=self.median_s)
        if not 0 <= self.sigma <= 20:
            raise InvalidConfig(f"sigma={self.sigma} of a time must be in 0..20")

    def draw(self, rng: np.random.Generator) -> float:
        return self.median_s * rng.lognormal(0, self.sigma)


class GammaTime(msgspec.Struct, frozen=True, tag_field="kind", tag="gamma"):
    """Seconds with that mean and coefficient of variation; 1 is exponential."""

    mean_s: float
    cv: float

    def __post_init__(self) -> None:
        check_positive(mean_s=self.mean_s)
        if not 1e-3 <= self.cv <= 100:
            raise InvalidConfig(f"cv={self.cv} of a time must be in 0.001..100")

    def draw(self, rng: np.random.Generator) -> float:
        shape = 1 / (self.cv * self.cv)
        return self.mean_s * rng.gamma(shape) / shape


AnyTime = LogNormalTime | GammaTime


class Talk(msgspec.Struct, frozen=True):
    """What conversations are like. A session ends early where its next prompt would be longer than `most_tokens`."""

    turns: AnyLengths
    think: AnyTime
    """From the end of an answer to the next question."""
    first: AnyLengths
    """The first prompt."""
    more: AnyLengths
    """What each later prompt adds to all that was said before."""
    output: AnyAnswers
    most_tokens: int = LONGEST

    def __post_init__(self) -> None:
        check_positive(most_tokens=self.most_tokens)


@dataclass(slots=True)
class _Session:
    turns_left: int
    times: np.random.Generator
    texts: np.random.Generator
    said_tokens: int = 0


class Conversations:
    """A workload of sessions that come by `process`. Each session's draws are streams of its own: who is answered first
    changes when others go on, never what they say. Who is never answered never goes on."""

    def __init__(self, process: Process, talk: Talk, seed: int, name: str = "", model: str = "") -> None:
        self._process, self.talk = process, talk
        self._seed, self._name, self._model = seed, name, model
        self._live: dict[str, _Session] = {}
        self._asked = 0

    def start(self) -> Iterator[Demand]:
        """The first turn of each session."""
        for i, at_s in enumerate(self._process.times(stream(self._seed, "conversations", self._name))):
            name = f"{self._name}{i}"
            times, texts = (stream(self._seed, "conversations", name, what) for what in ("times", "texts"))
            session = _Session(self.talk.turns.draw(times), times, texts)
            yield self._ask(name, session, at_s, turn=0, new_tokens=self.talk.first.draw(texts))

    def handle(self, answered: Arrival, now_s: float) -> Sequence[Demand]:
        """The next turn of that session, if it has one."""
        session = self._live.pop(answered.session, None)
        if session is None:
            return ()
        think_s, new_tokens = self.talk.think.draw(session.times), self.talk.more.draw(session.texts)
        if session.said_tokens + new_tokens > self.talk.most_tokens:
            return ()
        return [self._ask(answered.session, session, now_s + think_s, answered.turn + 1, new_tokens)]

    def _ask(self, name: str, session: _Session, at_s: float, turn: int, new_tokens: int) -> Demand:
        prompt_tokens = min(session.said_tokens + new_tokens, self.talk.most_tokens)
        ids = block_ids(self._seed, name, turn, prompt_tokens)
        arrival = Arrival(self._asked, at_s, prompt_tokens, name, ids, turn, "conversation", self._model)
        self._asked += 1
        answers = self.talk.output
        output_tokens = (answers.given(prompt_tokens) if isinstance(answers, Joint) else answers).draw(session.texts)
        session.said_tokens = prompt_tokens + output_tokens
        session.turns_left -= 1
        if session.turns_left:
            self._live[name] = session
        return Demand(arrival, output_tokens)


def block_ids(seed: int, session: str, turn: int, prompt_tokens: int) -> tuple[int, ...]:
    """Names for the blocks of a prompt that begins with all its session has said: whole blocks have the same in every
    turn, what is left at the end has one of its own. 53 bits, which JSON carries everywhere."""
    whole, rest = divmod(prompt_tokens, BLOCK_TOKENS)
    places = [*map(str, range(whole)), *([f"{whole} of turn {turn}"] if rest else [])]
    return tuple(xxhash.xxh3_64_intdigest(f"{place} of {session}".encode(), seed % (1 << 64)) >> 11 for place in places)


@dataclass(frozen=True, slots=True)
class AnswerTime:
    """For `unrolled`: an answer begins after `first_s` and flows at that pace."""

    tokens_per_s: float = 50.0
    first_s: float = 0.5

    def __post_init__(self) -> None:
        check_positive(tokens_per_s=self.tokens_per_s)
        if not 0 <= self.first_s < math.inf:
            raise InvalidConfig(f"first_s={self.first_s} must be at least 0")

    def __call__(self, demand: Demand) -> float:
        return self.first_s + demand.output_tokens / self.tokens_per_s
