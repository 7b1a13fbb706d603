"""What a server and its workers say: the same bytes for ever, and nothing else is understood."""

import msgspec
import pytest

from atoll.errors import ProtocolError
from atoll.train.asynchronous.local import decoded
from atoll.train.asynchronous.messages import (
    Assign,
    Beat,
    Enter,
    Leave,
    Over,
    Push,
    Refuse,
    encode,
    from_server,
    from_worker,
)

GOLDEN = {
    "9701a16aa27b7d020304c3": (from_worker, Enter("j", "{}", 2, 3, 4, True)),
    "9102": (from_worker, Beat()),
    "95030405cb3fe0000000000000cb4000000000000000": (from_worker, Push(4, 5, 0.5, 2.0)),
    "9104": (from_worker, Leave()),
    "981401020304000205": (from_server, Assign(1, 2, 3, 4, 0, 2, 5)),
    "9215a3776879": (from_server, Refuse("why")),
    "9116": (from_server, Over()),
}


@pytest.mark.parametrize("said", [*GOLDEN])
def test_each_message_has_its_bytes(said: str) -> None:
    read, message = GOLDEN[said]
    assert encode(message).hex() == said
    assert read(bytes.fromhex(said)) == message


@pytest.mark.parametrize(
    "said",
    [b"", b"\x91\x99", bytes.fromhex("9701a16aa27b7d02030405"), encode(Over()), encode(Push(1, 1, 0.1, 1.0))[:-1],
     msgspec.msgpack.encode([3, -1, 5, 0.5, 2.0]), msgspec.msgpack.encode([3, 1, 0, 0.5, 2.0]),
     msgspec.msgpack.encode([1, "x" * 300, "{}"]), b"\x91" * 5000],
)  # fmt: skip
def test_nothing_else_is_understood_of_a_worker(said: bytes) -> None:
    with pytest.raises(ProtocolError):
        from_worker(said)


@pytest.mark.parametrize(("codec", "nbytes"), [("none", 39), ("none", 41), ("bf16", 40), ("e3m0", 10)])
def test_a_push_of_another_size_is_refused(codec: str, nbytes: int) -> None:
    with pytest.raises(ProtocolError, match=f"a push of {nbytes} bytes"):
        decoded(codec, memoryview(bytes(nbytes)), 10)
