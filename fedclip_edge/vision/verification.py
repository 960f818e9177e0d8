"""Verification that a box computes the features that a bundle was exported with.

ONNX Runtime computed the golden vectors on the exporting machine's CPU, from the same file that is
in the bundle. So only another processor, provider, precision or version of a library can cause
differences here. Two differences are measured: relative to the feature (‖here - golden‖ / ‖golden‖,
for the worst picture), and the largest difference in a component of unit vectors. Their tolerances
follow from the arithmetic:

- float32 arithmetic on a CPU (fp32; also fp16 and int8-weights, which store smaller weights but
  compute in float32): another order of summation changes the last bits, by 1e-7 for one sum and a
  few 1e-6 through a deep tower.
- 8-bit products (int8): a difference in the last bit before rounding can change a value by a whole
  level, 1/127 of the range. If many values change, the feature changes as much as through
  quantisation itself, by 1e-2. A CPU or a library that saturates such products causes far larger
  differences, which the check must find.
- float32 arithmetic on a GPU (encoder.py turns TF32 off): other algorithms for convolutions change
  the feature by 1e-5. TensorRT computes fp16 bundles in fp16, whose 11-bit significand gives
  an error of 5e-4 for one product and a few 1e-3 through a tower.
- bf16 arithmetic (OpenVINO, if asked for): its 8-bit significand gives an error of 4e-3 for one
  product and 1e-2 through ViT-B-32. Features of all pictures share a large part, which hides a
  difference. For bf16 the mean of the golden features is therefore subtracted from both sides, and
  the cosine of the rest must be at least 0.995; for ViT-B-32 with random weights it is 0.9987.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError
from fedclip_edge.records import F32
from fedclip_edge.vision.bundle import Bundle, Golden
from fedclip_edge.vision.encoder import Encoder, open_encoder
from fedclip_edge.vision.pace import Pace, pace_of, threads_of


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed differences between features."""

    on_unit: float  # largest difference in a component of unit vectors
    relative: float  # norm of the difference, relative to the feature's norm
    batch: float  # as `relative`, between a picture alone and in a batch
    centred: float | None = None  # 1 - cosine, without the mean feature; None: not measured


# A cached feature must not depend on the rest of its batch, so only its last bits may change. GPU
# libraries choose another kernel, and so another order of sums, for another batch size.
_FLOAT32 = Tolerance(on_unit=1e-5, relative=1e-4, batch=1e-6)
_EIGHT_BIT = Tolerance(on_unit=1e-2, relative=5e-2, batch=1e-6)
_GPU_FLOAT32 = Tolerance(on_unit=1e-4, relative=1e-3, batch=1e-4)
_GPU_FLOAT16 = Tolerance(on_unit=1e-3, relative=1e-2, batch=1e-2)
_GPU_EIGHT_BIT = Tolerance(on_unit=1e-2, relative=5e-2, batch=5e-2)
_BFLOAT16 = Tolerance(on_unit=1e-2, relative=5e-2, batch=1e-2, centred=5e-3)

_TIMED_BATCH = 8  # pictures; the largest batch that pace.py chooses on a CPU
_TIMED_S = 1.0


@dataclass(frozen=True)
class Figure:
    """A measured number and its upper limit."""

    name: str
    found: float
    allowed: float

    @property
    def passes(self) -> bool:
        """True if the number is within its limit, which NaN never is."""
        return self.found <= self.allowed


@dataclass(frozen=True)
class Verification:
    """Result of `verify`: the differences, and the speed of the encoder."""

    figures: tuple[Figure, ...]
    bit_equal: bool  # a picture alone gives the same bits as in a batch
    pictures: int
    provider: str
    threads: int
    images_per_s: float

    @property
    def passes(self) -> bool:
        """True if features of this box may be used together with those of other boxes."""
        return all(figure.passes for figure in self.figures)

    @property
    def differs(self) -> float:
        """The largest difference, as a share of its limit."""
        return max(figure.found / figure.allowed for figure in self.figures)


def tolerance(precision: str, provider: str) -> Tolerance:
    """Return the tolerance for a manifest's precision on a provider, an EncoderConfig.label.

    An unknown precision gets the tolerance of int8, the largest one.
    """
    on_cpu = provider in ("cpu", "openvino")
    if provider == "openvino-bf16":
        return _BFLOAT16
    if precision == "fp16" and provider == "tensorrt":
        return _GPU_FLOAT16
    if precision in ("fp32", "fp16", "int8-weights"):
        return _FLOAT32 if on_cpu else _GPU_FLOAT32
    return _EIGHT_BIT if on_cpu else _GPU_EIGHT_BIT


def verify(bundle: Bundle, config: EncoderConfig) -> Verification:
    """Encode the golden pictures on this box, compare the features, and measure the speed.

    `read_bundle` has already checked the files and the manifest. Differences above a tolerance are
    part of the result; `check` raises an error for them. Raises ConfigError if the provider is not
    available, and BundleError if the encoder cannot be run.
    """
    golden = bundle.golden()
    encoder = open_encoder(bundle, config)
    whole = encoder.embed(golden.pixels)  # (n, D)
    alone = one_by_one(encoder, golden.pixels)  # (n, D)
    allowed = tolerance(bundle.manifest.precision, config.label)
    figures = [
        Figure(
            "largest difference, unit vectors",
            float(np.abs(_unit(whole) - _unit(golden.features)).max(initial=0)),
            allowed.on_unit,
        ),
        Figure("relative difference", relative(whole, golden.features), allowed.relative),
        Figure("alone or in a batch", relative(alone, whole), allowed.batch),
    ]
    if allowed.centred is not None:
        cosine = centred_cosine(whole, golden.features)
        figures.append(Figure("1 - cosine, mean subtracted", 1 - cosine, allowed.centred))
    return Verification(
        figures=tuple(figures),
        bit_equal=bool(np.array_equal(alone, whole)),
        pictures=len(golden.pixels),
        provider=encoder.provider,
        threads=threads_of(config),
        images_per_s=_speed(encoder, golden, pace_of(config)),
    )


def check(verification: Verification, bundle: Bundle) -> None:
    """Raise BundleError, with what to do next, unless the verification passes."""
    wrong = [figure for figure in verification.figures if not figure.passes]
    if not wrong:
        return
    first, precision = wrong[0], bundle.manifest.precision
    raise BundleError(
        f"on this box {bundle.folder} gives other features than on the machine that exported it "
        f"({first.name}: {first.found:.2g}, at most {first.allowed:g} for {precision} on "
        f"{verification.provider}). Keep the box out of the fleet until they agree: try "
        f"{_remedy(precision, verification.provider)}"
    )


def _remedy(precision: str, provider: str) -> str:
    library = "openvino" if provider.startswith("openvino") else "onnxruntime"
    other = f"another version of {library}"
    if provider == "openvino-bf16":
        return "precision fp32, or provider cpu"
    if provider != "cpu":
        return f"--provider cpu, or {other}"
    return other if precision == "fp32" else f"a bundle exported in fp32, or {other}"


def _unit(vectors: F32) -> F32:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)


def one_by_one(encoder: Encoder, pixels: F32) -> F32:
    """Encode `pixels` float32 (N, 3, S, S) picture by picture; return features float32 (N, D)."""
    return np.concatenate([encoder.embed(one[None]) for one in pixels])


def relative(found: F32, expected: F32) -> float:
    """Return ‖found - expected‖ / ‖expected‖ of the worst picture, for features float32 (N, D).

    Without pictures, the result is 0.
    """
    gaps = np.linalg.norm(found.astype(np.float64) - expected, axis=1)
    return float((gaps / np.linalg.norm(expected.astype(np.float64), axis=1)).max(initial=0))


def centred_cosine(found: F32, expected: F32) -> float:
    """Return the smallest cosine of a picture's features (N, D) after subtracting their mean.

    The mean is that of the unit vectors of `expected`. A single picture is its own mean, so its
    own cosine is returned.
    """
    ours, theirs = _unit(found).astype(np.float64), _unit(expected).astype(np.float64)
    if len(theirs) > 1:
        mean = theirs.mean(axis=0)
        ours, theirs = ours - mean, theirs - mean
    products = (ours * theirs).sum(axis=1)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float((products / norms).min())


def _speed(encoder: Encoder, golden: Golden, pace: Pace) -> float:
    """Return pictures per second in batches of _TIMED_BATCH; the best run within a second.

    As many batches are encoded at the same time as while the agent works.
    """
    repeats = -(-_TIMED_BATCH // len(golden.pixels))
    batch = np.concatenate([golden.pixels] * repeats)[:_TIMED_BATCH]  # (8, 3, S, S)
    at_once = [batch] * pace.encoders
    with ThreadPoolExecutor(pace.encoders) as threads:
        list(threads.map(encoder.embed, at_once))  # the first run allocates memory
        best_s, ends = float("inf"), time.monotonic() + _TIMED_S
        while time.monotonic() < ends:
            began = time.perf_counter()
            list(threads.map(encoder.embed, at_once))
            best_s = min(best_s, time.perf_counter() - began)
    return len(batch) * len(at_once) / best_s
