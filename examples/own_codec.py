"""A bfloat16 codec outside the package, next to the codecs of the product.

bfloat16 is the upper half of a float32: its range, with 8 bits of precision instead of 24. numpy
has no such type, so a payload holds the 16 bits as uint16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.errors import PeerError
from fedclip_edge.protocol import codec, wire
from fedclip_edge.protocol.codec import Layout, Tensors
from fedclip_edge.records import F32, Arrays, Contribution, Shapes, Update

NAME = "bf16"
_LARGEST = np.uint32(0x7F7F0000).view(np.float32)  # the largest finite bfloat16


def layout(shapes: Shapes) -> Layout:
    """Return a uint16 tensor of the same shape for each term."""
    return {name: ("U16", list(shape)) for name, shape in shapes.items()}


def store(terms: Arrays) -> tuple[Tensors, Arrays]:
    """Round terms to bfloat16, half to even; return the tensors and what each term lost."""
    halves = {name: _halves(term) for name, term in terms.items()}
    return halves, {name: term - _floats(halves[name]) for name, term in terms.items()}


def restore(tensors: Tensors, shapes: Shapes) -> Arrays:
    """Return the terms as float32; raises PeerError for NaN and infinity, which no sender makes."""
    terms = {name: _floats(tensors[name]) for name in shapes}
    for name, term in terms.items():
        if not np.isfinite(term).all():
            raise PeerError(f"{name} holds NaN or infinity")
    return terms


def _halves(term: F32) -> NDArray[np.uint16]:
    bits = np.clip(term, -_LARGEST, _LARGEST).view(np.uint32)
    return np.asarray((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, np.uint16)


def _floats(halves: NDArray[np.uint16]) -> F32:
    return np.asarray((halves.astype(np.uint32) << 16).view(np.float32))


CODEC = codec.Codec(2, layout, store, restore)


def compare(rounds: int = 20) -> None:
    """Send drawn updates through each codec, with error feedback, and print a row for each."""
    random = np.random.default_rng(0)
    shapes = {"weight": (512, 512)}
    updates = [random.normal(0, 1e-3, shapes["weight"]).astype(np.float32) for _ in range(rounds)]
    meant = np.asarray(np.sum(updates, axis=0, dtype=np.float64))
    print("codec  bytes/update  error of one  error of the sum")
    for name in codec.CODECS:
        arrived, residual, sizes, first = np.zeros(shapes["weight"]), dict[str, F32](), [], 0.0
        for number, update in enumerate(updates):
            stored, lost = codec.with_feedback(name, {"weight": update}, residual)
            residual = dict(lost)
            made = Contribution(
                "run-1", number + 1, "cam-01", "0" * 64,
                Update("sum", 1, {"weight": update}),
            )  # fmt: skip
            payload = wire.pack_contribution(made, name, stored)
            found = wire.unpack_contribution(payload, name, shapes).update.delta["weight"]
            arrived += found
            sizes.append(len(payload))
            first = first or relative(found, update)
        print(f"{name:<5} {np.mean(sizes):13.0f} {first:13.1e} {relative(arrived, meant):17.1e}")


def relative(found: F32 | NDArray[np.float64], expected: F32 | NDArray[np.float64]) -> float:
    """Return the norm of the difference, relative to the norm of `expected`."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    codec.register(NAME, CODEC)
    compare()
