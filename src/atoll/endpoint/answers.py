"""Policy: answers as OpenAI's API writes them: one body, or a stream of events."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from encodings.utf_8 import IncrementalDecoder
from typing import Any, Final

import msgspec

from atoll.endpoint.api import Chosen, Delta
from atoll.endpoint.asking import Asked
from atoll.endpoint.calls import Calls

FINGERPRINT: Final = "atoll"
DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
_BREAKS: Final = {"\x85": b"\\u0085", "\u2028": b"\\u2028", "\u2029": b"\\u2029"}
"""What some readers of lines take for the end of one; JSON doesn't ask to escape it."""


@dataclass
class Choice:
    """One answer as it comes."""

    calls: Calls | None
    text: str = ""
    chosen: list[Chosen] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    unnumbered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt: tuple[Chosen, ...] = ()
    begins: list[int] = field(default_factory=list)
    """Where in the text each token of `prompt` and `chosen` begins: before so many characters, the last maybe half."""
    finish: str | None = None
    made: list[dict[str, Any]] = field(default_factory=list)
    _end: int = 0
    _decoder: IncrementalDecoder = field(default_factory=lambda: IncrementalDecoder("replace"))

    def take(self, delta: Delta) -> str:
        """What is said to the user now."""
        said = delta.text if self.calls is None else self.calls.push(delta.text)
        self.chosen += delta.chosen
        for each in (*delta.prompt, *delta.chosen):
            self.begins.append(self._end)
            self._end += len(self._decoder.decode(each.nbytes))
        self.ids += delta.tokens
        self.unnumbered += delta.unnumbered
        self.prompt = self.prompt or delta.prompt
        self.prompt_tokens, self.cached_tokens = delta.prompt_tokens, delta.cached_tokens
        if delta.finish is not None:
            self.finish = delta.finish
            if self.calls is not None:
                rest, self.made = self.calls.end()
                said += rest
                if self.made:
                    self.finish = "tool_calls"
        self.text += said
        return said

    @property
    def tokens(self) -> int:
        """How many so far."""
        return len(self.ids) + self.unnumbered

    @property
    def mean_logprob(self) -> float:
        """For the best of several."""
        values = [chosen.logprob or 0.0 for chosen in self.chosen]
        return sum(values) / max(1, len(values))


def choices_of(asked: Asked) -> list[Choice]:
    """One for each request, before anything has come."""
    return [Choice(None if asked.tools is None else Calls(asked.tools.forced)) for _ in asked.requests]


class Answers:
    """All answers of a call. `echoes`: the prompts' texts, where they are to be said too."""

    def __init__(self, asked: Asked, id: str, created: int, echoes: Sequence[str] = ()) -> None:
        self.id = id
        self.asked, self._echoes = asked, echoes
        self.choices = choices_of(asked)
        kind = "chat.completion" if asked.chat else "text_completion"
        if asked.chat and asked.stream:
            kind += ".chunk"
        self._name = id.partition("-")[2][:20]
        self._head: dict[str, Any] = {
            "id": id,
            "object": kind,
            "created": created,
            "model": asked.model,
            "system_fingerprint": FINGERPRINT,
        }
        head = on_one_line(self._head)[:-1]
        self._begin = b"data: " + head + b',"choices":[{"index":'
        self._middle = b',"delta":{"content":' if asked.chat else b',"text":'
        self._are_plain = not (asked.logprobs or asked.usage_always or asked.token_ids)
        self._end = (b"}" if asked.chat else b"") + b',"logprobs":null,"finish_reason":null}]'
        self._close = b',"usage":null}\n\n' if asked.usage else b"}\n\n"

    # -- one body -----------------------------------------------------------------------------------------------------

    def body(self) -> dict[str, Any]:
        """When all have ended."""
        given = self._given()
        each = self._message if self.asked.chat else self._completion
        return {**self._head, "choices": [each(i, n) for i, n in enumerate(given)], "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Prompts count once, however many answers they have."""
        prompts = self.choices[:: self.asked.best_of]
        prompt, written = sum(c.prompt_tokens for c in prompts), sum(c.tokens for c in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(c.cached_tokens for c in prompts)},
        }

    def _given(self) -> list[int]:
        """The answers that are given, the best of each prompt first where there were more."""
        n, of = self.asked.n, self.asked.best_of
        found: list[int] = []
        for at in range(0, len(self.choices), of):
            these = list(range(at, at + of))
            if of > n:
                these.sort(key=lambda i: -self.choices[i].mean_logprob)
            found += these[:n]
        return found

    def _message(self, index: int, number: int) -> dict[str, Any]:
        choice = self.choices[number]
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.made:
            message["content"] = choice.text or None
            message["tool_calls"] = [self._call(number, i, call) for i, call in enumerate(choice.made)]
        logprobs = {"content": [scored(c) for c in choice.chosen], "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs if self.asked.logprobs else None,
            "finish_reason": choice.finish,
            **self._numbers(choice.ids),
        }

    def _completion(self, index: int, number: int) -> dict[str, Any]:
        choice = self.choices[number]
        logprobs = _logprobs([*choice.prompt, *choice.chosen], choice.begins)
        return {
            "index": index,
            "text": self._echo(number) + choice.text,
            "logprobs": logprobs if self.asked.logprobs else None,
            "finish_reason": choice.finish,
            **self._numbers(choice.ids),
        }

    def _numbers(self, ids: Sequence[int]) -> dict[str, Any]:
        """As vLLM tells them, where they are asked for."""
        return {"token_ids": list(ids)} if self.asked.token_ids else {}

    def _echo(self, number: int) -> str:
        return self._echoes[number // self.asked.best_of] if self.asked.echo else ""

    def _call(self, number: int, i: int, call: dict[str, Any]) -> dict[str, Any]:
        id = f"call_{self._name}{number:02d}{i:02d}"
        return {"id": id, "type": "function", "function": call}

    # -- a stream -----------------------------------------------------------------------------------------------------

    def opening(self) -> list[bytes]:
        """What comes before any token."""
        if not self.asked.chat:
            return []
        return [self._event(n, {"delta": {"role": "assistant", "content": ""}}) for n in range(len(self.choices))]

    def events(self, number: int, delta: Delta) -> list[bytes]:
        """What a delta adds to the stream."""
        choice = self.choices[number]
        first = not choice.tokens and not choice.text
        said = choice.take(delta)
        if first and self.asked.echo:
            said = self._echo(number) + said
        if self._are_plain and not choice.made and choice.finish is None:
            return [self._plain(number, said)] if said else []
        events: list[bytes] = []
        if said or delta.chosen or (first and choice.prompt) or (self.asked.token_ids and delta.tokens):
            events.append(self._said(number, said, delta))
        for i, call in enumerate(choice.made):
            made = self._call(number, i, call)
            begun = {"index": i, **made, "function": {"name": call["name"], "arguments": ""}}
            events.append(self._event(number, {"delta": {"tool_calls": [begun]}}))
            rest = {"index": i, "function": {"arguments": call["arguments"]}}
            events.append(self._event(number, {"delta": {"tool_calls": [rest]}}))
        if choice.finish is not None:
            last: dict[str, Any] = {"delta": {}} if self.asked.chat else {"text": ""}
            events.append(self._event(number, last, choice.finish))
        return events

    def _plain(self, number: int, said: str) -> bytes:
        """By far the most frequent event: only the text has to be encoded."""
        return b"%b%d%b%b%b%b" % (self._begin, number, self._middle, on_one_line(said), self._end, self._close)

    def closing(self) -> list[bytes]:
        """What comes when all have ended."""
        events = [DONE]
        if self.asked.usage:
            events.insert(0, b"data: " + on_one_line({**self._head, "choices": [], "usage": self.usage()}) + b"\n\n")
        return events

    def failed(self, error: dict[str, Any]) -> bytes:
        """What comes instead, when it can't go on."""
        return b"data: " + json.dumps(error).encode() + b"\n\n" + DONE

    def _said(self, number: int, said: str, delta: Delta) -> bytes:
        if self.asked.chat:
            logprobs = {"content": [scored(c) for c in delta.chosen], "refusal": None}
            content: dict[str, Any] = {"delta": {"content": said}}
        else:
            chosen, begins = [*delta.prompt, *delta.chosen], self.choices[number].begins
            logprobs = _logprobs(chosen, begins[len(begins) - len(chosen) :])
            content = {"text": said}
        content["logprobs"] = logprobs if self.asked.logprobs else None
        return self._event(number, {**content, **self._numbers(delta.tokens)})

    def _event(self, number: int, content: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": number, "logprobs": None, **content, "finish_reason": finish}
        event: dict[str, Any] = {**self._head, "choices": [choice]}
        if self.asked.usage_always:
            event["usage"] = self.usage()
        elif self.asked.usage:
            event["usage"] = None
        return b"data: " + on_one_line(event) + b"\n\n"


def on_one_line(value: Any) -> bytes:
    """JSON on one line, whoever reads it."""
    data = msgspec.json.encode(value)
    for character, escaped in _BREAKS.items():
        data = data.replace(character.encode(), escaped)
    return data


def scored(chosen: Chosen) -> dict[str, Any]:
    """A token's log-probability in the manner of chats."""
    top = [{"token": text, "logprob": value, "bytes": list(raw)} for _, text, raw, value in chosen.top]
    return {
        "token": chosen.text,
        "logprob": chosen.logprob,
        "bytes": list(chosen.nbytes),
        "top_logprobs": top,
    }


def _logprobs(chosen: Sequence[Chosen], begins: Sequence[int]) -> dict[str, Any]:
    """In the manner of completions; offsets are in characters, from the text's begin."""
    return {
        "tokens": [each.text for each in chosen],
        "token_logprobs": [each.logprob for each in chosen],
        "top_logprobs": [None if each.logprob is None else _by_text(each.top) for each in chosen],
        "text_offset": list(begins),
    }


def _by_text(top: Sequence[tuple[int, str, bytes, float]]) -> dict[str, float]:
    """Of tokens that look alike, as parts of characters do, the likeliest."""
    found: dict[str, float] = {}
    for _, text, _, value in top:
        found.setdefault(text, value)
    return found
