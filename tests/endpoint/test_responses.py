"""/v1/responses: the official client finds all it expects, and its own types are what the wire is held against."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from atoll.endpoint.upstream import Upstream
from atoll.errors import ContextExceeded, EngineLost, Overloaded
from tests.endpoint.scripted import Scripted, served

EVENTS: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
TOOL = {
    "type": "function",
    "name": "look",
    "strict": True,
    "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "the sea"}}</tool_call>'


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(url: str, **changed: Any) -> dict[str, Any]:
    """A whole answer, held against the client's types."""
    answer = httpx.post(f"{url}/v1/responses", json={"model": "parrot", "input": "häy €", **changed})
    assert answer.status_code == 200, answer.text
    Response.model_validate_json(answer.content, strict=True)
    found: dict[str, Any] = answer.json()
    return found


def stream(url: str, **changed: Any) -> list[dict[str, Any]]:
    """Its events, each held against the client's types."""
    body = {"model": "parrot", "input": "häy €", "stream": True, **changed}
    answer = httpx.post(f"{url}/v1/responses", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = []
    for frame in answer.text.removesuffix("\n\n").split("\n\n"):
        named, data = frame.split("\n")
        EVENTS.validate_json(data.removeprefix("data: "), strict=True)
        found.append(json.loads(data.removeprefix("data: ")))
        assert named == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def same(response: dict[str, Any]) -> Any:
    """But for what is drawn anew for each."""
    text = json.dumps({**response, "created_at": 0})
    return json.loads(text.replace(response["id"].removeprefix("resp_"), "ID"))


def test_an_answer(client):
    answer = client.responses.create(model="parrot", input="häy €")
    assert answer.output_text == "you said user: häy €"
    assert answer.id.startswith("resp_")
    assert (answer.object, answer.status, answer.error, answer.incomplete_details) == (
        "response",
        "completed",
        None,
        None,
    )
    assert answer.usage.input_tokens == len("user: häy €".encode())
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    (message,) = answer.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")


def test_what_is_asked_for_reaches_the_endpoint_and_is_said_again(client, parrot):
    answer = client.responses.create(
        model="parrot", input="x", instructions="be brief", max_output_tokens=7, temperature=0.5, top_p=0.9,
        metadata={"of": "me"}, store=True, user="me", parallel_tool_calls=True, truncation="auto",
        extra_body={"seed": 3, "top_k": 4, "slo": {"class": "chat"}, "session_id": "s", "unknown": 1},
    )  # fmt: skip
    request = parrot.asked[-1]
    assert request.prompt.messages == ({"role": "system", "content": "be brief"}, {"role": "user", "content": "x"})
    assert (request.max_tokens, request.session, request.labels) == (7, "s", {"class": "chat"})
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.top_k) == (0.5, 0.9, 3, 4)
    assert (answer.instructions, answer.max_output_tokens, answer.metadata) == ("be brief", 7, {"of": "me"})
    assert (answer.temperature, answer.top_p, answer.truncation) == (0.5, 0.9, "disabled")
    assert answer.to_dict()["store"] is False
    client.responses.create(model="parrot", input="x")
    assert (parrot.asked[-1].max_tokens, parrot.asked[-1].sampling.temperature) == (None, 1.0)


def test_what_a_cut_answer_is(client, url):
    answer = client.responses.create(model="parrot", input="x", max_output_tokens=4)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.output_text, answer.output[0].status) == ("you ", "incomplete")
    assert stream(url, max_output_tokens=4)[-1]["type"] == "response.incomplete"


def test_items_are_a_conversation(client, parrot):
    """What the answer to the first call was is sent with the second, as the client has it."""
    call = {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "look", "arguments": "{}", "status": None}
    client.responses.create(
        model="parrot",
        input=[
            {"role": "developer", "content": "a"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "c", "annotations": []}],
            },
            call,
            {**call, "call_id": "2"},
            {"type": "function_call_output", "call_id": "1", "output": "d"},
            {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "e"}]},
            {"role": "user", "content": "f"},
            {**call, "call_id": "3"},
        ],
    )

    def made(id: str) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}}

    assert parrot.asked[-1].prompt.messages == (
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c", "tool_calls": [made("1"), made("2")]},
        {"role": "tool", "tool_call_id": "1", "content": "d"},
        {"role": "tool", "tool_call_id": "2", "content": "e"},
        {"role": "user", "content": "f"},
        {"role": "assistant", "content": "", "tool_calls": [made("3")]},
    )


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"input": None}, "input"), ({"input": []}, "input"), ({"input": 3}, "input"), ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "x"}]}, "input[0].output"),
        ({"instructions": 3}, "instructions"), ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"), ({"background": True}, "background"), ({"text": 3}, "text"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"), ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "hear"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"), ({"top_logprobs": 21}, "top_logprobs"),
        ({"metadata": {"a": 3}}, "metadata.a"), ({"include": 3}, "include"), ({"model": None}, "model"),
    ],
)  # fmt: skip
def test_the_field_to_mend_is_named(url, changed, param):
    answer = httpx.post(f"{url}/v1/responses", json={"model": "parrot", "input": "x", **changed})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_output_tokens": 3},
        {"top_logprobs": 2},
        {"include": ["message.output_text.logprobs"]},
        {"tools": [TOOL]},
    ],
)
def test_a_stream_says_what_one_body_does(url, options):
    """In the order of OpenAI's own."""
    whole, events = ask(url, seed=1, **options), stream(url, seed=1, **options)
    assert same(events[-1]["response"]) == same(whole)
    kinds = [event["type"].removeprefix("response.") for event in events]
    said = [event for event in events if event["type"] == "response.output_text.delta"]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * len(said),
        "output_text.done", "content_part.done", "output_item.done", whole["status"],
    ]  # fmt: skip
    part = whole["output"][0]["content"][0]
    done, part_done, item_done = events[-4:-1]
    assert "".join(event["delta"] for event in said) == done["text"] == part["text"]
    assert part_done["part"] == part
    assert [event["item_id"] for event in (*said, done)] == [item_done["item"]["id"]] * (len(said) + 1)
    logprobs = [each for event in said for each in event["logprobs"]]
    assert logprobs == done["logprobs"] == part["logprobs"]
    if "top_logprobs" in options or "include" in options:
        assert "".join(each["token"] for each in logprobs) == part["text"]
        assert {len(each["top_logprobs"]) for each in logprobs} == {options.get("top_logprobs", 0)}
    for event in events[:2]:
        assert (event["response"]["status"], event["response"]["output"]) == ("in_progress", [])


@pytest.mark.parametrize(
    ("spoken", "choice"), [("", "auto"), ("Let me look. ", "auto"), ("", "required"), ("", {"name": "look"})]
)
def test_calls_are_items(spoken, choice):
    """Of which the client gathers the arguments."""
    forced = choice != "auto"
    if isinstance(choice, dict):
        choice = {"type": "function", **choice}
    parrot = Scripted(
        lambda request: CALL.removeprefix("<tool_call>").removesuffix("</tool_call>") if forced else spoken + CALL
    )
    with served(parrot) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        options = {
            "tools": [TOOL],
            "tool_choice": choice,
            "top_logprobs": 0,
            "include": ["message.output_text.logprobs"],
        }
        whole = ask(url, **options)
        with client.responses.stream(model="parrot", input="häy €", **options) as sent:
            gathered = sent.get_final_response()
        events = stream(url, **options)
    assert same(events[-1]["response"]) == same(whole)
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert [(item["type"], item["status"]) for item in added] == [
        (item["type"], "in_progress") for item in whole["output"]
    ]
    told = [event for event in events if event["type"].startswith("response.function_call_arguments")]
    assert [event["item_id"] for event in told] == [added[-1]["id"]] * 2
    assert added[-1]["arguments"] + told[0]["delta"] == told[1]["arguments"] == whole["output"][-1]["arguments"]
    assert same(gathered.to_dict())["output"] == [
        {**item, "parsed_arguments": {"at": "the sea"}} if item["type"] == "function_call" else
        {**item, "content": [{**item["content"][0], "parsed": None}]}
        for item in same(whole)["output"]
    ]  # fmt: skip
    *messages, call = whole["output"]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", "look", {"at": "the sea"})
    assert whole["status"] == call["status"] == "completed"
    texts = [message["content"][0] for message in messages]
    assert [text["text"] for text in texts] == ([spoken] if spoken else [])
    for text in texts:
        assert "".join(each["token"] for each in text["logprobs"]) == spoken
    described = parrot.asked[-1].prompt.tools[0]["function"]
    assert described == {name: TOOL[name] for name in ("name", "strict", "parameters")}
    assert (parrot.asked[-1].grammar is not None) == forced


@pytest.mark.parametrize(("text", "scored"), [(f"a < b {CALL}", "a < b "), (f"a{CALL} c", "a"), ("a <tool", "a <tool")])
def test_tokens_of_calls_are_not_said(text, scored):
    """What is held back since it may begin a call is told when it is none."""
    options = {"tools": [TOOL], "include": ["message.output_text.logprobs"]}
    with served(Scripted(lambda request: text)) as (url, _):
        whole, events = ask(url, **options), stream(url, **options)
    part = whole["output"][0]["content"][0]
    assert part["text"] == text.replace(CALL, "")
    assert "".join(each["token"] for each in part["logprobs"]) == scored
    said = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in said) == part["text"]
    assert [each for event in said for each in event["logprobs"]] == part["logprobs"]


def test_no_function_is_offered_where_none_may_be_called(client, parrot):
    answer = client.responses.create(model="parrot", input="x", tools=[TOOL], tool_choice="none")
    assert parrot.asked[-1].prompt.tools == ()
    assert (answer.tool_choice, answer.tools[0].name) == ("none", "look")


def test_an_empty_answer_is_a_message():
    with served(Scripted(lambda request: "")) as (url, _):
        assert ask(url)["output"][0]["content"][0]["text"] == ""
        kinds = [event["type"].removeprefix("response.") for event in stream(url)]
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip


class Place(BaseModel):
    name: str
    people: int


def test_an_answer_is_parsed_as_what_it_was_held_to():
    parrot = Scripted(lambda request: '{"name": "Paris", "people": 2}')
    with served(parrot) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        answer = client.responses.parse(model="parrot", input="Which?", text_format=Place)
        with client.responses.stream(model="parrot", input="Which?", text_format=Place) as events:
            streamed = events.get_final_response()
        client.responses.create(model="parrot", input="x", text={"format": {"type": "json_object"}})
        held = [json.loads(request.grammar)["grammars"][0]["json_schema"] for request in parrot.asked]
    assert answer.output_parsed == streamed.output_parsed == Place(name="Paris", people=2)
    assert held[0]["properties"].keys() == {"name", "people"}
    assert held == [held[0], held[0], {"type": "object"}]
    assert answer.text.format.schema_ == held[0]


@pytest.mark.parametrize(
    ("error", "code"), [(EngineLost("died"), "server_error"), (Overloaded("too many", 1.0), "rate_limit_exceeded")]
)
@pytest.mark.parametrize("at", [1, 3])
def test_an_error_in_the_middle_of_a_stream_is_said_and_ends_it(error, code, at):
    parrot = Scripted()

    async def fail(request: object, i: int) -> None:
        if i == at:
            raise error

    parrot.before = fail
    with served(parrot) as (url, _):
        last = stream(url)[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == code
    assert last["response"]["error"]["message"] == str(error)
    assert last["response"]["output"][0]["content"][0]["text"] == "you said"[:at]
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_errors_before_that_are_of_the_clients_classes(client):
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="crow", input="x", stream=True)
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="parrot", input="x" * 1001)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("responses", {"input": "x", "max_output_tokens": 9}, "max_output_tokens"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}, "max_tokens"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "max_completion_tokens": 9},
            "max_completion_tokens",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_endpoint_refuses_is_named_as_the_body_has_it(path, body, param, stream):
    parrot = Scripted()

    async def fail(request: object, i: int) -> None:
        raise ContextExceeded("max_tokens", "9 are too many")

    parrot.before = fail
    with served(parrot) as (url, _):
        answer = httpx.post(f"{url}/v1/{path}", json={"model": "parrot", "stream": stream, **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_server_elsewhere_needs_to_know_nothing_of_it():
    """It is asked for a chat."""
    parrot = Scripted(lambda request: f"Let me look. {CALL}")
    with served(parrot) as (there, _), served(Upstream(there)) as (here, _):
        answers = [ask(url, seed=1, tools=[TOOL], instructions="be brief") for url in (there, here)]
    first, second = (same(answer) for answer in answers)
    assert first["output"] == second["output"]
    assert [item["type"] for item in first["output"]] == ["message", "function_call"]
    assert parrot.asked[0].prompt == parrot.asked[1].prompt
