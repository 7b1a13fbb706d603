"""Text is said as early as it can't be taken back, and what is said is right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.endpoint.api import Chosen
from atoll.serve.answer import Answer
from tests.serve.bytes_model import END, Bytes


def said(text: bytes, stop=()):
    answer = Answer(Bytes(), stop, frozenset({END}))
    parts = []
    for token in text:
        parts.append(answer.push(token))
        if answer.finish:
            break
    return parts, parts and "".join(parts) + answer.end("length"), answer.finish


@given(st.text(alphabet="abcé€", max_size=30), st.lists(st.text(alphabet="abcé", min_size=1, max_size=4), max_size=4))
def test_an_answer_is_the_text_before_the_first_stop_that_is_complete(text, stop):
    parts, whole, finish = said(text.encode(), stop)
    ends = [text.index(s) + len(s) for s in stop if s in text]
    if not ends:
        assert (whole or "") == text
        assert not parts or finish == "length"
        return
    first = text[: min(ends)]
    assert whole == first[: min(first.index(s) for s in stop if s in first)]
    assert finish == "stop"


def test_what_begins_a_stop_text_is_held_back():
    assert said(b"hello STOx", ["STOP"])[0] == ["h", "e", "l", "l", "o", " ", "", "", "", "STOx"]


def test_half_a_character_is_held_back():
    assert said("a€".encode())[0] == ["a", "", "", "€"]
    assert said("a€".encode()[:3])[1] == "a�"


def test_tokens_are_told_with_their_text():
    answer = Answer(Bytes(), ["xyz"], frozenset({END}))
    told = []
    for token in b"abxy":
        answer.push(token, Chosen(token, chr(token), bytes([token]), -1.0))
        told.append("".join(chosen.text for chosen in answer.told()))
    assert told == ["a", "b", "", ""]
    assert answer.end("length") == "xy"
    assert [chosen.text for chosen in answer.told()] == ["x", "y"]


def test_tokens_of_a_stop_text_are_not_told():
    answer = Answer(Bytes(), ["xyz"])
    for token in b"axyz":
        answer.push(token, Chosen(token, chr(token), bytes([token]), -1.0))
    assert [chosen.text for chosen in answer.told()] == ["a"]


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_an_end_is_said_once(finish):
    answer = Answer(Bytes(), ["zz"])
    answer.push(ord("z"))
    assert answer.end(finish) == "z"
    assert answer.end(finish) == ""
    assert answer.finish == finish
