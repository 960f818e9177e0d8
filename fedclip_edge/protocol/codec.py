"""Codecs for the float32 tensors of a model or an update, with compression and error feedback.

Such a tensor is called a term. A codec defines the tensors that a payload holds for each term:

    fp32   float32, the term itself
    fp16   float16; a value beyond its range is clipped to it
    int8   int8 steps, -55 to 55, and in NAME:scale one scale for each block of 256 consecutive
           steps: a value is step * scale. A scale is 1/55 of the block's largest absolute value,
           rounded up to a bfloat16. Its 16 bits are stored as a uint16: half the size of a float32,
           with the same range

Whole numbers (an update's `sums`) are stored as int64 under every codec.

The payload is then shuffled and compressed with zstd. Shuffling puts the lowest bytes of all items
first, then their next bytes, and so on. It helps because floats often have equal exponents but are
seldom equal as a whole. An item has the size of the codec's numbers, or 8 bytes in a payload with
sums.

The part of an update that a lossy codec loses is called the residual. The sender adds it to its
next update. This is error feedback, after Seide, Fu, Droppo, Li, Yu 2014, "1-bit stochastic
gradient descent and its application to data-parallel distributed training of speech DNNs"
(Interspeech), and Karimireddy, Rebjock, Stich, Jaggi 2019, "Error feedback fixes SignSGD and other
gradient compression schemes", arXiv 1901.09847.

Laws:
- The same terms give the same bytes.
- Sizes are checked before memory is allocated.
- The restored terms and the residual add up to the stored terms, within float32's rounding.
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
Layout = Mapping[str, tuple[str, list[int]]]  # by tensor: safetensors dtype, shape

BLOCK = 256  # steps that share a scale
# Largest step. It is less than int8's 127, so that an update with any distribution of values needs
# at most 7 bits per value after compression: 455 kB for an adapter of 525,312 parameters (526 kB
# with 127). The precision that this costs is sent with the next update (error feedback).
STEPS = 55
_SCALE_MAX = 1e30  # small enough that a step times a scale cannot overflow; plans allow far less
_ROWS = 256  # blocks processed at a time: small enough for the processor's cache
INTEGER_BYTES = 8
_LEVEL = 1  # higher levels save nothing on floats and take longer (benchmarks/codec_sizes.py)


@dataclass(frozen=True)
class Codec:
    """The functions of one codec; `store`, `restore` and the others find it by name in CODECS."""

    item_bytes: int  # size of the items that are shuffled
    layout: Callable[[Shapes], Layout]  # dtype and shape of each tensor, from the terms' shapes
    store: Callable[[Arrays], tuple[Tensors, Arrays]]  # the tensors, and the loss of each term
    restore: Callable[[Tensors, Shapes], Arrays]  # the terms; PeerError for impossible values


def tensor_layout(codec: str, shapes: Shapes, sums: Shapes | None = None) -> Layout:
    """Dtype and shape of each tensor in a payload whose terms and sums have these shapes.

    Raises PeerError for a codec not in CODECS.
    """
    whole = {name: ("I64", list(shape)) for name, shape in (sums or {}).items()}
    return {**_get(codec).layout(shapes), **whole}


def store(codec: str, terms: Arrays) -> Tensors:
    """The tensors that a payload holds for these terms.

    `terms` are finite float32 of any shape. The tensors have `tensor_layout`'s dtypes and shapes;
    under fp32 they are the terms themselves, not copies. Raises PeerError for an unknown codec.
    """
    return _get(codec).store(terms)[0]


def restore(codec: str, tensors: Tensors, shapes: Shapes) -> Arrays:
    """The terms from a payload's tensors, float32 with the shapes in `shapes`.

    They differ from the original terms by the codec's loss. `tensors` must have the codec's
    `tensor_layout` for `shapes`. Raises PeerError for a codec not in CODECS, and under int8 for
    steps beyond STEPS and scales outside 0 to 1e30, NaN and infinity included.
    """
    return _get(codec).restore(tensors, shapes)


def with_feedback(codec: str, terms: Arrays, residual: Arrays) -> tuple[Tensors, Arrays]:
    """The tensors to send for `terms` plus `residual`, and the new residual.

    `terms` are finite float32 of any shape. `residual` is that of the previous update: float32 with
    the shapes of the terms, by name, or empty. The new residual has the same form; it is empty if
    nothing was lost. Raises PeerError for a codec not in CODECS.
    """
    meant = {
        name: term + residual[name] if name in residual else term for name, term in terms.items()
    }
    tensors, lost = _get(codec).store(meant)
    return tensors, lost if any(term.any() for term in lost.values()) else {}


def encode(codec: str, payload: bytes, *, integers: bool = False) -> bytes:
    """The payload, shuffled and compressed; `integers` is true if it holds sums.

    Without `integers`, raises PeerError for a codec not in CODECS.
    """
    shuffled = _shuffle(payload, _item_bytes(codec, integers=integers))
    return zstandard.ZstdCompressor(level=_LEVEL).compress(shuffled)


def decode(codec: str, data: bytes, limit_bytes: int, *, integers: bool = False) -> bytes:
    """The payload that `encode` compressed to `data`.

    The frame's header declares the payload's size, which is checked against `limit_bytes` before
    memory is allocated. Raises PeerError if it is not from 1 to `limit_bytes`, if `data` is not one
    whole zstd frame, and, without `integers`, for a codec not in CODECS.
    """
    item_bytes = _item_bytes(codec, integers=integers)
    try:
        declared = zstandard.frame_content_size(data)
        if not 0 < declared <= limit_bytes:
            raise PeerError(f"payload declares {declared} bytes, expected 1 to {limit_bytes}")
        payload = zstandard.ZstdDecompressor().decompress(
            data, max_output_size=declared, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise PeerError(f"payload is not a complete zstd frame: {error}") from None
    return _unshuffle(payload, item_bytes)


def register(name: str, codec: Codec) -> None:
    """Add a codec to CODECS in this process; raises ValueError if the name is taken.

    It is for experiments: a plan accepts only the names in `records.Codec`. The coordinator and
    every device must register the codec.
    """
    if name in CODECS:
        raise ValueError(f"there is a codec {name!r} already; choose another name")
    CODECS[name] = codec


def _item_bytes(codec: str, *, integers: bool) -> int:
    return INTEGER_BYTES if integers else _get(codec).item_bytes


def _get(codec: str) -> Codec:
    if codec not in CODECS:
        raise PeerError(f"unknown codec {codec[:40]!r}")
    return CODECS[codec]


def _shuffle(payload: bytes, item_bytes: int) -> bytes:
    if item_bytes == 1:
        return payload
    whole = len(payload) - len(payload) % item_bytes
    planes = np.frombuffer(payload[:whole], np.uint8).reshape(-1, item_bytes).T
    return planes.tobytes() + payload[whole:]


def _unshuffle(payload: bytes, item_bytes: int) -> bytes:
    if item_bytes == 1:
        return payload
    whole = len(payload) - len(payload) % item_bytes
    planes = np.frombuffer(payload[:whole], np.uint8).reshape(item_bytes, -1)
    # Shifting whole planes into integers takes a tenth of the time of transposing single bytes.
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
        rows = _in_blocks(term.ravel())  # (blocks, BLOCK)
        steps = np.empty(rows.shape, np.int8)
        halves = np.empty(len(rows), np.uint16)
        left = np.empty(rows.shape, np.float32)
        for some in _parts(len(rows)):
            # All results go to `work`: allocating memory would take longer than the arithmetic.
            part, work = rows[some], left[some]  # (blocks, BLOCK)
            largest = np.abs(part, out=work).max(axis=1, initial=0) / np.float32(STEPS)  # (blocks,)
            halves[some] = (largest.view(np.uint32) + 0xFFFF) >> 16  # rounded up
            scales = _scales(halves[some])[:, None]  # (blocks, 1)
            np.divide(part, np.where(scales > 0, scales, np.float32(1)), out=work)
            steps[some] = np.rint(work, out=work)
            np.subtract(part, np.multiply(work, scales, out=work), out=work)
        tensors[name] = _flat(steps, term.shape)
        tensors[_scale_of(name)] = halves
        lost[name] = _flat(left, term.shape)
    return tensors, lost


def _parts(rows: int) -> Iterator[slice]:
    """Slices over the rows of a term, each small enough for the processor's cache."""
    return (slice(first, first + _ROWS) for first in range(0, rows, _ROWS))


def _flat(rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The first values of `rows` in the given shape: the inverse of `_in_blocks`."""
    return rows.ravel()[: math.prod(shape)].reshape(shape)


def _scales(halves: NDArray[np.uint16]) -> F32:
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _restore_steps(tensors: Tensors, shapes: Shapes) -> Arrays:
    terms = {}
    for name, shape in shapes.items():
        steps, scales = tensors[name], _scales(tensors[_scale_of(name)])
        if not ((scales >= 0) & (scales <= _SCALE_MAX)).all():
            raise PeerError(f"the int8 scales of {name} are not all from 0 to {_SCALE_MAX:g}")
        if steps.size and not -STEPS <= steps.min() <= steps.max() <= STEPS:
            raise PeerError(f"the int8 steps of {name} are not all from -{STEPS} to {STEPS}")
        rows = _in_blocks(steps.ravel())
        values = np.empty(rows.shape, np.float32)
        for some in _parts(len(rows)):
            part = values[some]
            part[:] = rows[some]
            np.multiply(part, scales[some, None], out=part)
        terms[name] = _flat(values, shape)
    return terms


def _in_blocks(values: NDArray[Any]) -> NDArray[Any]:
    """The values in rows of BLOCK, the last row padded with zeros."""
    missing = -len(values) % BLOCK
    return (np.pad(values, (0, missing)) if missing else values).reshape(-1, BLOCK)


CODECS: dict[str, Codec] = {
    "fp32": Codec(4, _floats("F32"), _store_whole, lambda tensors, _: dict(tensors)),
    "fp16": Codec(2, _floats("F16"), _store_half, _restore_half),
    "int8": Codec(1, _steps_layout, _store_steps, _restore_steps),
}
