"""What `atoll status` shows of a group: ring, lanes, rates and why."""

import json

import pytest
from rich.console import Console

from atoll.cli.status import as_json, render
from atoll.group.messages import LinkStatus, Loss, MemberStatus, PastLoss, Status


def member(number: int, rank: int, lane: str = "TCP x 8") -> MemberStatus:
    return MemberStatus(number, f"m{number}", f"10.0.0.{number}", 4000, rank, "running", 0.1, 7, {}, lane)


def group_of_three() -> Status:
    pairs = [(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b]
    links = tuple(LinkStatus(a, b, 0.0 if (a, b) == (3, 2) else 12.5e6, 0.02) for a, b in pairs)
    members = (member(1, 0, "shared memory"), member(3, 1), member(2, 2), member(4, -1))
    losses = (PastLoss(9.0, Loss(5, "m5", "its process ended")),)
    return Status(
        4, False, 7, 12, members, losses, links, "slowest link m1 -> m3 100 Mbit/s; avoids m3 -> m2 unreachable"
    )


def text(status: Status) -> str:
    console = Console(width=150, record=True)
    console.print(render("host:1", status))
    return console.export_text()


def test_the_ring_its_lanes_and_why_it_is_so_are_shown() -> None:
    shown = text(group_of_three())
    assert "m1 -> m3 -> m2 -> m1" in shown
    assert "shared memory, 100 Mbit/s, 20 ms" in shown
    assert "TCP x 8, 100 Mbit/s, 20 ms" in shown
    assert "avoids m3 -> m2 unreachable" in shown
    assert "lost m5 (id 5): its process ended" in shown


def test_who_waits_to_be_let_in_has_no_link_yet() -> None:
    (line,) = [line for line in text(group_of_three()).splitlines() if "10.0.0.4" in line]
    assert "Mbit/s" not in line
    assert "TCP" not in line


def test_the_rates_between_all_are_a_table() -> None:
    rows = [line.split() for line in text(group_of_three()).splitlines() if line.startswith("m")]
    assert ["m3", "100", "Mbit/s", "unreachable"] in rows


def test_two_peers_of_one_machine_need_no_table() -> None:
    shown = text(Status(1, False, 0, 0, (member(1, 0, "direct reads"), member(2, 1, "direct reads")), ()))
    assert "direct reads" in shown
    assert "measured" not in shown


def test_json_has_the_same_by_name() -> None:
    plain = json.loads(as_json(group_of_three()))
    assert plain["links"][0] == {"source": 1, "target": 2, "bytes_per_s": 12.5e6, "round_trip_s": 0.02}
    assert plain["members"][0]["lane"] == "shared memory"
    assert plain["ring_why"].startswith("slowest link")


def test_a_group_of_nobody_is_said_so() -> None:
    assert "nobody is here yet" in text(Status(0, False, 0, 0, (), ()))


@pytest.mark.parametrize("name", ["[/]", "[bold", "[link=x]y[/link]", "\x1b[2J\x1b[31m", "a\nb", "\x07"])
def test_what_peers_call_themselves_is_shown_as_it_is_and_moves_no_terminal(name: str) -> None:
    members = tuple(
        MemberStatus(i, name, "::1%" + name, 4000, i - 1, "running", 0.1, 7, {name: name}, name) for i in (1, 2, 3)
    )
    status = Status(1, False, 0, 0, members, (PastLoss(9.0, Loss(5, name, name)),), (LinkStatus(1, 2, 1e6, 0.1),), name)
    shown = text(status)
    assert shown.count(name if name.isprintable() else "?") >= 12
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
