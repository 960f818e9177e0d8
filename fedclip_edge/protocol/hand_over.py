"""Statements in which the key of a coordinator names the key that follows it.

A device knows the key that its enrolment pinned. If it was away while the key was replaced, several
times even, the statements lead it from the key that it knows to the newest one.

Law: only the owner of a key can say which key follows it. What is signed begins with words with
which no message and no TLS handshake begins, so no other signature can pass for a statement.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fedclip_edge.protocol.signing import Identity, verifies
from fedclip_edge.records import check_sha256

MAX_HAND_OVERS = 16  # in one message; each takes 270 bytes
_WORDS = b"fedclip-edge hand-over\0"
_SIGNATURE_DIGITS = 128  # of 64 bytes, RFC 8032


@dataclass(frozen=True)
class HandOver:
    """A statement that the key `new` follows the key `old`; keys and signature are hex."""

    old: str
    new: str
    signature: str  # made with the private half of `old`

    def __post_init__(self) -> None:
        check_sha256(self.old, "old")
        check_sha256(self.new, "new")
        digits = set(self.signature) <= set("0123456789abcdef")
        if len(self.signature) != _SIGNATURE_DIGITS or not digits:
            raise ValueError(f"signature: expected {_SIGNATURE_DIGITS} lower-case hex digits")

    @property
    def is_true(self) -> bool:
        """True if `old` signed the statement."""
        return verifies(self.old, _signed(self.old, self.new), bytes.fromhex(self.signature))


def hand_over(old: Identity, new: str) -> HandOver:
    """The statement of the identity `old` that the key `new` (64 hex digits) follows it."""
    return HandOver(old.key, new, old.sign(_signed(old.key, new)).hex())


def newest_key(known: str, statements: Iterable[HandOver]) -> str:
    """The newest key that true statements lead to from the key `known`; maybe `known` itself."""
    following = {one.old: one for one in statements}
    seen = {known}
    while (step := following.get(known)) is not None and step.new not in seen and step.is_true:
        known = step.new
        seen.add(known)
    return known


def _signed(old: str, new: str) -> bytes:
    return _WORDS + bytes.fromhex(old) + bytes.fromhex(new)
