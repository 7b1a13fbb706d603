"""Driver: `atoll.join`: opens a port in the caller's world and enters the group."""

from collections.abc import Mapping

from atoll.group.api import HasPorts, Port
from atoll.group.facade import Group
from atoll.group.wire import Wire
from atoll.runtime.api import here


def join(
    address: str,
    *,
    name: str = "",
    labels: Mapping[str, str] | None = None,
    min_world: int = 1,
    timeout_s: float | None = 30.0,
    shared_memory: bool = True,
) -> Group:
    """Enter the group of the master at `address` ("host:port"); returns when a ring stands that has us in it.

    `min_world`: wait until so many peers (the largest number among those waiting) are there. `shared_memory`: use it
    with peers of the same machine. Errors: `MasterLost` (nobody answers), `Refused`, `DeadlineExceeded` (no ring within
    `timeout_s`).
    """
    node = here()
    port: Port
    if isinstance(node, HasPorts):
        port = node.open_port(address)
    else:
        port = Wire(address, timeout_s=30.0 if timeout_s is None else timeout_s, shared_memory=shared_memory)
    return Group.enter(port, min_world=min_world, name=name, labels=labels, timeout_s=timeout_s)
