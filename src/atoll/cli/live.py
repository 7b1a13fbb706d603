"""Driver: what a person, a log file or a program sees of a training run while it goes on, and its summary."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atoll.cli.history import Event, History, Peer, State

Now = Callable[[], float]
Facts = Mapping[str, str]
"""What the run left behind, by its name: `model`, `plot`, and so on."""

REFRESH_S = 0.1
LINE_S = 5.0
HAPPENINGS = 5
LABELS = 12  # columns that labels and margins take beside the loss
BLOCKS = "▁▂▃▄▅▆▇█"
# The sixteen colours of a terminal's own theme, without yellow and white: readable on dark and on light.
LOOKS: dict[State, tuple[str, str]] = {
    "joining": ("◌", "cyan"),
    "training": ("●", "green"),
    "serving": ("◆", "blue"),
    "lost": ("◌", "magenta"),
    "killed": ("✗", "red"),
    "done": ("✓", "green"),
    "failed": ("✗", "red"),
    "late": ("✗", "dim"),
}


class View(Protocol):
    """Shows a run. A context manager, open while the run lasts; the summary comes after it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def event(self, event: Event) -> None:
        """A child said this."""

    def note(self, text: str) -> None:
        """Something notable happened."""

    def update(self) -> None:
        """The history may have changed, or time has passed. Cheap: call it often."""

    def summary(self, facts: Facts) -> None:
        """The run is over."""


def view_for(history: History, title: str, console: Console) -> View:
    """The live view where the console can show it, else plain lines."""
    if console.is_terminal and not console.options.ascii_only:
        return LiveView(history, title, console)
    return PlainView(history, title, console)


class LiveView:
    """A table of the peers and the state of the run, drawn again as it changes."""

    def __init__(self, history: History, title: str, console: Console, now: Now = time.monotonic) -> None:
        self._history, self._title, self._console, self._now = history, title, console, now
        self._began = self._drawn = now()
        self._happenings: deque[tuple[float, str]] = deque(maxlen=HAPPENINGS)
        self._live = Live(console=console, auto_refresh=False, get_renderable=self.render)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def event(self, event: Event) -> None:
        """Shown by way of the history."""

    def note(self, text: str) -> None:
        """Stands among the last happenings."""
        self._happenings.append((self._now() - self._began, text))

    def update(self) -> None:
        """Draw, unless that was just done."""
        if self._now() - self._drawn >= REFRESH_S:
            self._drawn = self._now()
            self._live.refresh()

    def summary(self, facts: Facts) -> None:
        """Below the last picture."""
        print_summary(self._console, self._history, self._now() - self._began, facts)

    def render(self) -> RenderableType:
        """The picture of this moment."""
        return Padding(
            Group(self._header(), "", self._peers(), "", self._shared(), "", self._last_happenings()), (1, 1, 0, 1)
        )

    def _header(self) -> RenderableType:
        history = self._history
        left = history.seconds_left()
        times = f"{clock(self._now() - self._began)}" + ("" if left is None else f", {clock(left)} left")
        title = Table.grid(expand=True)
        title.add_column(ratio=1, no_wrap=True)
        title.add_column(justify="right", no_wrap=True)
        title.add_row(Text(self._title, "bold"), Text(_group(history), "cyan"))
        progress = Table.grid(padding=(0, 2, 0, 0), expand=True)
        progress.add_column(ratio=1)
        progress.add_column(justify="right", no_wrap=True)
        progress.add_column(justify="right", no_wrap=True)
        bar = ProgressBar(history.steps, history.step, style="dim", complete_style="green", finished_style="green")
        progress.add_row(bar, Text(f"step {history.step} of {history.steps}", "bold"), times)
        return Group(title, progress)

    def _peers(self) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        table.add_column("peer", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for name in ("rank", "step", "loss", "tokens/s", "sent"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", ratio=1, no_wrap=True, overflow="ellipsis")
        for peer in self._history.peers.values():
            sign, colour = LOOKS[peer.state]
            here = peer.state in ("joining", "training")
            loss, speed = peer.smoothed_loss, peer.tokens_per_s
            table.add_row(
                Text(peer.name, "bold" if here else ""),
                Text(f"{sign} {peer.state}", colour),
                str(peer.rank) if here and peer.rank is not None else "",
                str(peer.step) if peer.step else "",
                "" if loss is None else f"{loss:.3f}",
                f"{speed:,.0f}" if here and speed is not None else "",
                decimal(peer.sent) if peer.sent else "",
                Text(_remark(peer), "dim"),
                style="" if here or peer.state == "done" else "dim",
            )
        return table

    def _shared(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column()
        rows.add_row("loss", self._loss())
        rows.add_row("state", _state(self._history))
        rows.add_row("traffic", traffic(self._history))
        return rows

    def _loss(self) -> Text:
        curve = self._history.loss_curve()
        if not curve:
            return Text("…", "dim")
        losses = list(curve.values())
        ends = f" {losses[0]:.2f} → {losses[-1]:.2f}"
        width = max(10, self._console.width - len(ends) - LABELS)
        return Text.assemble((sparkline(curve, self._history.steps, width), "blue"), (ends, "bold"))

    def _last_happenings(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(style="dim", justify="right", no_wrap=True, min_width=5)
        rows.add_column()
        for at, text in self._happenings:
            rows.add_row(clock(at), Text(text))
        return rows


class PlainView:
    """One line for each notable happening, and now and then one of progress: for logs and pipes."""

    def __init__(self, history: History, title: str, console: Console, now: Now = time.monotonic) -> None:
        self._history, self._title, self._console, self._now = history, title, console, now
        self._began = self._told_at = now()
        self._told_step = 0

    def __enter__(self) -> Self:
        self._line(self._title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def event(self, event: Event) -> None:
        """Shown by way of the history."""

    def note(self, text: str) -> None:
        """One line, with the time since the start."""
        self._line(f"[{clock(self._now() - self._began)}] {text}")

    def update(self) -> None:
        """One line if the steps have come a tenth further, or if the last is 5 s old and there is progress."""
        history, now = self._history, self._now()
        if history.step == self._told_step:
            return
        tenth = history.step * 10 // history.steps > self._told_step * 10 // history.steps
        if tenth or now - self._told_at >= LINE_S:
            self._told_at, self._told_step = now, history.step
            self.note(_progress(history))

    def summary(self, facts: Facts) -> None:
        """The same lines as on a terminal."""
        print_summary(self._console, self._history, self._now() - self._began, facts)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class JsonView:
    """One JSON object per line: the children's events as they come, the summary as the last."""

    def __init__(self, history: History, console: Console) -> None:
        self._history, self._console = history, console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def event(self, event: Event) -> None:
        """One line."""
        self._console.out(json.dumps(event), highlight=False)

    def note(self, text: str) -> None:
        """Is for people."""

    def update(self) -> None:
        """Nothing is drawn."""

    def summary(self, facts: Facts) -> None:
        """The last line."""
        self.event({"event": "summary", **self._history.summary(), **facts})


def print_summary(console: Console, history: History, seconds: float, facts: Facts) -> None:
    """What came of the run, in lines that survive being copied from the terminal."""
    came = f"{history.step} steps, {history.tokens:,} tokens, {clock(seconds)}"
    rows = {"trained": came, "loss": _losses(history), "traffic": traffic(history)}
    if len(history.peers) > 1:  # one alone sees neither
        rows["peers"] = f"{history.failures_survived()} lost and survived, {history.joins()} joined later"
        rows["state"] = _verdict(history)
    console.print()
    for name, text in {**rows, **facts}.items():
        line = Text.assemble(" ", (f"{name:<10}", "dim"), text)
        console.print(line, soft_wrap=True)


def traffic(history: History) -> str:
    """Bytes sent by all, against plain data-parallel training."""
    ratio = history.ratio()
    if ratio is None:
        return "none"
    less = f": {ratio:.0f}x less" if ratio >= 1.5 else ""
    return f"{decimal(history.sent)} sent, plain data-parallel would have sent {decimal(history.ddp)}{less}"


def sparkline(curve: Mapping[int, float], steps: int, width: int) -> str:
    """The curve over steps 1 to `steps` in at most `width` characters; it ends where the curve ends."""
    columns = min(width, steps)
    buckets: dict[int, list[float]] = {}
    for step, value in curve.items():
        buckets.setdefault(min((step - 1) * columns // steps, columns - 1), []).append(value)
    means = {column: sum(values) / len(values) for column, values in buckets.items()}
    low, high = min(means.values()), max(means.values())
    scale = (len(BLOCKS) - 1) / ((high - low) or 1.0)
    return "".join(
        BLOCKS[round((means[column] - low) * scale)] if column in means else " " for column in range(max(means) + 1)
    )


def clock(seconds: float) -> str:
    """1:02, 1:00:02."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _group(history: History) -> str:
    if not history.training() or history.world is None:
        return ""
    return f"world {history.world}, epoch {history.epoch}"


def _remark(peer: Peer) -> str:
    match peer.state:
        case "failed":
            return peer.reason
        case "joining" | "training" if peer.pid is not None:
            return f"pid {peer.pid}"  # so that people can kill one themselves
        case _:
            return ""


def _state(history: History) -> Text:
    if wrong := history.disagreements():
        return Text(f"✗ the peers differ at revision {wrong[0]}", "bold red")
    newest = history.agreement()
    if newest is None:
        return Text("…", "dim")
    text = Text(f"revision {newest.revision}, {newest.hash[:8]} ")
    return text.append(f"✓ equal on {newest.peers} peers", "green") if newest.peers > 1 else text


def _verdict(history: History) -> str:
    if wrong := history.disagreements():
        return f"DIFFERENT on some peers at revision {', '.join(map(str, wrong))}"
    compared = history.summary()["hashes_compared"]
    return f"equal, bit for bit, each of the {compared} times it was compared" if compared else "was never compared"


def _losses(history: History) -> str:
    before, after = history.right_before, history.right_after
    if after is not None:
        return (f"{before:.1%} -> " if before is not None else "") + f"{after:.1%} of held-out texts labelled right"
    before, after = history.loss_before, history.loss_after
    if after is not None:
        start = "" if before is None else f"{before:.3f} -> "
        return f"{start}{after:.3f} nats per byte on held-out text"
    curve = list(history.loss_curve().values())
    return f"{curve[0]:.3f} -> {curve[-1]:.3f} nats per byte in training" if curve else "no step was taken"


def _progress(history: History) -> str:
    curve = history.loss_curve()
    left = history.seconds_left()
    parts = [
        f"step {history.step}/{history.steps}",
        f"loss {next(reversed(curve.values())):.3f}" if curve else "",
        "" if history.world is None else f"world {history.world}",
        f"{history.tokens_per_s():,.0f} tokens/s",
        f"{decimal(history.sent)} sent",
        "" if left is None else f"{clock(left)} left",
    ]
    return ", ".join(filter(None, parts))
