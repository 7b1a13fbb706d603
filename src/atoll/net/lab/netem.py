"""Driver: links shaped by the kernel's netem (`tc`): each host has a cable to a bridge in a namespace of its own.

What leaves the bridge towards a host goes through one class for each host it can come from, with netem as its queue.
So packets are lost, late and queued outside of the hosts, where no TCP is told.
"""

import functools
import math
import shutil
from typing import Final

from atoll.errors import LabUnavailable
from atoll.net.lab import namespaces
from atoll.net.lab.api import MTU, Shape

_UNSHAPED = "fff"
"""The class, in tc's hexadecimal numbers, of what no program has sent: IPv6 looks for routers."""
_CLASS: Final = "htb rate 100gbit burst 10mb cburst 10mb quantum 60000"
"""As good as unlimited: the rate is netem's part."""


class NetemWires:
    """The links between some namespaces, each with a device of this name."""

    def __init__(self, hosts: list[str], device: str, default: Shape) -> None:
        self._bridge = f"{hosts[0].rpartition('-')[0]}-bridge"
        namespaces.run(["ip", "netns", "add", self._bridge])
        try:
            namespaces.batch("ip", self._bridge, cables(hosts, device))
            for host, name in enumerate(hosts):
                namespaces.batch("ip", name, plug(host, len(hosts), device))
            namespaces.batch("tc", self._bridge, classes(len(hosts), default))
        except BaseException:
            self.close()
            raise

    def set(self, a: int, b: int, shape: Shape) -> None:
        """Both directions; what is queued stays queued."""
        pairs = [(a, b), (b, a)] if a != b else []
        namespaces.batch("tc", self._bridge, [queue(source, to, shape) for source, to in pairs])

    def cut(self, host: int) -> None:
        """Take the cable off the bridge; the host still sees it plugged in."""
        namespaces.batch("ip", self._bridge, [f"link set {_port(host)} nomaster"])

    def heal(self, host: int) -> None:
        """Put it back."""
        namespaces.batch("ip", self._bridge, [f"link set {_port(host)} master bridge"])

    def close(self) -> None:
        """Remove the bridge; the cables go with it."""
        namespaces.remove(self._bridge)


def cables(hosts: list[str], device: str) -> list[str]:
    """Commands of `ip` in the bridge's namespace."""
    commands = ["link add bridge type bridge stp_state 0", "link set bridge up"]
    for host, name in enumerate(hosts):
        commands += [
            f"link add {_port(host)} type veth peer name {device} netns {name}",
            f"link set {_port(host)} mtu {MTU} master bridge up",
        ]
    return commands


def plug(host: int, hosts: int, device: str) -> list[str]:
    """Commands of `ip` in a host's namespace.

    TCP has to hand over packets as they look on a wire, not many as one. And hosts know each other's hardware address
    for good: one that asked in vain would tell its programs that the other is unreachable, but `cut` is silent.
    """
    return [
        f"link set {device} address {_hardware(host)} gso_max_segs 1 up",
        *(
            f"neigh add {namespaces.address(other)} lladdr {_hardware(other)} dev {device} nud permanent"
            for other in range(hosts)
            if other != host
        ),
    ]


def classes(hosts: int, default: Shape) -> list[str]:
    """Commands of `tc` in the bridge's namespace: at the port of each host, a class for each other."""
    commands = []
    for to in range(hosts):
        port = f"dev {_port(to)}"
        commands += [
            f"qdisc add {port} root handle 1: htb default {_UNSHAPED}",
            f"class add {port} parent 1: classid 1:{_UNSHAPED} {_CLASS}",
        ]
        for source in range(hosts):
            if source == to:
                continue
            number = f"1:{source + 1:x}"
            match = f"u32 match ip src {namespaces.address(source)}/32"
            commands += [
                f"class add {port} parent 1: classid {number} {_CLASS}",
                queue(source, to, default),
                f"filter add {port} parent 1: protocol ip {match} flowid {number}",
            ]
    return commands


def queue(source: int, to: int, shape: Shape) -> str:
    """The command of `tc` that gives one directed link its shape."""
    place = f"dev {_port(to)} parent 1:{source + 1:x} handle {source + 0x10:x}:"
    return f"qdisc replace {place} {netem(shape)}"


def netem(shape: Shape) -> str:
    """A shape in netem's words. Its limit counts the packets on their way too; its jitter goes to both sides."""
    way_s = shape.delay_s + shape.jitter_s
    limit = math.ceil((shape.rate_bits_per_s * way_s / 8 + shape.room_bytes) / MTU)
    half_jitter_s = shape.jitter_s / 2
    words = f"netem limit {limit} delay {(shape.delay_s + half_jitter_s) * 1e6:.0f}us"
    if shape.jitter_s:
        words += f" {half_jitter_s * 1e6:.0f}us"
    if shape.loss:
        words += f" loss {shape.loss * 100:.7f}%"
    return f"{words} rate {shape.rate_bits_per_s:.0f}bit"


@functools.cache
def unavailable() -> str:
    """Why there can't be netem; "" if there can."""
    if why := namespaces.unavailable():
        return why
    if shutil.which("tc") is None:
        return "there is no `tc`: install iproute2"
    trial = namespaces.trial_namespace()
    try:
        namespaces.run(["ip", "netns", "add", trial])
        namespaces.batch("tc", trial, ["qdisc add dev lo root netem delay 1ms"])
    except LabUnavailable:
        return "this kernel has no netem: `modprobe sch_netem` may bring it"
    finally:
        namespaces.remove(trial)
    return ""


def _hardware(host: int) -> str:
    return f"02:00:00:00:00:{host + 1:02x}"


def _port(host: int) -> str:
    return f"port{host}"
