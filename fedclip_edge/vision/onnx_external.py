"""Detection of tensors that an ONNX file keeps in other files.

A fetched encoder must be one file: a path in it could name any file of the box. The file is walked
as protobuf (https://protobuf.dev/programming-guides/encoding), without the library onnx, and the
values of tensors are skipped. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedclip_edge.errors import BundleError
from fedclip_edge.vision.manifest import AGAIN

_TENSOR = "tensor"
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # fields of a tensor
# For each message that can contain a tensor: field number -> message in it.
_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: _TENSOR, 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: _TENSOR, 6: "graph", 10: _TENSOR, 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
_DEEPEST = 64  # graphs in graphs; an image encoder has none


def check_self_contained(path: Path) -> None:
    """Raise BundleError if the ONNX file keeps a tensor in another file, or is no protobuf."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            if _has_external(data, 0, len(data), "model", 0):
                raise BundleError(
                    f"{path} keeps weights in another file, which a box does not open; {AGAIN}"
                )
        except (IndexError, ValueError) as error:
            raise BundleError(f"{path} is not a valid ONNX file ({error}); {AGAIN}") from None


def _has_external(data: mmap.mmap, begin: int, end: int, kind: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    for number, value, stop in _fields(data, begin, end):
        if kind == _TENSOR and (
            number == _EXTERNAL_DATA or (number == _DATA_LOCATION and stop is None and value)
        ):
            return True
        inner = _INNER[kind].get(number)
        if inner is None or stop is None:
            continue
        if _has_external(data, value, stop, inner, depth + 1):
            return True
    return False


def _fields(data: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield number and content of each field: begin and end of its bytes, or a number and None."""
    at = begin
    while at < end:
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value, None
        elif wire_type == 2:
            size, at = _varint(data, at)
            yield tag >> 3, at, at + size
            at += size
        elif wire_type in (1, 5):
            at += 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"a field of type {wire_type} at byte {at}")
    if at > end:
        raise ValueError(f"a field is longer than its message, at byte {at}")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number is too long, at byte {at}")
