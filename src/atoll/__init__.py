"""Interface: atoll trains and serves AI models across computers that come and go, joined by slow or unreliable
networks."""

from atoll import errors
from atoll.errors import (
    AtollError,
    Busy,
    DeadlineExceeded,
    Expelled,
    InvalidTensor,
    MasterLost,
    Mismatch,
    PeerLost,
    Refused,
    Unfit,
)
from atoll.group.facade import Group
from atoll.group.joining import join
from atoll.group.state import SharedState
from atoll.group.wiring.serve import Master
from atoll.group.work import Result, Work, wait_all
from atoll.net.tls import Tls
from atoll.version import VERSION as __version__

__all__ = [
    "AtollError",
    "Busy",
    "DeadlineExceeded",
    "Expelled",
    "Group",
    "InvalidTensor",
    "Master",
    "MasterLost",
    "Mismatch",
    "PeerLost",
    "Refused",
    "Result",
    "SharedState",
    "Tls",
    "Unfit",
    "Work",
    "__version__",
    "errors",
    "join",
    "wait_all",
]
