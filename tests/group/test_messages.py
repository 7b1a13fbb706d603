"""What goes over the wire: these bytes for ever, and never more than a `ProtocolError` for any others."""

import time
import tracemalloc
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atoll.errors import ProtocolError
from atoll.group import messages
from atoll.group.messages import (
    Agreed,
    AskStatus,
    Beat,
    Broken,
    Bye,
    Commence,
    Complete,
    Crossed,
    Establish,
    Expel,
    Filled,
    Filler,
    Hello,
    Initiate,
    Kept,
    LinkAck,
    Linked,
    LinkHello,
    LinkStatus,
    Loss,
    MemberStatus,
    Message,
    Over,
    Pace,
    PastLoss,
    Probe,
    Probed,
    Refuse,
    Retold,
    Return,
    Returned,
    Seat,
    Stalled,
    Status,
    Topology,
    Verdict,
    View,
    Welcome,
)

GOLDEN: list[tuple[Message, str]] = [
    (
        Hello("10.0.0.2", 4000, "anna", {"zone": "b"}, 3, "m1", "d1", 2),
        "9901a831302e302e302e32cd0fa0a4616e6e6181a47a6f6e65a16203a26d31a2643102",
    ),
    (Linked(5, 0.5, "TCP"), "940205cb3fe0000000000000a3544350"),
    (Topology(), "9103"),
    (
        Initiate(5, 1, "all_reduce sum", b"\x00\xff", False, 70_000, 9, 2, (1, 3)),
        "9a040501ae616c6c5f7265647563652073756dc40200ffc2ce000111700902920103",
    ),
    (Complete(8, "NaN"), "930508a34e614e"),
    (Broken(5, 1, 2, "cut", False), "9609050102a3637574c2"),
    (Stalled(5, "late", (2,), 7), "950d05a46c617465910207"),
    (Kept(5, (1, 3), 2, Verdict(1, True)), "950c0592010302961801c390a000"),
    (
        Return(
            3,
            b"s",
            Hello("::1", 1),
            View(5, (1, 3), True),
            6,
            (Seat(3, "::1", 1),),
            4,
            8,
            True,
            (Agreed("sync", 5, 0, 2, (1, 3), 9),),
            1,
            ((2, 1e9, 0.5),),
        ),
        "9d0b03c401739901a33a3a3101a08001a0a001981605920103c3c290a095cb0000000000000000cb0000000000000000cb0000000000000000cb0000000000000000c306919503a33a3a3101a0a00408c39196a473796e630500029201030901919302cb41cdcd6500000000cb3fe0000000000000",
    ),
    (Retold(Kept(5, (1, 3), 2, Verdict(1, True))), "921f950c0592010302961801c390a000"),
    (Over("closed"), "921ea6636c6f736564"),
    (Probed(5, 2, 1e9, 0.5), "950a0502cb41cdcd6500000000cb3fe0000000000000"),
    (Probe(5, 2), "931d0502"),
    (Filler(b"1"), "922bc40131"),
    (Filled(), "912c"),
    (Bye(), "9106"),
    (
        Beat(3, b"s" * 16, "stopped", b"\x01" + bytes(7)),
        "950703c41073737373737373737373737373737373a773746f70706564c4080100000000000000",
    ),
    (AskStatus(), "9108"),
    (Welcome(3, b"s" * 16), "931403c41073737373737373737373737373737373"),
    (
        Establish(5, (Seat(1, "10.0.0.2", 4000, "m1", "d1"), Seat(2, "::1", 65535)), b"key"),
        "941505929501a831302e302e302e32cd0fa0a26d31a264319502a33a3a31cdffffa0a0c4036b6579",
    ),
    (
        View(6, (1, 3), False, True, (Loss(2, "bob", "left"),), "cut", Pace(0.5, 0.5, 1e9, 1e9, False)),
        "981606920103c2c3919302a3626f62a46c656674a363757495cb3fe0000000000000cb3fe0000000000000cb41cdcd6500000000cb41cdcd6500000000c2",
    ),
    (Commence(1, 8, b"plan", 2), "95170108c404706c616e02"),
    (Verdict(1, True, (b"a", b""), "no", 2), "961801c392c40161c400a26e6f02"),
    (Crossed(((0, 1, ()), (3, 2, (1, 4))), False, "no"), "94199293000190930302920104c2a26e6f"),
    (Expel("late", True), "931aa46c617465c3"),
    (Refuse("no"), "921ba26e6f"),
    (
        Status(
            6,
            False,
            9,
            8,
            (MemberStatus(1, "anna", "10.0.0.2", 4000, 0, "running", 0.5, 9, {"zone": "b"}, "TCP"),),
            (PastLoss(2.0, Loss(2, "bob", "left")),),
            (LinkStatus(1, 2, 1e6, 0.1),),
            "slow",
            "waits",
        ),
        "9a1c06c20908919a01a4616e6e61a831302e302e302e32cd0fa000a772756e6e696e67cb3fe00000000000000981a47a6f6e65a162a35443509192cb40000000000000009302a3626f62a46c65667491940102cb412e848000000000cb3fb999999999999aa4736c6f77a57761697473",
    ),
    (LinkHello(5, 1, b"key", 4096, b"proof"), "96280501c4036b6579cd1000c40570726f6f66"),
    (LinkAck(5, True), "932905c3"),
    (Returned((1, 300)), "922a9201cd012c"),
]
DECODERS: dict[Callable[[bytes], Any], Any] = {
    messages.decode_to_master: messages.ToMaster,
    messages.decode_to_peer: messages.ToPeer | Status,
    messages.decode_on_link: messages.OnLink,
}


def name_of(value: Any) -> str:
    return value.__name__ if callable(value) else type(value).__name__


def decoder_of(message: Message) -> Callable[[bytes], Any]:
    (decode,) = [d for d, kinds in DECODERS.items() if type(message) in get_args(kinds)]
    return decode


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda v: "" if isinstance(v, str) else name_of(v))
def test_every_message_has_these_bytes(message: Message, golden: str) -> None:
    assert messages.encode(message).hex() == golden
    decoded = decoder_of(message)(bytes.fromhex(golden))
    assert decoded == message
    assert type(decoded) is type(message)


def test_no_kind_of_message_is_without_golden_bytes() -> None:
    assert {type(message) for message, _ in GOLDEN} == set(Message.__subclasses__())


@pytest.mark.parametrize("decode", DECODERS, ids=name_of)
@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda v: "" if isinstance(v, str) else name_of(v))
def test_a_message_of_another_direction_is_refused(decode: Any, message: Message, golden: str) -> None:
    if decode is not decoder_of(message):
        with pytest.raises(ProtocolError, match="unreadable message"):
            decode(bytes.fromhex(golden))


def assert_survives(data: bytes) -> None:
    for decode, kinds in DECODERS.items():
        try:
            decoded = decode(data)
        except ProtocolError:
            continue
        assert isinstance(decoded, get_args(kinds))


@settings(max_examples=500)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x91" * 100_000)
@example(b"\x93\x02\x01" + b"\x91" * 100_000)
def test_any_bytes_give_a_message_or_a_protocol_error(data: bytes) -> None:
    assert_survives(data)


@st.composite
def mutated(draw: Any) -> bytes:
    """A good message, somewhat spoilt."""
    data = bytearray.fromhex(draw(st.sampled_from([golden for _, golden in GOLDEN])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 3)))
        data[start:end] = draw(st.binary(max_size=6))
    return bytes(data)


@settings(max_examples=600, deadline=None)
@given(mutated())
def test_spoilt_messages_give_a_message_or_a_protocol_error(data: bytes) -> None:
    assert_survives(data)


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda v: "" if isinstance(v, str) else name_of(v))
def test_a_claim_of_billions_takes_neither_memory_nor_time(message: Message, golden: str, claim: bytes) -> None:
    good = bytes.fromhex(golden)
    tracemalloc.start()
    began = time.monotonic()
    try:
        for at in range(len(good)):
            assert_survives(good[:at] + claim + good[at:])
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 1.0


LONG: dict[str, Message] = {
    "an address": Hello("fe80::1%" + "x" * 200, 1),
    "what a link is made of": Linked(1, 0.0, "x" * 5000),
    "an operation": Initiate(1, 0, "x" * 5000),
    "a fault": Complete(1, "x" * 5000),
    "why a link broke": Broken(1, 1, 2, "x" * 5000),
}


@pytest.mark.parametrize("what", LONG)
def test_a_text_the_master_would_pass_on_has_a_limit(what: str) -> None:
    """Those of all members must fit into one message, or whoever is told them would be lost."""
    with pytest.raises(ProtocolError, match="length"):
        messages.decode_to_master(messages.encode(LONG[what]))
