"""Codecs: terms as fewer bytes on the link, and never more than declared on the way back.

A codec says which tensors stand in a payload for each term:

    fp32   float32, the term itself
    fp16   float16; what is beyond its range becomes its largest number
    int8   int8 steps, -55 to 55, and in NAME:scale one scale for each 256 of them in a row: a
           value is step * scale. A scale is 1/55 of the block's largest value, rounded up to a
           bfloat16, and stands there as the uint16 of its bits: half a float32, and its range

Whole numbers (an update's `sums`) stand there as the int64 they are, whatever the codec.

The payload is then shuffled by significance (all lowest bytes of its items, then the next, ...),
because exponents repeat where whole floats do not, and compressed with zstd. An item has the
codec's size; in a payload with whole numbers it has theirs.

What a lossy codec loses of an update, its sender adds to the next one: error feedback, after
Seide, Fu, Droppo, Li, Yu 2014, "1-bit stochastic gradient descent and its application to
data-parallel distributed training of speech DNNs" (Interspeech), and Karimireddy, Rebjock, Stich,
Jaggi 2019, "Error feedback fixes SignSGD and other gradient compression schemes",
arXiv 1901.09847.

Laws: the same terms give the same bytes; sizes are checked before memory is taken; what travelled
and what was lost add up to what was meant, within float32's rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from fedclip_edge.errors import PeerError
from fedclip_edge.records import F32, Arrays, Shapes

Tensors = Mapping[str, NDArray[Any]]
Layout = Mapping[str, tuple[str, list[int]]]  # by tensor: dtype and shape, as safetensors say them

BLOCK = 256  # steps that share a scale
# So few of int8's 127 that no update, however it is spread, needs more than 7 bits a value once it
# is compressed: 455 kB for an adapter of 525,312 (526 with 127). What that loses comes the next time.
STEPS = 55
_SCALE_MAX = 1e30  # no product with a step overflows; plans allow far less
_ROWS = 256  # blocks that are worked on at a time: small enough for the processor's cache
INTEGER_BYTES = 8
_LEVEL = 1  # the next ones save nothing on floats and take longer (benchmarks/codec_sizes.py)


@dataclass(frozen=True)
class _Codec:
    item_bytes: int  # what is shuffled
    layout: Callable[[Shapes], Layout]
    store: Callable[[Arrays], tuple[Tensors, Arrays]]  # and what is lost of each term by it
    restore: Callable[[Tensors, Shapes], Arrays]


def tensor_layout(codec: str, shapes: Shapes, sums: Shapes | None = None) -> Layout:
    """The tensors of a payload with these terms and sums; raises PeerError for an unknown codec."""
    whole = {name: ("I64", list(shape)) for name, shape in (sums or {}).items()}
    return {**_get(codec).layout(shapes), **whole}


def store(codec: str, terms: Arrays) -> Tensors:
    """Finite terms as the tensors of a payload. Raises PeerError for a codec not in CODECS."""
    return _get(codec).store(terms)[0]


def restore(codec: str, tensors: Tensors, shapes: Shapes) -> Arrays:
    """The terms again, as far as the codec keeps them.

    `tensors` have the codec's `layout` of `shapes`. Raises PeerError for steps and scales that
    `store` does not write, NaN and infinity among them.
    """
    return _get(codec).restore(tensors, shapes)


def with_feedback(codec: str, terms: Arrays, residual: Arrays) -> tuple[Tensors, Arrays]:
    """The stored form of `terms` that is sent, and the residual that is left by it.

    `residual` is that of the update before, or empty; the new one is empty where nothing was lost.
    """
    meant = {
        name: term + residual[name] if name in residual else term for name, term in terms.items()
    }
    tensors, lost = _get(codec).store(meant)
    return tensors, lost if any(term.any() for term in lost.values()) else {}


def encode(codec: str, payload: bytes, *, integers: bool = False) -> bytes:
    """`payload` as it travels; `integers` where it holds sums. Raises PeerError as `store`."""
    shuffled = _shuffle(payload, _item_bytes(codec, integers=integers))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(shuffled)


def decode(codec: str, data: bytes, limit_bytes: int, *, integers: bool = False) -> bytes:
    """The payload again; raises PeerError for an unknown codec or where it is no such payload.

    The size is read from the frame's header and held against `limit_bytes` before memory is taken.
    """
    item_bytes = _item_bytes(codec, integers=integers)
    try:
        declared = zstandard.frame_content_size(data)
        if not 0 < declared <= limit_bytes:
            raise PeerError(f"body declares {declared} bytes, expected 1 to {limit_bytes}")
        payload = zstandard.ZstdDecompressor().decompress(
            data, max_output_size=declared, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise PeerError(f"body is not a whole zstd frame: {error}") from None
    return _unshuffle(payload, item_bytes)


def _item_bytes(codec: str, *, integers: bool) -> int:
    return INTEGER_BYTES if integers else _get(codec).item_bytes


def _get(codec: str) -> _Codec:
    if codec not in CODECS:
        raise PeerError(f"unknown codec {codec[:40]!r}")
    return CODECS[codec]


def _shuffle(payload: bytes, item_bytes: int) -> bytes:
    whole = len(payload) - len(payload) % item_bytes
    planes = np.frombuffer(payload[:whole], np.uint8).reshape(-1, item_bytes).T
    return planes.tobytes() + payload[whole:]


def _unshuffle(payload: bytes, item_bytes: int) -> bytes:
    whole = len(payload) - len(payload) % item_bytes
    planes = np.frombuffer(payload[:whole], np.uint8).reshape(item_bytes, -1)
    # Put together as numbers: a tenth of the time that transposing single bytes takes.
    items = planes[-1].astype(f"<u{item_bytes}")
    for plane in planes[-2::-1]:
        items = items << 8 | plane
    return bytes(items.tobytes()) + payload[whole:]


def _floats(dtype: str) -> Callable[[Shapes], Layout]:
    return lambda shapes: {name: (dtype, list(shape)) for name, shape in shapes.items()}


def _store_whole(terms: Arrays) -> tuple[Tensors, Arrays]:
    return terms, {}


def _store_half(terms: Arrays) -> tuple[Tensors, Arrays]:
    largest = float(np.finfo(np.float16).max)
    stored = {n: np.clip(term, -largest, largest).astype(np.float16) for n, term in terms.items()}
    return stored, {n: term - stored[n].astype(np.float32) for n, term in terms.items()}


def _restore_half(tensors: Tensors, shapes: Shapes) -> Arrays:
    return {name: tensors[name].astype(np.float32) for name in shapes}


def _blocks(shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) // BLOCK)


def _scale_of(name: str) -> str:
    return f"{name}:scale"


def _steps_layout(shapes: Shapes) -> Layout:
    steps = {name: ("I8", list(shape)) for name, shape in shapes.items()}
    scales = {_scale_of(name): ("U16", [_blocks(shape)]) for name, shape in shapes.items()}
    return {**steps, **scales}


def _store_steps(terms: Arrays) -> tuple[Tensors, Arrays]:
    tensors: dict[str, NDArray[Any]] = {}
    lost: dict[str, F32] = {}
    for name, term in terms.items():
        rows = _in_blocks(term.ravel())
        steps = np.empty(rows.shape, np.int8)
        halves = np.empty(len(rows), np.uint16)
        left = np.empty(rows.shape, np.float32)
        for some in _parts(len(rows)):
            # All of it in `work`: new memory at each operation takes longer than its arithmetic.
            part, work = rows[some], left[some]
            largest = np.abs(part, out=work).max(axis=1, initial=0) / np.float32(STEPS)  # (blocks,)
            halves[some] = (largest.view(np.uint32) + 0xFFFF) >> 16  # rounded up
            scales = _scales(halves[some])[:, None]
            np.divide(part, np.where(scales > 0, scales, np.float32(1)), out=work)
            steps[some] = np.rint(work, out=work)
            np.subtract(part, np.multiply(work, scales, out=work), out=work)
        tensors[name] = _flat(steps, term.shape)
        tensors[_scale_of(name)] = halves
        lost[name] = _flat(left, term.shape)
    return tensors, lost


def _parts(rows: int) -> Iterator[slice]:
    """Of a term, each small enough for the processor's cache."""
    return (slice(first, first + _ROWS) for first in range(0, rows, _ROWS))


def _flat(rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The values in blocks again as a term of that shape."""
    return rows.ravel()[: math.prod(shape)].reshape(shape)


def _scales(halves: NDArray[np.uint16]) -> F32:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _restore_steps(tensors: Tensors, shapes: Shapes) -> Arrays:
    terms = {}
    for name, shape in shapes.items():
        steps, scales = tensors[name], _scales(tensors[_scale_of(name)])
        if not ((scales >= 0) & (scales <= _SCALE_MAX)).all():
            raise PeerError(f"the scales of {name} are not all numbers from 0 to {_SCALE_MAX:g}")
        if steps.size and not -STEPS <= steps.min() <= steps.max() <= STEPS:
            raise PeerError(f"the steps of {name} go beyond {STEPS}")
        rows = _in_blocks(steps.ravel())
        values = np.empty(rows.shape, np.float32)
        for some in _parts(len(rows)):
            part = values[some]
            part[:] = rows[some]
            np.multiply(part, scales[some, None], out=part)
        terms[name] = _flat(values, shape)
    return terms


def _in_blocks(values: NDArray[Any]) -> NDArray[Any]:
    """Rows of BLOCK values, the last one filled up with zeros."""
    missing = -len(values) % BLOCK
    return (np.pad(values, (0, missing)) if missing else values).reshape(-1, BLOCK)


CODECS: Mapping[str, _Codec] = {
    "fp32": _Codec(4, _floats("F32"), _store_whole, lambda tensors, _: dict(tensors)),
    "fp16": _Codec(2, _floats("F16"), _store_half, _restore_half),
    "int8": _Codec(1, _steps_layout, _store_steps, _restore_steps),
}
