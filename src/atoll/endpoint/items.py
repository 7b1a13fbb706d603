"""Policy: an answer as /v1/responses writes it: a message, calls of functions, or both; one body, or a stream of events
that are numbered and have a type."""

from collections.abc import Sequence
from typing import Any, Final

from atoll.endpoint.answers import choices_of, on_one_line, scored
from atoll.endpoint.api import Chosen, Delta
from atoll.endpoint.asking import Asked

_STANDING: Final = {
    "parallel_tool_calls": True,
    "truncation": "disabled",
    "previous_response_id": None,
    "background": False,
    "store": False,
}
"""What no body can change here."""
_CODES: Final = {"invalid_request_error": "invalid_prompt", "rate_limit_error": "rate_limit_exceeded"}
"""By the type of an error: what this path's clients know of it. Everything else is a server_error."""


class Items:
    """The answer of a call, as `Answers` is of others. It has one choice."""

    def __init__(self, asked: Asked, id: str, created: int) -> None:
        self.id, self.asked = id, asked
        self.choices = choices_of(asked)
        self._choice = self.choices[0]
        self._created = created
        self._name = id.partition("_")[2]
        self._begun = False
        """Is the message?"""
        self._events = 0
        self._scored = self._scored_to = 0
        """Tokens whose log-probabilities have been said, and before which byte of the text the next one begins."""

    # -- one body -----------------------------------------------------------------------------------------------------

    def body(self) -> dict[str, Any]:
        """When all of it is there."""
        cut = self._choice.finish == "length"
        reason = {"reason": "max_output_tokens"} if cut else None
        return self._response(self._status, self._output(self._status), incomplete_details=reason, usage=self.usage())

    def usage(self) -> dict[str, Any]:
        """There are no tokens of thoughts apart, nor any that are asked to be kept."""
        choice = self._choice
        return {
            "input_tokens": choice.prompt_tokens,
            "input_tokens_details": {"cached_tokens": choice.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": choice.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": choice.prompt_tokens + choice.tokens,
        }

    @property
    def _status(self) -> str:
        return "incomplete" if self._choice.finish == "length" else "completed"

    def _response(self, status: str, output: Sequence[dict[str, Any]], **changed: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.asked.model,
            "output": output,
            "usage": None,
            **self.asked.repeated,
            **_STANDING,
            **changed,
        }

    def _output(self, status: str) -> list[dict[str, Any]]:
        """A message, if only an empty one, unless there is nothing but calls."""
        choice = self._choice
        calls = [self._call(i, call["arguments"]) for i, call in enumerate(choice.made)]
        if choice.made and not choice.text:
            return calls
        return [self._message(status, [self._part()]), *calls]

    def _message(self, status: str, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self._name}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": parts,
        }

    def _part(self) -> dict[str, Any]:
        """All of the text there is."""
        return {"type": "output_text", "text": self._choice.text, "annotations": [], "logprobs": self._logprobs()}

    def _logprobs(self) -> list[dict[str, Any]]:
        """Of all that has been said."""
        self._fresh()
        return [scored(chosen) for chosen in self._choice.chosen[: self._scored]]

    def _fresh(self) -> list[Chosen]:
        """More tokens of the text; where there may be calls, up to the first: what is in them is not said."""
        choice, first = self._choice, self._scored
        if choice.calls is None:
            self._scored = len(choice.chosen)
            return choice.chosen[first:]
        text = choice.text.encode()
        while self._scored < len(choice.chosen) and (left := len(text) - self._scored_to) > 0:
            token = choice.chosen[self._scored].nbytes
            if not text.startswith(token[:left], self._scored_to):
                break
            self._scored_to += len(token)
            self._scored += 1
        return choice.chosen[first : self._scored]

    def _call(self, i: int, arguments: str, status: str = "completed") -> dict[str, Any]:
        return {
            "id": f"fc_{self._name}{i:02d}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{self._name}{i:02d}",
            "name": self._choice.made[i]["name"],
            "arguments": arguments,
        }

    # -- a stream -----------------------------------------------------------------------------------------------------

    def opening(self) -> list[bytes]:
        """What comes before any token."""
        response = self._response("in_progress", [])
        return [self._event(f"response.{state}", response=response) for state in ("created", "in_progress")]

    def events(self, number: int, delta: Delta) -> list[bytes]:
        """What a delta adds to the stream."""
        said = self._choice.take(delta)
        events = self._said(said) if said else []
        if self._choice.finish is not None:
            events += self._ended()
        return events

    def closing(self) -> list[bytes]:
        """What comes when all of it has been said."""
        return [self._event(f"response.{self._status}", response=self.body())]

    def failed(self, error: dict[str, Any]) -> bytes:
        """What comes instead, when it can't go on. `error`: as a body would have it."""
        told = error["error"]
        code = _CODES.get(told["type"], "server_error")
        why = {"code": code, "message": told["message"], "type": told["type"], "param": told["param"]}
        output = self._output("incomplete") if self._begun else []
        return self._event("response.failed", response=self._response("failed", output, error=why, usage=self.usage()))

    def _said(self, said: str) -> list[bytes]:
        events = [] if self._begun else self._begin()
        logprobs = [scored(chosen) for chosen in self._fresh()]
        return [*events, self._of_text("response.output_text.delta", delta=said, logprobs=logprobs)]

    def _begin(self) -> list[bytes]:
        self._begun = True
        message, empty = self._message("in_progress", []), {"type": "output_text", "text": "", "annotations": []}
        return [
            self._event("response.output_item.added", output_index=0, item=message),
            self._of_text("response.content_part.added", part={**empty, "logprobs": []}),
        ]

    def _ended(self) -> list[bytes]:
        """What was said, once more and whole, and the calls."""
        events, output = list[bytes](), self._output(self._status)
        if output[0]["type"] == "message":
            part = self._part()
            events += [] if self._begun else self._begin()
            events += [
                self._of_text("response.output_text.done", text=part["text"], logprobs=part["logprobs"]),
                self._of_text("response.content_part.done", part=part),
                self._event("response.output_item.done", output_index=0, item=output[0]),
            ]
        first = len(output) - len(self._choice.made)
        for at, item in enumerate(output[first:], first):
            begun = {**item, "arguments": "", "status": "in_progress"}
            where = {"item_id": item["id"], "output_index": at}
            told = "response.function_call_arguments"
            events += [
                self._event("response.output_item.added", output_index=at, item=begun),
                self._event(f"{told}.delta", **where, delta=item["arguments"]),
                self._event(f"{told}.done", **where, name=item["name"], arguments=item["arguments"]),
                self._event("response.output_item.done", output_index=at, item=item),
            ]
        return events

    def _of_text(self, kind: str, **of_it: Any) -> bytes:
        return self._event(kind, item_id=f"msg_{self._name}", output_index=0, content_index=0, **of_it)

    def _event(self, kind: str, **of_it: Any) -> bytes:
        data = on_one_line({"type": kind, "sequence_number": self._events, **of_it})
        self._events += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)
