"""Byte formats of messages and payloads; this docstring is their specification.

A control message is two lines of text, so that it can be read with `mosquitto_sub`.

    {"kind": "hello", "from": "cam-01", "revision": 2, "body": {...}}    JSON, one line, UTF-8
    base64 of the Ed25519 signature over topic, zero byte, first line

The topic is signed so that a message for one device cannot be replayed to another. A message is
refused if it is larger than 64 KiB, if it has no signature line, if its revision (revision.py) is
another one, if its kind is unknown, if a field is unknown, missing or of a wrong type, or if its
JSON has a repeated key, NaN or infinity.

A payload (a model or a contribution) is a safetensors file, shuffled and compressed by the codec
(codec.py). Its only metadata key, `fedclip`, holds a JSON object. Its tensors are those that the
codec makes from the terms and, in a contribution, the int64 sums. A payload is refused if its JSON
header is above 64 KiB, if the names, shapes or dtypes of its tensors are not the expected ones, if
it holds NaN or infinity, or if its record's constructor refuses it. Everything but the values is
checked before the tensors are built. Pickle is never used.

A chunk (chunks.py) starts with the two bytes 0xFC 0x1E, which no UTF-8 text does.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import json
import math
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import safetensors.numpy
from safetensors import SafetensorError

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import codec as codecs
from fedclip_edge.protocol.messages import KINDS, CoordinatorState, Message
from fedclip_edge.protocol.revision import (
    REVISION,
    REVISION_MAX,
    STATE,
    UNNUMBERED,
    OtherRevisionError,
)
from fedclip_edge.protocol.signing import Identity, verifies
from fedclip_edge.records import Arrays, Contribution, Model, Shapes, Sums, Update, in_order

T = TypeVar("T")

MAX_CONTROL_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 64 * 1024
_SCHEMA = 2
_ITEM_BYTES = {
    "I64": codecs.INTEGER_BYTES,
    "F32": 4,
    "F16": 2,
    "U16": 2,
    "I8": 1,
}  # as safetensors names them
_KIND_OF = {cls: kind for kind, cls in KINDS.items()}
_KEYS = {"kind", "from", "body"}  # of every revision; since the first one, "revision" as well


@dataclass(frozen=True)
class Signed:
    """A control message as received; its signature is not checked yet."""

    message: Message
    sender: str
    _signed: bytes
    _signature: bytes

    @property
    def kind(self) -> str:
        return _KIND_OF[type(self.message)]

    def check(self, key: str) -> None:
        """Raise PeerError unless the key `key` (64 hex digits) signed the message."""
        if not verifies(key, self._signed, self._signature):
            raise PeerError(f"{self.sender[:64]}: {self.kind} has a wrong signature")


def pack_control(message: Message, sender: str, topic: str, identity: Identity) -> bytes:
    """The bytes of `message` for `topic`, signed by `identity`."""
    kind = _KIND_OF[type(message)]
    line = {"kind": kind, "from": sender, "revision": REVISION, "body": message}
    return _sign(line, topic, identity)


def pack_unnumbered(
    kind: str, body: Mapping[str, Any], sender: str, topic: str, identity: Identity
) -> bytes:
    """The bytes of a message for a party that sends no revision, signed by `identity`."""
    return _sign({"kind": kind, "from": sender, "body": body}, topic, identity)


def without_defaults(record: Any) -> dict[str, Any]:
    """The fields of a record, and of the records in it, that differ from their default value."""
    found = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            found[field.name] = (
                without_defaults(value) if dataclasses.is_dataclass(value) else value
            )
    return found


def _sign(message: Mapping[str, Any], topic: str, identity: Identity) -> bytes:
    line = _ENCODER.encode(message).encode()
    signature = identity.sign(topic.encode() + b"\0" + line)
    return line + b"\n" + base64.b64encode(signature)


def unpack_control(topic: str, payload: bytes) -> Signed:
    """The control message in `payload`, with its signature unchecked.

    Raises OtherRevisionError for a message of another revision; PeerError, naming the defect, in
    each other case that the module docstring lists.
    """
    if len(payload) > MAX_CONTROL_BYTES:
        raise PeerError(f"control message of {len(payload)} bytes, limit {MAX_CONTROL_BYTES}")
    line, _, signature = payload.partition(b"\n")
    fields = _read_json(line, "control message")
    signed = topic.encode() + b"\0" + line
    _check_revision(fields, signed, signature)
    if set(fields) != {*_KEYS, "revision"} or not isinstance(fields["from"], str):
        raise PeerError("control message: expected the keys kind, from, revision, body")
    kind, body = fields["kind"], fields["body"]
    if not isinstance(kind, str) or kind not in KINDS or not isinstance(body, dict):
        raise PeerError(
            f"control message of unknown kind {reprlib.repr(kind)}, or with a body that is no "
            "JSON object"
        )
    try:
        message: Message = decode_table(KINDS[kind], body, f"{kind} message")
        raw = base64.b64decode(signature, validate=True)
    except (DecodeError, binascii.Error) as error:
        raise PeerError(str(error)) from None
    return Signed(message, fields["from"], signed, raw)


def unpack_coordinator(topic: str, payload: bytes) -> Signed:
    """A coordinator's state of any revision, with its signature unchecked.

    Of another revision it has only the fields that all of them share. Raises PeerError as
    `unpack_control` does.
    """
    try:
        return unpack_control(topic, payload)
    except OtherRevisionError as error:
        if error.kind != _KIND_OF[CoordinatorState]:
            raise
        shared = {name: error.body[name] for name in STATE if name in error.body}
        try:
            state = decode_table(CoordinatorState, shared, "coordinator message")
        except DecodeError as wrong:
            raise PeerError(str(wrong)) from None
        return Signed(state, error.sender, error.signed, error.signature)


def _check_revision(fields: Mapping[str, Any], signed: bytes, signature: bytes) -> None:
    """Raise OtherRevisionError if these are the keys of a message of another revision."""
    if not fields.keys() >= _KEYS:
        return
    body, sender, revision = fields["body"], fields["from"], fields.get("revision", UNNUMBERED)
    if type(revision) is not int or not 0 <= revision <= REVISION_MAX:
        raise PeerError(f"control message: expected a revision from 0 to {REVISION_MAX}")
    if revision == REVISION or not isinstance(body, dict) or not isinstance(sender, str):
        return
    try:
        raw = base64.b64decode(signature, validate=True)
    except binascii.Error as error:
        raise PeerError(str(error)) from None
    raise OtherRevisionError(revision, fields["kind"], body, sender, signed, raw)


def pack_model(model: Model, codec: str) -> bytes:
    """The payload of a model; its SHA-256 is the model's version.

    Raises PeerError for an unknown codec.
    """
    head = {"schema": _SCHEMA, "kind": "model", "method": model.method, "round": model.round}
    return _pack(head, codecs.store(codec, model.parameters), codec)


def unpack_model(data: bytes, codec: str, shapes: Shapes) -> Model:
    """The model in the payload `data`, its parameters float32 with the shapes in `shapes`.

    Raises PeerError unless `data` is a model with exactly these parameters.
    """
    head, terms, _ = _unpack(data, codec, "model", {"method", "round"}, shapes, {})
    return _build(Model, {**head, "parameters": terms})


def pack_contribution(
    contribution: Contribution, codec: str, stored: codecs.Tensors | None = None
) -> bytes:
    """The payload of a contribution.

    `stored` are the tensors that the codec makes from the update's delta (`codec.with_feedback`),
    if the caller has them already. Otherwise they are computed here. Raises PeerError for an
    unknown codec.
    """
    head = {
        "schema": _SCHEMA,
        "kind": "contribution",
        **{
            f.name: getattr(contribution, f.name)
            for f in dataclasses.fields(contribution)
            if f.name != "update"
        },
        "update": contribution.update.kind,
        "weight": contribution.update.weight,
    }
    tensors = codecs.store(codec, contribution.update.delta) if stored is None else stored
    return _pack(head, tensors, codec, contribution.update.sums)


def unpack_contribution(
    data: bytes, codec: str, shapes: Shapes, sums: Shapes | None = None
) -> Contribution:
    """The contribution in the payload `data`: float32 delta, int64 sums, both of the given shapes.

    Raises PeerError unless `data` is a contribution with exactly these terms and sums.
    """
    names = {f.name for f in dataclasses.fields(Contribution)} | {"weight"}
    head, terms, whole = _unpack(data, codec, "contribution", names, shapes, sums or {})
    kind, weight = head.pop("update"), head.pop("weight")
    update = _build(Update, {"kind": kind, "weight": weight, "delta": terms, "sums": whole})
    return _build(Contribution, {**head, "update": update})


def payload_limit_bytes(shapes: Shapes, codec: str, sums: Shapes | None = None) -> int:
    """An upper bound in bytes on a payload with these terms and sums, compressed or not.

    Raises PeerError for an unknown codec.
    """
    layout = codecs.tensor_layout(codec, shapes, sums).values()
    tensor_bytes = sum(_ITEM_BYTES[dtype] * math.prod(shape) for dtype, shape in layout)
    return 8 + _MAX_HEADER_BYTES + tensor_bytes


def _pack(
    head: Mapping[str, Any], stored: codecs.Tensors, codec: str, sums: Sums | None = None
) -> bytes:
    tensors = {**stored, **(sums or {})}
    # One metadata key only: safetensors writes several in an order that differs between runs.
    metadata = {"fedclip": json.dumps(head, sort_keys=True)}
    return codecs.encode(
        codec, safetensors.numpy.save(in_order(tensors), metadata), integers=bool(sums)
    )


def _unpack(
    data: bytes, codec: str, kind: str, names: set[str], shapes: Shapes, sums: Shapes
) -> tuple[dict[str, Any], Arrays, Sums]:
    limit_bytes = payload_limit_bytes(shapes, codec, sums)
    payload = codecs.decode(codec, data, limit_bytes, integers=bool(sums))
    (header_bytes,) = struct.unpack_from("<Q", payload) if len(payload) >= 8 else (0,)
    if not 0 < header_bytes <= min(_MAX_HEADER_BYTES, len(payload) - 8):
        raise PeerError(
            f"{kind}: header of {header_bytes} bytes in a payload of {len(payload)}, "
            f"limit {_MAX_HEADER_BYTES}"
        )
    header = _read_json(payload[8 : 8 + header_bytes], f"{kind} header")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("fedclip"), str):
        raise PeerError(f"{kind}: no metadata key 'fedclip'")
    if len(metadata) > 1:
        raise PeerError(f"{kind}: 'fedclip' is not the only metadata key")
    head = _read_json(metadata["fedclip"], f"{kind} metadata")
    schema = head.pop("schema", None)
    if type(schema) is not int or schema != _SCHEMA or head.pop("kind", None) != kind:
        raise PeerError(f"{kind}: not a {kind} of schema {_SCHEMA}")
    if set(head) != names:
        raise PeerError(f"{kind}: expected the fields {sorted(names)}, got {sorted(head)}")
    declared = {
        name: (spec.get("dtype"), spec.get("shape")) if isinstance(spec, dict) else None
        for name, spec in header.items()
    }
    expected = codecs.tensor_layout(codec, shapes, sums)
    if declared != expected:
        raise PeerError(f"{kind}: expected the tensors {expected}, got {reprlib.repr(declared)}")
    try:
        tensors = safetensors.numpy.load(payload)
    except SafetensorError as error:
        raise PeerError(f"{kind}: not a safetensors file: {error}") from None
    whole = {name: tensors.pop(name) for name in sums}
    return head, codecs.restore(codec, tensors, shapes), whole


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    """The record `cls`, made from received values.

    Raises PeerError if a str or int field has a value of another type, or if `cls` rejects a value.
    """
    for name, expected in _checked_fields(cls):  # type: ignore[arg-type]  # a class is hashable
        if type(values[name]) is not expected:
            raise PeerError(f"{cls.__name__}: {name} is not of type {expected.__name__}")
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        raise PeerError(f"{cls.__name__}: {error}") from None


@functools.cache  # called for every payload
def _checked_fields(cls: type[Any]) -> tuple[tuple[str, type], ...]:
    declared: dict[str, type] = {"str": str, "int": int}
    fields = ((field.name, declared.get(str(field.type))) for field in dataclasses.fields(cls))
    return tuple((name, expected) for name, expected in fields if expected is not None)


def _read_json(text: bytes | str, what: str) -> dict[str, Any]:
    try:
        # json.loads accepts UTF-16 too.
        value = _DECODER.decode(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise PeerError(f"{what}: not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise PeerError(f"{what}: expected a JSON object")
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is repeated")
    return fields


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # such as 1e999
        _no_constants(text)
    return value


def _no_constants(name: str) -> NoReturn:
    raise ValueError(f"{name[:40]} is not a finite number")


# json.dumps and json.loads would make these again for each message.
_ENCODER = json.JSONEncoder(
    default=vars,  # for nested records; asdict would copy every value first
    separators=(",", ":"),
    allow_nan=False,
)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_no_repeats, parse_constant=_no_constants, parse_float=_finite
)
