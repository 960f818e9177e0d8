"""Payloads and chunks of protocol v2, for minimal_agent.py.

They were written from docs/reference/protocol.md alone. A payload is a safetensors file with the
codec's tensors for each term; its bytes are shuffled and then compressed.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import zstandard

Json = dict[str, Any]
Shapes = dict[str, list[int]]
Arrays = dict[str, list[float]]
CHUNK_BYTES, BLOCK, STEPS = 120 * 1024, 256, 55
CHUNK = struct.Struct("<2sBB8sIII")
CODECS = {"fp32": (4, "F32", "f"), "fp16": (2, "F16", "e"), "int8": (1, "I8", "b")}


def f32(values: list[float]) -> list[float]:
    return list(struct.unpack(f"<{len(values)}f", struct.pack(f"<{len(values)}f", *values)))


def scales(values: list[float]) -> list[int]:
    """Bits of each block's scale: 1/STEPS of its largest magnitude, rounded up to bfloat16."""
    blocks = [values[i : i + BLOCK] for i in range(0, len(values), BLOCK)]
    tops = f32([max(map(abs, block)) / STEPS for block in blocks])
    bits = struct.unpack(f"<{len(tops)}I", struct.pack(f"<{len(tops)}f", *tops))
    return [(n + 0xFFFF) >> 16 for n in bits]


def scale_of(half: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", half << 16))[0])


def pack(head: Json, shapes: Shapes, terms: Arrays, codec: str, zeros: Shapes) -> bytes:
    """The payload of a contribution; `zeros` are the shapes of whole numbers that are all 0."""
    item, dtype, letter = CODECS[codec]
    tensors = [(name, "I64", shape, bytes(8 * math.prod(shape))) for name, shape in zeros.items()]
    item = 8 if zeros else item
    for name, values in terms.items():
        numbers: list[Any] = values
        if codec == "fp16":
            numbers = [min(max(v, -65504.0), 65504.0) for v in values]
        elif codec == "int8":
            halves = scales(values)
            each = [scale_of(half) or 1.0 for half in halves]
            numbers = [round(v / each[i // BLOCK]) for i, v in enumerate(values)]
            data = struct.pack(f"<{len(halves)}H", *halves)
            tensors.insert(0, (f"{name}:scale", "U16", [len(halves)], data))
        data = struct.pack(f"<{len(numbers)}{letter}", *numbers)
        tensors.append((name, dtype, shapes[name], data))
    header: Json = {"__metadata__": {"fedclip": json.dumps(head)}}
    at = 0
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = struct.pack("<Q", len(text)) + text + b"".join(data for *_, data in tensors)
    whole = len(body) - len(body) % item
    planes = b"".join(body[i:whole:item] for i in range(item))
    return zstandard.ZstdCompressor().compress(planes + body[whole:])


def unpack(data: bytes, shapes: Shapes, codec: str) -> Arrays:
    letter = CODECS[codec][2]
    limit = 8 + 64 * 1024 + 4 * sum(math.prod(shape) for shape in shapes.values())
    if not 0 < zstandard.frame_content_size(data) <= limit:
        raise ValueError("a body larger than its terms can be")
    body = _unshuffled(data, codec)
    (size,), header = struct.unpack_from("<Q", body), _header(body)
    terms = {}
    for name, shape in shapes.items():
        if header[name]["shape"] != shape:
            raise ValueError(f"{name} has another shape")
        at, count = 8 + size + header[name]["data_offsets"][0], math.prod(shape)
        values = list(struct.unpack_from(f"<{count}{letter}", body, at))
        if codec == "int8":
            at = 8 + size + header[f"{name}:scale"]["data_offsets"][0]
            halves = struct.unpack_from(f"<{-(-count // BLOCK)}H", body, at)
            values = [v * scale_of(halves[i // BLOCK]) for i, v in enumerate(values)]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name} holds NaN or infinity")
        terms[name] = values
    return terms


def _unshuffled(data: bytes, codec: str) -> bytearray:
    item = CODECS[codec][0]
    shuffled = zstandard.ZstdDecompressor().decompress(data, max_output_size=2**26)
    whole, body = len(shuffled) - len(shuffled) % item, bytearray(shuffled)
    for i in range(item):
        body[i:whole:item] = shuffled[i * whole // item : (i + 1) * whole // item]
    return body


def _header(body: bytearray) -> Json:
    (size,) = struct.unpack_from("<Q", body)
    return read_json(bytes(body[8 : 8 + size]))


def candidates(data: bytes, codec: str) -> int:
    """The number of candidates in the payload of a ballot, from its header."""
    (shape,) = [
        its["shape"] for name, its in _header(_unshuffled(data, codec)).items()
        if name == "zeroshot/shares"
    ]  # fmt: skip
    return int(shape[0])


def read_json(text: bytes) -> Json:
    def fields(pairs: list[tuple[str, Any]]) -> Json:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    value = json.loads(text.decode(), object_pairs_hook=fields, parse_constant=float)
    if not isinstance(value, dict):
        raise TypeError("no JSON object")
    return value


def blob_of(data: bytes) -> Json:
    digest = hashlib.sha256(data).hexdigest()
    size = {"size_bytes": len(data), "chunk_bytes": CHUNK_BYTES}
    return {"sha256": digest, "kind": "update", **size}


def count_of(blob: Json) -> int:
    return -(-int(blob["size_bytes"]) // int(blob["chunk_bytes"]))


def chunks(data: bytes, missing: list[list[int]]) -> Iterator[bytes]:
    """The chunks of `data` in the ranges `missing`; indices beyond the last chunk are left out."""
    digest, count = hashlib.sha256(data).digest()[:8], count_of(blob_of(data))
    for first, last in missing:
        for i in range(first, min(last, count - 1) + 1):
            part = data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]
            yield CHUNK.pack(b"\xfc\x1e", 2, 0, digest, i, count, zlib.crc32(part)) + part


def read_chunk(payload: bytes, blob: Json) -> tuple[int, bytes] | None:
    """The index and the part of a chunk; None if it belongs to another blob."""
    _, version, zero, digest, index, count, crc = CHUNK.unpack_from(payload)
    part, size, each = payload[CHUNK.size :], blob["size_bytes"], blob["chunk_bytes"]
    if digest != bytes.fromhex(blob["sha256"])[:8]:
        return None
    if (version, zero, count) != (2, 0, count_of(blob)) or index >= count:
        raise ValueError("a chunk that contradicts its blob")
    if len(part) != min(each, size - index * each) or zlib.crc32(part) != crc:
        raise ValueError("a damaged chunk")
    return index, part
