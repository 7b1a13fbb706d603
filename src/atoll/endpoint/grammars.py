"""Policy: answers that must be JSON, match a schema or call a function: the grammar an engine holds them to; checked by
the llguidance library, whose serialised form it is."""

import json
from dataclasses import dataclass
from typing import Any, Final

from atoll.endpoint.fields import Fields
from atoll.errors import InvalidConfig

LARGEST: Final = 256 << 10
"""Characters of a schema."""


@dataclass(frozen=True)
class Tools:
    """Functions the model may call. `described` goes to the model; `forced`: the answer is a call and nothing else."""

    described: tuple[dict[str, Any], ...]
    forced: bool
    grammar: str | None


def grammar_of(wanted: Fields | None, within: str = "") -> str | None:
    """What a form asks for: `response_format`, whose schema is `within` an object, or `text.format`, with it beside."""
    if wanted is None:
        return None
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _checked({"type": "object"}, wanted, "type")
    if kind != "json_schema":
        raise wanted.wrong("type", "must be text, json_object or json_schema")
    described = wanted.object(within) if within else wanted
    if described is None:
        raise wanted.wrong(within, "is missing")
    schema = described.object("schema")
    if schema is None:
        raise described.wrong("schema", "is missing")
    return _checked(described.get("schema"), described, "schema")


def tools_of(fields: Fields, within: str = "") -> Tools | None:
    """What `tools` and `tool_choice` ask for; None where no function may be called. `within`: the object of a tool that
    names and describes its function, where the tool doesn't itself."""
    described = [_function(tool, i, within) for i, tool in enumerate(fields.list("tools"))]
    choice = fields.get("tool_choice")
    if not described:
        if choice not in (None, "none", "auto"):
            raise fields.wrong("tool_choice", "names functions, but there are no tools")
        return None
    if choice == "none":
        return None
    tools = tuple({"type": "function", "function": function} for function in described)
    if choice in (None, "auto"):
        return Tools(tools, False, None)
    if choice != "required":
        wanted = Fields(choice if isinstance(choice, dict) else {}, "tool_choice.")
        function = wanted.object(within) if within else wanted
        name = function.get("name") if function is not None else None
        described = [each for each in described if each["name"] == name]
        if not described:
            raise fields.wrong("tool_choice", "must be none, auto, required, or name one of the tools")
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each["name"]}, "arguments": each.get("parameters") or {"type": "object"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for each in described
    ]
    return Tools(tools, True, _checked(calls[0] if len(calls) == 1 else {"anyOf": calls}, fields, "tools"))


def _function(tool: Any, i: int, within: str) -> dict[str, Any]:
    fields = Fields(tool if isinstance(tool, dict) else {}, f"tools[{i}].")
    if fields.get("type") != "function":
        raise fields.wrong("type", "must be function")
    function = fields.object(within) if within else fields
    if function is None:
        raise fields.wrong(within, "is missing")
    if not isinstance(function.get("name"), str) or not function.get("name"):
        raise function.wrong("name", "must be a text")
    function.object("parameters")
    return {name: function.get(name) for name in function if name != "type"}


def _checked(schema: Any, fields: Fields, name: str) -> str:
    grammar = json.dumps({"grammars": [{"json_schema": schema}]})
    if len(grammar) > LARGEST:
        raise fields.wrong(name, f"is larger than {LARGEST} characters")
    try:
        from llguidance import LLMatcher
    except ImportError as error:
        raise InvalidConfig("answers held to a schema need llguidance: pip install 'atoll[serve]'") from error
    wrong = LLMatcher.validate_grammar(grammar)
    if wrong:
        raise fields.wrong(name, f"is no schema that answers can be held to: {str(wrong).splitlines()[0]}")
    return grammar
