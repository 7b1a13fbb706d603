"""Driver: a server elsewhere that speaks OpenAI's API, as an `Endpoint`; by the httpx library."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from atoll.endpoint.api import Chosen, Conversation, Delta, Finish, Load, Request, Served, Text, Tokens
from atoll.endpoint.calls import BEGIN, END
from atoll.endpoint.events import Events
from atoll.errors import (
    ContextExceeded,
    DeadlineImpossible,
    DeadlinePassed,
    Draining,
    EngineLost,
    InvalidConfig,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestFailed,
    Unavailable,
)
from atoll.model.api import Tokenizer

if TYPE_CHECKING:
    import httpx

PATIENCE_S: Final = 600.0
"""For which nothing may come."""
CONNECT_S: Final = 5.0
LOOK_S: Final = 5.0
"""How often the models there are asked for again."""
MOST_WAIT_S: Final = 3600.0
"""That a server may ask for before it is asked again."""


class Upstream:
    """`url` as http://HOST:PORT, with or without /v1 at its end; InvalidConfig: it is none. `key`: what the server asks
    for."""

    def __init__(self, url: str, *, key: str | None = None, patience_s: float = PATIENCE_S) -> None:
        httpx = _httpx()
        if not _is_address(httpx, url):
            raise InvalidConfig(f"{url!r} is no address of a server; write http://HOST:PORT")
        self.url = url.rstrip("/").removesuffix("/v1")
        headers = {b"Authorization": f"Bearer {key}".encode()} if key else {}
        timeout = httpx.Timeout(patience_s, connect=CONNECT_S)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, limits=limits)
        self._served: tuple[Served, ...] = ()
        self._running = 0
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask what is served there, now and again and again. Unavailable: it can't be reached yet."""
        self._looking = asyncio.create_task(self._look_again(), name=f"models-of-{self.url}")
        await self.look()

    async def close(self) -> None:
        """Close all connections."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        await self._client.aclose()

    async def look(self) -> None:
        """Ask what is served there. Unavailable: it can't be reached, or answers in no way known here."""
        try:
            answer = await self._client.get("/v1/models", timeout=CONNECT_S)
            if answer.status_code != 200:
                raise Unavailable(f"{self.url}/v1/models answers {answer.status_code}")
            cards = answer.json()["data"]
            self._served = tuple(
                Served(
                    name=str(card["id"]),
                    context=int(card.get("max_model_len") or 0),
                    created=int(time.time()),
                    chat=card.get("chat") is not False,
                )
                for card in cards
            )
        except _httpx().HTTPError as error:
            self._served = ()
            raise Unavailable(f"{self.url} can't be reached: {error or type(error).__name__}") from error
        except (ValueError, KeyError, TypeError) as error:
            self._served = ()
            raise Unavailable(f"{self.url}/v1/models is no list of models: is it a server of OpenAI's API?") from error

    # -- Endpoint -----------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        """See `endpoint.api.Endpoint`."""
        if request.embed:
            yield await self._embedded(request)
            return
        path, body = _body(request)
        httpx = _httpx()
        self._running += 1
        usage: dict[str, Any] = {}
        numbered = 0
        finish: Finish | None = None
        calls: dict[int, dict[str, str]] = {}
        try:
            async with (
                asyncio.timeout(request.deadline_s),
                self._client.stream("POST", path, json=body) as answer,
            ):
                if answer.status_code != 200:
                    raise _error(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
                async for event in _events(answer):
                    if "error" in event:
                        lost = _code(event) == "engine_lost"
                        raise (EngineLost if lost else RequestFailed)(f"{self.url}: {_message(event)}")
                    usage = event.get("usage") or usage
                    for choice in event.get("choices") or ():
                        finish = _finish(choice.get("finish_reason")) or finish
                        _gather(calls, choice)
                        delta = _delta(choice)
                        if delta is not None:
                            numbered += len(delta.tokens)
                            yield delta
        except (TimeoutError, httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._ours(error, request) from error
        finally:
            self._running -= 1
        if finish is None:
            raise EngineLost(f"{self.url} broke off in the middle of the answer")
        for call in calls.values():
            yield Delta(text=f'{BEGIN}{{"name": {json.dumps(call["name"])}, "arguments": {call["arguments"]}}}{END}')
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        yield Delta(
            unnumbered=max(0, usage.get("completion_tokens", 0) - numbered),
            prompt_tokens=usage.get("prompt_tokens", 0),
            cached_tokens=cached,
            finish=finish,
        )

    async def _embedded(self, request: Request) -> Delta:
        """A text as a vector, by a model there."""
        match request.prompt:
            case Text(text):
                prompt: Any = text
            case Tokens(tokens):
                prompt = tokens
            case _:
                raise InvalidRequest("input", "a conversation can't be made a vector")
        self._running += 1
        try:
            async with asyncio.timeout(request.deadline_s):
                body = {"model": request.model, "input": prompt, "encoding_format": "float"}
                answer = await self._client.post("/v1/embeddings", json=body)
            if answer.status_code != 200:
                raise _error(answer.status_code, answer.content, answer.headers.get("retry-after"))
            told = answer.json()
            vector = tuple(float(number) for number in told["data"][0]["embedding"])
            tokens_read = int((told.get("usage") or {}).get("prompt_tokens") or 0)
        except (TimeoutError, _httpx().HTTPError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._ours(error, request) from error
        finally:
            self._running -= 1
        return Delta(embedding=vector, prompt_tokens=tokens_read, finish="stop")

    def _ours(self, error: Exception, request: Request) -> RequestFailed:
        """What went wrong between here and there."""
        httpx = _httpx()
        if isinstance(error, TimeoutError):
            return DeadlinePassed(f"the answer was not there within {request.deadline_s} s")
        if isinstance(error, httpx.TimeoutException):
            return EngineLost(f"{self.url} says nothing any more")
        if isinstance(error, httpx.HTTPError):
            return EngineLost(f"{self.url}: {str(error) or type(error).__name__}")
        return RequestFailed(f"{self.url} answers in no way known here: {error}")

    def load(self) -> Load:
        """Of what went through here."""
        return Load(running=self._running)

    def describe(self) -> tuple[Served, ...]:
        """As of the last look."""
        return self._served

    def tokenizer(self, model: str) -> Tokenizer | None:
        """Only the server has it."""
        if all(served.name != model for served in self._served):
            raise NotServed(f"there is no model {model!r} at {self.url}")
        return None

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(Unavailable):
                await self.look()


def _body(request: Request) -> tuple[str, dict[str, Any]]:
    """Where to, and what."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(request.stop) or None,
        "logit_bias": {str(token): bias for token, bias in sampling.bias.items()} or None,
        # What not every server knows is sent only where it is asked for.
        "top_k": sampling.top_k or None,
        "min_p": sampling.min_p or None,
        "min_tokens": request.min_tokens or None,
        "ignore_eos": request.ignore_end or None,
        "stop_token_ids": list(request.stop_tokens) or None,
        "priority": request.priority or None,
        "return_token_ids": request.token_ids or None,
        "session_id": request.session or None,
    }
    if request.grammar is not None:
        schema = _schema(request.grammar)
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {name: value for name, value in body.items() if value is not None}
    match request.prompt:
        case Conversation(messages, tools):
            body |= {"messages": messages} | ({"tools": tools} if tools else {})
            if request.logprobs is not None:
                body |= {"logprobs": True, "top_logprobs": request.logprobs}
            return "/v1/chat/completions", body
        case Text(text):
            body["prompt"] = text
        case Tokens(tokens):
            body["prompt"] = tokens
    if request.prompt_logprobs:
        raise InvalidRequest("echo", "a server elsewhere isn't asked for the log-probabilities of a prompt")
    if request.max_tokens is None:
        body["max_tokens"] = 1 << 16
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    return "/v1/completions", body


def _schema(grammar: str) -> Any:
    """What a grammar was made of. InvalidRequest for one that is no schema."""
    try:
        return json.loads(grammar)["grammars"][0]["json_schema"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidRequest("grammar", "only schemas can be sent to a server elsewhere") from error


async def _events(answer: "httpx.Response") -> AsyncGenerator[dict[str, Any], None]:
    events = Events()
    async for data in answer.aiter_bytes():
        for event in events.push(data):
            yield event
        if events.over:
            return


def _delta(choice: dict[str, Any]) -> Delta | None:
    """What a choice adds, if anything."""
    inside = choice.get("delta")
    text = choice.get("text") if inside is None else inside.get("content")
    chosen = _chosen(choice.get("logprobs"))
    tokens = choice.get("token_ids") or ()
    if not all(type(token) is int for token in tokens):
        raise ValueError("token ids that are no numbers")
    return Delta(text=text or "", tokens=tuple(tokens), chosen=chosen) if text or chosen or tokens else None


def _gather(calls: dict[int, dict[str, str]], choice: dict[str, Any]) -> None:
    """Calls of functions, which come in parts; in an answer here they are text."""
    for part in (choice.get("delta") or {}).get("tool_calls") or ():
        call = calls.setdefault(part["index"], {"name": "", "arguments": ""})
        for name in call:
            call[name] += (part.get("function") or {}).get(name) or ""


def _chosen(logprobs: dict[str, Any] | None) -> tuple[Chosen, ...]:
    """Their numbers are not known here."""
    if not logprobs:
        return ()
    if logprobs.get("content") is not None:
        return tuple(
            Chosen(-1, each["token"], bytes(each.get("bytes") or each["token"].encode()), each["logprob"], tuple(
                (-1, top["token"], bytes(top.get("bytes") or top["token"].encode()), top["logprob"])
                for top in each.get("top_logprobs") or ()
            ))
            for each in logprobs["content"]
        )  # fmt: skip
    tops = logprobs.get("top_logprobs") or [None] * len(logprobs.get("tokens", ()))
    return tuple(
        Chosen(-1, token, token.encode(), value, tuple((-1, t, t.encode(), v) for t, v in (top or {}).items()))
        for token, value, top in zip(logprobs.get("tokens", ()), logprobs.get("token_logprobs", ()), tops, strict=True)
    )


def _finish(reason: str | None) -> Finish | None:
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"


def _error(status: int, data: bytes, retry: str | None) -> RequestFailed:
    """Ours, for theirs."""
    try:
        told = json.loads(data)
    except ValueError:
        told = {}
    message = _message(told) or f"status {status}"
    field, code = str(_inside(told).get("param") or ""), _code(told)
    retry_s = _seconds(retry)
    match status:
        case 400 if code == "context_length_exceeded":
            return ContextExceeded(field, message)
        case 400 | 413 | 422:
            return InvalidRequest(field, message)
        case 404:
            return NotServed(message)
        case 429:
            return Overloaded(message, retry_s)
        case 503 if code == "deadline_impossible":
            return DeadlineImpossible(message, retry_s)
        case 503:
            return Draining(message, retry_s)
        case 504:
            return DeadlinePassed(message)
        case _ if code == "engine_lost" or (status == 502 and code is None):  # of a proxy: nobody is behind it
            return EngineLost(message)
        case _:
            return RequestFailed(f"the server elsewhere answers {status}: {message}")


def _seconds(retry: str | None) -> float:
    """What a Retry-After says; a date is taken for soon."""
    try:
        said = float(retry or 1.0)
    except ValueError:
        return 1.0
    return min(said, MOST_WAIT_S) if said >= 0 else 1.0


def _inside(told: Any) -> dict[str, Any]:
    """What stands in an error's body."""
    inside = told.get("error") if isinstance(told, dict) else None
    return inside if isinstance(inside, dict) else {}


def _code(told: Any) -> Any:
    return _inside(told).get("code")


def _message(told: Any) -> str:
    inside = told.get("error", told) if isinstance(told, dict) else told
    return str(inside.get("message", "")) if isinstance(inside, dict) else str(inside)


def _is_address(httpx: Any, url: str) -> bool:
    try:
        return httpx.URL(url).scheme in ("http", "https")
    except httpx.InvalidURL:
        return False


def _httpx() -> Any:
    try:
        import httpx
    except ImportError as error:
        raise InvalidConfig("to ask servers elsewhere needs httpx: pip install 'atoll[serve]'") from error
    return httpx
