"""Policy: may the other side speak? Two that know the same token prove it to each other, each with a challenge of its
own. Standard library only: the helper process takes part with this very code.

    dialler   greeting with a challenge ------------------------------->  listener
              <-------------------------------  greeting with a challenge
              HMAC(key, "dialler" | both greetings | binding) ----------->  checked, before the listener proves anything
    checked   <-----------  HMAC(key, "listener" | both greetings | binding)

The roles differ, so a proof sent back is none; the challenges are new for each connection, so an old one is none
either; whatever somebody changes in the greetings changes the proofs. The key is not the token itself, and good for
nothing else.
"""

import hmac
from hashlib import sha256
from typing import Final

from atoll.errors import ProtocolError, Refused

CHALLENGE_BYTES: Final = 32
PROOF_BYTES: Final = 32
DENIED: Final = b""
"""In the place of a proof: yours is wrong."""

_ALIKE: Final = "give all of the group the same --token-file (`token` in Python)"
WRONG_TOKEN: Final = f"the other side has another token: {_ALIKE}"
TOKEN_WANTED: Final = "the other side wants a token: give --token-file (`token` in Python) with the one its master has"
TOKEN_MISSING: Final = f"the other side has no token, and so is not of the group that ours is for: {_ALIKE}, or none"


def derive(token: bytes) -> bytes:
    """The key that a token stands for; good for this protocol only."""
    return hmac.digest(b"atoll: who may join, wire 3", token, "sha256")


class Handshake:
    """One side of one connection, without the connection. `key` empty: everybody may speak. `greeting`: ours, whole.

    Whoever reads calls `greeted` once, then `hear` until `admitted`; what they return is to be said. Errors are final:
    Refused, where the other side is atoll, but not of this group; ProtocolError, where it is neither.
    """

    def __init__(self, key: bytes, dialled: bool, greeting: bytes) -> None:
        self.admitted = False
        """May the other side speak?"""
        self._key, self._dialled, self._ours = key, dialled, greeting
        self._expected = b""
        """What the other side is to say."""
        self._answer = b""

    def greeted(self, theirs: bytes, challenged: bool, binding: bytes = b"") -> bytes | None:
        """The other side has greeted, and asks for a proof or not. `binding`: what only this connection has, and both
        sides know. Returns our proof, if we are the first to prove."""
        if self._expected or self.admitted:
            raise ProtocolError("a second greeting")
        if not self._key:
            if challenged:
                raise Refused(TOKEN_WANTED)
            self.admitted = True
            return None
        if not challenged:
            raise Refused(TOKEN_MISSING)
        if theirs == self._ours:
            raise Refused("our own greeting came back")
        greetings = (self._ours, theirs) if self._dialled else (theirs, self._ours)
        first, second = (self._proof(role, *greetings, binding) for role in (b"dialler", b"listener"))
        ours, self._expected = (first, second) if self._dialled else (second, first)
        if self._dialled:
            return ours
        self._answer = ours
        return None

    def hear(self, said: bytes) -> bytes | None:
        """What the other side has said before it was admitted. Returns our proof, if that was the first."""
        expected, self._expected = self._expected, b""
        if not expected or self.admitted:
            raise ProtocolError("a proof that nobody waits for")
        if said == DENIED and self._dialled:
            raise Refused(WRONG_TOKEN)
        if len(said) != PROOF_BYTES:
            raise ProtocolError("something else than a proof")
        if not hmac.compare_digest(said, expected):
            raise Refused(WRONG_TOKEN)
        self.admitted = True
        return self._answer or None

    def _proof(self, role: bytes, *parts: bytes) -> bytes:
        digests = b"".join(sha256(part).digest() for part in parts)
        return hmac.digest(self._key, role + b"\0" + digests, "sha256")
