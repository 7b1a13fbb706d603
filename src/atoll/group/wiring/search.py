"""Driver: looks for a master again when the connection to it broke: at each address in turn, until one answers or the
time is up."""

import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from atoll.net.channel import Channel
from atoll.net.loop import Address, SocketLoop

log = logging.getLogger("atoll.group")

_DIAL_S: Final = 3.0
_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 1.0


class Search:
    """`found(channel, address)`: somebody answers there. `given_up(why)`: not within `patience_s` of the first loss.
    A search ends with `settled`, or with the time; until then each new loss goes on with it."""

    def __init__(
        self,
        net: SocketLoop,
        addresses: Sequence[Address],
        patience_s: float,
        found: Callable[[Channel, Address], None],
        given_up: Callable[[str], None],
    ) -> None:
        self._net, self._addresses, self._patience_s = net, list(addresses), patience_s
        self._found, self._given_up = found, given_up
        self._until = 0.0
        self._pause_s = _PAUSE_S
        self._tried = -1
        self._alarm: int | None = None
        self._why = ""

    @property
    def on(self) -> bool:
        """Is it under way?"""
        return self._alarm is not None

    def begin(self, why: str) -> bool:
        """The master is gone. False: it is not looked for."""
        if not self._patience_s:
            return False
        if not self.on:
            log.warning("the master is gone (%s): looking for it for %g s", why, self._patience_s)
            self._why, self._pause_s = why, _PAUSE_S
            self._until = time.monotonic() + self._patience_s
            self._alarm = self._net.after(self._patience_s, self._give_up)
            self._dial()
        else:
            self._again()
        return True

    def settled(self) -> None:
        """The group stands again, or has ended otherwise."""
        if self._alarm is not None:
            self._net.cancel(self._alarm)
            self._alarm = None

    def _again(self) -> None:
        self._net.after(self._pause_s, self._dial)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _dial(self) -> None:
        if not self.on:
            return
        self._tried = (self._tried + 1) % len(self._addresses)
        address = self._addresses[self._tried]
        try:
            number = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][4]  # its name may lead elsewhere by now
        except OSError:
            self._again()
            return
        left_s = max(0.1, min(_DIAL_S, self._until - time.monotonic()))
        numeric = str(number[0]), int(number[1])
        self._net.dial(numeric, left_s, lambda channel: self._connected(channel, address), lambda _: self._again())

    def _connected(self, channel: Channel, address: Address) -> None:
        if self.on:
            self._found(channel, address)
        else:
            channel.close()

    def _give_up(self) -> None:
        self._alarm = None
        places = " or ".join(f"{host}:{port}" for host, port in self._addresses)
        self._given_up(f"the master is gone ({self._why}), and none answered at {places} for {self._patience_s:g} s")
