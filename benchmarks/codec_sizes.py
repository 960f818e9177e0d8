"""Size, time and largest error of each codec on the update of an adapter.

The updates are those of the first and the last of --rounds rounds of FedCLIP with the reference's
settings, in a federation of one device, on features generated around class texts of width 512
(525,312 parameters). For comparison: the last model, and normally distributed numbers, which no
training gives and which compress worst. Times are medians of --repeat runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import zstandard

from fedclip_edge.learning import methods, training
from fedclip_edge.learning.aggregation import ExactSum
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.protocol import codec, wire
from fedclip_edge.records import Arrays, ClassTexts, Features, Model, Plan

T = TypeVar("T")
DIM, CLASSES, PICTURES = 512, 7, 250
LEVELS = (-1, 1, 3, 6, 12)


def timed(repeat: int, work: Callable[[], T]) -> tuple[T, float]:
    """The result of the work, and its median time in milliseconds."""
    took = []
    for _ in range(repeat):
        began = time.perf_counter()
        result = work()
        took.append(1e3 * (time.perf_counter() - began))
    return result, statistics.median(took)


def updates(rounds: int) -> dict[str, Arrays]:
    random = np.random.default_rng(0)
    units = random.normal(size=(CLASSES, DIM))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    names = tuple(f"class {n}" for n in range(CLASSES))
    classes = ClassTexts(names, units.astype(np.float32), 100.0, "unknown")
    labels = random.integers(0, CLASSES, PICTURES)
    vectors = 10 * (units[labels] + 0.04 * random.normal(size=(PICTURES, DIM)))
    features = Features(vectors.astype(np.float32), labels, "e" * 64)
    empty = Features(features.vectors[:0], features.labels[:0], features.encoder_id)
    plan = Plan("fedclip")
    model, found = methods.initial(plan, classes, DIM), {}
    for number in range(rounds):
        update = methods.fit(LocalTask(plan, model, features, empty, classes, number))
        if number in (0, rounds - 1):
            found[f"update of round {number + 1}"] = update.delta
        total = ExactSum(plan)
        total.add(update)
        model, _ = methods.combine(model, total, {})
    drawn = {
        name: random.normal(size=term.shape).astype(np.float32)
        for name, term in model.parameters.items()
    }
    return {**found, f"model of round {rounds}": model.parameters, "normally distributed": drawn}


def measure(name: str, terms: Arrays, repeat: int) -> dict[str, object]:
    shapes = {key: term.shape for key, term in terms.items()}
    model = Model("m", 1, terms)
    data, encode_ms = timed(repeat, lambda: wire.pack_model(model, name))
    found, decode_ms = timed(repeat, lambda: wire.unpack_model(data, name, shapes))
    largest = max(float(np.abs(term).max()) for term in terms.values())
    error = max(float(np.abs(found.parameters[key] - terms[key]).max()) for key in terms)
    whole = codec.decode(name, data, wire.payload_limit_bytes(shapes, name))
    levels = {}
    for level in LEVELS:
        compressor = zstandard.ZstdCompressor(level=level)
        shuffled = zstandard.ZstdDecompressor().decompress(data)
        plain, plain_ms = timed(1, lambda c=compressor: c.compress(whole))  # type: ignore[misc]
        squeezed, squeezed_ms = timed(1, lambda c=compressor, s=shuffled: c.compress(s))  # type: ignore[misc]
        levels[level] = {
            "bytes": len(squeezed),
            "ms": squeezed_ms,
            "unshuffled bytes": len(plain),
            "unshuffled ms": plain_ms,
        }
    return {
        "bytes": len(data),
        "encode_ms": encode_ms,
        "decode_ms": decode_ms,
        "largest_error": error,
        "of_largest": error / largest,
        "levels": levels,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    training.use_one_thread()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, zstandard {zstandard.__version__}"
    )
    figures = {}
    print(
        f"{'':24} codec      bytes  encode  decode  error / largest   zstd level: kB shuffled (kB unshuffled)"
    )
    for title, terms in updates(options.rounds).items():
        for name in codec.CODECS:
            row = figures[f"{title}, {name}"] = measure(name, terms, options.repeat)
            levels = row["levels"]
            assert isinstance(levels, dict)
            shown = "  ".join(
                f"{level}: {its['bytes'] / 1e3:.0f} ({its['unshuffled bytes'] / 1e3:.0f})"
                for level, its in levels.items()
            )
            print(
                f"{title:24} {name:5} {row['bytes']:10,} {row['encode_ms']:5.1f}ms "
                f"{row['decode_ms']:5.1f}ms  {row['of_largest']:15.1e}   {shown}"
            )
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
