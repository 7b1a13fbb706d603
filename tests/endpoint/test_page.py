"""The page at / as a person uses it, in Chromium without a window: Debian's chromium and chromium-driver."""

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from atoll.endpoint.api import Served
from atoll.errors import EngineLost
from tests.endpoint.scripted import CONTEXT, Scripted, served

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="needs a browser: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--window-size=1200,800"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which it refuses to root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


SEEN = """
return Array.from(document.querySelectorAll(arguments[0]),
                  it => it.checkVisibility() ? it.innerText.trim() : "").join("\\n")
"""


class Page:
    """What is on it, by the ids it has."""

    def __init__(self, chromium: Chrome, url: str) -> None:
        self.chromium = chromium
        chromium.get_log("browser")  # what came before is none of its
        chromium.get(url)

    def text(self, selector: str) -> str:
        """Of all that are there, one a line; at one moment, for the page writes itself anew meanwhile."""
        return str(self.chromium.execute_script(SEEN, selector))

    def until(self, holds: Callable[[], object], what: str) -> None:
        WebDriverWait(self.chromium, 20, 0.02).until(lambda _: holds(), what)

    def type(self, selector: str, text: str) -> None:
        field = self.chromium.find_element(By.CSS_SELECTOR, selector)
        field.clear()
        field.send_keys(text)

    def ask(self, text: str) -> None:
        self.until(lambda: "ready" in self.text("#state"), "a model")
        self.type("#text", text + Keys.ENTER)

    def answered(self, times: int = 1) -> None:
        self.until(lambda: self.text("#send") == "Send" and self.text(".how").count("tokens") >= times, "an answer")

    def errors(self, *, of_network: bool = False) -> list[str]:
        """What the console complains of. A refused request always stands there, as of network."""
        log = [entry for entry in self.chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        return [entry["message"] for entry in log if (entry["source"] == "network") == of_network]


class Held:
    """Pieces of answers that come when the test says so."""

    def __init__(self, parrot: Scripted, at: int) -> None:
        self._at, self._going = at, threading.Event()
        parrot.before = self._before

    async def _before(self, request: object, piece: int) -> None:
        while piece >= self._at and not self._going.is_set():
            await asyncio.sleep(0.005)

    def release(self) -> None:
        self._going.set()


@pytest.mark.slow
def test_an_answer_streams_in_and_metrics_move(chromium):
    parrot = Scripted(lambda request: "Two times three is six.")
    held = Held(parrot, at=9)
    with served(parrot) as (url, _):
        page = Page(chromium, url)
        page.until(lambda: page.text("#requests_running") == "0", "metrics")
        page.type("#temperature", "0.3")
        page.type("#most", "77")
        page.type("#system", "Count well.")
        page.ask("What is two times three?")
        page.until(lambda: page.text(".said:not(.user)") == "Two times", "the first of the answer")
        assert page.text("#send") == "Stop"
        page.until(lambda: page.text("#requests_running") == "1", "a running request")
        page.until(lambda: page.text("#generation_tokens_total") == "9", "tokens so far")
        held.release()
        page.answered()
        assert page.text(".said:not(.user)") == "Two times three is six."
        assert page.text(".user") == "What is two times three?"
        for part in ("first token after", "23 tokens", "tokens/s"):
            assert part in page.text(".how")
        page.until(lambda: page.text("#requests_running") == "0", "an end")
        page.until(lambda: page.text("#generation_tokens_total") == "23", "all tokens")
        assert page.errors() == page.errors(of_network=True) == []
    (request,) = parrot.asked
    assert (request.sampling.temperature, request.max_tokens) == (0.3, 77)
    assert [(m["role"], m["content"]) for m in request.prompt.messages] == [
        ("system", "Count well."),
        ("user", "What is two times three?"),
    ]


@pytest.mark.slow
def test_a_conversation_goes_on_and_another_begins(chromium):
    parrot = Scripted(lambda request: f"answer {len(parrot.asked)}")
    with served(parrot) as (url, _):
        page = Page(chromium, url)
        page.ask("one")
        page.answered(1)
        page.ask("two")
        page.answered(2)
        chromium.find_element(By.ID, "new").click()
        assert page.text(".said") == ""
        page.ask("three")
        page.answered(1)
        assert page.errors() == []
    told = [[message["content"] for message in request.prompt.messages] for request in parrot.asked]
    assert told == [["one"], ["one", "answer 1", "two"], ["three"]]


def test_who_presses_stop_is_no_longer_answered(chromium):
    parrot = Scripted(lambda request: "for ever and ever")
    Held(parrot, at=8)
    with served(parrot) as (url, face):
        page = Page(chromium, url)
        page.ask("How long?")
        page.until(lambda: page.text(".said:not(.user)") == "for ever", "the first of the answer")
        chromium.find_element(By.ID, "send").click()
        page.answered()
        assert page.text(".how").endswith("stopped")
        page.until(lambda: parrot.gone and not face.answering, "that the server gives up")
        assert parrot.open == 0
        assert page.errors() == []


@pytest.mark.slow
def test_a_key_is_asked_for_and_taken(chromium):
    with served(Scripted(), keys=["sesame"]) as (url, _):
        page = Page(chromium, url)
        page.until(lambda: "key" in page.text("#state"), "a word about keys")
        page.type("#key", "open" + Keys.TAB)
        page.until(lambda: len(page.errors(of_network=True)) > 0, "a refusal")
        page.type("#text", "hello" + Keys.ENTER)
        page.until(lambda: "the key is missing or not known here" in page.text("#talk > .wrong"), "a reason")
        assert chromium.find_element(By.ID, "text").get_property("value") == "hello", "nothing typed is lost"
        page.type("#key", "sesame" + Keys.TAB)
        page.ask("hello")
        page.answered()
        assert page.text(".said:not(.user)").endswith("user: hello")
        assert page.errors() == []


@pytest.mark.slow
def test_a_server_that_ends_is_named_and_found_again(chromium):
    with served(Scripted()) as (url, _):
        page = Page(chromium, url)
        page.ask("hello")
        page.answered()
    page.until(lambda: "can't be reached" in page.text("#state"), "that the server is gone")
    page.type("#text", "still there?" + Keys.ENTER)
    page.until(lambda: "is it still running" in page.text("#talk > .wrong"), "a reason")
    assert page.errors() == []
    with served(Scripted(), port=int(url.rpartition(":")[2])):
        page.ask("again")
        page.answered(2)


def test_an_error_in_the_middle_of_an_answer_is_shown(chromium):
    parrot = Scripted(lambda request: "half of it")

    async def breaks(request: object, piece: int) -> None:
        if piece == 4:
            raise EngineLost("the engine is on fire")

    parrot.before = breaks
    with served(parrot) as (url, _):
        page = Page(chromium, url)
        page.ask("Say it.")
        page.until(lambda: "the engine is on fire" in page.text("#talk > .wrong"), "a reason")
        assert page.text(".said:not(.user)") == "half"
        assert page.errors() == []


@pytest.mark.slow
def test_a_model_that_has_learnt_no_conversations_goes_on_with_texts(chromium):
    class Plain(Scripted):
        def describe(self) -> tuple[Served, ...]:
            return (Served(name="parrot", context=CONTEXT, created=17, chat=False),)

    parrot = Plain(lambda request: ", there was")
    with served(parrot) as (url, _):
        page = Page(chromium, url)
        page.ask("Once upon a time ")
        page.answered()
        assert page.text(".said:not(.user)") == ", there was"
        assert page.errors() == []
    assert parrot.asked[0].prompt.text == "Once upon a time "
    assert parrot.asked[0].max_tokens == CONTEXT // 2, "more than that may not fit"


@pytest.mark.slow
def test_all_that_can_be_used_has_a_name(chromium):
    """For who hears the page, and without any other server."""
    with served(Scripted()) as (url, _):
        page = Page(chromium, url)
        page.until(lambda: "ready" in page.text("#state"), "a model")
        used = chromium.find_elements(By.CSS_SELECTOR, "button, input, select, textarea, a, svg:not([aria-hidden])")
        assert len(used) > 10
        assert [each.get_attribute("id") for each in used if not each.accessible_name and each.is_displayed()] == []
        loaded = chromium.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
        assert loaded
        assert all(name.startswith(url) for name in loaded)
