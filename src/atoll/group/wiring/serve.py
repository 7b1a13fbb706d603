"""Driver: the master on sockets, in a process of its own or a thread of a program (`atoll.Master`)."""

import logging
import secrets
import threading
import time
from types import TracebackType
from typing import Final, Self

from atoll.errors import AtollError, InvalidConfig
from atoll.group import messages
from atoll.group.api import Say
from atoll.group.membership.master import Master as MasterPolicy
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import ToMaster
from atoll.group.wiring.wire import GREETING, parse_address
from atoll.net import tcp
from atoll.net.channel import CONTROL, Channel
from atoll.net.guard import Guard, is_local
from atoll.net.loop import SocketLoop
from atoll.net.tls import Tls

log = logging.getLogger("atoll.master")

TICK_S: Final = 0.25


class Master:
    """Listens at `address` ("host:port"; port 0: any free one). A context manager that runs it in a thread of its
    own. `measure=False`: links between machines are not measured, and the ring has the order in which peers came.

    `token`, `tls`: as for `join`; who has another token, or a certificate of another CA, stays outside. Without a
    token it listens on loopback only (InvalidConfig), but for `insecure=True`: then whoever reaches it can join.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        measure: bool = True,
        token: str | bytes | None = None,
        tls: Tls | None = None,
        insecure: bool = False,
    ) -> None:
        guard = Guard(token, tls)
        host, port = parse_address(address)
        if not (guard.key or insecure or is_local(host)):
            raise InvalidConfig(
                f"without a token whoever reaches {address} could join: give --token-file (`token` in Python), "
                "or --insecure (`insecure=True`) if all on that network may"
            )
        self._policy = MasterPolicy(lambda: secrets.token_bytes(16), measure)
        self._net = SocketLoop(GREETING, guard)
        self._channels: dict[int, Channel] = {}
        self._last = 0
        self._running = True
        self._thread: threading.Thread | None = None
        try:
            bound = self._net.listen(host, port, self._accepted)
        except OSError as error:
            self._net.close()
            raise AtollError(
                f"can't listen on {address} ({error.strerror}): choose another with --listen, or end what uses it"
            ) from None
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        """Where peers join."""
        self._net.after(TICK_S, self._tick)

    def run(self) -> None:
        """Serve until `close` is called from another thread."""
        try:
            while self._running:
                self._net.turn()
        finally:
            self._net.close()

    def close(self) -> None:
        """End it: every peer's next call raises `MasterLost`."""
        self._running = False
        self._net.ring()
        if self._thread is not None:
            self._thread.join(10.0)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name="atoll-master", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _accepted(self, channel: Channel) -> None:
        self._last += 1
        who = self._last
        self._channels[who] = channel
        tcp.keep_watch(channel.sock)
        self._net.add(channel, lambda _, frame: self._heard(who, frame.here), lambda _, why: self._lost(who, why))

    def _heard(self, who: int, body: memoryview) -> None:
        self._feed(who, messages.decode_to_master(body))

    def _lost(self, who: int, why: str) -> None:
        self._channels.pop(who, None)
        if why:
            log.info("connection %d ended: %s", who, why)
        self._feed(who, Gone(f"connection lost: {why}"))

    def _tick(self) -> None:
        self._feed(0, Tick())
        self._net.after(TICK_S, self._tick)

    def _feed(self, who: int, event: ToMaster | Tick | Gone) -> None:
        for action in self._policy.handle(who, event, time.monotonic()):
            if isinstance(action, Say):
                channel = self._channels.get(action.to)
                if channel is not None:
                    self._net.send(channel, CONTROL, messages.encode(action.message))
            else:
                channel = self._channels.pop(action.who, None)
                if channel is not None:
                    self._net.retire(channel)
