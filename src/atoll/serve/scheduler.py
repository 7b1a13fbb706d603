"""Policy: which tokens pass the model next: continuous batching, prompts in chunks, who steps back for lack of pages.

Iteration-level batching as in Orca (Yu et al., OSDI 2022), chunked prefill as in Sarathi-Serve (Agrawal et al., 2024,
arXiv 2403.02310): answers under way come first, prompts fill what is left of a step.
"""

from bisect import insort
from collections.abc import Sequence as Listed
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, Literal, NamedTuple

from atoll.cost import ENGINE_STEP, Op
from atoll.errors import InvalidConfig
from atoll.serve.pool import Beginning, KvPool
from atoll.serve.sequence import Sequence

Preemption = Literal["recompute", "swap"]
_ORDER: Final = attrgetter("order")


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


class Run(NamedTuple):
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

    def operation(self) -> Op:
        """The step, as cost models know it. What passes one token is an answer, what passes more is a prompt."""
        prefill = pairs = batch = context = 0
        for run in self.runs:
            n, start = len(run.tokens), run.sequence.computed
            if n == 1:
                batch += 1
                context += start + 1
            else:
                prefill += n
                pairs += n * start + n * (n + 1) // 2
        return Op(ENGINE_STEP, prefill_tokens=prefill, prefill_pairs=pairs, batch=batch, context_tokens=context)


class Scheduler:
    """Sequences come by `add` and go by `drop`; between them, `schedule` and `advance` take turns."""

    def __init__(self, pool: KvPool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        """Both in order."""

    @property
    def full(self) -> bool:
        """Do as many run as may?"""
        return len(self.running) >= self.limits.batch

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_ORDER)

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
        sequence = run.sequence
        sequence.computed += len(run.tokens)
        if sequence.draft:
            sequence.computed -= len(sequence.draft)
            sequence.draft = []
        new = list[int]()
        for token in drawn[: sequence.limit - sequence.answered]:
            new.append(token)
            if token in sequence.ends:
                break
        if len(new) > 1:
            sequence.computed += len(new) - 1
        sequence.tokens += new
        self._keep(sequence)
        return new

    def steady(self, step: Step, most: int) -> int:
        """How many steps, this one and at most `most` counted, will be like this one, unless somebody comes or goes."""
        if len(step.runs) < len(self.running) or (self.waiting and not self.full):
            return 1
        for run in step.runs:
            if len(run.tokens) > 1 or not run.draws:
                return 1
        free = self.pool.free
        n = min(most, free * self.pool.page_tokens + 1)
        while n > 1 and sum(self._short(run.sequence, n) for run in step.runs) > free:
            n //= 2
        return n

    def leap(self, run: Run, n: int, token: int) -> None:
        """As many steps like this one, each of which drew `token` after the only one that passed: as `advance`."""
        sequence = run.sequence
        if short := self._short(sequence, n):
            taken = self.pool.take(short)
            assert taken is not None, "more steps than are steady"
            sequence.pages += taken
        sequence.tokens += [token] * n
        sequence.computed += n
        self._keep(sequence)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _go_on(self, step: Step, left: int | None) -> int | None:
        """Those that run, answers before prompts, as far as pages and `left` tokens go."""
        answers, prompts = list[Sequence](), list[Sequence]()
        for sequence in self.running:
            (prompts if sequence.missing > 1 else answers).append(sequence)
        for sequence in answers + prompts:
            if left == 0:
                break
            if step.preempted and sequence not in self.running:
                continue
            n = sequence.missing
            if left is not None and left < n:
                n = left
            if self._grow(sequence, n, step):
                left = self._run(step, sequence, n, left)
        return left

    def _admit(self, step: Step, left: int | None, most: int) -> None:
        """Those that wait, the first first, while there is room for all they have said so far."""
        while self.waiting and left != 0 and most and not self.full:
            sequence = self.waiting[0]
            known = [] if sequence.wants_prompt else sequence.tokens[:-1]
            found, kept = ([], Beginning()) if sequence.saved is not None else self.pool.match(known)
            taken = self.pool.take(self._pages(len(sequence.tokens)) - len(found))
            if taken is None:
                self.pool.release(found)
                return
            self.waiting.pop(0)
            insort(self.running, sequence, key=_ORDER)
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
        computed = sequence.computed
        tokens = sequence.tokens[computed : computed + n]
        last = computed + n == len(sequence.tokens)
        if sequence.draft:
            room = len(sequence.pages) * self.pool.page_tokens - len(sequence.tokens)
            guesses = min(room, len(sequence.draft) if left is None else left - n) if last and n == 1 else 0
            del sequence.draft[max(0, guesses) :]
            tokens += sequence.draft
        prompt = sequence.wants_prompt and computed < len(sequence.prompt)
        wanted = len(tokens) if prompt else (1 + len(sequence.draft) if last else 0)
        step.runs.append(Run(sequence, tokens, wanted, last and sequence.limit > 0))
        return None if left is None else left - len(tokens)

    def _grow(self, sequence: Sequence, n: int, step: Step) -> bool:
        """Pages for `n` more tokens; whoever runs and is last in order steps back for them, maybe itself."""
        ask = self._short(sequence, n + len(sequence.draft))
        if ask == 0:
            return True
        while (taken := self.pool.take(ask)) is None:
            if sequence.draft:
                sequence.draft = []
                ask = self._short(sequence, n)
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

    def _keep(self, sequence: Sequence) -> None:
        """What has passed can be found by others."""
        whole = sequence.computed // self.pool.page_tokens
        if whole > sequence.kept.pages:
            sequence.kept = self.pool.keep(sequence.pages[:whole], sequence.tokens, sequence.kept)

    def _short(self, sequence: Sequence, n: int) -> int:
        """Pages it lacks for `n` tokens more than have passed."""
        lacking = sequence.computed + n - len(sequence.pages) * self.pool.page_tokens
        return self._pages(lacking) if lacking > 0 else 0

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.pool.page_tokens)
