"""Driver: links that any root can have: a TUN device in each namespace, and a switch process (`switch.py`) between."""

import os
from dataclasses import astuple

from atoll.net.lab import namespaces
from atoll.net.lab.api import Shape
from atoll.net.lab.worker import Worker


class TunWires:
    """The links between some namespaces, each with a device of this name."""

    def __init__(self, hosts: list[str], device: str, default: Shape, seed: int) -> None:
        self._switch = Worker("atoll.net.lab.switch")
        try:
            self._switch.order("open", hosts, device, seed, *astuple(default))
        except BaseException:
            self.close()
            raise

    def set(self, a: int, b: int, shape: Shape) -> None:
        """Both directions."""
        self._switch.order("set", a, b, *astuple(shape))
        self._switch.order("set", b, a, *astuple(shape))

    def cut(self, host: int) -> None:
        """The switch forgets this host's packets."""
        self._switch.order("cut", host)

    def heal(self, host: int) -> None:
        """No longer."""
        self._switch.order("heal", host)

    def close(self) -> None:
        """End the switch; its devices go with it."""
        self._switch.close()


def unavailable() -> str:
    """Why there can't be TUN devices; "" if there can."""
    if why := namespaces.unavailable():
        return why
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun can't be opened ({error.strerror}): `modprobe tun` may bring it"
    return ""
