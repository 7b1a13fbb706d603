"""Policy: bodies of /v1/responses, as current clients of OpenAI ask for an answer: the same requests as a chat's.

Nothing is kept between calls. What comes before an answer is sent with it, as items: messages, calls of functions, and
what they returned.
"""

from typing import Any, Final

from atoll.endpoint.api import Conversation
from atoll.endpoint.asking import MOST_TOKENS, Asked, Drawn, content, message, requests_for
from atoll.endpoint.fields import Fields
from atoll.endpoint.grammars import grammar_of, tools_of
from atoll.errors import InvalidRequest

ROLES: Final = ("system", "developer", "user", "assistant")
KEPT: Final = ("previous_response_id", "conversation", "prompt")
"""What a server would have to have kept."""
_CALLED: Final = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""What endpoints call fields, and what they are here."""
_LOGPROBS: Final = "message.output_text.logprobs"


def response(fields: Fields, drawn: Drawn) -> Asked:
    """A body."""
    for name in KEPT:
        if fields.get(name) is not None:
            raise fields.wrong(name, "names what nobody has kept here: send all that was said before as input")
    if fields.flag("background"):
        raise fields.wrong("background", "can't be: nothing is kept here to come back for; take the answer as it comes")
    tools = tools_of(fields)
    form = (fields.object("text") or Fields({})).object("format")
    grammar = grammar_of(form)
    top = fields.whole("top_logprobs", 0, 20) or 0
    logprobs = top > 0 or _LOGPROBS in fields.list("include")
    max_tokens = fields.whole("max_output_tokens", 1, MOST_TOKENS)
    prompt = Conversation(_messages(fields), tuple(tools.described) if tools is not None else ())
    kind = {
        "max_tokens": max_tokens,
        "logprobs": top if logprobs else None,
        "grammar": tools.grammar if tools is not None and tools.forced else grammar,
    }
    requests = requests_for(fields, drawn, [prompt], 1, kind)
    metadata = fields.object("metadata") or Fields({})
    repeated = {
        "instructions": fields.get("instructions"),
        "max_output_tokens": max_tokens,
        "metadata": {name: metadata.required_text(name) for name in metadata},
        "temperature": requests[0].sampling.temperature,
        "top_p": requests[0].sampling.top_p,
        "text": {"format": {"type": "text"} if form is None else {name: form.get(name) for name in form}},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": fields.list("tools"),
        "top_logprobs": top,
    }
    return Asked(
        model=requests[0].model,
        requests=requests,
        n=1,
        best_of=1,
        chat=True,
        stream=fields.flag("stream"),
        usage=True,
        usage_always=False,
        token_ids=False,
        echo=False,
        logprobs=logprobs,
        tools=tools,
        called=_CALLED,
        repeated=repeated,
    )


def _messages(fields: Fields) -> tuple[dict[str, Any], ...]:
    given = fields.required("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise fields.wrong("input", "must be a text, or a list of at least one item")
    instructions = fields.text("instructions")
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for i, item in enumerate(items):
        where = f"input[{i}]"
        if not isinstance(item, dict):
            raise InvalidRequest(where, f"{where} must be an object")
        _add(messages, Fields(item, f"{where}."))
    return tuple(messages)


def _add(messages: list[dict[str, Any]], item: Fields) -> None:
    """As chats have it: what a model says and what it calls thereupon are one message."""
    match item.text("type", "message"):
        case "message":
            messages.append(message(item, ROLES))
        case "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1].setdefault("tool_calls", []).append(_call(item))
        case "function_call_output":
            id, output = item.required_text("call_id"), content(item, "output")
            messages.append({"role": "tool", "tool_call_id": id, "content": output})
        case _:
            raise item.wrong("type", "must be message, function_call or function_call_output")


def _call(item: Fields) -> dict[str, Any]:
    function = {"name": item.required_text("name"), "arguments": item.required_text("arguments")}
    return {"id": item.required_text("call_id"), "type": "function", "function": function}
