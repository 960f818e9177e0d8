"""Generator of the parts of docs/reference/protocol.md that come from the code.

A part is the text between `<!-- from the code: NAME -->` and `<!-- end -->` in the page. After a
change of the protocol, run

    python tests/support/protocol_examples.py --write

to update the page. tests/protocol/test_protocol_document.py fails while a part differs.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

import numpy as np
from checkout import ROOT
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from protocol_fields import CONSTANTS, FIELDS, MEANINGS, RULES

from fedclip_edge.config.fleet import RunRules
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.pki.mosquitto import access_list
from fedclip_edge.protocol import chunks, codec, message_parts, messages, topics, wire
from fedclip_edge.protocol.cohort import EVERYBODY, cohort_hash
from fedclip_edge.protocol.exchange import open_exchange
from fedclip_edge.protocol.hand_over import HandOver, hand_over
from fedclip_edge.protocol.report import Report
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import ClassTexts, Contribution, Model, Plan, Update

PAGE = ROOT / "docs" / "reference" / "protocol.md"
TOPICS = Topics("lab")
DEVICE_SEED, COORDINATOR_SEED = bytes([1] * 32), bytes([2] * 32)
DEVICE = Identity(Ed25519PrivateKey.from_private_bytes(DEVICE_SEED))
COORDINATOR = Identity(Ed25519PrivateKey.from_private_bytes(COORDINATOR_SEED))
RUN, ENCODER, CLASSES = "run-1f3a5c7e", "e" * 64, "c" * 64
TERM = np.array([[0.5, -0.25, 0.0], [0.125, 1.0, -1.0]], np.float32)
SHAPES = {"gate": TERM.shape}


def stored(body: bytes, name: str) -> bytes:
    """The payload in a zstd frame with one stored block.

    Nothing is compressed, because versions of zstd libraries compress to different bytes.
    """
    shuffled = codec._shuffle(codec.decode(name, body, 1 << 16), codec.CODECS[name].item_bytes)
    # RFC 8878, 3.1.1: one segment, its size in four bytes; one block, the last, stored.
    frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(shuffled))
    return frame + struct.pack("<I", len(shuffled) << 3 | 1)[:3] + shuffled


MODEL = stored(wire.pack_model(Model("fedclip", 0, {"gate": TERM}), "fp16"), "fp16")
VERSION = chunks.blob_of(MODEL, "model")
PLAN = Plan("fedclip", rounds=3, options={"lr": 0.001})
EXCHANGE = open_exchange(
    "round",
    run=RUN,
    number=1,
    model=VERSION.sha256,
    plan=PLAN,
    encoder_id=ENCODER,
    classes_digest=CLASSES,
    max_norm=PLAN.max_norm,
)
CONTRIBUTION = Contribution(RUN, 1, "cam-01", EXCHANGE.sha256, Update("sum", 1, {"gate": TERM}))
UPDATE = stored(wire.pack_contribution(CONTRIBUTION, "int8"), "int8")
OFFERED = chunks.blob_of(UPDATE, "update")

EARLIER = Identity(Ed25519PrivateKey.from_private_bytes(bytes([3] * 32)))
HANDED_OVER = hand_over(EARLIER, COORDINATOR.key)

EXAMPLES: Mapping[str, messages.Message] = {
    "coordinator": messages.CoordinatorState(
        "9f0e",
        7,
        RUN,
        online=True,
        key=COORDINATOR.key,
        hand_overs=(HANDED_OVER,),
        moved_to=message_parts.Address("broker.example", 8883),
    ),
    "device": messages.DeviceState(
        "5b2d", online=True, encoding=message_parts.Encoding(1200, 30000)
    ),
    "hello": messages.Hello(
        "5b2d",
        DEVICE.key,
        "roof",
        ENCODER,
        CLASSES,
        message_parts.Capabilities(
            ("train", "evaluate"),
            ("fedclip", "ridge"),
            ("fp32", "fp16", "int8"),
            5,
            message_parts.Pictures(
                train=60,
                validation=20,
                test=20,
                withheld=3,
                by_class={"train": (35, 25, 0), "validation": (12, 8, 0), "test": (10, 8, 2)},
            ),
            provider="cpu",
            version="0.3.0",
        ),
        epoch=6,
        run=RUN,
        closed=1,
    ),
    "manifest": messages.Manifest(
        run=RUN,
        epoch=7,
        key=COORDINATOR.key,
        phase="open",
        exchange=EXCHANGE,
        attempt=0,
        closed=0,
        model=VERSION,
        plan=PLAN,
        encoder_id=ENCODER,
        classes_digest=CLASSES,
        cohort=EVERYBODY,
        deadline_s=600.0,
        devices=2,
        takes_part=True,
        answers="5b2d",
        kept="",
    ),
    "offer": messages.Offer(RUN, 1, OFFERED),
    "want": messages.Want(OFFERED.sha256, ((0, 1), (3, 3))),
    "kept": messages.Kept(RUN, 1, OFFERED.sha256),
    "refused": messages.Refused(
        "round 1 is not open; the current round is 2",
        "contribution",
        sha256=OFFERED.sha256,
        closed=1,
    ),
    "report": Report(
        run=RUN,
        round=1,
        device="cam-01",
        domain="roof",
        model=VERSION.sha256,
        accuracy={"zero_shot": 0.75, "federated": 0.875},
        train_pictures=120,
        test_pictures=40,
        encoded=200,
        skipped=0,
        bytes_up=None,
        bytes_down=None,
        encode_s=4.5,
        train_s=1.25,
        wait_s=0.5,
    ),
}


def place_of(kind: str) -> tuple[str, str, Identity]:
    """Topic, sender and key of a kind's example."""
    if kind == "coordinator":
        return TOPICS.coordinator_state, "coordinator", COORDINATOR
    if kind in ("manifest", "want", "kept", "refused"):
        return TOPICS.down("cam-01"), "coordinator", COORDINATOR
    topic = TOPICS.state("cam-01") if kind == "device" else TOPICS.up("cam-01")
    return topic, "cam-01", DEVICE


def payload_of(kind: str) -> bytes:
    topic, sender, identity = place_of(kind)
    return wire.pack_control(EXAMPLES[kind], sender, topic, identity)


def fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def dump(data: bytes) -> str:
    """Rows of an offset, sixteen bytes in hex, and the same bytes in ASCII."""
    lines = []
    for at in range(0, len(data), 16):
        part = data[at : at + 16]
        shown = "".join(chr(b) if 32 <= b < 127 else "." for b in part)
        lines.append(f"{at:04x}  {part.hex(' '):<47}  {shown}")
    return "\n".join(lines)


def pretty(value: object) -> str:
    return fenced(json.dumps(value, indent=1, default=vars), "json")


# Topics.


def topic_table() -> str:
    any_fleet = Topics("FLEET")
    device = "DEVICE"
    places = [
        (any_fleet.coordinator_state, "coordinator", "all", "yes; also the will", "coord/state"),
        (any_fleet.manifest, "coordinator", "all", "yes", "manifest"),
        (any_fleet.model, "coordinator", "all", "no", "model"),
        (any_fleet.blob("HASH"), "coordinator", "devices that need the blob", "no", "blob"),
        (any_fleet.state(device), "the device", "coordinator", "yes; also the will", "state"),
        (any_fleet.up(device), "the device", "coordinator", "no", "up"),
        (any_fleet.down(device), "coordinator", "the device", "no", "down"),
    ]
    return table(
        ("topic", "publisher", "subscribers", "retained", "carries"),
        [(f"`{t}`", *rest, ", ".join(topics._KINDS[name])) for t, *rest, name in places],
    )


def subscriptions() -> str:
    return fenced(
        "a device        " + "  ".join(Topics("FLEET").for_device("DEVICE")) + "\n"
        "the coordinator " + "  ".join(Topics("FLEET").for_coordinator())
    )


# Fields.


def type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin is Literal:
        return " or ".join(f'`"{a}"`' for a in arguments)
    if origin is tuple:
        inner = arguments[0]
        return "array of " + ("[first, last]" if get_origin(inner) is tuple else type_name(inner))
    if origin is Mapping or hint is Mapping or getattr(origin, "__name__", "") == "Mapping":
        return "object of " + type_name(arguments[1])
    if dataclasses.is_dataclass(hint):
        return f"object: {getattr(hint, '__name__', hint)}"
    return {str: "string", int: "integer", float: "number", bool: "bool", type(None): "null"}[hint]


def field_table(cls: type[Any]) -> str:
    hints = typing.get_type_hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        missing = (dataclasses.MISSING, dataclasses.MISSING)
        optional = (field.default, field.default_factory) != missing
        limit, meaning = FIELDS[cls][field.name]
        default = ""
        if optional:
            value = {} if field.default is dataclasses.MISSING else field.default
            default = f"`{json.dumps(value)}`"
        rows.append((f"`{field.name}`", type_name(hints[field.name]), limit, default, meaning))
    return table(("field", "type", "limits", "if absent", "meaning"), rows)


def limit_table() -> str:
    return table(
        ("limit", "accepted values"), [(name, meaning) for name, (meaning, *_) in MEANINGS.items()]
    )


def rule_table() -> str:
    rows = [
        (f"`{rule.name}`", str(rule.default), RULES[rule.name])
        for rule in dataclasses.fields(RunRules)
    ]
    return table(("setting", "default", "meaning"), rows)


def constant_table() -> str:
    rows = [(f"`{n}`", str(value), meaning) for n, (value, meaning) in CONSTANTS.items()]
    return table(("name", "value", "meaning"), rows)


def example(kind: str) -> str:
    line = payload_of(kind).partition(b"\n")[0]
    fields = json.loads(line)
    return f"On `{place_of(kind)[0]}`:\n\n" + pretty(fields)


# Bytes.


def keys() -> str:
    return fenced(
        f"device       seed {DEVICE_SEED.hex()}\n             key  {DEVICE.key}\n"
        f"coordinator  seed {COORDINATOR_SEED.hex()}\n             key  {COORDINATOR.key}"
    )


def signed() -> str:
    topic, _, identity = place_of("device")
    line, _, signature = payload_of("device").partition(b"\n")
    raw = identity.sign(topic.encode() + b"\0" + line)
    assert base64.b64decode(signature) == raw
    return (
        "The message, two lines:\n\n"
        + fenced(payload_of("device").decode())
        + f"\n\nThe signed bytes, {len(topic) + 1 + len(line)} bytes:\n\n"
        + fenced(dump(topic.encode() + b"\0" + line))
        + "\n\nThe signature, 64 bytes:\n\n"
        + fenced(dump(raw))
    )


def chunk() -> str:
    data = bytes(range(40))
    blob = chunks.blob_of(data, "model", 16)
    each = list(chunks.split(data, blob))
    return "The blob:\n\n" + pretty(vars(blob)) + "\n\nIts last chunk:\n\n" + fenced(dump(each[-1]))


def body(data: bytes, name: str) -> str:
    plain = codec.decode(name, data, 1 << 20)
    return (
        f"Before shuffling, {len(plain)} bytes:\n\n"
        + fenced(dump(plain))
        + f"\n\nAs sent, in a zstd frame with one stored block, {len(data)} bytes, SHA-256\n"
        f"`{chunks.blob_of(data, 'model').sha256}`:\n\n" + fenced(dump(data))
    )


def int8() -> str:
    tensors = codec.store("int8", {"gate": TERM})
    (half,) = tensors["gate:scale"].tolist()
    scale = float(codec._scales(tensors["gate:scale"])[0])
    received = codec.restore("int8", tensors, SHAPES)["gate"]
    lost = TERM - received
    rows = [
        (str(meant), str(step), repr(float(got)), repr(float(left)))
        for meant, step, got, left in zip(
            TERM.ravel().tolist(),
            tensors["gate"].ravel().tolist(),
            received.ravel(),
            lost.ravel(),
            strict=True,
        )
    ]
    said = f"The scale is `0x{half:04x}`, which is {scale!r}.\n\n"
    return said + table(("value", "step", "received", "residual"), rows)


def grid() -> str:
    plan = Plan("fedclip", grid_bits=8)
    total = ExactSum(plan)
    updates = [np.array([0.5, -0.001], np.float32), np.array([1 / 3, 0.002], np.float32)]
    for values in updates:
        total.add(Update("sum", 1, {"t": values}))
    shown = [[repr(float(v)) for v in values] for values in updates]
    mean = [repr(float(v)) for v in total.mean()["t"]]
    sums = total.terms["t"].tolist()
    steps = [np.rint(np.float64(v) * 2.0**8).astype(int).tolist() for v in updates]
    rows = [
        (f"t[{i}]", *(f"{shown[d][i]} -> {steps[d][i]}" for d in (0, 1)), str(sums[i]), mean[i])
        for i in (0, 1)
    ]
    header = ("value", "device 1, in steps", "device 2, in steps", "sum", "mean over weight 2")
    return table(header, rows)


def cohort() -> str:
    names = ("cam-01", "cam-02", "cam-03")
    hashes = {name: cohort_hash(RUN, 1, name) for name in names}
    lines = [f'SHA-256("{RUN}/1/{name}") = {hashed}' for name, hashed in hashes.items()]
    return fenced("\n".join(lines))


def classes_digest() -> str:
    classes = ClassTexts(("ant", "b\u00e4r"), np.eye(2, dtype=np.float32), 100.0, "a {}")
    head = json.dumps([list(classes.names), classes.logit_scale]).encode()
    hashed = head + b"\0" + classes.vectors.astype("<f4").tobytes()
    assert hashlib.sha256(hashed).hexdigest() == classes.digest
    return fenced(f"{dump(hashed)}\n\nSHA-256  {classes.digest}")


# The records that are fields of messages.
NESTED = (
    message_parts.Blob,
    HandOver,
    message_parts.Address,
    message_parts.Encoding,
    message_parts.Capabilities,
    message_parts.Pictures,
    message_parts.Exchange,
    Plan,
)
PARTS: dict[str, Callable[[], str]] = {
    "topics": topic_table,
    "subscriptions": subscriptions,
    "access-list": lambda: fenced(access_list("FLEET")),
    "limits": limit_table,
    "constants": constant_table,
    "rules": rule_table,
    "keys": keys,
    "signed": signed,
    "chunk": chunk,
    "body-model": lambda: body(MODEL, "fp16"),
    "body-contribution": lambda: body(UPDATE, "int8"),
    "int8": int8,
    "grid": grid,
    "cohort": cohort,
    "classes-digest": classes_digest,
    **{
        f"fields-{cls.__name__}": (lambda cls=cls: field_table(cls))  # type: ignore[misc]
        for cls in (*messages.KINDS.values(), *NESTED)
    },
    **{f"example-{kind}": (lambda kind=kind: example(kind)) for kind in messages.KINDS},  # type: ignore[misc]
}

_PART = re.compile(r"<!-- from the code: ([\w-]+) -->\n(.*?)<!-- end -->", re.DOTALL)


def names_in(page: str) -> list[str]:
    return [found[1] for found in _PART.finditer(page)]


def rewritten(page: str) -> str:
    """The page with every part made anew. Raises KeyError for the name of an unknown part."""
    return _PART.sub(
        lambda found: f"<!-- from the code: {found[1]} -->\n{PARTS[found[1]]()}\n<!-- end -->", page
    )


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/support/protocol_examples.py --write")
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
