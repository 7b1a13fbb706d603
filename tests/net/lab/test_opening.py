"""Which lab one gets, and what is said to those who can't have one."""

import time

import pytest

from atoll.errors import InvalidConfig, LabUnavailable
from atoll.net.lab import available, open_lab
from atoll.net.lab import opening as opening_module
from tests.net.lab.hosts import BACK_ENDS, Program, listening, need, workers


def test_the_best_back_end_comes_first_and_each_has_a_reason_or_none() -> None:
    assert list(available()) == BACK_ENDS
    assert all("\n" not in why for why in available().values())


def test_without_a_wish_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {
        "netem": (lambda: "no", lambda *_: "a"),
        "tun": (lambda: "", lambda *_: "b"),
        "relay": (lambda: "", lambda *_: "c"),
    }
    monkeypatch.setattr(opening_module, "_BACK_ENDS", ends)
    assert str(open_lab(2)) == "b"
    assert str(open_lab(2, back_end="relay")) == "c"


def test_who_cannot_have_a_lab_is_told_why_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"netem": (lambda: "no kernel", None), "tun": (lambda: "no root", None)}
    monkeypatch.setattr(opening_module, "_BACK_ENDS", ends)
    with pytest.raises(LabUnavailable, match=r"^no WAN lab on this computer: netem: no kernel; tun: no root$"):
        open_lab(2)
    with pytest.raises(LabUnavailable, match=r"^no WAN lab by tun: no root; without .*$"):
        open_lab(2, back_end="tun")


def test_a_lab_that_cannot_be_is_refused() -> None:
    for hosts in (0, 251):
        with pytest.raises(InvalidConfig, match="it has to be 1 to 250"):
            open_lab(hosts)
    with pytest.raises(InvalidConfig, match="'pigeon'; there are: netem, tun, relay"):
        open_lab(2, back_end="pigeon")


@pytest.mark.parametrize("back_end", ["tun", "relay"])
def test_a_lab_without_traffic_sleeps(back_end: str) -> None:
    with open_lab(3, back_end=need(back_end)):
        (worker,) = workers()
        before = worker.cpu_times()
        time.sleep(0.5)
        after = worker.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.1


@pytest.mark.parametrize("back_end", ["tun", "relay"])
def test_a_lab_whose_process_is_killed_says_so(back_end: str) -> None:
    with open_lab(2, back_end=need(back_end)) as lab:
        (worker,) = workers()
        worker.kill()
        with pytest.raises(LabUnavailable, match="has failed"):
            lab.cut(1)


def test_the_relay_knows_the_host_of_a_child_and_lets_no_stranger_in() -> None:
    with (
        open_lab(2, back_end=need("relay")) as lab,
        open_lab(2, back_end="relay") as strangers,
        listening(lab, 1, "echo", 5000),
    ):
        there = lab.expose(1, 5000)
        assert lab.expose(1, 5000) == there
        with Program(strangers, 0, "chat", there) as chat:
            assert chat.hear() == "connected"
            chat.tell("one")
            assert [chat.hear(), chat.hear()][1] != "one\n"
        with Program(lab, 0, "parent", there) as child:
            assert child.hear() == "connected"
            child.tell("one")
            assert [child.hear(), child.hear()] == ["sent", "one\n"]
        with Program(lab, 0, "chat", lab.expose(1, 5999)) as chat:
            assert chat.hear() == "connected"
            chat.tell("one")
            assert "one\n" not in [chat.hear(), chat.hear()]  # nothing listens there
