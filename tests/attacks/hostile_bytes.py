"""The corpus of attacks: bytes that an attacker would send to a coordinator or a device.

Each attack has a name that says what it attacks. `Aim` holds what the attacker knows of the run
and the key that it has: the key of an enrolled device or, against a device, even that of the
coordinator. Control messages have a valid signature unless the name of the attack says otherwise,
so that the checks behind the signature are tested as well.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.numpy
import zstandard
from capable import CAPABLE

from fedclip_edge.protocol import chunks, codec, wire
from fedclip_edge.protocol.message_parts import Blob, Exchange
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
from fedclip_edge.protocol.report import Report
from fedclip_edge.protocol.revision import REVISION
from fedclip_edge.protocol.signing import Identity
from fedclip_edge.records import Contribution, Plan, Shapes, Update

Said = dict[str, bytes]  # keys are the names of the attacks
KIND_OF = {cls: kind for kind, cls in KINDS.items()}
FAR = 2**53


@dataclass(frozen=True)
class Aim:
    """A run, as seen by an attacker that speaks as `sender` with the key `identity`."""

    sender: str
    device: str  # the device under attack, or the attacker's own name
    identity: Identity
    run: str
    round: int
    model: Blob
    plan: Plan
    shapes: Shapes
    encoder_id: str
    classes_digest: str
    exchange: str = "8" * 64  # hash of the open exchange
    incarnation: str = "boot"  # of the device under attack
    epoch: int = 1

    def messages(self) -> Mapping[str, Message]:
        """A valid message of each kind, none of which ends a device."""
        gone = Blob("9" * 64, 1000, "update")
        return {
            "coordinator": CoordinatorState(
                "another", self.epoch, self.run, online=True, key=self.identity.key
            ),
            "device": DeviceState("another", online=True),
            "hello": Hello(
                "b",
                self.identity.key,
                "x",
                self.encoder_id,
                self.classes_digest,
                CAPABLE,
            ),
            "manifest": Manifest(
                run=self.run,
                epoch=self.epoch,
                key=self.identity.key,
                phase="open",
                exchange=Exchange("round", self.round, self.exchange, 1000.0),
                attempt=0,
                closed=self.round - 1,
                model=self.model,
                plan=self.plan,
                encoder_id=self.encoder_id,
                classes_digest=self.classes_digest,
                cohort="f" * 64,
                deadline_s=30.0,
                answers=self.incarnation,
                takes_part=True,
            ),
            "offer": Offer(self.run, self.round, gone),
            "want": Want(gone.sha256, ((0, 1),)),
            "kept": Kept(self.run, self.round, gone.sha256),
            "refused": Refused("no", "contribution", sha256=gone.sha256),
            "report": Report(
                run=self.run,
                round=0,
                device=self.device,
                domain="x",
                model=self.model.sha256,
                accuracy={"federated": 0.5},
                train_pictures=1,
                test_pictures=2,
                encoded=1,
                skipped=0,
                bytes_up=None,
                bytes_down=None,
                encode_s=0.0,
                train_s=0.0,
                wait_s=0.0,
            ),
        }

    def line(self, kind: str, **changes: Any) -> bytes:
        """The first line of a message, with these fields changed to any value."""
        body = json.loads(json.dumps(self.messages()[kind], default=vars))
        fields = {"kind": kind, "from": self.sender, "revision": REVISION}
        return json.dumps({**fields, "body": {**body, **changes}}).encode()

    def sign(self, line: bytes, topic: str) -> bytes:
        signature = self.identity.sign(topic.encode() + b"\0" + line)
        return line + b"\n" + base64.b64encode(signature)


def not_messages() -> Said:
    """Bytes that are neither a control message nor a chunk."""
    return {
        "nothing": b"",
        "a zero byte": b"\0",
        "a line break": b"\n",
        "many line breaks": b"\n" * 60_000,
        "the first byte of a chunk": b"\xfc",
        "not UTF-8": b"\xff" * 100,
        "a byte order mark": b"\xef\xbb\xbf{}\n",
        "a megabyte of zeros": bytes(2**20),
        "a megabyte of brackets": b"[" * 2**20,
        "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "64 KiB of brackets": b"[" * 65_000 + b"\n",
        "64 KiB of closed brackets": b"[" + b"[]," * 21_000 + b"[]]\n",
        "64 KiB of keys": b"{" + b",".join(b'"%d":0' % n for n in range(6_000)) + b"}\n",
    }


def wrong_lines(aim: Aim, kind: str) -> Said:
    """First lines that are no longer valid messages of `kind`."""
    right = json.loads(aim.line(kind))
    body = right["body"]
    key = "sha256" if kind == "refused" else next(iter(body))

    def say(**changes: Any) -> bytes:
        return json.dumps({**right, **changes}).encode()

    def put(text: bytes) -> bytes:
        """The message with `text` as its first field, even if that is not valid JSON."""
        return say(body={**body, key: "HERE"}).replace(b'"HERE"', text)

    lines = {
        "an unknown schema": say(kind=f"{kind}2"),
        "a kind that is a list": say(kind=[kind]),
        "a kind nested deep": say(kind=nested(300)),
        "an envelope with a key more": say(to="all"),
        "a sender that is a number": say(**{"from": 7}),
        "a sender of 60,000 letters": say(**{"from": "a" * 60_000}),
        "no revision": json.dumps({k: v for k, v in right.items() if k != "revision"}).encode(),
        "another revision": say(revision=REVISION + 1),
        "a revision that is true": say(revision=True),
        "a revision below zero": say(revision=-1),
        "a revision of 4,000 digits": say(revision=10**3999),
        "another revision and no fields": say(revision=REVISION + 1, body={}),
        "a body that is null": say(body=None),
        "a body that is a list": say(body=[1]),
        "an empty body": say(body={}),
        "an unknown field": say(body={**body, "more": 1}),
        "a field of 60,000 letters": say(body={**body, "x" * 60_000: 1}),
        "a field without a name": say(body={**body, "": 1}),
        "a missing field": say(body=dict(list(body.items())[1:])),
        "a value that is null": put(b"null"),
        "a value that is an object": put(b"{}"),
        "a value that is NaN": put(b"NaN"),
        "a value that is infinite": put(b"-Infinity"),
        "a value beyond every float": put(b"1e999"),
        "a value of 4,000 digits": put(b"9" * 4000),
        "a value of 60,000 digits": put(b"9" * 60_000),
        "a value with a fraction of 60,000 digits": put(b"0." + b"9" * 60_000),
        "a value below zero": put(b"-1"),
        "a value of 60,000 letters": put(b'"' + b"a" * 60_000 + b'"'),
        "a lone surrogate": put(b'"\\ud800"'),
        "a zero character": put(b'"\\u0000"'),
        "an escape sequence": put(b'"\\u001b[2J"'),
        "a key repeated": aim.line(kind)[:-1] + b',"kind":"' + kind.encode() + b'"}',
        "a field repeated": say(body="HERE").replace(
            b'"HERE"', json.dumps(body).encode()[:-1] + b', "%b": 1}' % key.encode()
        ),
        "two objects": aim.line(kind) + b"{}",
        "UTF-16": aim.line(kind).decode().encode("utf-16"),
        "a comment": aim.line(kind)[:-1] + b"/**/}",
    }
    for name, number in body.items():
        if isinstance(number, int) and not isinstance(number, bool):
            lines[f"true for {name}"] = aim.line(kind, **{name: True})
            lines[f"1.0 for {name}"] = aim.line(kind, **{name: 1.0})
            lines[f"{name} of 4,000 digits"] = aim.line(kind, **{name: 10**3999})
            lines[f"{name} below zero"] = aim.line(kind, **{name: -1})
        elif isinstance(number, str):
            lines[f"{name} of 50,000 letters"] = aim.line(kind, **{name: "a" * 50_000})
    # Parsers have a depth limit, and so may code that formats the value.
    for depth in range(100, 1000, 220):
        lines[f"a value {depth} deep"] = put(b"[" * depth + b"]" * depth)
        lines[f"an object {depth} deep"] = put(b'{"a":' * depth + b"1" + b"}" * depth)
    return {f"{kind}: {name}": line for name, line in lines.items()}


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def wrong_signatures(aim: Aim, kind: str, topic: str, other_topic: str, forger: Identity) -> Said:
    """A valid message whose signature is wrong, missing, or for another topic."""
    line = aim.line(kind)
    raw = base64.b64decode(aim.sign(line, topic).partition(b"\n")[2])
    forged = base64.b64encode(forger.sign(topic.encode() + b"\0" + line))
    said = {
        "no signature": line,
        "an empty signature": line + b"\n",
        "half a signature": line + b"\n" + base64.b64encode(raw[:32]),
        "two signatures": line + b"\n" + base64.b64encode(raw * 2),
        "60,000 bytes of signature": line + b"\n" + base64.b64encode(raw * 650),
        "a signature of zeros": line + b"\n" + base64.b64encode(bytes(64)),
        "a signature that is not base64": line + b"\n" + b"~" * 88,
        "a signature with a line more": aim.sign(line, topic) + b"\n",
        "a signature in UTF-8": line + b"\n" + "é".encode() * 44,
        "forged": line + b"\n" + forged,
        "replayed from another topic": aim.sign(line, other_topic),
        "altered by a space": aim.sign(line, topic).replace(b'{"kind"', b'{ "kind"', 1),
    }
    return {f"{kind}: {name}": payload for name, payload in said.items()}


def wrong_fields(aim: Aim) -> Said:
    """Messages whose fields have the right type and a value that must be refused."""
    holes = [[2 * n, 2 * n] for n in range(1025)]
    blob, able = vars(aim.model), asdict(CAPABLE)
    changes: dict[str, tuple[str, dict[str, Any]]] = {
        "an offer of 4 GiB": ("offer", {"blob": {**blob, "size_bytes": 2**32}}),
        "an offer of nothing": ("offer", {"blob": {**blob, "size_bytes": 0}}),
        "an offer in chunks of nothing": ("offer", {"blob": {**blob, "chunk_bytes": 0}}),
        "an offer in a million chunks": (
            "offer",
            {"blob": {**blob, "size_bytes": 2**20, "chunk_bytes": 1}},
        ),
        "an offer of chunks of 1 GiB": ("offer", {"blob": {**blob, "chunk_bytes": 2**30}}),
        "an offer by no hash": ("offer", {"blob": {**blob, "sha256": "z" * 64}}),
        "an offer to no run": ("offer", {"run": "../../etc"}),
        "a want of nothing": ("want", {"missing": []}),
        "a want of all twice": ("want", {"missing": [[0, 9], [0, 9]]}),
        "a want backwards": ("want", {"missing": [[9, 0]]}),
        "a want of three ends": ("want", {"missing": [[0, 1, 2]]}),
        "a want of one end": ("want", {"missing": [[0]]}),
        "a want of numbers": ("want", {"missing": [0, 1]}),
        "a want with too many holes": ("want", {"missing": holes}),
        "a want that overlaps at 10**4000": ("want", {"missing": [[0, 10**4000], [5, 10**4000]]}),
        "a hello of 5,000 roles": ("hello", {"capabilities": {**able, "roles": ["train"] * 5000}}),
        "a hello of a million methods": (
            "hello",
            {"capabilities": {**able, "methods": [str(n) for n in range(5000)]}},
        ),
        "a hello of fewer than no pictures": (
            "hello",
            {"capabilities": {**able, "pictures": {"train": -1}}},
        ),
        "a hello from another key": ("hello", {"key": "0" * 64}),
        "a hello with a key that is none": ("hello", {"key": "ff" * 32}),
        "a hello with a boot that a terminal obeys": ("hello", {"boot": "\x1b[2J"}),
        "a hello with a boot that is no text": ("hello", {"boot": "\ud800"}),
        "a hello from a later age": ("hello", {"epoch": FAR}),
        "a report of the future": ("report", {"round": 2**62}),
        "a report in another's name": ("report", {"device": "somebody"}),
        "a report on another model": ("report", {"model": "8" * 64}),
        "a report of 2**63 pictures": ("report", {"encoded": 2**63}),
        "a report of more than all": ("report", {"accuracy": {"federated": 1.5}}),
        "a report that names a field of its own": ("report", {"accuracy": {"round": 0.5}}),
        "a report on no model": ("report", {"model": "m" * 60_000}),
        "a report of negative time": ("report", {"wait_s": -1.0}),
    }
    return {name: aim.line(kind, **fields) for name, (kind, fields) in changes.items()}


def wrong_plans(aim: Aim) -> Said:
    """Manifests with a plan that is too expensive for a device or impossible."""
    plan, blob = json.loads(json.dumps(aim.plan, default=vars)), vars(aim.model)

    def with_plan(**changes: Any) -> bytes:
        return aim.line("manifest", plan={**plan, **changes})

    return {
        "a plan without an end": with_plan(rounds=10**9),
        "a plan of no rounds": with_plan(rounds=0),
        "a plan with an unknown codec": with_plan(codec_down="pickle"),
        "a plan on no grid": with_plan(grid_bits=10**6),
        "a plan with a weight beyond int64": with_plan(max_weight=2**63),
        "a plan with a seed below zero": with_plan(seed=-1),
        "a plan with options that are a list": with_plan(options=[1]),
        "a plan with an option that is a list": with_plan(options={"lr": [1]}),
        "a plan with options 400 deep": with_plan(options={"lr": nested(400)}),
        "a plan with an unknown key": with_plan(command="rm"),
        "a plan that is null": aim.line("manifest", plan=None),
        "a model of 4 GiB": aim.line("manifest", model={**blob, "size_bytes": 2**32}),
        "a model of 4 GiB in small chunks": aim.line(
            "manifest", model={**blob, "size_bytes": 2**26, "chunk_bytes": 1024}
        ),
        "a fleet of 10**300": aim.line("manifest", devices=10**300),
        "no fleet": aim.line("manifest", devices=0),
        "a deadline of nothing": aim.line("manifest", deadline_s=0.0),
        "a deadline in the past": aim.line("manifest", deadline_s=-1e300),
        "an answer to somebody else": aim.line("manifest", answers="other"),
        "an unknown phase": aim.line("manifest", phase="closed"),
        "an epoch below zero": aim.line("manifest", epoch=-1),
        "an attempt of 4,000 digits": aim.line("manifest", attempt=10**3999),
    }


def wrong_chunks(blob: Blob, data: bytes) -> Said:
    """Chunks that contradict their blob, their header or the rules."""
    right = next(chunks.split(data, blob))
    magic, version, zero, digest, index, count, crc = chunks._HEADER.unpack_from(right)
    part = right[chunks._HEADER.size :]

    def chunk(*, of: bytes = part, **changes: Any) -> bytes:
        fields = {
            "magic": magic, "version": version, "zero": zero, "digest": digest, "index": index,
            "count": count, "crc": crc, **changes,
        }  # fmt: skip
        return chunks._HEADER.pack(*fields.values()) + of

    return {
        "a chunk of two bytes": b"\xfc\x1e",
        "a chunk cut in its header": right[:23],
        "a chunk without its part": right[:24],
        "a chunk cut in its part": right[:-1],
        "a chunk with a byte more": right + b"\0",
        "a chunk of a megabyte": right[:24] + bytes(2**20),
        "a chunk of version 1": chunk(version=1),
        "a chunk with a flag": chunk(zero=1),
        "a chunk beyond the last": chunk(index=count),
        "a chunk of index 2**32 - 1": chunk(index=2**32 - 1),
        "a chunk of no chunks": chunk(count=0),
        "a chunk of 2**32 - 1 chunks": chunk(count=2**32 - 1),
        "a chunk with a wrong CRC": chunk(crc=crc ^ 1),
        "a chunk with a bit changed": right[:-1] + bytes([right[-1] ^ 1]),
    }


@functools.cache
def _bomb() -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(2**28))


def wrong_frames(body: bytes, name: str) -> Said:
    """Compressed frames that must fail; `body` is a valid one in the codec `name`."""
    plain = codec.decode(name, body, 2**26)
    shuffled = zstandard.ZstdDecompressor().decompress(body)
    bomb = _bomb()
    at = 6  # offset of the content size (4 bytes) after magic, descriptor and window
    assert struct.unpack_from("<I", bomb, at) == (2**28,)
    declares_little = bomb[:at] + struct.pack("<I", len(plain)) + bomb[at + 4 :]
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(shuffled)
    return {
        "a body of no frame": shuffled[: len(body)],
        "a body of nothing but a frame's magic": b"\x28\xb5\x2f\xfd",
        "a bomb of 256 MiB": bomb,
        "a bomb that declares as much as is right": declares_little,
        "a frame that declares 2**62": b"\x28\xb5\x2f\xfd\xe0"
        + struct.pack("<Q", 2**62)
        + bytes(9),
        "a frame that declares nothing": streamed,
        "a frame of nothing": zstandard.ZstdCompressor().compress(b""),
        "a frame with a window of 2 TiB": b"\x28\xb5\x2f\xfd\x80\xf8"
        + struct.pack("<I", len(plain))
        + bytes(9),
        "a frame that needs a dictionary": b"\x28\xb5\x2f\xfd\x63\x01\x00\x00\x00" + bytes(30),
        "a frame that is skipped": b"\x50\x2a\x4d\x18" + struct.pack("<I", 16) + bytes(16),
        "a frame and another": body + body,
        "a frame and a skipped one of 4 GiB": body + b"\x50\x2a\x4d\x18\xff\xff\xff\xff",
        "half a frame": body[: len(body) // 2],
        "a frame with a bit changed": body[:-9] + bytes([body[-9] ^ 64]) + body[-8:],
    }


def wrong_files(body: bytes, name: str) -> Said:
    """Invalid safetensors files in a valid compressed frame."""
    plain = codec.decode(name, body, 2**26)
    (size,) = struct.unpack_from("<Q", plain)
    header, data = json.loads(plain[8 : 8 + size]), plain[8 + size :]
    head = json.loads(header["__metadata__"]["fedclip"])
    term = next(key for key in header if key != "__metadata__")
    spec = header[term]
    first, last = spec["data_offsets"]

    def file(changed: object, rest: bytes = data) -> bytes:
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + rest

    def with_term(**changes: Any) -> bytes:
        return file({**header, term: {**spec, **changes}})

    def with_head(**changes: Any) -> bytes:
        text = json.dumps({**head, **changes})
        return file({**header, "__metadata__": {"fedclip": text}})

    text = json.dumps(header).encode()
    files = {
        "a file of one byte": b"\0",
        "a file with a header of 2**63": struct.pack("<Q", 2**63) + plain[8:],
        "a file with a header of 2**64 - 1": b"\xff" * 8 + plain[8:],
        "a file with a header of nothing": bytes(8) + data,
        "a file with a header longer than it": struct.pack("<Q", len(plain)) + plain[8:],
        "a file with a huge header": file(text.ljust(2**16 + 1)),
        "a header of brackets": file(b"[" * 60_000),
        "a header of objects": file(b'{"a":' * 10_000),
        "a header with a tensor twice": file(text[:-1] + b',"%b":{}}' % term.encode()),
        "a header of 60,000 letters": file({**header, "x" * 60_000: spec}),
        "a header without metadata": file({term: spec}),
        "metadata that is a number": file({**header, "__metadata__": {"fedclip": 1}}),
        "metadata with a key more": file(
            {**header, "__metadata__": {**header["__metadata__"], "a": "b"}}
        ),
        "metadata that is no JSON": file({**header, "__metadata__": {"fedclip": "{"}}),
        "metadata with a lone surrogate": file({**header, "__metadata__": {"fedclip": "\ud800"}}),
        "metadata nested deep": with_head(round=nested(400)),
        "an unknown schema": with_head(schema=1),
        "a schema that is true": with_head(schema=True),
        "a schema that is 1.0": with_head(schema=1.0),
        "another kind": with_head(kind="picture"),
        "a field more": with_head(more=1),
        "a round of 4,000 digits": with_head(round=10**3999),
        "a round that is true": with_head(round=True),
        "a wrong name": file({**{k: v for k, v in header.items() if k != term}, "x": spec}),
        "a wrong shape": with_term(shape=[1, *spec["shape"]]),
        "a shape that overflows": with_term(shape=[2**63, 2**63]),
        "a shape below zero": with_term(shape=[-1]),
        "a shape of truth": with_term(shape=[True]),
        "a shape nested deep": with_term(shape=nested(400)),
        "a wrong dtype": with_term(dtype="F64"),
        "offsets with a hole": with_term(data_offsets=[first + 1, last + 1]),
        "offsets that overlap": with_term(data_offsets=[first, last + 1]),
        "offsets backwards": with_term(data_offsets=[last, first]),
        "offsets of 2**64 - 1": with_term(data_offsets=[2**64 - 1, 2**64 - 1]),
        "offsets that overflow": with_term(data_offsets=[first, 2**64 + last]),
        "offsets of 4,000 digits": with_term(data_offsets=[0, 10**3999]),
        "offsets of floats": with_term(data_offsets=[float(first), float(last)]),
        "one offset": with_term(data_offsets=[first]),
        "three offsets": with_term(data_offsets=[first, last, last]),
        "a term with a field more": with_term(more=nested(300)),
        "a byte too few": file(header, data[:-1]),
        "a byte too many": file(header, data + b"\0"),
        "no bytes": file(header, b""),
    }
    return {key: codec.encode(name, value) for key, value in files.items()}


def wrong_values(aim: Aim, data: bytes) -> Said:
    """Bodies with values that no correct codec writes; `data` is a valid contribution or model."""
    said = {}
    for name in [aim.plan.codec_up]:
        terms = {key: np.zeros(shape, np.float32) for key, shape in aim.shapes.items()}
        tensors = dict(codec.store(name, terms))
        plain = codec.decode(name, data, 2**26)
        (size,) = struct.unpack_from("<Q", plain)
        metadata = json.loads(plain[8 : 8 + size])["__metadata__"]
        some = next(iter(aim.shapes))
        bad: dict[str, tuple[str, Any]] = {
            "NaN": (some, np.nan),
            "infinity": (some, np.inf),
            "a step beyond the last": (some, codec.STEPS + 1),
            "the lowest step of all": (some, -128),
            "a scale that is NaN": (f"{some}:scale", 0x7FC0),
            "a scale that is infinite": (f"{some}:scale", 0x7F80),
            "a scale below zero": (f"{some}:scale", 0x8001),
            "a scale beyond all": (f"{some}:scale", 0x7F7F),
        }
        for what, (tensor, value) in bad.items():
            if tensor not in tensors or (tensors[tensor].dtype.kind == "f") != isinstance(
                value, float
            ):
                continue
            changed = tensors[tensor].copy()
            changed.ravel()[0] = value
            file = safetensors.numpy.save({**tensors, tensor: changed}, metadata)
            said[what] = codec.encode(name, file)
    return said


def contribution(aim: Aim, **changes: Any) -> bytes:
    """The bytes of a contribution in the attacker's name that is valid except for these changes."""
    terms = {name: np.full(shape, 1e-3, np.float32) for name, shape in aim.shapes.items()}
    fields: dict[str, Any] = {
        "run": aim.run,
        "round": aim.round,
        "device": aim.device,
        "exchange": aim.exchange,
        "update": Update("sum", 1, terms),
    }
    return wire.pack_contribution(Contribution(**{**fields, **changes}), aim.plan.codec_up)


def wrong_contributions(aim: Aim) -> Said:
    """Every contribution that can be offered and must not be added."""
    terms = {name: np.full(shape, 1e-3, np.float32) for name, shape in aim.shapes.items()}
    huge = {name: np.full(shape, 1e9, np.float32) for name, shape in aim.shapes.items()}
    data, name = contribution(aim), aim.plan.codec_up
    return {
        **wrong_frames(data, name),
        **wrong_files(data, name),
        **wrong_values(aim, data),
        "replayed from another round": contribution(aim, round=aim.round + 1),
        "replayed from another run": contribution(aim, run="run-0"),
        "replayed in another's name": contribution(aim, device="somebody"),
        "an answer to another exchange": contribution(aim, exchange="0" * 64),
        "a norm beyond the plan's": contribution(aim, update=Update("sum", 1, huge)),
        "a weight beyond the plan's": contribution(aim, update=Update("sum", 2**40, terms)),
        "a weight of 4,000 digits": contribution(aim, update=Update("sum", 10**3999, terms)),
        "a kind that is not summed": contribution(aim, update=Update("single", 1, terms)),
    }


def wrong_models(aim: Aim, data: bytes) -> Said:
    """Models that a coordinator could publish and a device must refuse; `data` is a valid one."""
    return {**wrong_frames(data, aim.plan.codec_down), **wrong_files(data, aim.plan.codec_down)}


def offered(aim: Aim, body: bytes, topic: str) -> tuple[bytes, Iterator[bytes]]:
    """The attacker's signed offer of a body, and the chunks of the body."""
    blob = chunks.blob_of(body, "update")
    line = aim.line("offer", blob=vars(blob))
    return aim.sign(line, topic), chunks.split(body, blob)


def as_sender(aim: Aim, sender: str, identity: Identity) -> Aim:
    """The same aim with another name and key."""
    return replace(aim, sender=sender, identity=identity)
