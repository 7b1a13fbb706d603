"""Driver: `atoll status`."""

import json
import os
import time
from dataclasses import dataclass

import msgspec
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from atoll.cli.guarded import Guarded
from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.group.membership.rings import rate_text
from atoll.group.messages import LinkStatus, MemberStatus, Status
from atoll.group.wiring.asking import StatusClient
from atoll.net.guard import Guard


@dataclass(frozen=True, kw_only=True)
class StatusSettings(Guarded):
    """Who is in a group, in which order, how each fares, and who was lost lately and why."""

    address: Positional[str]
    """HOST:PORT of the master."""
    watch: bool = False
    """Go on, once a second, until Ctrl-C."""
    json: bool = False
    """One JSON object per look."""


def main(argv: list[str]) -> int:
    """Ask and print."""
    settings = parse(
        StatusSettings, argv, prog="atoll status", description=str(StatusSettings.__doc__), env=os.environ
    ).value
    client = StatusClient(settings.address, Guard(settings.token(), settings.tls()))
    console = wide_console()
    try:
        if not settings.watch:
            status = client.ask()
            say(as_json(status)) if settings.json else console.print(render(settings.address, status))
        elif settings.json:
            while True:
                say(as_json(client.ask()))
                time.sleep(1.0)
        else:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(render(settings.address, client.ask()), refresh=True)
                    time.sleep(1.0)
    finally:
        client.close()
    return 0


def as_json(status: Status) -> str:
    """Field by field, by name."""
    plain = {name: getattr(status, name) for name in status.__struct_fields__}
    plain["members"] = [{n: getattr(m, n) for n in m.__struct_fields__} for m in status.members]
    plain["links"] = [{n: getattr(link, n) for n in link.__struct_fields__} for link in status.links]
    plain["losses"] = [
        {"ago_s": p.ago_s, **{n: getattr(p.loss, n) for n in p.loss.__struct_fields__}} for p in status.losses
    ]
    return json.dumps(msgspec.to_builtins(plain))


def render(address: str, status: Status) -> RenderableType:
    """A head line, a table of members in ring order, the last losses."""
    inside = [m for m in status.members if m.rank >= 0]
    head = Text(
        f"{address}   epoch {status.epoch}{' (forming)' if status.forming else ''}   world {len(inside)}   "
        f"revision {status.revision}   operations {status.operations}",
        style="bold",
    )
    table = Table(box=None, pad_edge=False)
    for column in ("rank", "id", "name", "address", "state", "revision", "last progress", "to the next"):
        table.add_column(column, justify="right" if column in ("rank", "id", "revision") else "left")
    links = {(link.source, link.target): link for link in status.links}
    colours = {"running": "green", "slow": "yellow", "stopped": "red", "joining": "cyan"}
    for m in status.members:
        labels = "".join(f" {k}={v}" for k, v in sorted(m.labels.items()))
        table.add_row(
            str(m.rank) if m.rank >= 0 else "-",
            str(m.id),
            _plain(m.name + labels),
            _plain(f"{m.host}:{m.port}"),
            Text(m.state, style=colours.get(m.state, "")),
            str(m.revision),
            f"{m.silent_s:.1f} s ago",
            _link(m, inside, links),
        )
    if status.note:
        head.append(f"\nthe master {status.note}", style="yellow")
    parts: list[RenderableType] = [head, table if status.members else Text("nobody is here yet", style="dim")]
    if inside:
        parts.append(_plain("ring  " + " -> ".join([*(m.name for m in inside), inside[0].name]), "dim"))
        if status.ring_why:
            parts.append(_plain(f"      {status.ring_why}", "dim"))
    if links and len(inside) > 2:
        parts.append(_matrix(inside, links))
    parts += [
        _plain(f"{p.ago_s:7.0f} s ago  lost {p.loss.name} (id {p.loss.id}): {p.loss.reason}", "yellow")
        for p in status.losses[:5]
    ]
    return Group(*parts)


Links = dict[tuple[int, int], LinkStatus]


def _plain(text: str, style: str = "") -> Text:
    """What peers say of themselves is neither markup nor a command to the terminal."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text), style)


def _link(member: MemberStatus, inside: list[MemberStatus], links: Links) -> Text:
    """What a member's link to the next in the ring is made of, and what was measured of it."""
    if member.rank < 0 or len(inside) < 2:
        return Text()
    measured = links.get((member.id, inside[(member.rank + 1) % len(inside)].id))
    about = [member.lane] if member.lane else []
    if measured:
        about += [rate_text(measured.bytes_per_s), f"{1e3 * measured.round_trip_s:.3g} ms"]
    return _plain(", ".join(about))


def _matrix(inside: list[MemberStatus], links: Links) -> Table:
    """Who reaches whom how fast."""
    table = Table(box=None, pad_edge=False, title="measured, from row to column", title_justify="left")
    table.add_column("")
    for m in inside:
        table.add_column(_plain(m.name), justify="right")
    for a in inside:
        row = [links.get((a.id, b.id)) for b in inside]
        table.add_row(_plain(a.name), *("" if link is None else rate_text(link.bytes_per_s) for link in row))
    return table
