"""Interface: hosts on one computer, and the shape of the links between them."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from atoll.errors import InvalidConfig

if TYPE_CHECKING:
    import subprocess
    from types import TracebackType

MTU: Final = 1500
"""Bytes of the largest IP packet on a link."""
MOST_HOSTS: Final = 250
_SMALLEST_QUEUE: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Shape:
    """One direction of a link. InvalidConfig, a ValueError, names the field that can't be.

    The queue stands before the rate and drops what doesn't fit; `queue_bytes=0` is the link's rate times twice its
    delay, and 256 KiB at least. Each packet takes `delay_s` one way and up to `jitter_s` more, but none overtakes
    another: in a dense stream most take nearly as long as the longest. `loss` is the share of packets lost at random,
    each for itself.
    """

    rate_bits_per_s: float = 1e9
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    queue_bytes: int = 0

    def __post_init__(self) -> None:
        for field in ("rate_bits_per_s", "delay_s", "jitter_s", "queue_bytes"):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                raise InvalidConfig(f"{field} is {value}: it must be a finite number, not below 0")
        if self.rate_bits_per_s == 0:
            raise InvalidConfig("rate_bits_per_s is 0: it must be above; to let nothing through, use `cut`")
        if not 0 <= self.loss < 1:
            raise InvalidConfig(f"loss is {self.loss}: it must be a share of at least 0 and below 1")

    @property
    def room_bytes(self) -> int:
        """What the queue holds."""
        return self.queue_bytes or max(_SMALLEST_QUEUE, int(self.rate_bits_per_s * 2 * self.delay_s / 8))


class Lab(Protocol):
    """Hosts 0 to `hosts - 1`, each linked with each; a context manager. Every method: InvalidConfig for an unknown
    host, LabUnavailable if the lab broke.

    | back end | host | link | needs |
    |---|---|---|---|
    | netem | network namespace | the kernel's netem | root, `ip`, `tc`, a kernel with netem |
    | tun | network namespace | a process that forwards packets, 1 Gbit/s in all | root, `ip`, /dev/net/tun |
    | relay | loopback address | a process that forwards streams of bytes | nothing |

    Nothing is left behind: processes end with the lab, and also when its owner is killed; namespaces of a killed owner
    are removed by the next lab.
    """

    @property
    def hosts(self) -> int:
        """How many."""

    @property
    def congestion(self) -> str:
        """The congestion control that sockets on the hosts really use, unless they choose another."""

    def address(self, host: int) -> str:
        """The host's IP address: listen there, and where `expose` is the identity dial it."""

    def expose(self, host: int, port: int) -> str:
        """`IP:PORT` at which others reach what listens on this port of the host: what it should advertise.

        The address and port themselves where hosts are namespaces; a port of the relay's otherwise.
        """

    def start(self, host: int, argv: list[str], **popen: Any) -> "subprocess.Popen[Any]":
        """Start a process on a host; `popen` as for `subprocess.Popen`."""

    def set(self, a: int, b: int, shape: Shape) -> None:
        """Give both directions between two hosts this shape, from now on."""

    def cut(self, host: int) -> None:
        """Nothing comes in or out any more, and nobody is told. What is on its way may get lost, land or wait."""

    def heal(self, host: int) -> None:
        """The end of `cut`."""

    def close(self) -> None:
        """End all processes on the hosts at once and remove all traces. May be called again."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None: ...


def check_host(host: int, hosts: int) -> None:
    """InvalidConfig: there is no such host."""
    if not 0 <= host < hosts:
        raise InvalidConfig(f"there is no host {host}: the lab has {hosts}, counted from 0")
