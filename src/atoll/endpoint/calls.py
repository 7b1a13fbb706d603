"""Policy: calls of functions in the text of an answer, as it comes.

A model that is free to call writes `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, as Hermes' and Qwen's do;
one that is forced to writes the object alone.
"""

import json
from typing import Any, Final

BEGIN: Final = "<tool_call>"
END: Final = "</tool_call>"


class Calls:
    """Takes an answer's text, gives what of it is said to the user, and the calls at the end."""

    def __init__(self, forced: bool) -> None:
        self._forced = forced
        self._text = ""
        self._said = 0

    def push(self, text: str) -> str:
        """What is surely no call."""
        self._text += text
        if self._forced:
            return ""
        end = self._text.find(BEGIN)
        if end < 0:
            end = len(self._text) - _begins(self._text)
        said = self._text[self._said : end]
        self._said = max(self._said, end)
        return said

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of what is said, and the calls: name and arguments, these as a text of JSON."""
        if self._forced:
            call = _call(self._text)
            return ("", [call]) if call is not None else (self._text, [])
        calls, rest = list[dict[str, Any]](), ""
        at = self._said
        while (begin := self._text.find(BEGIN, at)) >= 0:
            end = self._text.find(END, begin)
            call = _call(self._text[begin + len(BEGIN) : end if end >= 0 else None])
            if call is None:
                break
            rest += self._text[at:begin]
            calls.append(call)
            at = end + len(END) if end >= 0 else len(self._text)
        rest += self._text[at:]
        self._said = len(self._text)
        return (rest if not calls or rest.strip() else ""), calls


def _call(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    return {
        "name": found["name"],
        "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
    }


def _begins(text: str) -> int:
    """How many characters at the end may begin a call."""
    return next((n for n in range(min(len(text), len(BEGIN) - 1), 0, -1) if BEGIN.startswith(text[-n:])), 0)
