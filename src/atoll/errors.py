"""Interface: every error a user can do something about, one class each.

The message names the object, says what is wrong and what to do. `atoll ...` prints it in one line and exits with a code
that is not 0; a program catches the class it can handle (`PeerLost`: retry) and lets the rest pass.
"""


class AtollError(Exception):
    """Base of everything atoll raises on purpose."""


class PeerLost(AtollError):
    """Someone left during the collective; the group goes on without them, the input is unchanged. Retry."""


class Mismatch(AtollError):
    """Members asked for different things under one tag. A bug of the caller; the group is unchanged."""


class Expelled(AtollError):
    """The group went on without this peer. Join again."""


class Unfit(Expelled):
    """Expelled because this peer's state can't be the group's: other tensors, a revision ahead. Mend it, then join."""


class MasterLost(AtollError):
    """The master can't be reached any more. Start it again and join it."""


class ConnectionLost(AtollError):
    """The other side of a connection has gone, or can't be reached. Connect again."""


class Busy(AtollError):
    """The call isn't allowed while a `Work` has not been awaited, or its tag is in use. Nothing has changed."""


class Refused(AtollError):
    """The two don't belong together: another wire version, token or CA, or an address that can't work."""


class DeadlineExceeded(AtollError, TimeoutError):
    """The wait ended first. Nothing has changed; the same wait may be called again."""


class InvalidTensor(AtollError, ValueError):
    """A tensor that can't take part: not contiguous, a type without a sum, NaN where a codec needs a range."""


class InvalidConfig(AtollError, ValueError):
    """A setting that is unknown or out of range; the message names it, where it came from and the nearest valid one."""


class InvalidData(AtollError, ValueError):
    """A file or text that can't be read as what it should be."""


class Unavailable(AtollError):
    """What was asked for can't be had from anywhere it is known to be: no network, or it has gone. Nothing changed."""


class SaveFailed(AtollError):
    """A checkpoint or model could not be written. What was there before is intact."""


class Diverged(AtollError):
    """The loss is no longer a number; the state before that step is kept."""


class ProtocolError(AtollError):
    """The other end of a connection said something atoll never says."""


class LabUnavailable(AtollError):
    """This computer can't play several hosts in the way asked for, or the lab's own process has failed."""


class Deadlock(AtollError):
    """Virtual time has nothing left to do while somebody still waits; the message says who and for what."""


class RealIoInVirtualTime(AtollError):
    """Code in virtual time tried to touch a real socket, file descriptor, process or thread pool."""


class RequestFailed(AtollError):
    """A model gave no answer, or no whole one."""


class NotServed(RequestFailed):
    """There is no such model here; the message names those there are."""


class InvalidRequest(RequestFailed):
    """The request makes no sense. `field` is the one to mend."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class ContextExceeded(InvalidRequest):
    """Prompt and answer together are longer than what the model can look at."""


class Overloaded(RequestFailed):
    """Too many ask at once. Nothing was begun; come back after `retry_s` seconds."""

    def __init__(self, message: str, retry_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Draining(Overloaded):
    """The server takes no more requests: it is about to end, or not ready yet."""


class DeadlineImpossible(Overloaded):
    """The answer can't be there in time, as fast as the engine is. Nothing was begun; ask for less, or wait longer."""


class DeadlinePassed(RequestFailed):
    """The answer was not there in time."""


class AnswerFailed(RequestFailed):
    """A mistake of the server's in this one answer; others go on. Its log has the reason, under the request's id."""


class EngineLost(RequestFailed):
    """The engine died while it answered. It is being started again; ask again."""
