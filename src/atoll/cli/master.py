"""Driver: `atoll master`."""

import json
import os
import shlex
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from atoll.cli.guarded import Guarded
from atoll.cli.output import say
from atoll.config import parse
from atoll.group.wiring.serve import Master
from atoll.net import certificates
from atoll.net.guard import MAKE_TOKEN

_WARNING = (
    "warning: there is no token, so whoever reaches this address can join, read the model and change it; "
    "--token-file closes the group\n"
)


@dataclass(frozen=True, kw_only=True)
class MasterSettings(Guarded):
    """The master knows who is in the group and counts votes; it sees no tensor and needs next to no CPU."""

    listen: str = "127.0.0.1:48148"
    """HOST:PORT. 0.0.0.0 takes peers from the network; port 0: any free one."""
    insecure: bool = False
    """Listen on the network without a token: whoever reaches the master can join, read the model and change it."""
    make_cert: Path | None = None
    """Make certificates for a group without a CA of its own in this folder, and end."""
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
    if settings.make_cert is not None:
        return _make_certificates(settings.make_cert)
    token, tls = settings.token(), settings.tls()
    master = Master(
        settings.listen, measure=settings.measure, token=token, tls=tls, insecure=settings.insecure,
        state=settings.state, standby=settings.standby,
    )  # fmt: skip
    signal.signal(signal.SIGINT, lambda *_: master.close())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if settings.insecure and token is None:
        sys.stderr.write(_WARNING)
        sys.stderr.flush()
    if settings.json:
        say(json.dumps({"event": "listening", "address": master.address}))
    else:
        flags = " ".join(["", *map(shlex.quote, settings.flags())])
        say(f"listening on {master.address}; peers join with:  atoll join {master.address}{flags}")
        if token is None and not settings.insecure:
            say("there is no token, so only processes of this computer can join; --token-file lets others in too")
        say(f"see who is in with:  atoll status {master.address} --watch{flags}      end with Ctrl-C")
    master.run()
    return 0


def _make_certificates(folder: Path) -> int:
    made = certificates.make(folder)
    flags = shlex.join(["--tls-cert", str(made.cert), "--tls-key", str(made.key), "--tls-ca", str(made.ca)])
    say(f"made {made.ca}, {made.cert} and {made.key}, good for {certificates.DAYS // 365} years")
    say("copy the folder to every computer of the group by a safe way (scp), then start, with the same token on all:")
    say(f"  {MAKE_TOKEN}")
    say(f"  atoll master --listen 0.0.0.0:48148 --token-file team.token {flags}")
    say(f"  atoll join HOST:48148 --token-file team.token {flags}")
    say(f"  atoll status HOST:48148 --token-file team.token {flags}")
    return 0
