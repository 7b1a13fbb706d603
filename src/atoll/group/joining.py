"""Driver: `atoll.join`: opens a port in the caller's world and enters the group."""

from collections.abc import Mapping

from atoll.group.api import HasPorts, Port
from atoll.group.facade import Group
from atoll.group.wiring.links import CONNECTIONS
from atoll.group.wiring.wire import RECONNECT_S, Wire
from atoll.net.guard import Guard
from atoll.net.tls import Tls
from atoll.runtime.api import here


def join(
    address: str,
    *,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    min_world: int = 1,
    timeout_s: float | None = 30.0,
    listen: str = "",
    advertise: str = "",
    shared_memory: bool = True,
    connections: int = CONNECTIONS,
    upload_bytes_per_s: float | None = None,
    reconnect_s: float = RECONNECT_S,
    token: str | bytes | None = None,
    tls: Tls | None = None,
) -> Group:
    """Enter the group of the master at `address` ("host:port"); returns when a ring stands that has us in it. Several
    addresses, with commas: where another master stands by (`atoll master --standby`).

    `min_world`: wait until so many peers (the largest number among those waiting) are there. `listen`: the "host:port"
    where other peers reach us; by default the address that faces the master, any port. `advertise`: the "host:port"
    they are told to dial, where that is another (a forwarded port; port 0: the one we listen on). `shared_memory`: use
    it with peers of the same machine. `connections`: how many TCP connections a link of more than 5 ms gets.
    `upload_bytes_per_s`: send other machines no more data than that; what stays on this one, and votes, don't count.
    `reconnect_s`: a master that is gone is looked for so long; the group goes on when it, or another that stands by,
    is there again, and only then does a call raise `MasterLost`. 0: it does at once.
    `token`: what all of the group know, at least 16 bytes; master and peer prove it to each other, and never say it.
    `tls`: certificates, by which all that leaves this machine is encrypted.

    Errors: `MasterLost` (nobody answers), `Refused` (another version, token or CA), `DeadlineExceeded` (no ring
    within `timeout_s`).
    """
    node = here()
    port: Port
    if isinstance(node, HasPorts):
        port = node.open_port(address)
    else:
        patience_s = 30.0 if timeout_s is None else timeout_s
        port = Wire(
            address, timeout_s=patience_s, listen=listen, advertise=advertise, shared_memory=shared_memory,
            connections=connections, upload_bytes_per_s=upload_bytes_per_s, reconnect_s=reconnect_s,
            guard=Guard(token, tls),
        )  # fmt: skip
    return Group.enter(port, min_world=min_world, name=name, labels=labels, timeout_s=timeout_s)
