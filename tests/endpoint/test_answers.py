"""What is told of tokens: in a stream as in one body, whatever is held back, and of halves of characters too."""

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.endpoint.answers import Answers
from atoll.endpoint.api import Chosen, Delta
from atoll.endpoint.asking import Drawn, completion
from atoll.endpoint.fields import Fields
from atoll.endpoint.items import Items
from atoll.endpoint.responses import response
from atoll.serve.answer import Answer
from tests.serve.bytes_model import Bytes

DRAWN = Drawn("cmpl-1", lambda: 0)


def deltas(text: str, stop: list[str]) -> Iterator[Delta]:
    """As an engine says it, whose tokens are bytes."""
    answer = Answer(Bytes(), stop)
    for token in text.encode():
        raw = bytes([token])
        said = answer.push(token, Chosen(token, raw.decode(errors="replace"), raw, -1.0))
        yield Delta(text=said, tokens=(token,), chosen=answer.told(), finish=answer.finish)
        if answer.finish:
            return
    yield Delta(text=answer.end("length"), chosen=answer.told(), finish="length")


@given(st.text(alphabet="abé€", max_size=12), st.lists(st.text(alphabet="abé", min_size=1, max_size=4), max_size=2))
def test_tokens_lie_where_their_text_does(text, stop):
    body = {"model": "m", "prompt": "x", "logprobs": 0}
    whole = Answers(completion(Fields(body), DRAWN), "cmpl-1", 0)
    streamed = Answers(completion(Fields({**body, "stream": True}), DRAWN), "cmpl-1", 0)
    told: dict[str, list[object]] = {"tokens": [], "text_offset": []}
    for delta in deltas(text, stop):
        whole.choices[0].take(delta)
        for event in streamed.events(0, delta):
            logprobs = json.loads(event.removeprefix(b"data: "))["choices"][0]["logprobs"]
            for name in told if logprobs else ():
                told[name] += logprobs[name]
    (choice,) = whole.body()["choices"]
    assert {name: choice["logprobs"][name] for name in told} == told
    raw = text.encode()
    assert told["text_offset"] == [len(raw[:i].decode(errors="ignore")) for i in range(len(told["tokens"]))]
    assert len(told["tokens"]) == len(choice["text"].encode())


@pytest.mark.parametrize("tools", [[], [{"type": "function", "name": "look"}]])
def test_halves_of_characters_are_told_as_items_too(tools):
    body = {"model": "m", "input": "x", "include": ["message.output_text.logprobs"], "tools": tools}
    items = Items(response(Fields(body), DRAWN), "resp_1", 0)
    said = []
    for delta in deltas("née €", []):
        said += [json.loads(event.split(b"data: ")[1]) for event in items.events(0, delta)]
    parts = [each for event in said if event["type"].endswith("text.delta") for each in event["logprobs"]]
    assert b"".join(bytes(each["bytes"]) for each in parts).decode() == "née €"
    assert items.body()["output"][0]["content"][0]["logprobs"] == parts
