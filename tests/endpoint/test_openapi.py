"""/openapi.json is true: schemathesis, a tool that knows nothing of us, makes requests of it that must be taken, others
that must be refused, and holds every answer against it."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from atoll.endpoint.openapi import SHAPES, bodies, document
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from tests.cli.test_serve import serving
from tests.endpoint.scripted import Scripted, served
from tests.serve.bytes_model import model

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
BETWEEN_FIELDS = {
    "n": "more answers than a call may ask for, prompts and n together",
    "best_of": "fewer than n, or in a stream",
    "top_logprobs": "without logprobs",
    "tool_choice": "of no tool there is",
    "tools": "what no answer can be held to",
    "response_format.json_schema.schema": "what no answer can be held to",
    "echo": "of tokens that are none of the model's",
    "tokens": "none of the model's",
    "dimensions": "not the model's",
    "prompt": "longer than the context, or of tokens that are none of the model's",
    "logit_bias": "of tokens that are none of the model's",
    "max_tokens": "too many for the context",
}
"""What a schema of single fields can't say: here a body that keeps to it may be refused."""
OPERATIONS = [(path, mode) for path in document()["paths"] for mode in ("positive", "negative")]


@pytest.fixture(scope="module")
def parrot() -> Scripted:
    return Scripted(lambda request: "so be it")  # to 128 questions in a call too


@pytest.fixture(scope="module")
def schema(url: str) -> Any:
    return schema_of(url, "parrot")


def schema_of(url: str, name: str) -> Any:
    """The document as a client gets it, for the one model that is there."""
    raw = httpx.get(f"{url}/openapi.json").raise_for_status().json()
    for path, operation in raw["paths"].items():
        if "post" in operation:
            body = operation["post"]["requestBody"]["content"]["application/json"]["schema"]
            body["properties"]["model"] = {"enum": [name, *([] if "model" in body.get("required", ()) else ["", None])]}
        if "{model}" in path:
            operation["get"]["parameters"][0]["schema"] = {"enum": [name]}
    found = schemathesis.openapi.from_dict(raw)
    found.config.update(base_url=url)
    return found


@pytest.fixture
def nothing_left(url: str, parrot: Scripted) -> Iterator[None]:
    yield
    assert parrot.open == 0
    assert re.search(r"^atoll_requests_running(\{.*\})? 0.0$", httpx.get(f"{url}/metrics").text, re.MULTILINE)


def try_many(schema: Any, path: str, mode: str, examples: int) -> None:
    operation = next(found for found in (each.ok() for each in schema.get_all_operations()) if found.path == path)
    strategy = operation.as_strategy(generation_mode=GenerationMode(mode))
    refused, tried = 0, 0

    @seed(7)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def check(case: Case) -> None:
        nonlocal refused, tried
        answer = case.call_and_validate(checks=CHECKS, timeout=20)
        if "text/event-stream" in answer.headers["content-type"][0] and not answer.stream_cut_short:
            assert answer.content.endswith(b"data: [DONE]\n\n")
        tried += 1
        if mode == "positive" and answer.status_code == 400:
            refused += 1
            assert answer.json()["error"]["param"] in BETWEEN_FIELDS, (case.body, answer.json())

    check()
    assert refused <= tried / 2, "too few were taken to say much"


@pytest.mark.sampled(4)
@pytest.mark.parametrize(("path", "mode"), OPERATIONS)
def test_it_says_what_is_taken_and_what_is_answered(schema, nothing_left, path, mode):
    if mode == "positive" or path in bodies():
        try_many(schema, path, mode, 10)


@pytest.mark.slow
@pytest.mark.parametrize(("path", "mode"), OPERATIONS)
def test_so_it_does_many_times(schema, nothing_left, path, mode):
    if mode == "positive" or path in bodies():
        try_many(schema, path, mode, 200)


@pytest.mark.slow
def test_an_engine_keeps_nothing_of_it(tmp_path):
    """All its pages are free again."""
    save_model(tmp_path / "small", model(), ByteTokenizer())
    with serving(tmp_path, "small", "--kernel", "torch", "--kv-memory", "1MiB") as (url, _):
        schema = schema_of(url, "small")
        body = schema.raw_schema["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
        for name, most in {"n": 3, "best_of": 3, "max_tokens": 20, "min_tokens": 5}.items():
            body["schema"]["properties"][name]["maximum"] = most  # or the context is too small for most
        body["schema"]["properties"]["prompt"] = {"type": "string", "minLength": 1, "maxLength": 20}
        body["schema"]["properties"]["logit_bias"] = body["schema"]["properties"]["slo"] = {"type": "null"}
        try_many(schema, "/v1/completions", "positive", 60)
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
            for sample in family.samples
        }
    assert found["atoll_generation_tokens_total"] > 100
    assert found["atoll_requests_running"] == found["atoll_requests_waiting"] == 0
    assert found["atoll_kv_blocks_free"] == found["atoll_kv_blocks_total"] > 0


def test_it_names_all_paths_but_the_page_and_itself():
    with served(Scripted()) as (_, face):
        routes = {(route.path.replace(":path", ""), *(route.methods - {"HEAD"})) for route in face.app.routes}
    written = {(path, method.upper()) for path, methods in document()["paths"].items() for method in methods}
    assert routes - written == {("/", "GET"), ("/openapi.json", "GET")}
    assert written <= routes


def test_each_field_has_a_form_and_no_form_is_of_none():
    fields = {name: form for body in bodies().values() for name, form in body["properties"].items()}
    assert all(fields.values())
    assert set(SHAPES) <= set(fields)
    for body in bodies().values():
        Draft202012Validator.check_schema(body)


def test_what_it_says_of_some_fields():
    """As OpenAI's own document does."""
    bodies_ = bodies()
    completion, chat = bodies_["/v1/completions"], bodies_["/v1/chat/completions"]
    assert completion["required"] == ["prompt", "model"]
    assert set(chat["required"]) == {"messages", "model"}
    assert completion["properties"]["temperature"] == {
        "type": ["number", "null"], "minimum": 0, "maximum": 2, "default": 1,
    }  # fmt: skip
    assert chat["properties"]["top_logprobs"] == {"type": ["integer", "null"], "minimum": 0, "maximum": 20}
    assert chat["properties"]["stream_options"]["properties"]["include_usage"]["type"] == ["boolean", "null"]
    assert {"max_completion_tokens", "max_tokens", "tools", "slo", "ignore_eos"} <= set(chat["properties"])
