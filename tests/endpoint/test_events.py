"""A stream is the same events however its bytes come."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.endpoint import events as driver
from atoll.endpoint.events import Events

TEXTS = ["a", "\u2028 \x85 \u2029", "\r\n\x0b\x1c", "\x00é🏝"]
STREAM = b": ping\n\n" + b"".join(
    f"event: x\r\ndata:{space}{json.dumps({'text': text}, ensure_ascii=False)}\r\n\r\n".encode()
    for text in TEXTS
    for space in ("", " ")
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=6), st.sampled_from([b"data: [DONE]", b"data:[DONE]\r"]))
def test_events_are_the_same_however_they_are_cut(cuts, done):
    data, events = STREAM + done + b'\n\ndata: {"text": "late"}\n\n', Events()
    at = [0, *sorted(cuts), len(data)]
    found = [event for begin, end in pairwise(at) for event in events.push(data[begin:end])]
    assert [event["text"] for event in found] == [text for text in TEXTS for _ in range(2)]
    assert events.over


@pytest.mark.parametrize(
    ("data", "why"), [(b"{", "Expecting"), (b"[]", "object"), (b"\xff", "utf-8"), (b"[" * 9**5, "deep")]
)
def test_what_is_no_event_is_refused(data, why):
    with pytest.raises(ValueError, match=why):
        Events().push(b"data: " + data + b"\n")


def test_an_event_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(driver, "LARGEST", 100)
    events = Events()
    assert events.push(b"data: " + b"x" * 90) == []
    with pytest.raises(ValueError, match="more than 100 bytes"):
        events.push(b"x" * 10)
