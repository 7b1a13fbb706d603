"""Driver: asks a master how its group stands, for people and their tools; whoever asks is no member."""

from typing import Final

from atoll.errors import DeadlineExceeded, MasterLost, Refused
from atoll.group import messages
from atoll.group.messages import AskStatus, Status
from atoll.group.wiring.wire import GREETING, dial_master
from atoll.net.channel import CONTROL, Channel, Frame
from atoll.net.guard import OPEN, Guard
from atoll.net.loop import SocketLoop

_DIAL_S: Final = 3.0


class StatusClient:
    """One connection to a master; `ask` as often as wanted."""

    def __init__(self, address: str, guard: Guard = OPEN) -> None:
        self.address = address
        self._answers: list[Status] = []
        self._gone = ""
        self._expired = False
        sock, _ = dial_master(address, _DIAL_S)
        self._net = SocketLoop(GREETING, guard)
        self._channel = self._net.channel(sock, dialled=True)
        self._net.add(self._channel, self._heard, self._lost)

    def ask(self, timeout_s: float = 3.0) -> Status:
        """The status now. MasterLost, Refused, or DeadlineExceeded where nothing comes."""
        self._answers, self._expired = [], False
        self._net.send(self._channel, CONTROL, messages.encode(AskStatus()))
        timer = self._net.after(timeout_s, self._expire)
        while not self._over():
            self._net.turn()
        if self._answers:
            self._net.cancel(timer)
            return self._answers[0]
        if self._channel.refused:
            raise Refused(f"{self.address}: {self._gone}")
        if self._gone:
            raise MasterLost(f"{self.address} ended the conversation: {self._gone}")
        raise DeadlineExceeded(f"{self.address} didn't answer within {timeout_s:g} s")

    def _over(self) -> bool:
        return bool(self._answers or self._gone) or self._expired

    def _expire(self) -> None:
        self._expired = True

    def close(self) -> None:
        """Hang up."""
        self._net.close()

    def _heard(self, channel: Channel, frame: Frame) -> None:
        message = messages.decode_to_peer(frame.here)
        if isinstance(message, Status):
            self._answers.append(message)

    def _lost(self, channel: Channel, why: str) -> None:
        self._gone = why
