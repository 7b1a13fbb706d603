"""Driver: `atoll master`."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

from atoll.cli.output import say
from atoll.config import parse
from atoll.group.wiring.serve import Master


@dataclass(frozen=True)
class MasterSettings:
    """The master knows who is in the group and counts votes; it sees no tensor and needs next to no CPU."""

    listen: str = "127.0.0.1:48148"
    """HOST:PORT. 0.0.0.0 takes peers from the network; port 0: any free one."""
    measure: bool = True
    """Have links between machines measured when a peer is let in, and lay the ring so that it avoids slow ones."""
    json: bool = False
    """Print the address as a JSON object."""


def main(argv: list[str]) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    settings = parse(
        MasterSettings, argv, prog="atoll master", description=str(MasterSettings.__doc__), env=os.environ
    ).value
    master = Master(settings.listen, measure=settings.measure)

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    if settings.json:
        say(json.dumps({"event": "listening", "address": master.address}))
    else:
        say(f"listening on {master.address}; peers join with:  atoll join {master.address}")
        say(f"see who is in with:  atoll status {master.address} --watch      end with Ctrl-C")
    try:
        master.run()
    except KeyboardInterrupt:
        sys.stdout.flush()
    return 0
