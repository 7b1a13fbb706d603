"""`atoll chat` before servers that aren't ours: what they say is shown, or one line says what is wrong."""

import io
from contextlib import contextmanager

import httpx
import pytest

from atoll.cli import chat
from atoll.cli.main import run

MODELS = b'{"data": [{"id": "m"}]}'


@pytest.mark.parametrize(
    ("models", "answer", "code", "shown"),
    [
        (MODELS, 'data: {"choices": [{"delta": {"content": "a\u2028b"}}]}\n\ndata:[DONE]\n\n', 0, "a\u2028b\n"),
        (MODELS, 'data: {"choices": [{"delta": null}, {"index": 0}]}\n\ndata: {"choices": null}\n\n', 0, "\n"),
        (MODELS, 'data: {"error": "plain words"}\n\n', 1, "plain words"),
        (MODELS, 'data: {"error": {"code": 1}}\n\n', 1, "broke off"),
        (MODELS, "data: {nonsense\n\n", 1, "no way known here"),
        (MODELS, 'data: {"choices": [1]}\n\n', 1, "no way known here"),
        (b"[1]", "", 1, "no way known here"),
        (b"<html>", "", 1, "no way known here"),
        (b'{"data": []}', "", 1, "no model yet"),
    ],
)
def test_what_comes_is_shown_or_said_to_be_wrong(monkeypatch, capfd, models, answer, code, shown):
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=models if request.method == "GET" else answer.encode())

    @contextmanager
    def client(settings):
        yield httpx.Client(transport=httpx.MockTransport(handle), base_url="http://there")

    monkeypatch.setattr(chat, "_client", client)
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert run(["chat"]) == code
    out, err = capfd.readouterr()
    assert shown in (err if code else out)
    assert len(err.strip().splitlines()) == code
