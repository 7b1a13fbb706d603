"""Interface: a model that answers. What asks it, what wraps it and what is it all meet here.

An endpoint may be an engine on this machine, a pool of them, a router, a cache, or a server elsewhere (`Upstream`).
"""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal, Protocol

import msgspec

from atoll.model.api import Tokenizer

Finish = Literal["stop", "length", "error"]


class Text(msgspec.Struct, frozen=True, tag="text"):
    """A prompt to go on from."""

    text: str


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """The same, as tokens."""

    tokens: tuple[int, ...]


class Conversation(msgspec.Struct, frozen=True, tag="conversation"):
    """A chat to answer, and the functions that may be called, both as OpenAI's clients send them."""

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()


Prompt = Text | Tokens | Conversation


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How tokens are drawn. Temperature 0: always the likeliest. `top_k` 0, `top_p` 1 and `min_p` 0 leave out none.

    The same seed and request give the same tokens, whatever else is asked at the time.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = {}


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that is wanted. `id` is unique.

    `max_tokens` None: as many as fit. `stop`: texts at which the answer ends, before them. `logprobs`: with each token
    its log-probability and those of so many likelier ones; None: none. `prompt_logprobs`: the same of the prompt.
    `grammar`: what the answer must match, in llguidance's serialised form. `priority`: lower goes first.
    `deadline_s`: from now on, for the whole answer. `token_ids`: the answer's tokens are wanted by number, which only
    servers elsewhere need to be told. `labels`: what a router or scheduler may want to know beside.
    `embed`: no answer, but the prompt as a vector.
    """

    id: str
    model: str
    prompt: Prompt
    max_tokens: int | None = None
    min_tokens: int = 0
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_end: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False
    grammar: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    token_ids: bool = False
    session: str = ""
    labels: Mapping[str, str] = {}
    embed: bool = False


class Chosen(msgspec.Struct, frozen=True):
    """A token and its log-probability in the model's own distribution: before temperature, penalties and bias.

    `top`: likelier and less likely ones, (token, its text, log-probability). The first token of a prompt has none.
    """

    token: int
    text: str
    nbytes: bytes
    logprob: float | None
    top: tuple[tuple[int, str, bytes, float], ...] = ()


class Times(msgspec.Struct, frozen=True):
    """Seconds a request waited, its prompt was read, and it was answered, by its engine's clock. `engine`: which of
    several, by name."""

    queue_s: float
    prefill_s: float
    decode_s: float
    engine: str = "0"


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What there is more of an answer. The texts together are the answer; a text may be empty.

    `chosen` where log-probabilities were asked for: the tokens whose text has been said. The last delta has `finish`,
    and no other, and `times` where the engine is known. `prompt`: the prompt's tokens, on the first where
    `prompt_logprobs` were asked for. `embedding`: of length 1, where that was asked for.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    prompt: tuple[Chosen, ...] = ()
    unnumbered: int = 0
    """More tokens, whose numbers only a server elsewhere knows."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish: Finish | None = None
    times: Times | None = None
    embedding: tuple[float, ...] = ()


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """How busy it is. Pages are those of keys and values; 0 of 0 where nobody knows. `counts`: of what has happened
    since it began, by what metrics call them, as `preemptions`. `steps`: how many had up to 1, 2, 4 ... tokens, and at
    the end how many had more. `instances`: how many engines are "ready", "starting" or "lost". `engines`: of several,
    each one's own, by name; all else is then their sum."""

    running: int = 0
    waiting: int = 0
    pages: int = 0
    free_pages: int = 0
    counts: Mapping[str, int] = {}
    steps: tuple[int, ...] = ()
    instances: Mapping[str, int] = {}
    engines: Mapping[str, "Load"] = {}


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked for. `created`: seconds since 1970."""

    name: str
    context: int
    created: int
    chat: bool = True


class Endpoint(Protocol):
    """A model, or several, that answer."""

    def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """The answer, as it comes. Closing the iterator (`aclose`) gives it up and frees all it held.

        Errors, before the first delta or after any: `NotServed` (no such model), `InvalidRequest` (names the field),
        `ContextExceeded`, `Overloaded` (asks to come back), `DeadlineImpossible`, `DeadlinePassed`, `AnswerFailed`,
        `EngineLost`.
        """

    def load(self) -> Load: ...

    def describe(self) -> tuple[Served, ...]:
        """Empty while none is ready."""

    def tokenizer(self, model: str) -> Tokenizer | None:
        """That of the model; None where only the server elsewhere has it. `NotServed` for one that isn't there."""
