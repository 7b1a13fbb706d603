"""Interface: tensors to fewer bytes and back. `codec.get(name)` finds one; `codec/api.py` says what one is."""

from atoll.codec.api import Codec
from atoll.codec.bf16 import Bfloat16
from atoll.codec.e3m0 import E3M0
from atoll.codec.int4 import Int4
from atoll.codec.uint8 import Uint8MinMax
from atoll.codec.uint8_zero import Uint8ZeroPoint
from atoll.errors import InvalidConfig

CODECS: dict[str, Codec] = {c.name: c for c in (Bfloat16(), Uint8MinMax(), Uint8ZeroPoint(), Int4(), E3M0())}


def get(name: str | None) -> Codec | None:
    """The codec of that name; None (or "none") sends elements as they are."""
    if name is None or name == "none":
        return None
    if name not in CODECS:
        raise InvalidConfig(f"unknown codec {name!r}; there are: none, {', '.join(CODECS)}")
    return CODECS[name]
