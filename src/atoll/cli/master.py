"""Driver: `atoll master`."""

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

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
    state: Path | None = None
    """File in which it keeps whom to expect: started again with it, after a crash or SIGTERM, the group goes on."""
    standby: bool = False
    """Begin no group, but take over one whose master is gone, once most of its members ask here. Peers are given both
    addresses: atoll join HOST:PORT,HOST2:PORT2"""
    json: bool = False
    """Print the address as a JSON object."""


def main(argv: list[str]) -> int:
    """Serve until Ctrl-C, which ends the group, or SIGTERM, which leaves it to the next master."""
    settings = parse(
        MasterSettings, argv, prog="atoll master", description=str(MasterSettings.__doc__), env=os.environ
    ).value
    master = Master(settings.listen, measure=settings.measure, state=settings.state, standby=settings.standby)
    signal.signal(signal.SIGINT, lambda *_: master.close())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if settings.json:
        say(json.dumps({"event": "listening", "address": master.address}))
    else:
        say(f"listening on {master.address}; peers join with:  atoll join {master.address}")
        say(f"see who is in with:  atoll status {master.address} --watch      end with Ctrl-C")
    master.run()
    return 0
