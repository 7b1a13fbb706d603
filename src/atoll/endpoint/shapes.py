"""Policy: fields of bodies that may be of several forms, as JSON schemas, for each path that takes them."""

from collections.abc import Mapping
from typing import Any, Final

from atoll.endpoint.asking import MOST_PROMPTS, MOST_STOPS, PARTS, ROLES
from atoll.endpoint.embeddings import MOST_INPUTS
from atoll.endpoint.fields import LARGEST_TOKEN
from atoll.endpoint.responses import KEPT
from atoll.endpoint.responses import ROLES as SPEAKERS

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
NAME: Final[Schema] = {"type": "string", "minLength": 1}
TOKENS: Final[Schema] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_TOKEN},
}


def object_of(required: str = "", **properties: Schema) -> Schema:
    """With these, of which those that are `required` must be there: names with spaces between."""
    return {"type": "object", "properties": properties, "required": required.split()}


def listed(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    """A list of such."""
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


def one_of(*schemas: Schema) -> Schema:
    """Any of them will do."""
    return {"anyOf": list(schemas)}


_NULL: Final[Schema] = {"type": "null"}
_CONTENT: Final = one_of(TEXT, listed(object_of("type text", type={"enum": list(PARTS)}, text=TEXT)))
_ASSISTANT: Final[Schema] = {"const": "assistant"}
_FUNCTION: Final[Mapping[str, Schema]] = {"name": NAME, "description": {}, "parameters": {"type": ["object", "null"]}}


def _prompts(most: int) -> Schema:
    some = TOKENS | {"minItems": 1}
    return one_of(TEXT, some, listed(TEXT, 1, most), listed(some, 1, most))


def _messages(roles: tuple[str, ...], **more: Schema) -> tuple[Schema, Schema]:
    """One that says something, and one of a model that may not."""
    return (
        object_of("role content", role={"enum": list(roles)}, content=_CONTENT, **more),
        object_of("role", role=_ASSISTANT, content=one_of(_CONTENT, _NULL), **more),
    )


def _form(**schema: Schema) -> Schema:
    """What an answer may be held to. `schema`: where that is, and what is beside it."""
    return one_of(
        _NULL,
        object_of("type", type={"enum": ["text", "json_object"]}),
        object_of(f"type {list(schema)[-1]}", type={"const": "json_schema"}, **schema),
    )


def _tools(required: str, **described: Schema) -> Schema:
    return one_of(listed(object_of(f"type {required}", type={"const": "function"}, **described)), _NULL)


def _choice(**named: Schema) -> Schema:
    """Which functions must be called: any, none, or the one that is named."""
    one = object_of(f"type {' '.join(named)}", type={"const": "function"}, **named)
    return one_of({"enum": ["none", "auto", "required", None]}, one)


_STANDING: Final[Mapping[str, Schema]] = {
    "stop": one_of(NAME, listed(NAME, 0, MOST_STOPS), _NULL),
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": ["number", "null"], "minimum": -100, "maximum": 100},
    },
}
_FORMAT: Final = _form(json_schema=object_of("schema", name={}, schema={"type": "object"}))
SHAPES: Final[Mapping[str, Mapping[str, Schema]]] = {
    "/v1/completions": {**_STANDING, "prompt": _prompts(MOST_PROMPTS), "response_format": _FORMAT},
    "/v1/chat/completions": {
        **_STANDING,
        "messages": listed(one_of(*_messages(ROLES)), 1),
        "response_format": _FORMAT,
        "tools": _tools("function", function=object_of("name", **_FUNCTION)),
        "tool_choice": _choice(function=object_of("name", name=NAME)),
    },
    "/v1/responses": {
        **_STANDING,
        "input": one_of(
            TEXT,
            listed(
                one_of(
                    *_messages(SPEAKERS, type={"enum": ["message", None]}),
                    object_of(
                        "type call_id name arguments",
                        type={"const": "function_call"},
                        call_id=TEXT,
                        name=TEXT,
                        arguments=TEXT,
                    ),
                    object_of(
                        "type call_id output", type={"const": "function_call_output"}, call_id=TEXT, output=_CONTENT
                    ),
                ),
                1,
            ),
        ),
        "format": _form(name={}, schema={"type": "object"}),
        "tools": _tools("name", **_FUNCTION),
        "tool_choice": _choice(name=NAME),
        "background": {"enum": [False, None]},
        "metadata": {"type": ["object", "null"], "additionalProperties": TEXT},
        **dict.fromkeys(KEPT, _NULL),
    },
    "/v1/embeddings": {"input": _prompts(MOST_INPUTS), "encoding_format": {"enum": ["float", "base64", None]}},
    "/tokenize": {},
    "/detokenize": {},
}
"""By path and field."""
