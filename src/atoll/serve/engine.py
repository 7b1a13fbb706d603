"""Program: the engine: requests in, tokens out, one step after the other.

    schedule -> pass the model -> draw -> advance

`Scheduler` decides what runs, a `PagedModel` computes, `draw` picks tokens. A mistake in one answer ends that one. Time
is that of the current node, so the same engine runs in virtual time.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atoll.endpoint.api import Chosen, Delta, Finish, Load, Request, Times, Tokens
from atoll.errors import ContextExceeded, DeadlineImpossible, InvalidRequest, Overloaded
from atoll.model.api import Tokenizer
from atoll.model.paged import PAGE_TOKENS, PagedModel, Slice
from atoll.model.speculative import lookup
from atoll.runtime.api import here
from atoll.serve.answer import Answer
from atoll.serve.embedding import Mean
from atoll.serve.grammar import Grammar, Grammars
from atoll.serve.pace import Pace
from atoll.serve.pool import KvPool
from atoll.serve.sampling import Row, draw, likeliest, log_probabilities
from atoll.serve.scheduler import Limits, Run, Scheduler, Step
from atoll.serve.sequence import Sequence

log = logging.getLogger(__name__)

Rows = NDArray[np.float32]
"""Of a run: the logits, or the states, of those of its tokens of which they are wanted."""

_SIZES: Final = 15
"""Of steps that are told apart: up to 1, 2, 4 ... 8192 tokens, and more."""


@dataclass(slots=True)
class _Asked:
    """A request under way. `began`: its first tokens were passed; `spoke`: the answer's first was there."""

    request: Request
    sequence: Sequence
    answer: Answer
    grammar: Grammar | None
    ends: frozenset[int]
    came: float
    mean: Mean | None
    began: float | None = None
    spoke: float | None = None
    scored: list[Chosen] = field(default_factory=list)
    """The prompt's tokens, where they are asked for."""
    told: bool = False


@dataclass(slots=True)
class Counts:
    """What has happened since the engine was made."""

    engine_steps: int = 0
    iteration_tokens: int = 0
    """Tokens that passed the model."""
    preemptions: int = 0
    prefix_cache_queries: int = 0
    """Tokens of prompts that were looked for among what was there."""
    prefix_cache_hits: int = 0
    answers_failed: int = 0
    """By a mistake of ours."""
    spec_drafted_tokens: int = 0
    spec_accepted_tokens: int = 0


class Engine:
    """One model and all who ask it. `guesses`: how many tokens are guessed ahead; 0: none.

    Logits beyond the tokeniser's last token are left out: many models are padded to a round number of them.
    """

    def __init__(self, model: PagedModel, tokenizer: Tokenizer, limits: Limits, guesses: int = 0) -> None:
        self.model, self.tokenizer, self.limits, self.guesses = model, tokenizer, limits, guesses
        self.scheduler = Scheduler(KvPool(model.pages, PAGE_TOKENS), limits)
        self.counts = Counts()
        self.pace = Pace()
        self._steps = [0] * _SIZES
        self.watch: Callable[[Step], object] = lambda step: None
        """Told of each step before it is taken."""
        self._asked: dict[str, _Asked] = {}
        self._arrivals = 0
        self._grammars = Grammars(tokenizer)

    @property
    def busy(self) -> bool:
        """Is there anything to do?"""
        return bool(self._asked)

    def load(self) -> Load:
        pool = self.scheduler.pool
        running, waiting = len(self.scheduler.running), len(self.scheduler.waiting)
        counts = asdict(self.counts)
        steps = tuple(self._steps)
        return Load(
            running=running, waiting=waiting, pages=pool.pages, free_pages=pool.free, counts=counts, steps=steps
        )

    def add(self, request: Request) -> None:
        """It will be answered by `step`. InvalidRequest, ContextExceeded, Overloaded or DeadlineImpossible: it will
        not."""
        if request.id in self._asked:
            raise InvalidRequest("id", f"{request.id} is being answered already")
        prompt = self._prompt(request)
        self._check_bias(request)
        limit = self._limit(request, len(prompt))
        if len(self.scheduler.waiting) >= self.limits.waiting:
            raise Overloaded(f"{len(self.scheduler.waiting)} requests wait already, as many as may")
        self._check_deadline(request, prompt, limit)
        ends = self._ends(request)
        sequence = Sequence(
            request.id,
            prompt,
            (request.priority, self._arrivals),
            request.sampling,
            limit,
            ends=ends,
            wants_prompt=request.prompt_logprobs or request.embed,
        )
        answer = Answer(self.tokenizer, request.stop, silent=ends)
        grammar = self._grammars.open(request.grammar) if request.grammar is not None else None
        mean = Mean() if request.embed else None
        self._asked[request.id] = _Asked(request, sequence, answer, grammar, ends, here().now(), mean)
        self._arrivals += 1
        self.scheduler.add(sequence)

    def drop(self, id: str) -> None:
        """Nobody wants this answer any more. One that is over is no error."""
        asked = self._asked.pop(id, None)
        if asked is not None:
            self.scheduler.drop(asked.sequence)

    def step(self) -> list[tuple[str, Delta]]:
        """What came of a step, by request."""
        began = here().now()
        step = self.scheduler.schedule()
        self.counts.preemptions += step.preempted
        if not step.runs:
            return []
        self.watch(step)
        said = list[tuple[str, Delta]]()
        runs = [(self._asked[run.sequence.id], run) for run in step.runs]
        for asked, _ in runs:
            asked.began = began if asked.began is None else asked.began
        for (asked, run), rows in zip(runs, self._pass(step), strict=True):
            delta = self._advance_alone(asked, run, rows)
            if delta is not None:
                said.append((run.sequence.id, delta))
        self.counts.engine_steps += 1
        self.counts.iteration_tokens += step.tokens
        self._steps[min((step.tokens - 1).bit_length(), _SIZES - 1)] += 1
        self.pace.passed(step.tokens, here().now() - began)
        return said

    # -- a request ----------------------------------------------------------------------------------------------------

    def _prompt(self, request: Request) -> tuple[int, ...]:
        if not isinstance(request.prompt, Tokens):
            raise InvalidRequest("prompt", "an engine takes tokens")
        prompt = request.prompt.tokens
        if not prompt:
            raise InvalidRequest("prompt", "the prompt is empty")
        vocab = self.tokenizer.vocab_size
        if min(prompt) < 0 or max(prompt) >= vocab:
            raise InvalidRequest("prompt", f"the prompt has a token outside 0 to {vocab - 1}")
        return prompt

    def _limit(self, request: Request, prompt: int) -> int:
        """The most tokens the answer may have."""
        context = min(self.model.config.context, self.model.pages * PAGE_TOKENS)
        room = context - prompt
        asked = 0 if request.embed else request.max_tokens
        if room < (1 if asked is None else asked):
            raise ContextExceeded(
                "prompt" if room < 1 else "max_tokens",
                f"the prompt has {prompt} tokens and the answer may have {1 if asked is None else asked}; "
                f"the context has room for {context}",
            )
        return room if asked is None else asked

    def _check_deadline(self, request: Request, prompt: tuple[int, ...], limit: int) -> None:
        """Can it be there in time? Others' prompts pass before it, then its own, and then at least one token comes."""
        if request.deadline_s is None:
            return
        order = (request.priority, self._arrivals)
        before = [*self.scheduler.running, *(each for each in self.scheduler.waiting if each.order < order)]
        found, _ = self.scheduler.pool.match(() if request.embed or request.prompt_logprobs else prompt[:-1])
        self.scheduler.pool.release(found)
        sure = request.ignore_end and not (request.stop or request.stop_tokens)
        more = max(0, (limit if sure else min(limit, request.min_tokens)) - 1)
        wait_s = self._reading_s(sum(each.missing for each in before))
        own_s = self._reading_s(len(prompt) - len(found) * PAGE_TOKENS) + self.pace.seconds(more, more)
        if wait_s + own_s > request.deadline_s:
            raise DeadlineImpossible(
                f"the answer takes {wait_s + own_s:.2g} s at least as things are, {wait_s:.2g} s of it until it is its "
                f"turn; its deadline is in {request.deadline_s:.2g} s",
                retry_s=wait_s,
            )

    def _reading_s(self, tokens: int) -> float:
        """For so many tokens of prompts to pass."""
        return self.pace.seconds(-(-tokens // (self.limits.step_tokens or max(1, tokens))), tokens)

    def _check_bias(self, request: Request) -> None:
        bias, vocab = request.sampling.bias, self.tokenizer.vocab_size
        if bias and not 0 <= min(bias) <= max(bias) < vocab:
            raise InvalidRequest("logit_bias", f"logit_bias has a token outside 0 to {vocab - 1}")

    def _ends(self, request: Request) -> frozenset[int]:
        """What the model can't say ends nothing."""
        vocab = self.tokenizer.vocab_size
        ends = frozenset(token for token in request.stop_tokens if 0 <= token < vocab)
        return ends if request.ignore_end else ends | self.tokenizer.ends

    # -- a step -------------------------------------------------------------------------------------------------------

    def _pass(self, step: Step) -> list[Rows]:
        """What is wanted of each run. Texts that become vectors pass by themselves."""
        for sequence, pages in step.save:
            sequence.saved = self.model.save(pages)
        for sequence, pages in step.restore:
            self.model.restore(pages, sequence.saved)
            sequence.saved = None
        found: dict[str, Rows] = {}
        for embed, compute in ((False, self.model.forward), (True, self.model.states)):
            runs = [run for run in step.runs if self._asked[run.sequence.id].request.embed == embed]
            if not runs:
                continue
            slices = [Slice(run.tokens, run.sequence.computed, run.sequence.pages, run.wanted) for run in runs]
            rows = here().compute(replace(step, runs=runs).operation(), partial(compute, slices))
            rows = rows if embed else rows[:, : self.tokenizer.vocab_size]
            ends = np.cumsum([run.wanted for run in runs])
            found |= zip((run.sequence.id for run in runs), np.split(rows, ends[:-1]), strict=True)
        return [found[run.sequence.id] for run in step.runs]

    def _advance_alone(self, asked: _Asked, run: Run, rows: Rows) -> Delta | None:
        """What a run adds to its answer. What goes wrong there is no other's concern."""
        try:
            return self._advance(asked, run, rows) if asked.mean is None else self._embed(asked, asked.mean, run, rows)
        except Exception:
            log.exception("request %s failed, and only it", asked.request.id)
            self.counts.answers_failed += 1
            self.drop(asked.request.id)
            return Delta(finish="error")

    def _embed(self, asked: _Asked, mean: Mean, run: Run, states: Rows) -> Delta | None:
        mean.take(asked.sequence.computed, states)
        self.scheduler.advance(run, ())
        if asked.sequence.missing:
            return None
        self.drop(asked.request.id)
        prompt = len(asked.sequence.prompt)
        return Delta(embedding=mean.vector(), prompt_tokens=prompt, finish="stop", times=self._times(asked))

    def _advance(self, asked: _Asked, run: Run, rows: Rows) -> Delta | None:
        """Draw what can be drawn, and say what can be said."""
        sequence, request = asked.sequence, asked.request
        first = sequence.computed
        if request.prompt_logprobs and first < len(sequence.prompt) and not asked.told:
            self._score(asked, first, rows)
        rows = rows[len(rows) - 1 - len(sequence.draft) :] if run.draws else rows[:0]
        new = self.scheduler.advance(run, self._draw(asked, rows))
        if sequence.missing and not run.draws:
            return None
        text, used = "", 0
        for row, token in zip(rows, new, strict=False):
            chosen = None if request.logprobs is None else self._chosen(row, token, request.logprobs)
            text += asked.answer.push(token, chosen)
            used += 1
            if asked.answer.finish:
                break
        finish = self._finish(asked)
        if finish:
            text += asked.answer.end(finish)
        first_delta = not asked.told
        asked.told = True
        if first_delta:
            asked.spoke = here().now()
        if first_delta and not sequence.wants_prompt:
            self.counts.prefix_cache_queries += len(sequence.prompt)
            self.counts.prefix_cache_hits += sequence.cached or 0
        if finish:
            self.drop(request.id)
        elif self.guesses and asked.grammar is None:
            sequence.draft = lookup(sequence.tokens, self.guesses)
        return Delta(
            text=text,
            tokens=tuple(new[:used]),
            chosen=asked.answer.told(),
            prompt=tuple(asked.scored) if first_delta else (),
            prompt_tokens=len(sequence.prompt),
            cached_tokens=sequence.cached or 0,
            finish=finish,
            times=self._times(asked) if finish else None,
        )

    def _times(self, asked: _Asked) -> Times:
        """When it is over."""
        now = here().now()
        began = now if asked.began is None else asked.began
        spoke = now if asked.spoke is None else asked.spoke
        return Times(began - asked.came, spoke - began, now - spoke)

    def _draw(self, asked: _Asked, rows: Rows) -> list[int]:
        """The token after the run, and after each guess that was right. `rows` are the logits there, or none."""
        sequence, grammar = asked.sequence, asked.grammar
        sampling, drawn = sequence.sampling, list[int]()
        counts = sampling.presence_penalty or sampling.frequency_penalty
        said = sequence.tokens[len(sequence.prompt) :] if counts else []
        for row, guess in zip(rows, [*sequence.draft, None], strict=False):
            place = sequence.answered + len(drawn)
            banned = asked.ends if place < asked.request.min_tokens else ()
            if grammar is not None:
                row = grammar.allowed(row)
            drawn.append(draw(row, sampling, place, said + drawn if counts else (), banned))
            if grammar is not None:
                grammar.take(drawn[-1])
            if drawn[-1] != guess:
                break
        self.counts.spec_drafted_tokens += len(sequence.draft)
        self.counts.spec_accepted_tokens += max(0, len(drawn) - 1)
        return drawn

    def _finish(self, asked: _Asked) -> Finish | None:
        sequence = asked.sequence
        if asked.answer.finish:
            return asked.answer.finish
        if sequence.answered and sequence.tokens[-1] in asked.ends:
            return "stop"
        if asked.grammar is not None and asked.grammar.over:
            return "stop"
        return "length" if sequence.over else None

    # -- log-probabilities --------------------------------------------------------------------------------------------

    def _score(self, asked: _Asked, first: int, rows: Rows) -> None:
        """The prompt's tokens from `first + 1` on, by the rows of those before them. Who had to step back is scored
        again."""
        prompt, top = asked.sequence.prompt, asked.request.logprobs or 0
        del asked.scored[first + 1 :]
        if not asked.scored:
            asked.scored.append(self._spelled(prompt[0], None))
        for row, token in zip(rows, prompt[first + 1 : first + 1 + len(rows)], strict=False):
            asked.scored.append(self._chosen(row, token, top))

    def _chosen(self, row: Row, token: int, top: int) -> Chosen:
        values = log_probabilities(row)
        others = likeliest(values, top)
        return self._spelled(token, float(values[token]), tuple((each, float(values[each])) for each in others))

    def _spelled(self, token: int, logprob: float | None, top: Listed[tuple[int, float]] = ()) -> Chosen:
        def text(spelling: bytes) -> str:
            return spelling.decode(errors="replace")

        spelling = self.tokenizer.spelling(token)
        others = tuple((each, text(s), s, value) for each, value in top for s in (self.tokenizer.spelling(each),))
        return Chosen(token, text(spelling), spelling, logprob, others)
