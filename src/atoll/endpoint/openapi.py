"""Policy: the HTTP face as an OpenAPI 3.1 document. What a body may hold is noted while the code that reads bodies
reads a small one, so that no list of fields is kept twice; `shapes` adds forms that no single word of `Fields` has."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from atoll.endpoint import asking
from atoll.endpoint.asking import Drawn
from atoll.endpoint.embeddings import embeddings
from atoll.endpoint.fields import Fields
from atoll.endpoint.responses import response
from atoll.endpoint.shapes import NAME, SHAPES, TEXT, TOKENS, Schema, listed, object_of
from atoll.version import VERSION

_WHOLE: Final[Schema] = {"type": "integer", "minimum": 0}


class Noted(Fields):
    """Fields that keep in `schema` what each of them is asked as. `found`: all that a body must have."""

    def __init__(self, found: Mapping[str, Any], shapes: Mapping[str, Schema], within: str = "") -> None:
        super().__init__(found, within)
        self._shapes = shapes
        self.schema: Schema = {"type": "object", "properties": {}}

    def _note(self, name: str, schema: Schema) -> None:
        """The first word counts: those after it come from within `Fields`."""
        self.schema["properties"].setdefault(name, schema)

    def get(self, name: str) -> Any:
        self._note(name, self._shapes.get(name, {}))
        return super().get(name)

    def required(self, name: str) -> Any:
        wanted = self.schema.setdefault("required", [])
        if name not in wanted:
            wanted.append(name)
        return super().required(name)

    def required_text(self, name: str) -> str:
        self._note(name, TEXT)
        return super().required_text(name)

    def text(self, name: str, default: str = "") -> str:
        self._note(name, self._shapes.get(name, {"type": ["string", "null"]}))
        return super().text(name, default)

    def flag(self, name: str, default: bool = False) -> bool:
        self._note(name, self._shapes.get(name, {"type": ["boolean", "null"], "default": default}))
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
        self._note(name, self._shapes.get(name, {"type": ["array", "null"]}))
        return super().list(name)

    def tokens(self, name: str) -> tuple[int, ...]:
        self._note(name, TOKENS | {"type": ["array", "null"]})
        return super().tokens(name)

    def object(self, name: str) -> Fields | None:
        """With what is asked of it in turn."""
        if name in self._shapes:
            self._note(name, self._shapes[name])
            return super().object(name)
        inside = Noted({}, self._shapes, f"{name}.")
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
        "/v1/responses": (lambda fields: response(fields, drawn), {"model": "m", "input": "x"}),
        "/v1/embeddings": (lambda fields: embeddings(fields, drawn), {"model": "m", "input": "x"}),
        "/tokenize": (asking.text, {"prompt": "x"}),
        "/detokenize": (asking.tokens, {}),
    }
    found = {}
    for path, (reads, sound) in read.items():
        noted = Noted(sound, SHAPES[path])
        reads(noted)
        found[path] = noted.schema
    return found


# -- what is answered --------------------------------------------------------------------------------------------------

_USAGE: Final = object_of(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=_WHOLE,
    completion_tokens=_WHOLE,
    total_tokens=_WHOLE,
    prompt_tokens_details=object_of("cached_tokens", cached_tokens=_WHOLE),
)
_FINISH: Final[Schema] = {"enum": ["stop", "length", "tool_calls"]}
_MAYBE: Final[Schema] = {"type": ["object", "null"]}
_STATUS: Final[Schema] = {"enum": ["completed", "incomplete"]}


def _answer(kind: str, **of_choice: Schema) -> Schema:
    choice = object_of(
        f"index finish_reason {' '.join(of_choice)}",
        index=_WHOLE,
        finish_reason=_FINISH,
        logprobs=_MAYBE,
        **of_choice,
    )
    return object_of(
        "id object created model choices usage",
        id=TEXT,
        object={"const": kind},
        created=_WHOLE,
        model=TEXT,
        system_fingerprint=TEXT,
        choices=listed(choice, 1),
        usage=_USAGE,
    )


_CARD: Final = object_of(
    "id object created owned_by max_model_len",
    id=TEXT,
    object={"const": "model"},
    created=_WHOLE,
    owned_by=TEXT,
    max_model_len=_WHOLE,
    chat={"type": "boolean"},
)
_SAID: Final = object_of(
    "role content", role={"const": "assistant"}, content={"type": ["string", "null"]}, tool_calls=listed(_MAYBE)
)
_ITEMS: Final[Schema] = {
    "anyOf": [
        object_of(
            "id type status role content",
            id=TEXT,
            type={"const": "message"},
            status=_STATUS,
            role={"const": "assistant"},
            content=listed(
                object_of(
                    "type text annotations logprobs",
                    type={"const": "output_text"},
                    text=TEXT,
                    annotations=listed(_MAYBE),
                    logprobs=listed(_MAYBE),
                ),
                1,
            ),
        ),
        object_of(
            "id type status call_id name arguments",
            id=TEXT,
            type={"const": "function_call"},
            status=_STATUS,
            call_id=TEXT,
            name=TEXT,
            arguments=TEXT,
        ),
    ]
}
_RESPONSE: Final = object_of(
    "id object created_at status model output usage error incomplete_details instructions metadata tools tool_choice",
    id=TEXT,
    object={"const": "response"},
    created_at=_WHOLE,
    status=_STATUS,
    model=TEXT,
    output=listed(_ITEMS, 1),
    error={"type": "null"},
    incomplete_details=_MAYBE,
    instructions={"type": ["string", "null"]},
    metadata={"type": "object"},
    tools=listed(_MAYBE),
    tool_choice={"type": ["string", "object"]},
    usage=object_of(
        "input_tokens output_tokens total_tokens input_tokens_details output_tokens_details",
        input_tokens=_WHOLE,
        input_tokens_details=object_of("cached_tokens", cached_tokens=_WHOLE),
        output_tokens=_WHOLE,
        output_tokens_details=object_of("reasoning_tokens", reasoning_tokens=_WHOLE),
        total_tokens=_WHOLE,
    ),
)
_ANSWERS: Final[Mapping[str, Schema]] = {
    "/v1/completions": _answer("text_completion", text=TEXT),
    "/v1/chat/completions": _answer("chat.completion", message=_SAID),
    "/v1/responses": _RESPONSE,
    "/v1/embeddings": object_of(
        "object data model usage",
        object={"const": "list"},
        data=listed(object_of("index embedding", index=_WHOLE, embedding={"type": ["array", "string"]})),
        model=TEXT,
        usage=object_of("prompt_tokens total_tokens", prompt_tokens=_WHOLE, total_tokens=_WHOLE),
    ),
    "/tokenize": object_of("tokens count", tokens=TOKENS, count=_WHOLE),
    "/detokenize": object_of("prompt", prompt=TEXT),
    "/v1/models": object_of("object data", object={"const": "list"}, data=listed(_CARD)),
    "/v1/models/{model}": _CARD,
    "/health": object_of("status", status={"const": "ok"}),
    "/version": object_of("version", version=TEXT),
}
_SUMMARIES: Final[Mapping[str, str]] = {
    "/v1/completions": "Go on with a text, or with several",
    "/v1/chat/completions": "Answer a conversation",
    "/v1/responses": "Answer a conversation, as current clients ask",
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
_ERROR: Final = object_of(
    "error",
    error=object_of("message type param code", message=TEXT, type=TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT),
)
_EVENT: Final = object_of("data", data=TEXT | {"contentMediaType": "application/json"})
"""Of a stream. The last one's data is [DONE], but where events have types."""


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
    content: Schema = {"text/plain": {"schema": TEXT}}
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
        found["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": NAME}]
    if path == "/health":
        waiting = {"application/json": {"schema": object_of("status", status={"enum": ["loading", "draining"]})}}
        found["responses"]["503"] = {"description": "Loading or ending", "content": waiting}
    return found
