"""Policy: which tokens pass the model next: continuous batching, prompts in chunks, who steps back for lack of pages.

Iteration-level batching as in Orca (Yu et al., OSDI 2022), chunked prefill as in Sarathi-Serve (Agrawal et al., 2024,
arXiv 2403.02310): answers under way come first, prompts fill what is left of a step.
"""

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from typing import Literal

from atoll.errors import InvalidConfig
from atoll.serve.pool import Beginning, KvPool
from atoll.serve.sequence import Sequence

Preemption = Literal["recompute", "swap"]


@dataclass(frozen=True, slots=True)
class Limits:
    """`batch`: sequences that run at once. `step_tokens`: the most that pass the model in one step; None: prompts pass
    whole, one a step, before everything else. `waiting`: how many may wait."""

    batch: int = 16
    step_tokens: int | None = 64
    waiting: int = 256
    preemption: Preemption = "recompute"

    def __post_init__(self) -> None:
        for name, value in (("batch", self.batch), ("step_tokens", self.step_tokens), ("waiting", self.waiting)):
            if value is not None and value < 1:
                raise InvalidConfig(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Run:
    """`tokens` of a sequence, from its first that wasn't passed on. `wanted`: of how many of the last, the logits;
    `draws`: whether the next token can be drawn from those."""

    sequence: Sequence
    tokens: list[int]
    wanted: int
    draws: bool


@dataclass(slots=True)
class Step:
    """What to do, in this order: copy pages aside, put others back, pass the tokens."""

    save: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    restore: list[tuple[Sequence, list[int]]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    preempted: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(run.tokens) for run in self.runs)


class Scheduler:
    """Sequences come by `add` and go by `drop`; between them, `schedule` and `advance` take turns."""

    def __init__(self, pool: KvPool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda each: each.order)

    def drop(self, sequence: Sequence) -> None:
        """It is over, or nobody wants it: what it held is free."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)
        sequence.saved = None

    def schedule(self) -> Step:
        """The next step; it has no runs where there is nothing to do."""
        step = Step()
        if self.limits.step_tokens is None:
            self._admit(step, None, most=1)
            if step.runs:
                return step
        left = self._go_on(step, self.limits.step_tokens)
        if not step.preempted:
            self._admit(step, left, most=self.limits.batch)
        return step

    def advance(self, run: Run, drawn: Listed[int]) -> list[int]:
        """The run's tokens have passed. `drawn` comes after them: as many guesses as were right, and one token more; or
        nothing, where the sequence isn't through with what it knows. The tokens that are new."""
        sequence, guesses = run.sequence, len(run.sequence.draft)
        sequence.draft = []
        sequence.computed += len(run.tokens) - guesses
        new = list[int]()
        for token in drawn[: sequence.limit - sequence.answered]:
            new.append(token)
            if token in sequence.ends:
                break
        sequence.computed += max(0, len(new) - 1)
        sequence.tokens += new
        whole = sequence.computed // self.pool.page_tokens
        if whole > sequence.kept.pages:
            passed = sequence.tokens[: whole * self.pool.page_tokens]
            sequence.kept = self.pool.keep(sequence.pages, passed, sequence.kept)
        return new

    def steady(self, step: Step) -> int:
        """How many steps in all, this one counted, will be like this one, unless somebody comes, goes or ends."""
        if (
            self.waiting
            or len(step.runs) < len(self.running)
            or any(len(run.tokens) > 1 or not run.draws for run in step.runs)
        ):
            return 1
        n = self.pool.free * self.pool.page_tokens + 1
        while n > 1 and sum(self._short(run.sequence, n) for run in step.runs) > self.pool.free:
            n //= 2
        return n

    def leap(self, step: Step, n: int, token: int) -> None:
        """All that `n` steps like this one do, but the last one's `advance`, where each time `token` was drawn."""
        for run in step.runs if n > 1 else ():
            sequence = run.sequence
            taken = self.pool.take(self._short(sequence, n))
            assert taken is not None, "more steps than are steady"
            sequence.pages += taken
            sequence.tokens += [token] * (n - 1)
            sequence.computed += n - 1

    # -- inside -------------------------------------------------------------------------------------------------------

    def _go_on(self, step: Step, left: int | None) -> int | None:
        """Those that run, answers before prompts, as far as pages and `left` tokens go."""
        for sequence in sorted(self.running, key=lambda each: (each.missing > 1, each.order)):
            if sequence not in self.running or left == 0:
                continue
            n = sequence.missing if left is None else min(sequence.missing, left)
            if not self._grow(sequence, n, step):
                continue
            left = self._run(step, sequence, n, left)
        return left

    def _admit(self, step: Step, left: int | None, most: int) -> None:
        """Those that wait, the first first, while there is room for all they have said so far."""
        while self.waiting and left != 0 and most and len(self.running) < self.limits.batch:
            sequence = self.waiting[0]
            known = [] if sequence.wants_prompt else sequence.tokens[:-1]
            found, kept = ([], Beginning()) if sequence.saved is not None else self.pool.match(known)
            taken = self.pool.take(self._pages(len(sequence.tokens)) - len(found))
            if taken is None:
                self.pool.release(found)
                return
            self.waiting.pop(0)
            self.running.append(sequence)
            sequence.pages, sequence.kept = found + taken, kept
            if sequence.saved is None:
                sequence.computed = len(found) * self.pool.page_tokens
            else:
                step.restore.append((sequence, sequence.pages[: self._pages(sequence.computed)]))
            if sequence.cached is None:
                sequence.cached = sequence.computed
            n = sequence.missing if left is None else min(sequence.missing, left)
            left = self._run(step, sequence, n, left)
            most -= 1

    def _run(self, step: Step, sequence: Sequence, n: int, left: int | None) -> int | None:
        tokens = sequence.tokens[sequence.computed : sequence.computed + n]
        last = n == sequence.missing
        room = len(sequence.pages) * self.pool.page_tokens - len(sequence.tokens)
        if not last or n > 1:
            sequence.draft = []
        del sequence.draft[max(0, min(room, len(sequence.draft) if left is None else left - n)) :]
        tokens += sequence.draft
        prompt = sequence.wants_prompt and sequence.computed < len(sequence.prompt)
        wanted = len(tokens) if prompt else (1 + len(sequence.draft) if last else 0)
        step.runs.append(Run(sequence, tokens, wanted, last and sequence.limit > 0))
        return None if left is None else left - len(tokens)

    def _grow(self, sequence: Sequence, n: int, step: Step) -> bool:
        """Pages for `n` more tokens; whoever runs and is last in order steps back for them, maybe itself."""
        ask = max(0, self._pages(sequence.computed + n + len(sequence.draft)) - len(sequence.pages))
        while (taken := self.pool.take(ask)) is None:
            if sequence.draft:
                sequence.draft = []
                ask = max(0, self._pages(sequence.computed + n) - len(sequence.pages))
                continue
            scheduled = {run.sequence.id for run in step.runs}
            others = [each for each in self.running if each.id not in scheduled]
            victim = max(others, key=lambda each: each.order)
            self._preempt(victim, step)
            if victim is sequence:
                return False
        sequence.pages += taken
        return True

    def _preempt(self, victim: Sequence, step: Step) -> None:
        self.running.remove(victim)
        if self.limits.preemption == "swap" and victim.computed:
            step.save.append((victim, victim.pages[: self._pages(victim.computed)]))
            victim.saved = ()
        else:
            victim.computed = 0
        self._release(victim)
        victim.draft = []
        step.preempted += 1
        self.add(victim)

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages, sequence.kept = [], Beginning()

    def _short(self, sequence: Sequence, n: int) -> int:
        """Pages it lacks for `n` tokens more than have passed."""
        return max(0, self._pages(sequence.computed + n) - len(sequence.pages))

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.pool.page_tokens)
