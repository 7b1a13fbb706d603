"""Driver: opens a lab with the best back end that this computer has."""

from collections.abc import Callable
from typing import Final

from atoll.errors import InvalidConfig, LabUnavailable
from atoll.net.lab import netem, relay, tun
from atoll.net.lab.api import MOST_HOSTS, Lab, Shape
from atoll.net.lab.namespaces import NamespaceLab

_DEFAULT: Final = Shape()


def open_lab(
    hosts: int,
    default: Shape = _DEFAULT,
    *,
    back_end: str | None = None,
    congestion: str = "cubic",
    seed: int = 1,
) -> Lab:
    """Hosts joined by links of the `default` shape; see `Lab` for the back ends, of which `back_end` forces one.

    `congestion` is a wish: `Lab.congestion` says what it came to. `seed` decides which packets the TUN back end loses.
    LabUnavailable: this computer can't. InvalidConfig: no such back end, or number of hosts.
    """
    if not 1 <= hosts <= MOST_HOSTS:
        raise InvalidConfig(f"a lab of {hosts} hosts: it has to be 1 to {MOST_HOSTS}")
    if back_end is not None and back_end not in _BACK_ENDS:
        raise InvalidConfig(f"no back end is called {back_end!r}; there are: {', '.join(_BACK_ENDS)}")
    name = back_end or _best()
    why_not, opened = _BACK_ENDS[name]
    if why := why_not():
        raise LabUnavailable(f"no WAN lab by {name}: {why}; without `back_end` the best available is taken")
    return opened(hosts, default, congestion, seed)


def available() -> dict[str, str]:
    """For each back end, the best first, why it can't be had here; "" if it can."""
    return {name: why_not() for name, (why_not, _) in _BACK_ENDS.items()}


def _best() -> str:
    reasons = {}
    for name, (why_not, _) in _BACK_ENDS.items():
        reasons[name] = why_not()
        if not reasons[name]:
            return name
    raise LabUnavailable("no WAN lab on this computer: " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))


def _netem(hosts: int, default: Shape, congestion: str, _: int) -> Lab:
    return NamespaceLab(hosts, congestion, lambda names, device: netem.NetemWires(names, device, default))


def _tun(hosts: int, default: Shape, congestion: str, seed: int) -> Lab:
    return NamespaceLab(hosts, congestion, lambda names, device: tun.TunWires(names, device, default, seed))


def _relay(hosts: int, default: Shape, _: str, seed: int) -> Lab:
    return relay.RelayLab(hosts, default, seed)


_BACK_ENDS: Final[dict[str, tuple[Callable[[], str], Callable[[int, Shape, str, int], Lab]]]] = {
    "netem": (netem.unavailable, _netem),
    "tun": (tun.unavailable, _tun),
    "relay": (relay.unavailable, _relay),
}
"""The best first: what tells why it can't be had, and what opens it."""
