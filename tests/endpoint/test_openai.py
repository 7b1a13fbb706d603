"""The official client finds all it expects."""

import asyncio
import json

import httpx
import openai
import pytest

from atoll.endpoint.api import Request
from atoll.errors import AnswerFailed, DeadlineImpossible, DeadlinePassed, Draining, EngineLost, Overloaded
from tests.endpoint.scripted import Scripted, served

SAY = [{"role": "user", "content": "häy €"}]


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list()] == ["parrot"]
    assert client.models.retrieve("parrot").id == "parrot"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("crow")


def test_a_completion(client):
    answer = client.completions.create(model="parrot", prompt="abc", max_tokens=100)
    assert answer.choices[0].text == "you said abc"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.completion_tokens == 12
    assert answer.id.startswith("cmpl-")
    assert answer.object == "text_completion"


def test_sixteen_tokens_where_nothing_is_said(client):
    assert client.completions.create(model="parrot", prompt="x" * 50).choices[0].finish_reason == "length"


def test_several_prompts_and_answers_are_numbered(client):
    answer = client.completions.create(model="parrot", prompt=["a", "b"], n=2, max_tokens=90)
    assert [choice.text for choice in answer.choices] == ["you said a", "you said a", "you said b", "you said b"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 2
    tokens = client.completions.create(model="parrot", prompt=[[97, 98], [99]], max_tokens=90)
    assert [choice.text for choice in tokens.choices] == ["you said ab", "you said c"]


def test_tokens_by_number_where_asked_for(client):
    ask = {"model": "parrot", "prompt": "ab", "max_tokens": 90, "extra_body": {"return_token_ids": True}}
    whole = client.completions.create(**ask).choices[0]
    parts = [chunk.choices[0] for chunk in client.completions.create(**ask, stream=True)]
    assert bytes(whole.token_ids) == whole.text.encode() == b"you said ab"
    assert [token for part in parts for token in getattr(part, "token_ids", ())] == whole.token_ids
    del ask["extra_body"]
    assert not hasattr(client.completions.create(**ask).choices[0], "token_ids")


def test_a_prompt_is_scored(client):
    answer = client.completions.create(model="parrot", prompt="abc", max_tokens=0, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text == "abc"
    assert choice.logprobs.tokens == ["a", "b", "c"]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[1:] == [-0.5, -0.5]
    assert choice.logprobs.text_offset == [0, 1, 2]


def test_a_chat(client):
    answer = client.chat.completions.create(model="parrot", messages=SAY)
    assert answer.choices[0].message.content == "you said user: häy €"
    assert answer.choices[0].message.role == "assistant"
    assert answer.id.startswith("chatcmpl-")


def test_what_some_take_for_the_end_of_a_line_does_not_end_an_event():
    text = "a\x85b\u2028c\u2029d\ne"
    with served(Scripted(lambda request: text)) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        chunks = client.completions.create(model="parrot", prompt="x", stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == text
        body = {"model": "parrot", "prompt": "x", "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}])
def test_a_stream_says_what_one_body_does(client, options):
    whole = client.chat.completions.create(model="parrot", messages=SAY, seed=1, **options)
    said, usage, roles = {}, None, []
    logprobs = {}
    finish = {}
    stream = client.chat.completions.create(
        model="parrot", messages=SAY, seed=1, stream=True, stream_options={"include_usage": True}, **options
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            roles += [choice.delta.role] if choice.delta.role else []
            said[choice.index] = said.get(choice.index, "") + (choice.delta.content or "")
            finish[choice.index] = choice.finish_reason or finish.get(choice.index)
            if choice.logprobs:
                logprobs.setdefault(choice.index, []).extend(choice.logprobs.content)
    assert said == {choice.index: choice.message.content for choice in whole.choices}
    assert finish == {choice.index: choice.finish_reason for choice in whole.choices}
    assert usage == whole.usage
    assert roles == ["assistant"] * len(whole.choices)
    for choice in whole.choices:
        assert logprobs.get(choice.index) == (choice.logprobs.content if choice.logprobs else None)


def test_a_streamed_completion_is_the_same_too(client):
    options = {"model": "parrot", "prompt": "äbc", "max_tokens": 90, "logprobs": 1, "echo": True}
    whole = client.completions.create(**options).choices[0]
    text, tokens, offsets = "", [], []
    for chunk in client.completions.create(**options, stream=True):
        text += chunk.choices[0].text
        if chunk.choices[0].logprobs:
            tokens += chunk.choices[0].logprobs.tokens
            offsets += chunk.choices[0].logprobs.text_offset
    assert text == whole.text
    assert tokens == whole.logprobs.tokens
    assert offsets == whole.logprobs.text_offset
    assert "".join(tokens) == text


def test_what_is_asked_for_reaches_the_endpoint(client, parrot):
    client.completions.create(
        model="parrot", prompt="x", max_tokens=7, temperature=0.5, top_p=0.9, presence_penalty=1, frequency_penalty=-1,
        logit_bias={"5": -100}, seed=3, stop=["a", "b"], user="me",
        extra_body={"top_k": 4, "min_p": 0.1, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [9], "priority": 2,
                    "slo": {"class": "chat", "deadline_ms": 5000}, "session_id": "s", "offline": True, "unknown": 1},
    )  # fmt: skip
    request: Request = parrot.asked[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (
        0.5,
        0.9,
        4,
        0.1,
        3,
    )
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.bias) == (1.0, -1.0, {5: -100.0})
    assert (request.max_tokens, request.min_tokens, request.ignore_end) == (7, 2, True)
    assert (request.stop, request.stop_tokens, request.priority) == (("a", "b"), (9,), 2)
    assert (request.deadline_s, request.session) == (5.0, "s")
    assert request.labels == {"class": "chat", "deadline_ms": "5000", "offline": "1"}


def test_answers_of_one_call_have_seeds_of_their_own(client, parrot):
    client.completions.create(model="parrot", prompt="x", n=3, seed=10)
    assert [request.sampling.seed for request in parrot.asked[-3:]] == [10, 11, 12]
    client.completions.create(model="parrot", prompt="x", n=2)
    assert parrot.asked[-1].sampling.seed != parrot.asked[-2].sampling.seed


TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "the sea"}}</tool_call>'


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("spoken", ["", "Let me look. "])
def test_a_call_in_the_text_is_a_tool_call(stream, spoken):
    with served(Scripted(lambda request: spoken + CALL)) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        made = gathered(client, stream, tools=[TOOL])
    assert made == (spoken, [("look", {"at": "the sea"})], "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_who_must_call_is_held_to_a_grammar(stream, choice):
    parrot = Scripted(lambda request: '{"name": "look", "arguments": {"at": "home"}}')
    with served(parrot) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        made = gathered(client, stream, tools=[TOOL], tool_choice=choice)
    assert made == ("", [("look", {"at": "home"})], "tool_calls")
    assert '"const": "look"' in parrot.asked[-1].grammar


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "text", ["a < b", "<tool_cal", "<tool_call>not json</tool_call>", "x <tool_call>{}</tool_call>"]
)
def test_what_is_no_call_stays_text(stream, text):
    with served(Scripted(lambda request: text)) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        assert gathered(client, stream, tools=[TOOL]) == (text, [], "stop")


def gathered(client, stream: bool, **options) -> tuple[str, list, str]:
    """Content, calls and the reason of the end."""
    answer = client.chat.completions.create(model="parrot", messages=SAY, stream=stream, **options)
    if not stream:
        message = answer.choices[0].message
        calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
        return message.content or "", calls, answer.choices[0].finish_reason
    text, calls, finish = "", {}, ""
    for chunk in answer:
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        finish = choice.finish_reason or finish
        for part in choice.delta.tool_calls or ():
            name, arguments = calls.get(part.index, ("", ""))
            calls[part.index] = (part.function.name or name, arguments + (part.function.arguments or ""))
    return text, [(name, json.loads(arguments)) for name, arguments in calls.values()], finish


def test_answers_can_be_held_to_a_schema(client, parrot):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    client.chat.completions.create(model="parrot", messages=SAY, response_format=wanted)
    assert json.loads(parrot.asked[-1].grammar)["grammars"][0]["json_schema"] == schema
    client.chat.completions.create(model="parrot", messages=SAY, response_format={"type": "json_object"})
    assert parrot.asked[-1].grammar is not None
    client.chat.completions.create(model="parrot", messages=SAY, response_format={"type": "text"})
    assert parrot.asked[-1].grammar is None
    wanted["json_schema"]["schema"] = {"type": "nonsense"}
    with pytest.raises(openai.BadRequestError, match="schema"):
        client.chat.completions.create(model="parrot", messages=SAY, response_format=wanted)


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (Overloaded("too many", 7.0), openai.RateLimitError, "rate_limit_exceeded"),
        (Draining("about to end"), openai.InternalServerError, "overloaded"),
        (DeadlinePassed("late"), openai.InternalServerError, "deadline_passed"),
        (DeadlineImpossible("in vain", 7.0), openai.InternalServerError, "deadline_impossible"),
        (EngineLost("died"), openai.InternalServerError, "engine_lost"),
        (AnswerFailed("broke"), openai.InternalServerError, "answer_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_of_the_clients_classes(error, expected, code, stream):
    parrot = Scripted()

    async def fail(request, i):
        raise error

    parrot.before = fail
    with served(parrot) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        with pytest.raises(expected) as caught:
            client.chat.completions.create(model="parrot", messages=SAY, stream=stream)
    assert caught.value.code == code
    if isinstance(error, Overloaded) and not isinstance(error, Draining):
        assert caught.value.status_code == (503 if isinstance(error, DeadlineImpossible) else 429)
        assert caught.value.response.headers["retry-after"] == "7"


def test_an_error_in_the_middle_of_a_stream_is_said_and_ends_it():
    parrot = Scripted()

    async def fail(request, i):
        if i == 3:
            raise EngineLost("died")

    parrot.before = fail
    with served(parrot) as (url, _):
        body = {"model": "parrot", "prompt": "x", "stream": True}
        text = httpx.post(f"{url}/v1/completions", json=body).text
        assert '"code": "engine_lost"' in text
        assert text.endswith("data: [DONE]\n\n")


def test_unknown_models_and_too_long_prompts(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="crow", messages=SAY)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="parrot", prompt="x" * 1001)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="parrot", messages=[{"role": "user", "content": "x" * 1001}])
    assert caught.value.param == "messages"


def test_keys_are_asked_for():
    with served(Scripted(), keys=["one", "two", "drei€"]) as (url, _):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="two", max_retries=0)
        assert client.models.list().data
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="three", max_retries=0).models.list()
        refused = httpx.get(f"{url}/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer drei€".encode()}).status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200


def test_the_asynchronous_client(url):
    async def work():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(client.completions.create(model="parrot", prompt=f"{i}", max_tokens=90) for i in range(20))
            )
            assert [answer.choices[0].text for answer in answers] == [f"you said {i}" for i in range(20)]

    asyncio.run(work())
