"""Driver: one selector, one thread: listens, dials, reads and writes channels, keeps timers. Never blocks but in
`turn`.

The wire thread of a peer and the master's process both run one. Losing a connection is reported once, by the reading
side; an error while writing waits for that.
"""

import errno
import heapq
import logging
import math
import selectors
import socket
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from atoll.errors import AtollError, ProtocolError, Refused
from atoll.net.channel import CONTROL, Channel, Frame
from atoll.net.guard import OPEN, Guard
from atoll.net.preamble import Greeting

log = logging.getLogger("atoll.net")

Address = tuple[str, int]
Ready = list[tuple[selectors.SelectorKey, int]]
Heard = Callable[[Channel, Frame], None]
Broken = Callable[[Channel, str], None]

_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_LARGEST_BACKLOG: Final = 64 << 20
"""Bytes of messages that may wait for one slow reader; data frames are bounded by their operation."""
_MOST_CHANNELS: Final = 4096
_MOST_STRANGERS: Final = 256
"""At one door, who have not been admitted yet; one more, and the first of them must go."""
_RETIRING_S: Final = 1.0
_GREETING_S: Final = 10.0
_NO_DESCRIPTOR_S: Final = 0.5
_WARN_S: Final = 1.0
"""Of those who are refused, one in so long is worth a warning."""
_IN_PROGRESS: Final = {errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", errno.EINPROGRESS)}


@dataclass(slots=True)
class _Ends:
    heard: Heard
    broken: Broken
    room: Callable[[], None] | None = None
    events: int = 0


class SocketLoop:
    """Callbacks per connection and per moment. `guard`: who may connect, at all doors and to those we dial."""

    def __init__(self, greeting: Greeting, guard: Guard = OPEN) -> None:
        self.greeting, self.guard = greeting, guard
        self.channels: dict[Channel, _Ends] = {}
        self._strangers: dict[Channel, dict[Channel, None]] = {}
        """Who have come and not been admitted yet: with the others at their door, the first to come in front."""
        self._warned_at = -math.inf
        self._retiring: set[Channel] = set()
        self._paused: set[Channel] = set()
        self._unread: set[Channel] = set()
        """To be read further in the next turn, as no selector will say so."""
        self._selector = selectors.DefaultSelector()
        self.wakes_for_changes = type(self._selector).__name__ in ("EpollSelector", "KqueueSelector")
        """Does a `select` under way in another thread see what is registered meanwhile? Else `ring`."""
        self._moments: list[tuple[float, int]] = []
        self._timers: dict[int, Callable[[], object]] = {}
        self._last_timer = 0
        self._sockets: list[socket.socket] = []
        ours, self._bell = socket.socketpair()
        for end in (ours, self._bell):
            end.setblocking(False)
            self._sockets.append(end)
        self._selector.register(ours, _READ, lambda _: self._drain(ours))

    # -- connections ------------------------------------------------------------------------------------------------

    def listen(self, host: str, port: int, accepted: Callable[[Channel], None]) -> Address:
        """Accept connections; returns the address bound. OSError where that isn't possible."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, port), family=family, backlog=256)
        door: dict[Channel, None] = {}
        self.accept_from(server, lambda sock: self.greet(self.channel(sock), door, accepted))
        name = server.getsockname()
        return str(name[0]), int(name[1])

    def channel(self, sock: socket.socket, dialled: bool = False) -> Channel:
        """Over a connected socket."""
        return Channel(sock, self.greeting, guard=self.guard, dialled=dialled)

    def accept_from(self, server: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        """Take connections from a listening socket, which is ours from now on."""
        server.setblocking(False)
        if server not in self._sockets:
            self._sockets.append(server)
        self.watch(server, lambda: self._accept(server, accepted))

    def watch(self, sock: socket.socket, readable: Callable[[], None]) -> None:
        """Call `readable` whenever a socket that is no channel yet can be read."""
        self._selector.register(sock, _READ, lambda _: readable())

    def unwatch(self, sock: socket.socket) -> None:
        """No more of that."""
        self._selector.unregister(sock)

    def greet(self, channel: Channel, door: dict[Channel, None], accepted: Callable[[Channel], None]) -> None:
        """Somebody has come to a door: give him some time to say who he is, and room, if need be that of another."""
        if len(door) >= _MOST_STRANGERS:
            self._break(next(iter(door)), "others came before it had said who it is")
        self.expect_greeting(channel)
        accepted(channel)
        if channel in self.channels:
            door[channel] = None
            self._strangers[channel] = door

    def _no_stranger(self, channel: Channel) -> None:
        door = self._strangers.pop(channel, None)
        if door is not None:
            del door[channel]

    def _accept(self, server: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        try:
            sock, _ = server.accept()
        except OSError as error:  # gone again, or no descriptor left: those who are in matter more
            if error.errno in (errno.EMFILE, errno.ENFILE):
                log.warning("no file descriptor left for a new connection")
                self._selector.unregister(server)  # it stays readable, so wait for one to come free
                self.after(_NO_DESCRIPTOR_S, lambda: self.accept_from(server, accepted))
            return
        if len(self.channels) >= _MOST_CHANNELS:
            sock.close()
            return
        accepted(sock)

    def expect_greeting(self, channel: Channel) -> None:
        """Break `channel` if the other side doesn't greet, and prove what it must, in time."""
        known = weakref.ref(channel)  # a flood of connections, closed again, must not stay in memory until then

        def check() -> None:
            channel = known()
            if channel is not None and not channel.admitted:
                missing = "greeting of atoll" if channel.greeting is None else "proof that it knows the token"
                self._break(channel, f"no {missing} within {_GREETING_S:g} s")

        self.after(_GREETING_S, check)

    def dial(
        self, address: Address, timeout_s: float, connected: Callable[[Channel], None], failed: Callable[[str], None]
    ) -> Callable[[], None]:
        """Connect without blocking; exactly one of the two is called, unless the returned function cancels before."""
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        except OSError as error:  # no descriptor left, or no IPv6 here
            return self.fail(failed, error.strerror or str(error))
        sock.setblocking(False)
        try:
            code = sock.connect_ex(address)
        except (OSError, OverflowError, TypeError, ValueError):  # others told us this address; it need not be one
            code = errno.EADDRNOTAVAIL
        if code not in (0, *_IN_PROGRESS):
            sock.close()
            return self.fail(failed, _why(code))
        done = False

        def end() -> bool:
            nonlocal done
            if done:
                return False
            done = True
            self._selector.unregister(sock)
            self.cancel(timer)
            return True

        def writable(_: int) -> None:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            end()
            if code == 0:
                connected(self.channel(sock, dialled=True))
            else:
                sock.close()
                failed(_why(code))

        def expire() -> None:
            cancel()
            failed(f"no answer within {timeout_s:g} s")

        def cancel() -> None:
            if end():
                sock.close()

        self._selector.register(sock, _WRITE, writable)
        timer = self.after(timeout_s, expire)
        return cancel

    def fail(self, failed: Callable[[str], None], why: str) -> Callable[[], None]:
        """What `dial` does where it is clear at once: `failed(why)` in a later turn, unless cancelled before."""
        token = self.after(0.0, lambda: failed(why))
        return lambda: self.cancel(token)

    def add(self, channel: Channel, heard: Heard, broken: Broken, room: Callable[[], None] | None = None) -> None:
        """Read `channel`: `heard(channel, frame)` per frame, `broken(channel, why)` once, `room()` when all that was
        queued has left. Again: new listeners."""
        ends = self.channels.get(channel)
        if ends is not None:
            ends.heard, ends.broken, ends.room = heard, broken, room
            return
        self.channels[channel] = _Ends(heard, broken, room)
        self.write(channel)

    def send(self, channel: Channel, sequence: int, data: bytes | memoryview) -> None:
        """Queue a frame and write what goes."""
        if channel in self.channels:
            channel.put(sequence, data)
            self.write(channel)
            if sequence == CONTROL and channel.backlog > _LARGEST_BACKLOG:
                self.after(0.0, lambda: self._break(channel, "reads too slowly"))

    def resume(self, channel: Channel) -> None:
        """A held channel may have a place for its frame now."""
        if channel in self.channels and channel.held:
            self._read(channel)

    def remove(self, channel: Channel) -> None:
        """Close without a report."""
        ends = self.channels.pop(channel, None)
        self._no_stranger(channel)
        self._retiring.discard(channel)
        if ends is not None:
            if ends.events:
                self._selector.unregister(channel.sock)
            channel.close()

    def retire(self, channel: Channel) -> None:
        """Hear nothing more, let what was said leave and be read, then close; `_RETIRING_S` at most."""
        self.add(channel, lambda *_: None, lambda *_: None)
        self._retiring.add(channel)
        self.write(channel)
        self.after(_RETIRING_S, lambda: self.remove(channel))

    # -- time and turns -----------------------------------------------------------------------------------------------

    def after(self, seconds: float, fn: Callable[[], object]) -> int:
        """Call `fn` in `seconds`; returns a token for `cancel`."""
        self._last_timer += 1
        self._timers[self._last_timer] = fn
        heapq.heappush(self._moments, (time.monotonic() + seconds, self._last_timer))
        return self._last_timer

    def cancel(self, token: int) -> None:
        """Forget a timer; one that has fired already is no error."""
        self._timers.pop(token, None)

    def next_moment(self) -> float:
        """When the next timer is due, by the monotonic clock."""
        return self._moments[0][0] if self._moments else math.inf

    def ring(self) -> None:
        """From any thread: end the wait of `turn`."""
        try:
            self._bell.send(b"!")
        except OSError:  # full: it rings already; closed: nobody waits
            pass

    def turn(self, timeout_s: float | None = None) -> None:
        """Wait for the next thing to happen and handle all that is ready."""
        self.handle(self.select(timeout_s))

    def select(self, timeout_s: float | None) -> Ready:
        """Wait until something is ready or the next timer is due. Callbacks may run in another thread meanwhile."""
        moments = self._moments
        if moments:
            until = max(0.0, moments[0][0] - time.monotonic())
            timeout_s = until if timeout_s is None else min(timeout_s, until)
        return self._selector.select(timeout_s)

    def handle(self, ready: Ready) -> None:
        """Run the callbacks of what is ready and of the timers that are due."""
        for key, mask in ready:
            if key.fileobj.fileno() >= 0:  # type: ignore[union-attr]  # not closed by an earlier callback of this turn
                key.data(mask)
        now = time.monotonic()
        while self._moments and self._moments[0][0] <= now:
            _, token = heapq.heappop(self._moments)
            fn = self._timers.pop(token, None)
            if fn is not None:
                fn()

    def flush(self, within_s: float) -> None:
        """Wait until all that was queued has left, but not longer."""
        end = time.monotonic() + within_s
        while any(c.outgoing for c in self.channels) and time.monotonic() < end:
            self.turn(end - time.monotonic())

    def close(self) -> None:
        """Close every socket, those too that are no channels yet; no timer fires any more."""
        for channel in list(self.channels):
            self.remove(channel)
        watched = [key.fileobj for key in (self._selector.get_map() or {}).values()]
        self._selector.close()
        self._timers.clear()
        for sock in [*self._sockets, *watched]:
            sock.close()  # type: ignore[union-attr]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _drain(self, bell: socket.socket) -> None:
        try:
            bell.recv(4096)
        except (BlockingIOError, InterruptedError):
            pass

    def _ready(self, channel: Channel, mask: int) -> None:
        if mask & _WRITE:
            self.write(channel)
        if mask & _READ and channel in self.channels:
            self._read(channel)

    def _read(self, channel: Channel) -> None:
        try:
            for frame in channel.read():
                if channel in self.channels:
                    self.channels[channel].heard(channel, frame)
                if channel not in self.channels:  # closed by what it said, or already when a place for it was asked for
                    return
        except (OSError, AtollError) as error:
            self._refused(channel, error)
            self._break(channel, str(error))
        else:
            if self._strangers and channel.admitted:
                self._no_stranger(channel)
            if channel.more and not channel.held and channel not in self._unread:
                self._unread.add(channel)
                self.after(0.0, lambda: self._go_on(channel))
            self._watch(channel)

    def _go_on(self, channel: Channel) -> None:
        self._unread.discard(channel)
        if channel in self.channels:
            self._read(channel)

    def _refused(self, channel: Channel, error: Exception) -> None:
        channel.unruly = isinstance(error, ProtocolError)
        if not isinstance(error, Refused) or channel.admitted:
            return
        channel.refused = True
        now = time.monotonic()
        if not channel.dialled:
            level = logging.WARNING if now - self._warned_at > _WARN_S else logging.INFO
            log.log(level, "%s was refused: %s", channel.name, error)
            if level == logging.WARNING:
                self._warned_at = now

    def write(self, channel: Channel) -> None:
        """Write what goes of what is queued."""
        ends = self.channels.get(channel)
        if ends is None:
            return
        try:
            channel.flush()
            while ends.room is not None and not channel.outgoing:
                ends.room()
                if not channel.outgoing:
                    break
                channel.flush()
        except OSError:
            channel.outgoing.clear()  # reading will tell
            channel.backlog = 0
        if channel.paused_s and channel not in self._paused:
            self._paused.add(channel)
            self.after(channel.paused_s, lambda: self._unpause(channel))
        if channel in self._retiring and not channel.outgoing:
            channel.finish()
        self._watch(channel)

    def _unpause(self, channel: Channel) -> None:
        self._paused.discard(channel)
        channel.paused_s = 0.0
        self.write(channel)

    def _watch(self, channel: Channel) -> None:
        """Ask for readability unless held, for writability only while bytes wait."""
        ends = self.channels.get(channel)
        if ends is None:
            return
        writes = channel.outgoing and not (channel.paused_s or channel.stuck)
        events = (0 if channel.held else _READ) | (_WRITE if writes else 0)
        if events == ends.events:
            return
        if not events:
            self._selector.unregister(channel.sock)
        elif not ends.events:
            self._selector.register(channel.sock, events, lambda mask: self._ready(channel, mask))
        else:
            self._selector.modify(channel.sock, events, self._selector.get_key(channel.sock).data)
        ends.events = events

    def _break(self, channel: Channel, why: str) -> None:
        ends = self.channels.get(channel)
        if ends is not None:
            self.remove(channel)
            ends.broken(channel, why)


def local_host(channel: Channel) -> str:
    """The address of this end: how neighbours on the same network reach this machine."""
    name: Any = channel.sock.getsockname()
    return str(name[0])


def _why(code: int) -> str:
    return "nothing listens there" if code == errno.ECONNREFUSED else errno.errorcode.get(code, str(code))
