"""Interface: atoll trains and serves AI models across computers that come and go, joined by slow or unreliable
networks.

What needs NumPy is loaded when it is first asked for: `atoll ...` begins here too, and should end at Ctrl-C meanwhile.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from atoll.version import VERSION as __version__

if TYPE_CHECKING:
    from atoll.group.facade import Group
    from atoll.group.joining import join
    from atoll.group.state import SharedState
    from atoll.group.wiring.serve import Master
    from atoll.group.work import Result, Work, wait_all
    from atoll.net.tls import Tls
else:
    _HOMES = {
        "Group": "atoll.group.facade",
        "join": "atoll.group.joining",
        "SharedState": "atoll.group.state",
        "Master": "atoll.group.wiring.serve",
        "Result": "atoll.group.work",
        "Work": "atoll.group.work",
        "wait_all": "atoll.group.work",
        "Tls": "atoll.net.tls",
    }

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'atoll' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


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
