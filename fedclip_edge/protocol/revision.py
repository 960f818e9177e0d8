"""The revision of protocol v2: programs of different revisions refuse each other in words.

Each control message carries the revision of its sender. It is compared before the fields of the
message are read, because these may differ between revisions. Each side then says in its own log
which of the two is the earlier one. Programs from before the first revision send none.

Laws:
- REVISION grows by one with each change of what is sent: a field of a message, a topic, a payload,
  or the meaning of any of them. tests/protocol/test_revision.py compares the first three.
- The fields in `Introduction` and STATE are in every revision, with the same meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.message_parts import check_text
from fedclip_edge.protocol.signing import verifies
from fedclip_edge.records import check_sha256

REVISION = 2
UNNUMBERED = 0  # stands for the revision of a message that has none
REVISION_MAX = 2**31
STATE = ("boot", "epoch", "run", "online", "key")  # fields of a coordinator's state


@dataclass(frozen=True)
class Introduction:
    """The fields of a hello that every revision has."""

    boot: str
    key: str

    def __post_init__(self) -> None:
        check_text(self.boot, "boot")
        check_sha256(self.key, "key")


class OtherRevisionError(PeerError):
    """A control message of another revision; its signature and its fields are not checked."""

    def __init__(
        self,
        revision: int,
        kind: object,
        body: Mapping[str, Any],
        sender: str,
        signed: bytes,
        signature: bytes,
    ) -> None:
        super().__init__(difference(revision, "the sender", "this program"))
        self.revision, self.kind, self.body, self.sender = revision, kind, body, sender
        self.signed, self.signature = signed, signature

    def introduction(self) -> Introduction:
        """The sender of this hello; raises PeerError unless its own key signed the message."""
        known = {name: self.body[name] for name in ("boot", "key") if name in self.body}
        try:
            found = decode_table(Introduction, known, "hello message of another revision")
        except DecodeError as error:
            raise PeerError(str(error)) from None
        if not verifies(found.key, self.signed, self.signature):
            raise PeerError("a hello of another revision has a wrong signature")
        return found


def difference(revision: int, who: str, us: str) -> str:
    """The reason to refuse a party, and what to do; `who` and `us` name the two in the sentence."""
    which = "an earlier" if revision < REVISION else "a later"
    number = "no revision" if revision == UNNUMBERED else f"revision {revision}"
    return (
        f"{who} has {which} version of fedclip-edge: its messages have {number} of protocol v2, "
        f"and those of {us} revision {REVISION}; install the same version on the "
        "coordinator and on its devices"
    )
