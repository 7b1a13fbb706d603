"""Who does not know the token is never admitted, whatever he has heard, in whatever order he says it."""

import hashlib
import hmac
import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import AtollError, ProtocolError, Refused
from atoll.net.handshake import DENIED, PROOF_BYTES, Handshake, derive

KEY, OTHER_KEY = derive(b"the token of this group"), derive(b"the token of another")
BINDING = b"this connection"


def greeting() -> bytes:
    return b"ATOL and the rest" + os.urandom(32)


class Side:
    """A handshake and the greeting it began with."""

    def __init__(self, dialled: bool, key: bytes = KEY, binding: bytes = BINDING) -> None:
        self.greeting, self.binding = greeting(), binding
        self.handshake = Handshake(key, dialled, self.greeting)
        self.challenges = bool(key)

    @property
    def admitted(self) -> bool:
        return self.handshake.admitted

    def meets(self, other: "Side", said: bytes | None = None) -> bytes | None:
        return self.handshake.greeted(said or other.greeting, other.challenges, self.binding)


def talk(dialler: Side, listener: Side) -> list[bytes]:
    """An undisturbed conversation; the two proofs."""
    assert listener.meets(dialler) is None
    first = dialler.meets(listener)
    assert first is not None
    second = listener.handshake.hear(first)
    assert second is not None
    assert listener.admitted
    assert not dialler.admitted
    assert dialler.handshake.hear(second) is None
    return [first, second]


def test_two_that_know_the_token_admit_each_other() -> None:
    dialler, listener = Side(True), Side(False)
    talk(dialler, listener)
    assert dialler.admitted
    assert listener.admitted


def test_the_proofs_are_these() -> None:
    """By the book, so that no later version says something else under the same number."""
    dialler, listener = Side(True), Side(False)
    key = hmac.new(b"atoll: who may join, wire 3", b"the token of this group", hashlib.sha256).digest()
    parts = b"".join(hashlib.sha256(part).digest() for part in (dialler.greeting, listener.greeting, BINDING))
    by_hand = [hmac.new(key, role + b"\0" + parts, hashlib.sha256).digest() for role in (b"dialler", b"listener")]
    assert talk(dialler, listener) == by_hand


def test_without_tokens_a_greeting_is_enough() -> None:
    dialler, listener = Side(True, b""), Side(False, b"")
    assert dialler.meets(listener) is listener.meets(dialler) is None
    assert dialler.admitted
    assert listener.admitted


@pytest.mark.parametrize(
    ("dialler", "listener", "at_the_dialler", "at_the_listener"),
    [(b"", KEY, "wants a token: give --token-file", "has no token"), (KEY, b"", "has no token", "wants a token")],
)
def test_a_token_on_one_side_only_is_refused_by_both(
    dialler: bytes, listener: bytes, at_the_dialler: str, at_the_listener: str
) -> None:
    one, other = Side(True, dialler), Side(False, listener)
    with pytest.raises(Refused, match=at_the_dialler):
        one.meets(other)
    with pytest.raises(Refused, match=at_the_listener):
        other.meets(one)
    assert not one.admitted
    assert not other.admitted


def test_another_token_is_refused_by_the_listener_which_proves_nothing_to_it() -> None:
    dialler, listener = Side(True, OTHER_KEY), Side(False)
    listener.meets(dialler)
    with pytest.raises(Refused, match="another token"):
        listener.handshake.hear(dialler.meets(listener) or b"")
    with pytest.raises(Refused, match="another token"):
        dialler.handshake.hear(DENIED)


def test_a_listener_that_cannot_prove_it_is_refused_by_the_dialler() -> None:
    dialler, listener = Side(True), Side(False, OTHER_KEY)
    dialler.meets(listener)
    with pytest.raises(Refused, match="another token"):
        dialler.handshake.hear(os.urandom(PROOF_BYTES))
    assert not dialler.admitted


def test_a_recorded_proof_is_none_the_next_time() -> None:
    first = Side(True)
    proofs = talk(first, Side(False))
    listener = Side(False)
    listener.meets(first)  # the same greeting again
    with pytest.raises(Refused):
        listener.handshake.hear(proofs[0])
    again = Side(True)
    again.meets(Side(False))
    with pytest.raises(Refused):
        again.handshake.hear(proofs[1])


def test_a_proof_sent_back_is_none() -> None:
    dialler, listener = Side(True), Side(False)
    first = dialler.meets(listener)
    assert first is not None
    with pytest.raises(Refused):
        dialler.handshake.hear(first)


@pytest.mark.parametrize("dialled", [True, False])
def test_ones_own_greeting_is_no_greeting(dialled: bool) -> None:
    side = Side(dialled)
    with pytest.raises(Refused, match="came back"):
        side.meets(side)


def test_a_relay_between_two_members_cannot_prove_itself_by_them() -> None:
    """It dials a member and is dialled by another at once; but what one side proves, no other takes for its own."""
    caller, called = Side(True), Side(False)
    caller.meets(called, said=(forged := greeting()))
    called.meets(caller, said=forged)
    with pytest.raises(Refused):
        called.handshake.hear(Side(True).meets(called) or b"")


@pytest.mark.parametrize("which", ["dialler", "listener"])
def test_greetings_that_somebody_has_changed_on_the_way_admit_nobody(which: str) -> None:
    dialler, listener = Side(True), Side(False)
    changed = (dialler if which == "dialler" else listener).greeting.replace(b"rest", b"best")
    listener.meets(dialler, changed if which == "dialler" else None)
    first = dialler.meets(listener, changed if which == "listener" else None)
    with pytest.raises(Refused):
        listener.handshake.hear(first or b"")


def test_another_connection_than_the_one_that_was_proven_admits_nobody() -> None:
    dialler, listener = Side(True, binding=b"one certificate"), Side(False, binding=b"another")
    listener.meets(dialler)
    with pytest.raises(Refused):
        listener.handshake.hear(dialler.meets(listener) or b"")


@pytest.mark.parametrize("nbytes", [1, 31, 33, 64])
def test_what_is_no_proof_is_an_error_of_the_protocol(nbytes: int) -> None:
    listener = Side(False)
    listener.meets(Side(True))
    with pytest.raises(ProtocolError):
        listener.handshake.hear(bytes(nbytes))


def test_errors_are_final() -> None:
    dialler, listener = Side(True), Side(False)
    listener.meets(dialler)
    right = dialler.meets(listener) or b""
    with pytest.raises(Refused):
        listener.handshake.hear(bytes(PROOF_BYTES))
    with pytest.raises(ProtocolError):
        listener.handshake.hear(right)
    assert not listener.admitted


# -- an attacker who has heard everything ------------------------------------------------------------------------------


class Heard:
    """What is on record of conversations between members, and of one a member has begun with the attacker."""

    def __init__(self) -> None:
        self.greetings, self.proofs = [], []
        for _ in range(2):
            dialler, listener = Side(True), Side(False)
            self.proofs += talk(dialler, listener)
            self.greetings += [dialler.greeting, listener.greeting]


HEARD = Heard()
CUT: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.just(lambda data: data),
    st.integers(0, 40).map(lambda n: lambda data: data[:n]),
    st.integers(0, 255).map(lambda bit: lambda data: flipped(data, bit)),
    st.just(lambda data: data + data),
    st.just(lambda data: data[::-1]),
)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    if changed:
        changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    return bytes(changed)


@settings(max_examples=500, deadline=None)
@given(
    dialled=st.booleans(),
    moves=st.lists(
        st.tuples(st.sampled_from(["greet", "prove"]), st.integers(0, 7), CUT, st.booleans()), min_size=1, max_size=8
    ),
)
def test_nothing_that_was_ever_heard_admits_in_any_order_or_form(
    dialled: bool, moves: list[tuple[str, int, Callable[[bytes], bytes], bool]]
) -> None:
    victim, own = Side(dialled), Side(not dialled, OTHER_KEY)
    said = [victim.greeting]
    for kind, which, change, challenged in moves:
        proofs = [*HEARD.proofs, *said, own.greeting, b"", bytes(32)]
        greetings = [*HEARD.greetings, *said, own.greeting]
        try:
            if kind == "greet":
                answer = victim.handshake.greeted(change(greetings[which % len(greetings)]), challenged, BINDING)
            else:
                answer = victim.handshake.hear(change(proofs[which % len(proofs)]))
        except AtollError:
            answer = None
        if answer is not None:
            said.append(answer)
        assert not victim.admitted
    assert dialled or len(said) == 1, "a listener proved something to who had proved nothing"


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=80), st.booleans())
def test_the_right_one_is_admitted_whatever_the_greetings_say(one: bytes, other: bytes, bound: bool) -> None:
    ours, theirs = one + b"0" + os.urandom(8), other + b"1" + os.urandom(8)
    binding = BINDING if bound else b""
    dialler, listener = Handshake(KEY, True, ours), Handshake(KEY, False, theirs)
    listener.greeted(ours, True, binding)
    dialler.hear(listener.hear(dialler.greeted(theirs, True, binding) or b"") or b"")
    assert dialler.admitted
    assert listener.admitted
