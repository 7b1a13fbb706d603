"""Driver: the master on sockets, in a process of its own or a thread of a program (`atoll.Master`)."""

import logging
import secrets
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from atoll.errors import AtollError, InvalidConfig
from atoll.group import messages
from atoll.group.api import Close, Know, MasterAction, Say
from atoll.group.membership.master import Master as MasterPolicy
from atoll.group.membership.recovery import Remembered
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import ToMaster
from atoll.group.wiring.memory import Memory
from atoll.group.wiring.wire import GREETING
from atoll.net import tcp
from atoll.net.address import parse_address, spelled
from atoll.net.channel import CONTROL, Channel, Frame
from atoll.net.guard import Guard, is_local
from atoll.net.loop import SocketLoop
from atoll.net.tls import Tls

log = logging.getLogger("atoll.master")

TICK_S: Final = 0.25


class Master:
    """Listens at `address` ("host:port"; port 0: any free one). A context manager that runs it in a thread of its
    own. `measure=False`: links between machines are not measured, and the ring has the order in which peers came.

    `state`: a file in which it keeps whom to expect, should it be killed and started again. `standby`: begin no group,
    but take one over whose master is gone, once most of its members ask here.
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
        state: str | Path | None = None,
        standby: bool = False,
    ) -> None:
        guard = Guard(token, tls)
        host, port = parse_address(address)
        if not (guard.key or insecure or is_local(host)):
            raise InvalidConfig(
                f"without a token whoever reaches {address} could join: give --token-file (`token` in Python), "
                "or --insecure (`insecure=True`) if all on that network may"
            )
        self._memory = Memory(state) if state else None
        self._policy = MasterPolicy(
            lambda: secrets.token_bytes(16), measure, remembered=self._memory.read() if self._memory else None,
            standby=standby, now=time.monotonic(),
        )  # fmt: skip
        self._net = SocketLoop(GREETING, guard)
        self._channels: dict[int, Channel] = {}
        self._numbers: dict[Channel, int] = {}
        """How the policy knows them: below zero until they are a member's."""
        self._accepted_so_far = 0
        self._running = True
        self._thread: threading.Thread | None = None
        try:
            bound = self._net.listen(host, port, self._accepted)
        except OSError as error:
            self._net.close()
            raise AtollError(
                f"can't listen on {address} ({error.strerror}): choose another with --listen, or end what uses it"
            ) from None
        self.address = spelled(bound)
        """Where peers join."""
        self._net.after(TICK_S, self._tick)

    def run(self) -> None:
        """Serve until `close` is called from another thread, and then tell everybody that it is over."""
        try:
            while self._running:
                self._net.turn()
            self._carry_out(self._policy.farewell("the master was closed"))
            self._net.flush(within_s=1.0)
            if self._memory:
                self._memory.write(Remembered())
        finally:
            self._net.close()

    def close(self) -> None:
        """End it, and the group: every peer's next call raises `MasterLost`. (One that is killed is looked for.)"""
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
        self._accepted_so_far += 1
        self._know(channel, -self._accepted_so_far)
        tcp.keep_watch(channel.sock)
        self._net.add(channel, self._heard, self._lost)

    def _know(self, channel: Channel, number: int) -> None:
        self._channels[number], self._numbers[channel] = channel, number

    def _heard(self, channel: Channel, frame: Frame) -> None:
        self._feed(self._numbers[channel], messages.decode_to_master(frame.here))

    def _lost(self, channel: Channel, why: str) -> None:
        who = self._numbers.pop(channel)
        self._channels.pop(who, None)
        if why:
            log.info("connection %d ended: %s", who, why)
        self._feed(who, Gone(f"connection lost: {why}"))

    def _tick(self) -> None:
        self._feed(0, Tick())
        self._net.after(TICK_S, self._tick)

    def _feed(self, who: int, event: ToMaster | Tick | Gone) -> None:
        actions = self._policy.handle(who, event, time.monotonic())
        if self._memory:
            self._memory.write(self._policy.remembered)  # before anybody is told
        self._carry_out(actions)

    def _carry_out(self, actions: list[MasterAction]) -> None:
        for action in actions:
            match action:
                case Say(to, message):
                    channel = self._channels.get(to)
                    if channel is not None:
                        self._net.send(channel, CONTROL, messages.encode(message))
                case Know(who, member):
                    self._know(self._channels.pop(who), member)
                case Close(who):
                    channel = self._channels.pop(who, None)
                    if channel is not None:
                        del self._numbers[channel]
                        self._net.retire(channel)
