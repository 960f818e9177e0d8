"""Answers to parties of protocol v1; the messages are those that a program of v1 sends."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import signing, version1

ME, DEVICE = signing.create_identity(), signing.create_identity()
HELLO: dict[str, Any] = {
    "boot": "5b2d",
    "key": DEVICE.key,
    "roles": ["train", "evaluate"],
    "domain": "roof",
    "encoder_id": "6" * 64,
    "classes_digest": "7" * 64,
    "epoch": 6,
    "run": "run-1f3a5c7e",
    "closed": 1,
}


def line(body: object, kind: str = "hello") -> bytes:
    return json.dumps({"kind": kind, "from": "cam-01", "body": body}).encode() + b"\nsignature"


def test_a_hello_gets_a_manifest_that_it_believes_and_then_a_refusal() -> None:
    answers = version1.refuse_device("lab", "cam-01", line(HELLO), ME)
    found = []
    for answer in answers:
        text, _, signature = answer.partition(b"\n")
        signed = b"fedclip/v1/lab/dev/cam-01/down\0" + text
        assert signing.verifies(ME.key, signed, base64.b64decode(signature))
        found.append(json.loads(text))
    assert [one["kind"] for one in found] == ["manifest", "refused"]
    manifest, refused = (one["body"] for one in found)
    assert (manifest["epoch"], manifest["run"], manifest["key"]) == (6, "run-1f3a5c7e", ME.key)
    assert manifest["model_round"] > HELLO["closed"], "the device refuses one that is not newer"
    assert manifest["answers"] == "5b2d"
    assert refused["final"] is True
    assert refused["key"] == DEVICE.key
    assert "speaks protocol v1 and this coordinator speaks v2" in refused["reason"]


@pytest.mark.parametrize("payload", [b"", b"\xfc\x1e", b"[]", b'"x"', line([]), line({}, "offer")])
def test_other_messages_get_no_answer(payload: bytes) -> None:
    assert version1.refuse_device("lab", "cam-01", payload, ME) == []
    version1.check_coordinator(payload)


@pytest.mark.parametrize("changes", [{"key": "x"}, {"epoch": None}, {"run": "No Id"}, {"run": 7}])
def test_a_hello_that_no_device_sends_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PeerError, match="hello of protocol v1"):
        version1.refuse_device("lab", "cam-01", line({**HELLO, **changes}), ME)


def test_a_coordinator_that_is_online_is_refused() -> None:
    version1.check_coordinator(line({"online": False}, "coordinator"))
    with pytest.raises(PeerError, match="install the same version of fedclip-edge on both"):
        version1.check_coordinator(line({"online": True}, "coordinator"))
