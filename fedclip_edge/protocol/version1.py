"""Answers to parties that still speak protocol v1, so that they are refused in words.

A device of v1 believes a refusal only after a manifest, and only if the manifest is not older than
the last one that it accepted. So it gets both, made from its own hello.
"""

from __future__ import annotations

import json
from typing import Any

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol.cohort import NOBODY
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.protocol.wire import pack_unnumbered
from fedclip_edge.records import check_id, check_sha256

OLD_DEVICE = (
    "it speaks protocol v1 and this coordinator speaks v2; install the coordinator's version of "
    "fedclip-edge on the device"
)
_OLD_COORDINATOR = (
    "a coordinator of this fleet speaks protocol v1 and this device speaks v2; install the same "
    "version of fedclip-edge on both"
)


def topics(fleet: str) -> Topics:
    """The topics of a fleet in protocol v1."""
    return Topics(fleet, 1)


def for_device(fleet: str, device: str) -> tuple[str, ...]:
    """The topics that a device of v1 subscribes to; without them it would not connect."""
    old = topics(fleet)
    return (old.coordinator_state, f"{old.prefix}/round", old.model, old.down(device))


def check_coordinator(payload: bytes) -> None:
    """Raise PeerError, which says what to do, if the payload says that a coordinator is online.

    The payload comes from the topic of a coordinator's state in v1.
    """
    if _read(payload, "coordinator").get("online") is True:
        raise PeerError(_OLD_COORDINATOR)


def refuse_device(fleet: str, device: str, payload: bytes, identity: Identity) -> list[bytes]:
    """The answers to a hello of v1, for the device's `down` topic; none to any other message.

    Raises PeerError for a hello that no device of v1 sends.
    """
    hello = _read(payload, "hello")
    if not hello:
        return []
    try:
        key, boot = check_sha256(hello["key"], "key"), str(hello["boot"])
        epoch, closed = int(hello["epoch"]), int(hello["closed"])
        run = check_id(hello["run"] or "v1", "run")
    except (KeyError, TypeError, ValueError) as error:
        raise PeerError(f"hello of protocol v1: {error}") from None
    manifest = {
        "run": run,
        "epoch": epoch,
        "key": identity.key,
        "phase": "gathering",
        "round": closed + 2,
        "attempt": 0,
        "model": {"sha256": NOBODY, "size_bytes": 1, "chunk_bytes": 1},
        "model_round": closed + 1,
        "plan": {"rounds": 1},
        "encoder_id": "",
        "classes_digest": "",
        "cohort": NOBODY,
        "deadline_s": 600.0,
        "takes_part": False,
        "answers": boot,
    }
    refused = {"reason": OLD_DEVICE, "final": True, "key": key}
    topic = topics(fleet).down(device)
    return [
        pack_unnumbered(kind, body, "coordinator", topic, identity)
        for kind, body in (("manifest", manifest), ("refused", refused))
    ]


def _read(payload: bytes, kind: str) -> dict[str, Any]:
    """The body of a control message of this kind; empty for anything else."""
    try:
        message = json.loads(payload.partition(b"\n")[0])
        body = message["body"] if message["kind"] == kind else {}
    except (ValueError, TypeError, LookupError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
