"""Driver: `atoll chat`: a conversation in the terminal with any server that speaks OpenAI's API."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from atoll.cli.keys import read_key
from atoll.config import parse
from atoll.endpoint.events import Events
from atoll.errors import InvalidConfig, InvalidData, RequestFailed, Unavailable

if TYPE_CHECKING:
    import httpx

PATIENCE_S: Final = 120.0
"""For which no word may come."""
_HELP: Final = "an empty line or Ctrl-D ends it; /new begins a new conversation"


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Talk with a model that `atoll serve`, or another server, serves.

    Without a terminal each line of standard input is a message, and the answers go to standard output.
    """

    url: str = "http://127.0.0.1:8000"
    """Where the server is."""
    model: str | None = None
    """Which of its models. Default: the first."""
    system: str | None = None
    """What the model is told before the conversation."""
    temperature: float = 0.7
    """0: always the likeliest word."""
    max_tokens: int | None = None
    """The most an answer may have."""
    api_key_file: Path | None = None
    """A file with the key that the server asks for."""


def main(argv: list[str]) -> int:
    """Ask and print until nobody asks any more."""
    settings = parse(ChatSettings, argv, prog="atoll chat", description=str(ChatSettings.__doc__), env=os.environ).value
    with _client(settings) as client:
        model = settings.model or _first_model(client, settings.url)
        begun = [{"role": "system", "content": settings.system}] if settings.system else []
        messages = list(begun)
        if sys.stdin.isatty():
            sys.stdout.write(f"{model} at {settings.url}: {_HELP}\n")
        for line in _lines():
            if line == "/new":
                messages = list(begun)
                continue
            messages.append({"role": "user", "content": line})
            said = []
            for part in _answer(client, settings, model, messages):
                said.append(part)
                sys.stdout.write(part)
                sys.stdout.flush()
            sys.stdout.write("\n")
            messages.append({"role": "assistant", "content": "".join(said)})
    return 0


def _lines() -> Iterator[str]:
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line
        elif sys.stdin.isatty():
            return


@contextmanager
def _client(settings: ChatSettings) -> "Iterator[httpx.Client]":
    try:
        import httpx
    except ImportError as error:
        raise InvalidConfig("`atoll chat` needs httpx: pip install 'atoll[serve]'") from error
    key = None if settings.api_key_file is None else read_key(settings.api_key_file)
    headers = {b"Authorization": f"Bearer {key}".encode()} if key else {}
    try:
        with httpx.Client(base_url=settings.url, headers=headers, timeout=PATIENCE_S) as client:
            yield client
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise InvalidConfig(f"--url is {settings.url!r}, which is no address; write http://HOST:PORT") from error
    except httpx.HTTPError as error:
        raise Unavailable(f"{settings.url}: {error}; is a server there? `atoll serve` starts one") from error


def _first_model(client: "httpx.Client", url: str) -> str:
    found = _json(client.get("/v1/models"))
    with _understood(url):
        names = [each["id"] for each in found["data"]]
    if not names:
        raise Unavailable(f"{url} serves no model yet")
    return str(names[0])


def _answer(client: "httpx.Client", settings: ChatSettings, model: str, messages: list[Any]) -> Iterator[str]:
    """The parts of an answer as they come."""
    body = {
        "model": model,
        "messages": messages,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "stream": True,
    }
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            response.read()
            _json(response)
        events = Events()
        for data in response.iter_bytes():
            with _understood(settings.url):
                texts = [text for event in events.push(data) for text in _texts(event)]
            yield from texts


def _texts(event: dict[str, Any]) -> Iterator[str]:
    if error := event.get("error"):
        message = error.get("message") if isinstance(error, dict) else error
        raise RequestFailed(str(message or "the answer broke off"))
    for choice in event.get("choices") or []:
        if text := (choice.get("delta") or {}).get("content"):
            yield str(text)


@contextmanager
def _understood(url: object) -> Iterator[None]:
    """InvalidData for what isn't of the form that it should have."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidData(f"{url} answers in no way known here: is it a server of OpenAI's API?") from error


def _json(response: "httpx.Response") -> Any:
    """What was answered. RequestFailed with the server's own words for an error."""
    with _understood(response.url):
        found = response.json()
    if response.status_code != 200:
        told = found.get("error") if isinstance(found, dict) else None
        message = told.get("message") if isinstance(told, dict) else told
        raise RequestFailed(f"{response.url}: {message or response.reason_phrase}")
    return found
