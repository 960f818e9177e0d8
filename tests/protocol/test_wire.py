"""The wire format: exact round trips, and a named refusal for every invalid input."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import zstandard
from capable import CAPABLE
from drawn_records import IDS, PLANS, REPORTS, report
from example_manifest import manifest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import codec, signing, wire
from fedclip_edge.protocol.chunks import is_chunk
from fedclip_edge.protocol.hand_over import HandOver
from fedclip_edge.protocol.message_parts import (
    CHUNK_BYTES,
    Blob,
    Capabilities,
    Exchange,
    Pictures,
)
from fedclip_edge.protocol.messages import (
    KINDS,
    CoordinatorState,
    DeviceState,
    Hello,
    Kept,
    Manifest,
    Message,
    Offer,
    Refused,
    Want,
)
from fedclip_edge.protocol.revision import REVISION, OtherRevisionError
from fedclip_edge.records import F32, I64, Arrays, Contribution, Model, Shapes, Update

ME, OTHER = signing.create_identity(), signing.create_identity()
TOPIC = "fedclip/v2/lab/dev/cam-01/up"
SHAPES = {"gate": (2, 3), "bias": (3,)}
SHA = "a" * 64

SHAS = st.binary(min_size=32, max_size=32).map(bytes.hex)
TEXT = st.text("abc \u00e9-.", max_size=8)
REASONS = st.text(max_size=8)
COUNTS = st.integers(0, 2**53)
BLOBS = st.builds(
    Blob,
    SHAS,
    st.integers(1, 2**20),
    st.sampled_from(["model", "update"]),
    st.integers(2**10, CHUNK_BYTES),
)
GAPS = st.lists(st.integers(0, 2**16), max_size=12, unique=True).map(
    lambda ends: tuple(zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False))
)
ROLES = st.lists(st.sampled_from(["train", "evaluate"]), min_size=1, max_size=2, unique=True).map(
    tuple
)
NAMES = st.lists(TEXT, max_size=3, unique=True).map(tuple)
ABLE = st.builds(
    Capabilities,
    ROLES,
    NAMES,
    NAMES,
    COUNTS,
    st.builds(Pictures, COUNTS, COUNTS, COUNTS, COUNTS),
)
SCOPES = st.sampled_from(["contribution", "run", "device"])
MESSAGES: Mapping[type[Message], st.SearchStrategy[Message]] = {
    CoordinatorState: st.builds(
        CoordinatorState,
        TEXT,
        COUNTS,
        IDS,
        st.booleans(),
        SHAS,
        st.lists(st.builds(HandOver, SHAS, SHAS, SHAS.map(lambda sha: sha * 2)), max_size=2).map(
            tuple
        ),
    ),
    DeviceState: st.builds(DeviceState, TEXT, st.booleans()),
    Hello: st.builds(Hello, TEXT, SHAS, st.text("abc é", max_size=9), TEXT, TEXT, ABLE, COUNTS),
    Manifest: st.builds(
        Manifest,
        run=IDS,
        epoch=COUNTS,
        key=SHAS,
        phase=st.sampled_from(["gathering", "open", "final", "done"]),
        exchange=st.builds(
            Exchange,
            st.just("round"),
            st.integers(1, 2**53),
            SHAS,
            st.floats(0, 1e9, exclude_min=True, exclude_max=True),
        ),
        attempt=COUNTS,
        closed=COUNTS,
        model=BLOBS,
        plan=PLANS.filter(lambda plan: plan.rounds > 0),
        encoder_id=TEXT,
        classes_digest=TEXT,
        cohort=SHAS,
        deadline_s=st.floats(0, 1e9, exclude_min=True),
        takes_part=st.none() | st.booleans(),
    ),
    Offer: st.builds(Offer, IDS, COUNTS, BLOBS),
    Want: st.builds(Want, SHAS, GAPS.filter(len)),
    Kept: st.builds(Kept, IDS, COUNTS, SHAS),
    Refused: st.builds(Refused, REASONS, SCOPES, st.just("") | SHAS, st.just("") | SHAS, COUNTS),
    KINDS["report"]: REPORTS,
}
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def arrays(shape: tuple[int, ...]) -> st.SearchStrategy[F32]:
    return hnp.arrays(np.float32, shape, elements=FLOATS)


TERMS: st.SearchStrategy[Arrays] = st.fixed_dictionaries(
    {"gate": arrays((2, 3)), "bias": arrays((3,))}
)


SMALL_TERMS: st.SearchStrategy[Arrays] = st.fixed_dictionaries(
    {
        name: hnp.arrays(np.float32, shape, elements=st.floats(-1e9, 1e9, width=32))
        for name, shape in SHAPES.items()
    }
)


def contribution(terms: Arrays | None = None, **changes: Any) -> Contribution:
    fields: dict[str, Any] = {
        "run": "run-1",
        "round": 2,
        "device": "cam-01",
        "exchange": SHA,
        "update": Update("sum", 7, zeros() if terms is None else terms),
    }
    return Contribution(**{**fields, **changes})


def zeros(shapes: Shapes = SHAPES) -> dict[str, F32]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def signed(line: bytes, topic: str = TOPIC) -> bytes:
    """Any line with a valid signature."""
    signature = ME.sign(topic.encode() + b"\0" + line)
    return line + b"\n" + base64.b64encode(signature)


ABILITIES = {
    "roles": ["train"],
    "methods": ["fedclip"],
    "codecs": ["int8"],
    "min_per_class": 5,
    "pictures": {"train": 1},
}


def hello(**changes: Any) -> dict[str, Any]:
    """The body of a hello as JSON."""
    body = {
        "boot": "b",
        "key": ME.key,
        "domain": "photo",
        "encoder_id": "e",
        "classes_digest": "c",
        "capabilities": ABILITIES,
    }
    return {"kind": "hello", "from": "cam-01", "revision": 2, "body": {**body, **changes}}


def line(value: object) -> bytes:
    return json.dumps(value).encode()


# Control messages.


@settings(max_examples=100)
@given(st.one_of(*MESSAGES.values()), IDS)
def test_a_control_message_comes_back_exactly(message: Message, sender: str) -> None:
    payload = wire.pack_control(message, sender, TOPIC, ME)
    assert wire.pack_control(message, sender, TOPIC, ME) == payload
    assert not is_chunk(payload)
    found = wire.unpack_control(TOPIC, payload)
    assert found.message == message
    assert type(found.message) is type(message)
    assert found.sender == sender
    found.check(ME.key)


def test_there_is_a_strategy_for_every_kind() -> None:
    assert set(MESSAGES) == set(KINDS.values())


def test_a_person_can_read_it() -> None:
    payload = wire.pack_control(Kept("run-1", 3, SHA), "coordinator", TOPIC, ME)
    first, second = payload.decode().split("\n")
    assert json.loads(first) == {
        "kind": "kept",
        "from": "coordinator",
        "revision": REVISION,
        "body": {"run": "run-1", "number": 3, "sha256": SHA},
    }
    assert len(base64.b64decode(second)) == 64


def test_only_the_key_that_signed_is_believed() -> None:
    payload = wire.pack_control(Kept("run-1", 3, SHA), "cam-01", TOPIC, ME)
    with pytest.raises(PeerError, match="cam-01: kept has a wrong signature"):
        wire.unpack_control(TOPIC, payload).check(OTHER.key)


def test_a_message_for_another_topic_is_not_believed() -> None:
    payload = wire.pack_control(Kept("run-1", 3, SHA), "coordinator", TOPIC, ME)
    with pytest.raises(PeerError, match="wrong signature"):
        wire.unpack_control(TOPIC.replace("01", "02"), payload).check(ME.key)


def test_a_message_that_was_altered_is_not_believed() -> None:
    payload = wire.pack_control(Kept("run-1", 3, SHA), "coordinator", TOPIC, ME)
    with pytest.raises(PeerError, match="wrong signature"):
        wire.unpack_control(TOPIC, payload.replace(b'"number":3', b'"number":4')).check(ME.key)


@pytest.mark.parametrize("cut", [0, 1, 44, 86])
def test_a_message_without_its_whole_signature_is_not_believed(cut: int) -> None:
    payload = wire.pack_control(Kept("run-1", 3, SHA), "coordinator", TOPIC, ME)
    head, _, signature = payload.partition(b"\n")
    with pytest.raises(PeerError):
        wire.unpack_control(TOPIC, head + b"\n" + signature[:cut]).check(ME.key)
    with pytest.raises(PeerError):
        wire.unpack_control(TOPIC, head).check(ME.key)


def test_more_than_64_kib_is_refused() -> None:
    fits = signed(line(hello()).ljust(64 * 1024 - 100))
    assert wire.MAX_CONTROL_BYTES - 400 < len(fits) <= wire.MAX_CONTROL_BYTES
    wire.unpack_control(TOPIC, fits).check(ME.key)
    with pytest.raises(PeerError, match=r"control message of \d+ bytes, limit 65536"):
        wire.unpack_control(TOPIC, signed(line(hello()).ljust(64 * 1024)))


KEPT = (
    b'{"kind":"kept","from":"c","revision":2,"body":{"run":"r","number":3,"sha256":"'
    + SHA.encode()
    + b'"}}'
)
REFUSED_LINES = {
    "empty": (b"", "not JSON"),
    "not JSON": (KEPT[:-1], "not JSON"),
    "not UTF-8": (KEPT.replace(b'"r"', b'"\xff"'), "not JSON"),
    "UTF-16": (KEPT.decode().encode("utf-16"), "not JSON"),
    "UTF-32": (KEPT.decode().encode("utf-32-le"), "not JSON"),
    "two values": (KEPT + b" {}", "not JSON"),
    "nested without end": (b'{"a":' * 10_000, "not JSON"),
    "a list": (b"[" + KEPT + b"]", "expected a JSON object"),
    "a number": (b"7", "expected a JSON object"),
    "a key repeated": (KEPT.replace(b'"run":"r"', b'"run":"r","run":"s"'), "a key is repeated"),
    "a kind repeated": (KEPT.replace(b'"from"', b'"kind":"want","from"'), "a key is repeated"),
    "NaN": (KEPT.replace(b"3,", b"NaN,"), "NaN is not a finite number"),
    "Infinity": (KEPT.replace(b"3,", b"Infinity,"), "Infinity is not a finite number"),
    "-Infinity": (KEPT.replace(b"3,", b"-Infinity,"), "-Infinity is not a finite number"),
    "a float without end": (KEPT.replace(b"3,", b"1e999,"), "is not a finite number"),
    "an int without end": (KEPT.replace(b"3,", b"1" * 5000 + b","), "not JSON"),
    "no kind": (line({"from": "c", "body": {}}), "expected the keys kind, from, revision, body"),
    "a key more": (line({**hello(), "to": "x"}), "expected the keys kind, from, revision, body"),
    "an unnamed sender": (
        line({**hello(), "from": 7}),
        "expected the keys kind, from, revision, body",
    ),
    "an unknown kind": (line({**hello(), "kind": "bye"}), "unknown kind 'bye'"),
    "a kind that is a list": (line({**hello(), "kind": ["hello"]}), "unknown kind"),
    "a kind that cannot be shown": (line({**hello(), "kind": "\ud800"}), r"unknown kind '\\ud800'"),
    "a body that is a list": (line({**hello(), "body": []}), "unknown kind 'hello'"),
    "an unknown field": (line(hello(domian="x")), "unknown key 'domian'; did you mean 'domain'"),
    "a revision that is true": (line({**hello(), "revision": True}), "expected a revision from 0"),
    "a revision below zero": (line({**hello(), "revision": -1}), "expected a revision from 0"),
    "a missing field": (line({**hello(), "body": {}}), "the key 'boot' is missing"),
    "a mistyped field": (line(hello(boot=7)), "boot: expected str, got int 7"),
    "true for a number": (KEPT.replace(b"3,", b"true,"), "number: expected int, got bool"),
    "1.0 for a number": (KEPT.replace(b"3,", b"1.0,"), "number: expected int, got float"),
    "null": (line(hello(boot=None)), "boot: expected str, got NoneType"),
    "a list of other things": (
        line(hello(capabilities={**ABILITIES, "roles": ["train", 1]})),
        "roles: expected 'train' or",
    ),
    "a value that its record refuses": (line(hello(key="k")), "is not 64 lower-case hex"),
}


@pytest.mark.parametrize(("refused", "said"), REFUSED_LINES.values(), ids=REFUSED_LINES)
def test_a_control_message_is_refused_by_name(refused: bytes, said: str) -> None:
    wire.unpack_control(TOPIC, signed(KEPT)).check(ME.key)
    with pytest.raises(PeerError, match=said):
        wire.unpack_control(TOPIC, signed(refused))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"revision": REVISION + 1}, f"a later version.*have revision {REVISION + 1} of"),
        ({"revision": REVISION + 1, "body": {"new": 1}, "to": "x"}, "a later version"),
        ({"revision": REVISION + 1, "kind": "new"}, "a later version"),
        ({"revision": 0}, "an earlier version.*have no revision of protocol v2"),
    ],
)
def test_the_revision_is_compared_before_anything_else(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OtherRevisionError, match=f"{said}.*install the same version on"):
        wire.unpack_control(TOPIC, signed(line({**hello(), **changes})))


def test_a_coordinators_state_of_another_revision_says_who_coordinates() -> None:
    shared = {"boot": "b", "epoch": 9, "run": "run-1", "online": True, "key": ME.key}
    other = {"kind": "coordinator", "from": "coordinator", "revision": REVISION + 1}
    payload = signed(line({**other, "body": {**shared, "new": 1}}))
    found = wire.unpack_coordinator(TOPIC, payload)
    found.check(ME.key)
    assert isinstance(found.message, CoordinatorState)
    assert vars(found.message).items() >= shared.items()
    with pytest.raises(PeerError, match="wrong signature"):
        found.check(OTHER.key)
    with pytest.raises(PeerError, match="'key' is missing"):
        wire.unpack_coordinator(
            TOPIC,
            signed(
                line({**other, "body": {**shared, "key": 1}}).replace(b'"key": 1', b'"other": 1')
            ),
        )
    with pytest.raises(OtherRevisionError):
        wire.unpack_coordinator(TOPIC, signed(line({**hello(), "revision": 0})))


def test_infinity_by_another_spelling_is_refused() -> None:
    payload = wire.pack_control(manifest(deadline_s=1234.5), "coordinator", TOPIC, ME)
    first = payload.partition(b"\n")[0]
    assert wire.unpack_control(TOPIC, signed(first.replace(b"1234.5", b"1e308"))).message
    with pytest.raises(PeerError, match="is not a finite number"):
        wire.unpack_control(TOPIC, signed(first.replace(b"1234.5", b"1e309")))


def test_an_infinity_of_ours_is_not_sent() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        wire.pack_control(manifest(deadline_s=float("inf")), "coordinator", TOPIC, ME)


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_control_message_or_refused(payload: bytes) -> None:
    for candidate in (payload, KEPT + b"\n" + payload, payload + b"\n" + payload):
        with contextlib.suppress(PeerError):
            wire.unpack_control(TOPIC, candidate).check(ME.key)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)
EXAMPLES = [
    manifest(),
    Want(SHA, ((0, 1), (3, 9))),
    Offer("run-1", 1, Blob(SHA, 9, "model")),
    Hello("b", ME.key, "photo", "e", "c", CAPABLE),
    CoordinatorState("b", 1, "run-1", online=True, key=ME.key),
    report(),
]


@settings(max_examples=100)
@given(st.sampled_from(EXAMPLES), JSON, st.data())
def test_a_message_with_any_value_anywhere_is_taken_or_refused(
    message: Message, value: object, data: st.DataObject
) -> None:
    fields = json.loads(wire.pack_control(message, "cam-01", TOPIC, ME).partition(b"\n")[0])
    where = fields
    while True:
        key = data.draw(st.sampled_from(sorted(where)))
        if isinstance(where[key], dict) and where[key] and data.draw(st.booleans()):
            where = where[key]
            continue
        where[key] = value
        break
    with contextlib.suppress(PeerError):
        wire.unpack_control(TOPIC, signed(line(fields))).check(ME.key)


# Bodies.


@settings(max_examples=100)
@given(TERMS, st.integers(0, 2**40))
def test_a_model_comes_back_exactly(terms: Arrays, closed: int) -> None:
    model = Model("fedclip", closed, terms)
    packed = wire.pack_model(model, "fp32")
    assert wire.pack_model(model, "fp32") == packed
    found = wire.unpack_model(packed, "fp32", SHAPES)
    assert (found.method, found.round) == ("fedclip", closed)
    assert_same(found.parameters, terms)


@settings(max_examples=100)
@given(SMALL_TERMS, st.sampled_from(sorted(codec.CODECS)))
def test_what_a_codec_keeps_comes_back_exactly(terms: Arrays, name: str) -> None:
    kept = codec.restore(name, codec.store(name, terms), SHAPES)
    model = wire.unpack_model(wire.pack_model(Model("m", 1, terms), name), name, SHAPES)
    assert_same(model.parameters, kept)
    packed = wire.pack_contribution(contribution(terms), name)
    assert len(packed) <= wire.payload_limit_bytes(SHAPES, name)
    assert_same(wire.unpack_contribution(packed, name, SHAPES).update.delta, kept)


def other_tensors(name: str, **changes: Any) -> bytes:
    """A body with the codec's tensors and these changes; None leaves a tensor out."""
    tensors = {**codec.store(name, zeros()), **changes}
    tensors = {key: tensor for key, tensor in tensors.items() if tensor is not None}
    head = json.dumps({"schema": 2, "kind": "model", "method": "fedclip", "round": 1})
    return codec.encode(name, safetensors.numpy.save(tensors, {"fedclip": head}))


BAD_TENSORS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "a scale more": ("int8", {"gate:scale": np.zeros(2, np.uint16)}, "expected the tensors"),
    "a scale less": ("int8", {"gate:scale": np.zeros(0, np.uint16)}, "expected the tensors"),
    "no scales": ("int8", {"gate:scale": None}, "expected the tensors"),
    "scales of float32": ("int8", {"gate:scale": np.zeros(1, np.float32)}, "expected the tensors"),
    "steps of float32": ("int8", {"gate": np.zeros((2, 3), np.float32)}, "expected the tensors"),
    "steps of another shape": ("int8", {"gate": np.zeros((3, 2), np.int8)}, "expected the tensors"),
    "a scale that is NaN": (
        "int8",
        {"gate:scale": np.array([0x7FC0], np.uint16)},
        "scales of gate are not all from 0 to 1e",
    ),
    "a scale that is infinite": (
        "int8",
        {"gate:scale": np.array([0x7F80], np.uint16)},
        "scales of gate are not all from",
    ),
    "a scale below zero": (
        "int8",
        {"gate:scale": np.array([0xBF80], np.uint16)},
        "scales of gate are not all from",
    ),
    "a scale that overflows": (
        "int8",
        {"gate:scale": np.array([0x7F7F], np.uint16)},
        "scales of gate are not all from",
    ),
    "a step beyond the last": (
        "int8",
        {"gate": np.full((2, 3), codec.STEPS + 1, np.int8)},
        "steps of gate are not all from -55 to 55",
    ),
    "a step below the first": (
        "int8",
        {"gate": np.full((2, 3), -128, np.int8)},
        "steps of gate are not all from -55 to 55",
    ),
    "NaN in half": ("fp16", {"bias": np.full(3, np.nan, np.float16)}, "NaN or infinity"),
    "infinity in half": ("fp16", {"bias": np.full(3, np.inf, np.float16)}, "NaN or infinity"),
    "float32 for half": ("fp16", {"bias": np.zeros(3, np.float32)}, "expected the tensors"),
}


@pytest.mark.parametrize(("name", "changes", "said"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_the_codec_does_not_write_are_refused(
    name: str, changes: dict[str, Any], said: str
) -> None:
    assert wire.unpack_model(other_tensors(name), name, SHAPES).round == 1
    with pytest.raises(PeerError, match=said):
        wire.unpack_model(other_tensors(name, **changes), name, SHAPES)


@pytest.mark.parametrize("name", sorted(codec.CODECS))
def test_a_body_of_another_codec_is_refused(name: str) -> None:
    for other in codec.CODECS.keys() - {name}:
        with pytest.raises(PeerError):
            wire.unpack_model(wire.pack_model(Model("m", 1, zeros()), other), name, SHAPES)


@settings(max_examples=100)
@given(TERMS, st.sampled_from(["sum", "single"]), st.integers(1, 2**40), IDS)
def test_a_contribution_comes_back_exactly(
    terms: Arrays, kind: Any, weight: int, device: str
) -> None:
    sent = contribution(device=device, update=Update(kind, weight, terms))
    packed = wire.pack_contribution(sent, "fp32")
    assert wire.pack_contribution(sent, "fp32") == packed
    assert len(packed) <= wire.payload_limit_bytes(SHAPES, "fp32")
    found = wire.unpack_contribution(packed, "fp32", SHAPES)
    for name in ("run", "round", "device", "exchange"):
        assert getattr(found, name) == getattr(sent, name)
    assert (found.update.kind, found.update.weight) == (kind, weight)
    assert_same(found.update.delta, terms)


def assert_same(found: Arrays, sent: Arrays) -> None:
    assert found.keys() == sent.keys()
    for name, term in sent.items():
        assert found[name].dtype == np.float32
        assert found[name].shape == term.shape
        assert found[name].tobytes() == term.tobytes()  # including the sign of zero


@pytest.mark.parametrize("shapes", [{}, {"a": ()}, {"a": (0,)}, {"a": (2, 0, 3)}, {"ä b": (1,)}])
def test_terms_of_any_shape_and_number_travel(shapes: Shapes) -> None:
    packed = wire.pack_model(Model("zeroshot", 0, zeros(shapes)), "fp32")
    assert_same(wire.unpack_model(packed, "fp32", shapes).parameters, zeros(shapes))


def test_terms_travel_by_value_not_by_layout() -> None:
    term = np.arange(6, dtype=np.float32).reshape(2, 3)
    plain = wire.pack_model(Model("m", 0, {"a": term}), "fp32")
    assert wire.pack_model(Model("m", 0, {"a": np.asfortranarray(term)}), "fp32") == plain
    assert (
        wire.pack_model(Model("m", 0, {"a": np.repeat(term, 2, axis=1)[:, ::2]}), "fp32") == plain
    )


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_what_does_not_shrink_is_still_within_the_limit(scale: float) -> None:
    shapes = {"a": (500, 500)}
    noise = np.random.default_rng(0).integers(0, 2**31 - 2**24, (500, 500), np.int64)
    terms = {"a": (noise * int(scale)).astype(np.uint32).view(np.float32)}
    packed = wire.pack_contribution(contribution(terms), "fp32")
    assert len(packed) <= wire.payload_limit_bytes(shapes, "fp32")
    assert_same(wire.unpack_contribution(packed, "fp32", shapes).update.delta, terms)


PACK = """
import hashlib, sys
import numpy as np
from fedclip_edge.protocol import wire
from fedclip_edge.records import Contribution, Model, Update
terms = {f"t{i}": np.full((3, i + 1), i, np.float32) for i in range(20)}
model = wire.pack_model(Model("m", 1, terms), "fp32")
made = Contribution("run-1", 1, "cam-01", "b", Update("sum", 1, terms))
print(hashlib.sha256(model + wire.pack_contribution(made, "fp32")).hexdigest())
"""


def test_packing_gives_the_same_bytes_in_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", PACK],
            env={"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def raw(header: object, data: bytes = bytes(36)) -> bytes:
    """A safetensors file with this header, valid or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def true_header(kind: str) -> dict[str, Any]:
    """The header of a valid body."""
    packed = (
        wire.pack_model(Model("fedclip", 1, zeros()), "fp32")
        if kind == "model"
        else wire.pack_contribution(contribution(), "fp32")
    )
    body = codec.decode("fp32", packed, 1 << 20)
    (size,) = struct.unpack_from("<Q", body)
    found: dict[str, Any] = json.loads(body[8 : 8 + size])
    return found


def with_head(kind: str, /, **changes: Any) -> dict[str, Any]:
    """A valid header with changed metadata fields; None leaves a field out."""
    header = true_header(kind)
    head = {**json.loads(header["__metadata__"]["fedclip"]), **changes}
    head = {name: value for name, value in head.items() if value is not None}
    return {**header, "__metadata__": {"fedclip": json.dumps(head)}}


def with_term(kind: str, name: str, **changes: Any) -> dict[str, Any]:
    header = true_header(kind)
    return {**header, name: {**header[name], **changes}}


def without(kind: str, name: str) -> dict[str, Any]:
    return {key: value for key, value in true_header(kind).items() if key != name}


def floats(value: float) -> bytes:
    return np.array([0.0] * 8 + [value], np.float32).tobytes()


def metadata(text: object) -> dict[str, Any]:
    return {**true_header("model"), "__metadata__": text}


REFUSED_MODELS: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"\0", "header of 0 bytes"),
    "shorter than its length field": (bytes(7), "header of 0 bytes"),
    "a header beyond the end": (
        struct.pack("<Q", 100) + b"{}",
        "header of 100 bytes in a payload of 10, limit 65536",
    ),
    "a header of 2**64 - 1 bytes": (b"\xff" * 8 + b"{}", "header of 18446744073709551615 bytes"),
    "a header above 64 KiB": (
        raw(json.dumps(true_header("model")).encode().ljust(65537), b""),
        "header of 65537 bytes .*, limit 65536",
    ),
    "a header that is not JSON": (raw(b"{"), "model header: not JSON"),
    "a header that is a list": (raw([]), "model header: expected a JSON object"),
    "a header with a key repeated": (
        raw(json.dumps(true_header("model")).encode()[:-1] + b',"gate":{}}'),
        "a key is repeated",
    ),
    "no metadata": (raw(without("model", "__metadata__")), "no metadata key 'fedclip'"),
    "metadata that is text": (raw(metadata("fedclip")), "no metadata key 'fedclip'"),
    "other metadata": (raw(metadata({"format": "pt"})), "no metadata key 'fedclip'"),
    "metadata beside ours": (
        raw(metadata({**true_header("model")["__metadata__"], "more": "x"})),
        "not the only metadata key",
    ),
    "metadata that is not JSON": (raw(metadata({"fedclip": "{"})), "model metadata: not JSON"),
    "metadata that is no text": (raw(metadata({"fedclip": "\ud800"})), "model metadata: not JSON"),
    "another schema": (raw(with_head("model", schema=1)), "not a model of schema 2"),
    "no schema": (raw(with_head("model", schema=None)), "not a model of schema 2"),
    "another kind": (raw(true_header("contribution")), "not a model of schema 2"),
    "a field more": (raw(with_head("model", more=1)), r"expected the fields \['method', 'round'\]"),
    "a field less": (raw(with_head("model", round=None)), "expected the fields"),
    "a mistyped field": (raw(with_head("model", round="1")), "Model: round is not of type int"),
    "true for a number": (raw(with_head("model", round=True)), "Model: round is not of type int"),
    "a field that is a list": (
        raw(with_head("model", method=[])),
        "Model: method is not of type str",
    ),
    "a term less": (raw(without("model", "bias")), "expected the tensors"),
    "a term more": (raw({**true_header("model"), "b": {}}), "expected the tensors"),
    "a term of another name": (
        raw({**without("model", "gate"), "Gate": true_header("model")["gate"]}),
        "expected the tensors",
    ),
    "another shape": (raw(with_term("model", "gate", shape=[3, 2])), "expected the tensors"),
    "another dtype": (raw(with_term("model", "gate", dtype="F16")), "expected the tensors"),
    "int64": (raw(with_term("model", "gate", dtype="I64")), "expected the tensors"),
    "a shape that is a number": (raw(with_term("model", "gate", shape=6)), "expected the tensors"),
    "a shape that is text": (raw(with_term("model", "gate", shape="23")), "expected the tensors"),
    "a shape of floats": (
        raw(with_term("model", "gate", shape=[2.0, 3.0])),
        "not a safetensors file",
    ),
    "a shape nested": (raw(with_term("model", "gate", shape=[[2, 3]])), "expected the tensors"),
    "a dtype that is a list": (
        raw(with_term("model", "gate", dtype=["F32"])),
        "expected the tensors",
    ),
    "a term that is a number": (raw({**true_header("model"), "gate": 1}), "expected the tensors"),
    "a term that is a list": (raw({**true_header("model"), "gate": [1]}), "expected the tensors"),
    "offsets beyond the end": (
        raw(with_term("model", "gate", data_offsets=[12, 40])),
        "not a safetensors file",
    ),
    "offsets that overlap": (
        raw(with_term("model", "gate", data_offsets=[0, 24])),
        "not a safetensors file",
    ),
    "offsets below zero": (raw(with_term("model", "gate", data_offsets=[-1, 24])), "safetensors"),
    "no offsets": (raw(with_term("model", "gate", data_offsets=None)), "not a safetensors file"),
    "too few bytes": (raw(true_header("model"), bytes(35)), "not a safetensors file"),
    "too many bytes": (raw(true_header("model"), bytes(37)), "not a safetensors file"),
    "NaN": (raw(true_header("model"), floats(np.nan)), "NaN or infinity"),
    "infinity": (raw(true_header("model"), floats(-np.inf)), "NaN or infinity"),
}


@pytest.mark.parametrize(("body", "said"), REFUSED_MODELS.values(), ids=REFUSED_MODELS)
def test_a_model_is_refused_by_name(body: bytes, said: str) -> None:
    right = codec.encode("fp32", raw(true_header("model")))
    assert wire.unpack_model(right, "fp32", SHAPES).round == 1
    with pytest.raises(PeerError, match=said):
        wire.unpack_model(codec.encode("fp32", body), "fp32", SHAPES)


REFUSED_HEADS: Mapping[str, tuple[dict[str, Any], str]] = {
    "a run that is a number": ({"run": 1}, "Contribution: run is not of type str"),
    "a round that is text": ({"round": "1"}, "Contribution: round is not of type int"),
    "a device that is a list": ({"device": []}, "Contribution: device is not of type str"),
    "a weight that is a float": ({"weight": 1.0}, "Update: weight is not of type int"),
    "a weight of zero": ({"weight": 0}, "expected 1 or more, got 0"),
    "a weight below zero": ({"weight": -3}, "expected 1 or more, got -3"),
    "an unknown kind of update": ({"update": "mean"}, "expected sum or single, got 'mean'"),
    "a kind that is an object": ({"update": {}}, "expected sum or single"),
    "no weight": ({"weight": None}, "expected the fields"),
    "a model": ({"kind": "model"}, "not a contribution of schema 2"),
}


@pytest.mark.parametrize(("changes", "said"), REFUSED_HEADS.values(), ids=REFUSED_HEADS)
def test_a_contribution_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    right = codec.encode("fp32", raw(true_header("contribution")))
    assert wire.unpack_contribution(right, "fp32", SHAPES).update.weight == 7
    wrong = codec.encode("fp32", raw(with_head("contribution", **changes)))
    with pytest.raises(PeerError, match=said):
        wire.unpack_contribution(wrong, "fp32", SHAPES)


Unpack = Callable[[bytes, str, Shapes], object]
UNPACKS: list[Unpack] = [wire.unpack_model, wire.unpack_contribution]


@pytest.mark.parametrize("unpack", UNPACKS)
def test_a_body_larger_than_its_terms_can_be_is_refused_before_memory_is_taken(
    unpack: Unpack,
) -> None:
    limit = wire.payload_limit_bytes(SHAPES, "fp32")
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    with pytest.raises(PeerError, match=f"declares {1 << 28} bytes, expected 1 to {limit}"):
        unpack(bomb, "fp32", SHAPES)


@pytest.mark.parametrize("unpack", UNPACKS)
def test_an_unknown_codec_is_refused(unpack: Unpack) -> None:
    with pytest.raises(PeerError, match="unknown codec 'int3'"):
        unpack(codec.encode("fp32", raw(true_header("model"))), "int3", SHAPES)


def test_a_pickle_is_not_run() -> None:
    with pytest.raises(PeerError):
        wire.unpack_model(codec.encode("fp32", b"cos\nsystem\n(S'false'\ntR."), "fp32", SHAPES)


@settings(max_examples=100)
@given(st.binary(max_size=120), st.sampled_from(UNPACKS))
def test_any_bytes_are_a_body_or_refused(data: bytes, unpack: Unpack) -> None:
    candidates = [data, codec.encode("fp32", data or b"\0"), codec.encode("fp32", raw(data, b""))]
    for candidate in candidates:
        with pytest.raises(PeerError):
            unpack(candidate, "fp32", SHAPES)


@settings(max_examples=60)
@given(st.integers(0), st.integers(0, 7), st.booleans(), st.sampled_from(UNPACKS))
def test_a_body_with_one_bit_changed_is_a_body_or_refused(
    at: int, bit: int, inside: bool, unpack: Unpack
) -> None:
    kind = "model" if unpack is wire.unpack_model else "contribution"
    whole = raw(true_header(kind))
    data = bytearray(whole if inside else codec.encode("fp32", whole))
    data[at % len(data)] ^= 1 << bit
    with contextlib.suppress(PeerError):
        unpack(codec.encode("fp32", bytes(data)) if inside else bytes(data), "fp32", SHAPES)


@settings(max_examples=100)
@given(JSON, st.data())
def test_a_header_with_any_value_anywhere_is_a_body_or_refused(
    value: object, data: st.DataObject
) -> None:
    header = true_header("contribution")
    head = json.loads(header["__metadata__"]["fedclip"])
    where = data.draw(st.sampled_from([header, header["gate"], header["__metadata__"], head]))
    where[data.draw(st.sampled_from(sorted(where)))] = value
    if where is head:
        header["__metadata__"]["fedclip"] = json.dumps(head)
    with contextlib.suppress(PeerError):
        wire.unpack_contribution(codec.encode("fp32", raw(header)), "fp32", SHAPES)


def test_safetensors_itself_can_read_what_is_sent() -> None:
    packed = wire.pack_model(Model("fedclip", 1, zeros()), "fp32")
    assert_same(safetensors.numpy.load(codec.decode("fp32", packed, 1 << 20)), zeros())


# --- integer sums --------------------------------------------------------------------------------

INT64 = st.integers(-(2**63), 2**63 - 1)


def summed(sums: dict[str, I64], terms: Arrays | None = None) -> Contribution:
    return contribution(update=Update("sum", 3, terms or {}, sums))


@settings(max_examples=100)
@given(
    st.sampled_from(sorted(codec.CODECS)),
    st.lists(INT64, min_size=4, max_size=4),
    st.floats(-100, 100, width=32),
)
def test_integers_come_back_exactly_under_every_codec(
    name: str, values: list[int], other: float
) -> None:
    sums = {"gram": np.array(values, np.int64).reshape(2, 2), "count": np.array(7, np.int64)}
    shapes = {key: numbers.shape for key, numbers in sums.items()}
    for terms in ({}, {"a": np.full(5, other, np.float32)}):
        floats = {key: term.shape for key, term in terms.items()}
        packed = wire.pack_contribution(summed(sums, terms), name)
        assert len(packed) <= wire.payload_limit_bytes(floats, name, shapes)
        found = wire.unpack_contribution(packed, name, floats, shapes).update
        assert found.sums.keys() == sums.keys()
        for key, numbers in sums.items():
            assert found.sums[key].dtype == np.int64
            assert found.sums[key].shape == numbers.shape
            assert found.sums[key].tobytes() == numbers.tobytes()
        assert found.delta.keys() == terms.keys()


@pytest.mark.parametrize("name", sorted(codec.CODECS))
def test_error_feedback_leaves_integers_alone(name: str) -> None:
    made = summed({"g": np.array([3, -4], np.int64)}, {"a": np.array([0.3], np.float32)})
    stored, residual = codec.with_feedback(
        name, made.update.delta, {"a": np.array([1], np.float32)}
    )
    packed = wire.pack_contribution(made, name, stored)
    found = wire.unpack_contribution(packed, name, {"a": (1,)}, {"g": (2,)}).update
    assert found.sums["g"].tolist() == [3, -4]
    assert found.delta["a"][0] == pytest.approx(1.3, abs=0.02)
    assert residual.keys() <= {"a"}


def test_integers_are_shuffled_by_their_own_size() -> None:
    """The high bytes of sums are mostly equal; shuffled together, they compress well."""
    numbers = np.random.default_rng(0).integers(-(2**28), 2**28, 20_000, np.int64)
    for name in codec.CODECS:
        packed = wire.pack_contribution(summed({"g": numbers}), name)
        assert len(packed) < 0.6 * numbers.nbytes


@pytest.mark.parametrize(
    ("terms", "sums"),
    [
        ({}, {}),
        ({}, {"g": (2,)}),
        ({}, {"h": (3,)}),
        ({}, {"g": (3,), "h": (1,)}),
        ({"g": (3,)}, {}),
        ({"a": (1,)}, {"g": (3,)}),
    ],
)
def test_integers_that_are_not_the_expected_ones_are_refused(terms: Shapes, sums: Shapes) -> None:
    packed = wire.pack_contribution(summed({"g": np.arange(3)}), "fp32")
    assert wire.unpack_contribution(packed, "fp32", {}, {"g": (3,)}).update.weight == 3
    with pytest.raises(PeerError):
        wire.unpack_contribution(packed, "fp32", terms, sums)


def test_a_name_is_a_term_or_a_sum() -> None:
    with pytest.raises(ValueError, match="'a' is both a term and a sum"):
        Update("sum", 1, {"a": np.zeros(1, np.float32)}, {"a": np.zeros(1, np.int64)})
    with pytest.raises(ValueError, match="update sum g: expected int64"):
        Update("sum", 1, {}, {"g": np.zeros(1, np.int32)})
