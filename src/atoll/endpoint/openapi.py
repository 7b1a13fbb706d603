"""Policy: the HTTP face as an OpenAPI 3.1 document. What a body may hold is noted while the code that reads bodies
reads a small one, so that no list of fields is kept twice; SHAPES adds forms that no single word of `Fields` has."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from atoll.endpoint import asking
from atoll.endpoint.asking import MOST_PROMPTS, MOST_STOPS, ROLES, Drawn
from atoll.endpoint.embeddings import MOST_INPUTS, embeddings
from atoll.endpoint.fields import LARGEST_TOKEN, Fields
from atoll.version import VERSION

Schema = dict[str, Any]

_TEXT: Final[Schema] = {"type": "string"}
_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}
_NAME: Final[Schema] = {"type": "string", "minLength": 1}
_TOKENS: Final[Schema] = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_TOKEN},
}
_SOME_TOKENS: Final = _TOKENS | {"minItems": 1}


def _object(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _list(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least} | ({} if most is None else {"maxItems": most})


_PARTS: Final = _list(_object("type text", type={"enum": ["text", "input_text"]}, text=_TEXT))
_MESSAGE: Final = _object("role content", role={"enum": list(ROLES)}, content={"anyOf": [_TEXT, _PARTS]})
_SILENT: Final = _object("role", role={"const": "assistant"}, content={"anyOf": [_TEXT, _PARTS, {"type": "null"}]})
_FUNCTION: Final = _object(
    "type function",
    type={"const": "function"},
    function=_object("name", name=_NAME, description={}, parameters={"type": ["object", "null"]}),
)


def _prompts(most: int) -> Schema:
    return {"anyOf": [_TEXT, _SOME_TOKENS, _list(_TEXT, 1, most), _list(_SOME_TOKENS, 1, most)]}


SHAPES: Final[Mapping[str, Schema]] = {
    "prompt": _prompts(MOST_PROMPTS),
    "input": _prompts(MOST_INPUTS),
    "encoding_format": {"enum": ["float", "base64", None]},
    "messages": _list({"anyOf": [_MESSAGE, _SILENT]}, 1),
    "stop": {"anyOf": [_NAME, _list(_NAME, 0, MOST_STOPS), {"type": "null"}]},
    "logit_bias": {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": ["number", "null"], "minimum": -100, "maximum": 100},
    },
    "response_format": {
        "anyOf": [
            {"type": "null"},
            _object("type", type={"enum": ["text", "json_object"]}),
            _object(
                "type json_schema",
                type={"const": "json_schema"},
                json_schema=_object("schema", name={}, schema={"type": "object"}),
            ),
        ]
    },
    "tools": {"anyOf": [_list(_FUNCTION), {"type": "null"}]},
    "tool_choice": {
        "anyOf": [
            {"enum": ["none", "auto", "required", None]},
            _object("type function", type={"const": "function"}, function=_object("name", name=_NAME)),
        ]
    },
}
"""What may be of several forms."""


class Noted(Fields):
    """Fields that keep in `schema` what each of them is asked as. `found`: all that a body must have."""

    def __init__(self, found: Mapping[str, Any], within: str = "") -> None:
        super().__init__(found, within)
        self.schema: Schema = {"type": "object", "properties": {}}

    def _note(self, name: str, schema: Schema) -> None:
        """The first word counts: those after it come from within `Fields`."""
        self.schema["properties"].setdefault(name, schema)

    def get(self, name: str) -> Any:
        self._note(name, SHAPES.get(name, {}))
        return super().get(name)

    def required(self, name: str) -> Any:
        wanted = self.schema.setdefault("required", [])
        if name not in wanted:
            wanted.append(name)
        return super().required(name)

    def required_text(self, name: str) -> str:
        self._note(name, _TEXT)
        return super().required_text(name)

    def text(self, name: str, default: str = "") -> str:
        self._note(name, SHAPES.get(name, {"type": ["string", "null"]}))
        return super().text(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        self._note(name, {"type": ["boolean", "null"], "default": default})
        return super().flag(name, default)

    def whole(self, name: str, least: int, most: int) -> int | None:
        self._note(name, {"type": ["integer", "null"], "minimum": least, "maximum": most})
        return super().whole(name, least, most)

    def number(self, name: str, least: float, most: float, default: float) -> float:
        known = {"default": default} if least <= default <= most else {}
        self._note(name, {"type": ["number", "null"], "minimum": least, "maximum": most, **known})
        return super().number(name, least, most, default)

    def share(self, name: str, default: float) -> float:
        self._note(name, {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1, "default": default})
        return super().share(name, default)

    def list(self, name: str) -> list[Any]:
        self._note(name, SHAPES.get(name, {"type": ["array", "null"]}))
        return super().list(name)

    def tokens(self, name: str) -> tuple[int, ...]:
        self._note(name, _TOKENS | {"type": ["array", "null"]})
        return super().tokens(name)

    def object(self, name: str) -> Fields | None:
        """With what is asked of it in turn."""
        if name in SHAPES:
            self._note(name, SHAPES[name])
            return super().object(name)
        inside = Noted({}, f"{name}.")
        inside.schema["type"] = ["object", "null"]
        self._note(name, inside.schema)
        return inside


def bodies() -> dict[str, Schema]:
    """Of each path that takes one, what its body may hold."""
    drawn = Drawn("", lambda: 0)
    read: dict[str, tuple[Callable[[Fields], object], dict[str, Any]]] = {
        "/v1/completions": (lambda fields: asking.completion(fields, drawn), {"model": "m", "prompt": "x"}),
        "/v1/chat/completions": (
            lambda fields: asking.chat(fields, drawn),
            {"model": "m", "messages": [{"role": "user", "content": "x"}]},
        ),
        "/v1/embeddings": (lambda fields: embeddings(fields, drawn), {"model": "m", "input": "x"}),
        "/tokenize": (asking.text, {"prompt": "x"}),
        "/detokenize": (asking.tokens, {}),
    }
    found = {}
    for path, (reads, sound) in read.items():
        noted = Noted(sound)
        reads(noted)
        found[path] = noted.schema
    return found


# -- what is answered --------------------------------------------------------------------------------------------------

_USAGE: Final = _object(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=_WHOLE,
    completion_tokens=_WHOLE,
    total_tokens=_WHOLE,
    prompt_tokens_details=_object("cached_tokens", cached_tokens=_WHOLE),
)
_FINISH: Final[Schema] = {"enum": ["stop", "length", "tool_calls", "aborted", "deadline", "error"]}
_MAYBE: Final[Schema] = {"type": ["object", "null"]}


def _answer(kind: str, **of_choice: Schema) -> Schema:
    choice = _object(
        f"index finish_reason {' '.join(of_choice)}",
        index=_WHOLE,
        finish_reason=_FINISH,
        logprobs=_MAYBE,
        **of_choice,
    )
    return _object(
        "id object created model choices usage",
        id=_TEXT,
        object={"const": kind},
        created=_WHOLE,
        model=_TEXT,
        system_fingerprint=_TEXT,
        choices=_list(choice, 1),
        usage=_USAGE,
    )


_CARD: Final = _object(
    "id object created owned_by max_model_len",
    id=_TEXT,
    object={"const": "model"},
    created=_WHOLE,
    owned_by=_TEXT,
    max_model_len=_WHOLE,
    chat={"type": "boolean"},
)
_SAID: Final = _object(
    "role content", role={"const": "assistant"}, content={"type": ["string", "null"]}, tool_calls=_list(_MAYBE)
)
_ANSWERS: Final[Mapping[str, Schema]] = {
    "/v1/completions": _answer("text_completion", text=_TEXT),
    "/v1/chat/completions": _answer("chat.completion", message=_SAID),
    "/v1/embeddings": _object(
        "object data model usage",
        object={"const": "list"},
        data=_list(_object("index embedding", index=_WHOLE, embedding={"type": ["array", "string"]})),
        model=_TEXT,
        usage=_object("prompt_tokens total_tokens", prompt_tokens=_WHOLE, total_tokens=_WHOLE),
    ),
    "/tokenize": _object("tokens count", tokens=_TOKENS, count=_WHOLE),
    "/detokenize": _object("prompt", prompt=_TEXT),
    "/v1/models": _object("object data", object={"const": "list"}, data=_list(_CARD)),
    "/v1/models/{model}": _CARD,
    "/health": _object("status", status={"const": "ok"}),
    "/version": _object("version", version=_TEXT),
}
_SUMMARIES: Final[Mapping[str, str]] = {
    "/v1/completions": "Go on with a text, or with several",
    "/v1/chat/completions": "Answer a conversation",
    "/v1/embeddings": "Texts as vectors",
    "/tokenize": "A text as tokens",
    "/detokenize": "Tokens as a text",
    "/v1/models": "What is served",
    "/v1/models/{model}": "One of the models",
    "/health": "Can be asked now; 503 while loading or ending",
    "/version": "Of the server",
    "/metrics": "For Prometheus, text format 0.0.4",
}
_OPEN: Final = ("/health", "/version", "/metrics")
_MAYBE_TEXT: Final[Schema] = {"type": ["string", "null"]}
_ERROR: Final = _object(
    "error",
    error=_object("message type param code", message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT),
)
_EVENT: Final = _object("data", data=_TEXT | {"contentMediaType": "application/json"})
"""Of a stream; the last one's data is [DONE]."""


def document() -> Schema:
    """The whole of it."""
    held = bodies()
    return {
        "openapi": "3.1.0",
        "info": {"title": "atoll", "version": VERSION, "summary": "OpenAI's API before a model of one's own"},
        "paths": {path: {"post" if path in held else "get": _operation(path, held.get(path))} for path in _SUMMARIES},
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(path: str, body: Schema | None) -> Schema:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    content: Schema = {"text/plain": {"schema": _TEXT}}
    if path in _ANSWERS:
        content = {"application/json": {"schema": _ANSWERS[path]}}
    if body is not None and "stream" in body["properties"]:
        content["text/event-stream"] = {"schema": _EVENT}
    found: Schema = {
        "summary": _SUMMARIES[path],
        "operationId": path.strip("/").replace("/", "_").replace("{", "").replace("}", ""),
        "security": [] if path in _OPEN else [{"key": []}, {}],
        "responses": {
            "200": {"description": "Here it is", "content": content},
            "4XX": {"description": "Mend what the message says; `param` names a field that is wrong", "content": error},
            "5XX": {"description": "Not now, not in time, or not any more", "content": error},
        },
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if "{model}" in path:
        found["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": _NAME}]
    if path == "/health":
        waiting = {"application/json": {"schema": _object("status", status={"enum": ["loading", "draining"]})}}
        found["responses"]["503"] = {"description": "Loading or ending", "content": waiting}
    return found
