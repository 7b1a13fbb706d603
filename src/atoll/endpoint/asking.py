"""Policy: from the body of a call to what an endpoint is asked: one `Request` for each answer that is wanted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from atoll.endpoint.api import Conversation, Prompt, Request, Sampling, Text, Tokens
from atoll.endpoint.fields import Fields, token_ids
from atoll.endpoint.grammars import Tools, grammar_of, tools_of
from atoll.errors import InvalidRequest

MOST_ANSWERS: Final = 128
"""Of one call, all prompts together."""
MOST_PROMPTS: Final = 128
MOST_STOPS: Final = 4
MOST_TOKENS: Final = 1 << 30
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
PARTS: Final = ("text", "input_text", "output_text")
"""Of a content: a text, however it is called."""


@dataclass(frozen=True)
class Asked:
    """A call. Of each `best_of` requests in a row the answers are to the same prompt, and `n` of them are given.

    `usage`: whether a stream ends with it; `usage_always`: whether it says so all along. `token_ids`: whether it tells
    tokens by number, too. `called`: what the body calls a field of a `Request`, where it is another name. `repeated`:
    what of the body the answer says again.
    """

    model: str
    requests: tuple[Request, ...]
    n: int
    best_of: int
    chat: bool
    stream: bool
    usage: bool
    usage_always: bool
    token_ids: bool
    echo: bool
    logprobs: bool
    tools: Tools | None
    called: Mapping[str, str]
    repeated: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """What isn't said in the body: the call's id, and a seed for who named none."""

    id: str
    seed: Callable[[], int]


def completion(fields: Fields, drawn: Drawn) -> Asked:
    """A body of /v1/completions."""
    asked = prompts(fields, "prompt", MOST_PROMPTS)
    n = fields.whole("n", 1, MOST_ANSWERS) or 1
    best_of = fields.whole("best_of", n, MOST_ANSWERS) or n
    stream = fields.flag("stream")
    if stream and best_of > n:
        raise fields.wrong("best_of", "can't be had with stream, since the best is known when all are there")
    logprobs, echo = fields.whole("logprobs", 0, 5), fields.flag("echo")
    max_tokens = fields.whole("max_tokens", 0, MOST_TOKENS)
    kind = {
        "max_tokens": 16 if max_tokens is None else max_tokens,
        "logprobs": 0 if logprobs is None and best_of > n else logprobs,
        "prompt_logprobs": echo and logprobs is not None,
        "grammar": grammar_of(fields.object("response_format"), "json_schema"),
        "token_ids": fields.flag("return_token_ids"),
    }
    requests = requests_for(fields, drawn, asked, best_of, kind)
    return _asked(
        fields, requests, n, best_of, chat=False, echo=echo, logprobs=logprobs is not None, tools=None, called={}
    )


def chat(fields: Fields, drawn: Drawn) -> Asked:
    """A body of /v1/chat/completions."""
    tools = tools_of(fields, "function")
    shown = tuple(tools.described) if tools is not None else ()
    prompt = Conversation(_messages(fields), shown)
    n = fields.whole("n", 1, MOST_ANSWERS) or 1
    logprobs = fields.flag("logprobs")
    top = fields.whole("top_logprobs", 0, 20)
    if top is not None and not logprobs:
        raise fields.wrong("top_logprobs", "needs logprobs: true")
    called = {"prompt": "messages", "max_tokens": "max_completion_tokens"}
    max_tokens = fields.whole("max_completion_tokens", 1, MOST_TOKENS)
    if max_tokens is None:
        max_tokens = fields.whole("max_tokens", 1, MOST_TOKENS)
        called["max_tokens"] = "max_tokens"
    grammar = grammar_of(fields.object("response_format"), "json_schema")
    kind = {
        "max_tokens": max_tokens,
        "logprobs": (top or 0) if logprobs else None,
        "grammar": tools.grammar if tools is not None and tools.forced else grammar,
        "token_ids": fields.flag("return_token_ids"),
    }
    requests = requests_for(fields, drawn, [prompt], n, kind)
    return _asked(fields, requests, n, n, chat=True, echo=False, logprobs=logprobs, tools=tools, called=called)


def text(fields: Fields) -> tuple[str, str]:
    """A body of /tokenize: the model, "" for the one there is, and a text."""
    return fields.text("model"), fields.required_text("prompt")


def tokens(fields: Fields) -> tuple[str, tuple[int, ...]]:
    """A body of /detokenize: the model, as before, and tokens."""
    return fields.text("model"), fields.tokens("tokens")


def _asked(
    fields: Fields, requests: tuple[Request, ...], n: int, best_of: int, *, chat: bool, echo: bool, logprobs: bool,
    tools: Tools | None, called: Mapping[str, str],
) -> Asked:  # fmt: skip
    options = fields.object("stream_options") or Fields({})
    always = options.flag("continuous_usage_stats")
    return Asked(
        model=requests[0].model,
        requests=requests,
        n=n,
        best_of=best_of,
        chat=chat,
        stream=fields.flag("stream"),
        usage=options.flag("include_usage"),
        usage_always=always,
        token_ids=requests[0].token_ids,
        echo=echo,
        logprobs=logprobs,
        tools=tools,
        called=called,
    )


def requests_for(
    fields: Fields, drawn: Drawn, prompts: Sequence[Prompt], each: int, kind: Mapping[str, Any]
) -> tuple[Request, ...]:
    """So many for each prompt, with what all paths name alike."""
    if len(prompts) * each > MOST_ANSWERS:
        raise fields.wrong("n", f"asks for {len(prompts) * each} answers in one call; at most {MOST_ANSWERS} are given")
    seed = fields.whole("seed", -(1 << 63), (1 << 63) - 1)
    seed = drawn.seed() if seed is None else seed
    common: dict[str, Any] = {
        **standing(fields),
        "min_tokens": fields.whole("min_tokens", 0, MOST_TOKENS) or 0,
        "stop": _stops(fields),
        "stop_tokens": fields.tokens("stop_token_ids"),
        "ignore_end": fields.flag("ignore_eos"),
        **kind,
    }
    return tuple(
        Request(id=f"{drawn.id}-{i}", prompt=prompt, sampling=_sampling(fields, seed + j), **common)
        for i, (prompt, j) in enumerate((prompt, j) for prompt in prompts for j in range(each))
    )


def standing(fields: Fields) -> dict[str, Any]:
    """Of whom, by when: what requests of all kinds have."""
    slo = fields.object("slo") or Fields({})
    deadline_ms = slo.number("deadline_ms", 0, 1e9, -1.0)
    return {
        "model": fields.required_text("model"),
        "priority": fields.whole("priority", -(1 << 31), 1 << 31) or 0,
        "deadline_s": deadline_ms / 1000 if deadline_ms >= 0 else None,
        "session": fields.text("session_id"),
        "labels": _labels(fields, slo),
    }


def _sampling(fields: Fields, seed: int) -> Sampling:
    bias = fields.object("logit_bias")
    return Sampling(
        temperature=fields.number("temperature", 0.0, 2.0, 1.0),
        top_p=fields.share("top_p", 1.0),
        top_k=max(0, fields.whole("top_k", -1, 1 << 31) or 0),
        min_p=fields.number("min_p", 0.0, 1.0, 0.0),
        seed=seed,
        presence_penalty=fields.number("presence_penalty", -2.0, 2.0, 0.0),
        frequency_penalty=fields.number("frequency_penalty", -2.0, 2.0, 0.0),
        bias=_bias(bias) if bias is not None else {},
    )


def _bias(fields: Fields) -> dict[int, float]:
    found = {}
    for name in fields:
        if not name.isascii() or not name.isdigit() or len(name) > 9:
            raise fields.wrong(name, "is no token id")
        found[int(name)] = fields.number(name, -100.0, 100.0, 0.0)
    return found


def _labels(fields: Fields, slo: Fields) -> dict[str, str]:
    """What routers, schedulers and metrics may look at."""
    slo.text("class")
    for target in ("ttft_ms", "tbt_ms"):
        slo.number(target, 0, 1e9, 0)
    found = {"offline": "1"} if fields.flag("offline") else {}
    return found | {name: str(slo.get(name)) for name in slo if slo.get(name) is not None}


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    stops = [value] if isinstance(value, str) else fields.list("stop")
    if len(stops) > MOST_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise fields.wrong("stop", f"must be a text, or a list of at most {MOST_STOPS}, none of them empty")
    return tuple(stops)


def prompts(fields: Fields, name: str, most: int) -> list[Prompt]:
    """A text, texts, tokens, or lists of tokens."""
    value = fields.required(name)
    if isinstance(value, str):
        return [Text(value)]
    if not isinstance(value, list) or not value:
        raise fields.wrong(name, "must be a text, a list of texts, token ids, or a list of lists of them")
    if all(type(each) in (int, float) for each in value):
        return [Tokens(token_ids(value, fields, name))]
    if len(value) > most:
        raise fields.wrong(name, f"holds {len(value)} prompts; at most {most} are taken in one call")
    found: list[Prompt] = []
    for each in value:
        if isinstance(each, str):
            found.append(Text(each))
        elif isinstance(each, list) and each:
            found.append(Tokens(token_ids(each, fields, name)))
        else:
            raise fields.wrong(name, "must be a text, a list of texts, token ids, or a list of lists of them")
    return found


def _messages(fields: Fields) -> tuple[dict[str, Any], ...]:
    messages = fields.required("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.wrong("messages", "must be a list of at least one message")
    found = []
    for i, each in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(each, dict):
            raise InvalidRequest(where, f"{where} must be an object")
        found.append({**each, **message(Fields(each, f"{where}."), ROLES)})
    return tuple(found)


def message(fields: Fields, roles: Sequence[str]) -> dict[str, Any]:
    """Role and content of one."""
    role = fields.required("role")
    if role not in roles:
        raise fields.wrong("role", f"must be one of {', '.join(roles)}")
    silent = role == "assistant" and fields.get("content") is None
    return {"role": "system" if role == "developer" else role, "content": "" if silent else content(fields, "content")}


def content(fields: Fields, name: str) -> str:
    """A text, or a list of its parts."""
    found = fields.required(name)
    if isinstance(found, list):
        return "".join(_part(part, fields.within(f"{name}[{j}].")) for j, part in enumerate(found))
    if not isinstance(found, str):
        raise fields.wrong(name, "must be a text or a list of parts")
    return found


def _part(part: Any, where: str) -> str:
    fields = Fields(part if isinstance(part, dict) else {}, where)
    if fields.get("type") not in PARTS:
        raise fields.wrong("type", "must be text: nothing else is understood here")
    text = fields.required("text")
    if not isinstance(text, str):
        raise fields.wrong("text", "must be a text")
    return text
