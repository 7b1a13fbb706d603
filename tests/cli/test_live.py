"""What people, logs and programs see of a run."""

import io
import json
from statistics import fmean
from typing import Any

import pytest
from rich.console import Console

from atoll.cli.history import History
from atoll.cli.live import JsonView, LiveView, PlainView, clock, sparkline, traffic, view_for


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def terminal(width: int = 80, encoding: str = "utf-8") -> Console:
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    return Console(width=width, file=file, force_terminal=True, color_system=None, record=True, legacy_windows=False)


def pipe() -> Console:
    return Console(width=80, file=io.StringIO(), force_terminal=False)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def loss_at(step: int) -> float:
    return 1.0 + 400.0 / (step + 99)


def mean_loss(first: int, last: int) -> str:
    return f"{fmean(map(loss_at, range(first, last + 1))):.3f}"


def history_of_a_run() -> History:
    """Four peers at step 240 of 400: one killed, one came late."""
    history = History(400)

    def add(kind: str, peer: str, **fields: Any) -> None:
        history.add({"event": kind, "peer": peer, **fields})

    def step(names: list[str], step: int, epoch: int) -> None:
        for rank, name in enumerate(names):
            where = {"world": len(names), "rank": rank, "epoch": epoch, "at": step * 0.5}
            counts = {"tokens": 1024, "seconds": 0.5, "waited": 0.0, "sent": 40_000 * step, "ddp": 800_000 * step}
            state = {"revision": step, "hash": f"{step:08x}cafe"} if step % 20 == 0 else {}
            add("step", name, step=step, loss=loss_at(step), **counts, **where, **state)

    names = [f"peer-{n}" for n in range(4)]
    for rank, name in enumerate(names):
        add("started", name, at=0.0, pid=41230 + rank)
        add("joined", name, at=0.0, id=rank, world=4, rank=rank, epoch=1)
    for number in range(1, 134):
        step(names, number, 1)
    add("killed", "peer-2", at=66.6)
    names.remove("peer-2")
    for number in range(134, 160):
        step(names, number, 2)
    add("started", "peer-4", at=80.0, pid=41299)
    add("joined", "peer-4", at=80.0, id=5, world=4, rank=3, epoch=3)
    for number in range(160, 241):
        step([*names, "peer-4"], number, 3)
    return history


def picture(history: History, width: int, *notes: str) -> list[str]:
    console, now = terminal(width), Clock()
    view = LiveView(history, "atoll train: a-name", console, now)
    for note in notes:
        now.now_s += 61.0
        view.note(note)
    console.print(view.render())
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_the_picture_fits_and_says_it_all(width: int) -> None:
    lines = picture(history_of_a_run(), width, "peer-2 was killed (SIGKILL) at step 133")
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text  # nothing is cut off
    title, progress = lines[1:3]
    assert title.split()[-4:] == ["world", "4,", "epoch", "3"]
    assert "step 240 of 400" in progress
    assert progress.rstrip().endswith("1:01, 1:20 left")  # two steps a second
    rows = {line.split()[0]: line.split() for line in lines if line.startswith(" peer-")}
    #                          sign state rank step loss tokens/s sent note
    assert rows["peer-1"][1:] == [
        "●",
        "training",
        "1",
        "240",
        mean_loss(221, 240),
        "2,048",
        "9.6",
        "MB",
        "pid",
        "41231",
    ]
    assert rows["peer-2"][1:] == ["✗", "killed", "133", mean_loss(114, 133), "5.3", "MB"]
    assert rows["peer-4"][3:5] == ["3", "240"]
    assert "revision 240, 000000f0 ✓ equal on 4 peers" in text
    assert "43.7 MB sent, plain data-parallel would have sent 874.4 MB: 20x less" in text
    assert "5.00 → 2.18" in text
    assert " 1:01  peer-2 was killed (SIGKILL) at step 133" in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_full_loss_curve_has_its_numbers_beside_it(width: int) -> None:
    history = History(400)
    for step in range(1, 401):
        counts = {"tokens": 1, "sent": 1, "ddp": 1}
        history.add({"event": "step", "peer": "a", "at": 0.0, "step": step, "loss": loss_at(step), **counts})
    [line] = [line for line in picture(history, width) if "█" in line]
    assert line.split()[0] == "loss"
    assert line.rstrip().endswith("▁ 5.00 → 1.80")
    assert len(line.rstrip()) >= width - 3


def test_the_picture_keeps_the_last_five_happenings_and_long_ones_whole() -> None:
    long = "peer-0: lost peer-2 (connection lost: Connection reset by peer); the group goes on with 3"
    text = "\n".join(picture(history_of_a_run(), 80, "zero", "one", long, "three", "four", "five"))
    assert "zero" not in text
    assert " ".join(text.split()).count(long.split(";")[0]) == 1
    assert "group goes on with 3" in text


def test_the_picture_before_anything_has_happened() -> None:
    text = "\n".join(picture(History(400), 80))
    assert "step 0 of 400" in text
    assert "left" not in text


def test_different_states_are_shown_at_once() -> None:
    history = history_of_a_run()
    where = {"world": 4, "rank": 0, "epoch": 3, "at": 130.0, "tokens": 1, "sent": 1, "ddp": 2, "loss": 1.0}
    history.add({"event": "step", "peer": "peer-0", "step": 260, "revision": 260, "hash": "one", **where})
    history.add({"event": "step", "peer": "peer-1", "step": 260, "revision": 260, "hash": "other", **where})
    text = "\n".join(picture(history, 80))
    assert "✗ the peers differ at revision 260" in text
    assert "equal" not in text


def test_why_a_peer_failed_stands_beside_it() -> None:
    history = history_of_a_run()
    history.add({"event": "failed", "peer": "peer-1", "at": 130.0, "message": "the disk is full"})
    [row] = [line for line in picture(history, 80) if line.startswith(" peer-1")]
    assert row.split()[1:3] == ["✗", "failed"]
    assert "the disk is full"[:10] in row


def test_the_live_view_draws_at_most_ten_times_a_second() -> None:
    console, now = terminal(), Clock()
    with LiveView(History(10), "a title", console, now) as view:

        def drawn() -> bool:
            console.export_text(clear=True)
            view.update()
            return bool(console.export_text(clear=True).strip())

        now.now_s += 0.11
        assert drawn()
        now.now_s += 0.05
        assert not drawn()
        now.now_s += 0.06
        assert drawn()


def test_a_plain_view_tells_each_tenth_of_the_steps_and_every_five_seconds_of_progress() -> None:
    console, now, history = pipe(), Clock(), History(100)
    event = {"event": "step", "peer": "a", "tokens": 10, "sent": 1, "ddp": 2, "loss": 2.0, "rank": 0, "world": 1}
    with PlainView(history, "a title", console, now) as view:
        for step in range(1, 31):  # eight steps a second
            now.now_s += 0.125
            history.add({**event, "step": step, "epoch": 1, "at": now.now_s})
            view.update()
            view.update()
        now.now_s += 3.0
        view.update()  # nothing new to tell
        for step in (31, 32):  # two seconds each
            now.now_s += 2.1
            history.add({**event, "step": step, "epoch": 1, "at": now.now_s})
            view.update()
    lines = printed(console)
    assert lines[0] == "a title"
    assert [line.split()[2] for line in lines[1:]] == ["10/100,", "20/100,", "30/100,", "31/100,"]
    assert lines[1].startswith("[0:01] step 10/100, loss 2.000,")


def test_the_world_is_that_of_the_group_also_where_only_one_of_it_is_heard() -> None:
    console, history = pipe(), History(10)
    event = {"event": "step", "peer": "a", "at": 1.0, "tokens": 10, "sent": 1, "ddp": 2, "loss": 2.0}
    with PlainView(history, "a title", console, Clock()) as view:
        history.add({**event, "step": 1})
        view.update()
        history.add({**event, "step": 2, "rank": 0, "world": 3, "epoch": 1})
        view.update()
        history.add({**event, "step": 3, "rank": 0, "world": 2, "epoch": 2})
        history.add({"event": "done", "peer": "a", "at": 2.0, "step": 3, "hash": "h", "sent": 1, "ddp": 2})
        view.update()
    unknown, three, two = printed(console)[1:]
    assert "world" not in unknown
    assert "world 3," in three
    assert "world 2," in two


def test_a_plain_note_is_one_line_however_long_and_whatever_it_looks_like() -> None:
    console = pipe()
    PlainView(History(1), "", console, Clock()).note("[red]" + "word " * 40)
    assert printed(console) == ["[0:00] [red]" + "word " * 40]


def test_json_lines_are_the_events_and_the_summary_as_the_last() -> None:
    console, event = pipe(), {"event": "step", "peer": "peer-0", "note": "[b] " * 40}
    with JsonView(history_of_a_run(), console) as view:
        view.event(event)
        view.note("for people")
        view.update()
        view.summary({"model": "runs/x/model"})
    first, last = (json.loads(line) for line in printed(console))
    assert first == event
    assert (last["event"], last["steps"], last["failures_survived"]) == ("summary", 240, 1)
    assert last["model"] == "runs/x/model"


def test_the_summary_for_people() -> None:
    console, now, history = pipe(), Clock(), history_of_a_run()
    history.add({"event": "evaluated", "peer": "peer-0", "at": 0.0, "step": 0, "loss": 5.545})
    history.add({"event": "evaluated", "peer": "peer-0", "at": 130.0, "step": 240, "loss": 2.25})
    view = PlainView(history, "", console, now)
    now.now_s += 92.0
    view.summary({"model": "/a/folder with a name so long that it would never fit on a line of a terminal/model"})
    rows = {line.split()[0]: line[11:].strip() for line in printed(console) if line}
    tokens = 1024 * (133 * 4 + 26 * 3 + 81 * 4)
    assert rows == {
        "trained": f"240 steps, {tokens:,} tokens, 1:32",
        "loss": "5.545 -> 2.250 nats per byte on held-out text",
        "traffic": "43.7 MB sent, plain data-parallel would have sent 874.4 MB: 20x less",
        "peers": "1 lost and survived, 1 joined later",
        "state": "equal, bit for bit, each of the 12 times it was compared",
        "model": "/a/folder with a name so long that it would never fit on a line of a terminal/model",
    }


def test_a_peer_alone_claims_nothing_about_others() -> None:
    console, history = pipe(), History(10)
    history.add({"event": "joined", "peer": "a", "at": 0.0, "id": 1, "world": 3, "rank": 0, "epoch": 1})
    PlainView(history, "", console, Clock()).summary({})
    assert not {"peers", "state"} & {line.split()[0] for line in printed(console) if line}


def test_a_ratio_that_is_none_is_not_praised() -> None:
    history = History(10)
    event = {"event": "step", "peer": "a", "at": 0.0, "step": 1, "tokens": 1, "loss": 1.0}
    history.add({**event, "sent": 100, "ddp": 101})
    assert "less" not in traffic(history)


@pytest.mark.parametrize(("console", "kind"), [(terminal(), LiveView), (terminal(encoding="ascii"), PlainView)])
def test_the_live_view_needs_a_terminal_that_can_show_it(console: Console, kind: type) -> None:
    assert isinstance(view_for(History(1), "", console), kind)
    assert isinstance(view_for(History(1), "", pipe()), PlainView)


def test_a_sparkline_falls_with_the_loss_and_ends_where_the_steps_end() -> None:
    assert sparkline({step: 8.0 - step for step in range(1, 9)}, 8, 40) == "█▇▆▅▄▃▂▁"
    assert sparkline({step: 8.0 - step for step in range(1, 9)}, 16, 16) == "█▇▆▅▄▃▂▁"
    assert len(sparkline(dict.fromkeys(range(1, 501), 1.0), 1000, 40)) == 20
    assert sparkline({step: float(step <= 50) for step in range(1, 101)}, 100, 4) == "██▁▁"
    assert sparkline({51: 1.0, 52: 0.0}, 100, 100) == " " * 50 + "█▁"  # resumed half way


@pytest.mark.parametrize(("seconds", "text"), [(0.9, "0:00"), (62.0, "1:02"), (3723.0, "1:02:03")])
def test_times_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
