"""Parity gate: comparison of an exported encoder with its model before a bundle is written.

Differences are measured on unit vectors. Norms have a separate figure, because the FedCLIP gate
works on raw features. Cosines are mean-centred, because the features of any two pictures have a
cosine of about 0.7, so a raw cosine hides damage. Nearest neighbours are always searched within
groups of 64 pictures, because the thresholds were set with 64; among more pictures, near ties are
more frequent.

Law: NaN and infinity are never accepted. A user can accept any other miss, and the manifest then
records it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.errors import BundleError, ExportError
from fedclip_edge.exporting.calibration import LEAST, GatePictures
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.records import F32, ClassTexts, Scalar
from fedclip_edge.vision.encoder import Encoder

if TYPE_CHECKING:
    import torch

F64 = NDArray[np.float64]
Reference = Callable[[F32], F32]  # pixels (N, 3, S, S) -> raw features (N, D)
Progress = Callable[[int, int], None]  # done, total

_BATCH = 8  # pictures
_OTHER_BATCHES = (1, 5)  # one picture, and a size that no exporter used as its example


class Limit(NamedTuple):
    """A threshold for one figure."""

    figure: str  # its name in the manifest
    label: str  # its name in the report
    most: bool  # True: at most `bound`; False: at least
    bound: float


def _at_most(figure: str, label: str, bound: float) -> Limit:
    return Limit(figure, label, True, bound)


def _at_least(figure: str, label: str, bound: float) -> Limit:
    return Limit(figure, label, False, bound)


_DIFFERENCE = ("largest_difference", "largest difference")
_CENTRED_MIN = ("centred_cosine_min", "centred cosine, smallest")
_CENTRED_MEAN = ("centred_cosine_mean", "centred cosine, mean")
_NEIGHBOURS = ("neighbour_agreement", "nearest neighbour agrees")
_NORM = ("norm_difference", "norm, largest relative difference")
_DROP = ("zero_shot_drop", "zero-shot accuracy lost, points")
# Figures that every report shows, even if the precision has no limit for them.
_TOLD = (_DIFFERENCE, _CENTRED_MIN, _CENTRED_MEAN, _NEIGHBOURS, _NORM, _DROP)
# A kernel may sum in another order for a batch of one; no larger difference is allowed.
_ALL = (_at_most("batch_difference", "across batch sizes, relative", 1e-6),)
_SMALLER = (_at_least(*_NEIGHBOURS, 0.95), _at_most(*_DROP, 0.5))
LIMITS: Mapping[Precision, tuple[Limit, ...]] = {
    # Two orders of magnitude above rounding error; a wrong operator differs by far more.
    "fp32": (_at_most(*_DIFFERENCE, 1e-5), _at_most(*_NORM, 1e-5), *_ALL),
    # Rounding to float16 changes a weight by up to 5e-4 of itself.
    "fp16": (
        _at_most(*_DIFFERENCE, 1e-3),
        _at_least(*_CENTRED_MIN, 0.9995),
        _at_most(*_NORM, 1e-3),
        *_ALL,
    ),
    # The norm's limit is for the worst picture. The gradient of the FedCLIP gate changes by the
    # same factor as the norm.
    "int8": (
        _at_least(*_CENTRED_MEAN, 0.99),
        _at_least(*_CENTRED_MIN, 0.95),
        *_SMALLER,
        _at_most(*_NORM, 0.1),
        *_ALL,
    ),
    # Activations keep their precision, so the limits allow only half of int8's loss, or less.
    "int8-weights": (
        _at_least(*_CENTRED_MEAN, 0.995),
        _at_least(*_CENTRED_MIN, 0.975),
        *_SMALLER,
        _at_most(*_NORM, 0.02),
        *_ALL,
    ),
}


class Row(NamedTuple):
    """One line of the report."""

    label: str
    value: str
    threshold: str  # "" if the figure has none
    passed: bool | None  # None without a threshold


@dataclass(frozen=True)
class Parity:
    """Result of the gate; it has no NaN or infinity, which `measure` refuses."""

    precision: Precision
    pictures: int  # N
    source: str  # "folder" or "drawn"
    figures: Mapping[str, float]  # by name, as in `Limit.figure`
    zero_shot_agreement: float  # share of pictures with the same top class, 0 to 1
    zero_shot_reference: float | None  # the model's top-1 in percent; None without labels
    zero_shot: float | None  # top-1 of the exported encoder in percent; None without labels
    bit_equal: bool  # True if a feature has the same bits in every batch size

    @property
    def missed(self) -> tuple[str, ...]:
        """Figures that miss their threshold, each as "label value (at most bound)"."""
        return tuple(
            f"{row.label} {row.value} ({row.threshold})"
            for row in self.rows()
            if row.passed is False
        )

    def rows(self) -> tuple[Row, ...]:
        """Lines of the report, for a table."""
        limits = {limit.figure: limit for limit in LIMITS[self.precision]}
        rows = [Row("pictures", f"{self.pictures}, {self.source}", "", None)]
        for figure, label in (*_TOLD, *((limit.figure, limit.label) for limit in _ALL)):
            if figure in self.figures:
                rows.append(_row(label, self.figures[figure], limits.get(figure)))
        rows.append(Row("zero-shot class agrees", f"{self.zero_shot_agreement:.4f}", "", None))
        if self.zero_shot is not None and self.zero_shot_reference is not None:
            both = f"{self.zero_shot_reference:.2f} % -> {self.zero_shot:.2f} %"
            rows.append(Row("zero-shot accuracy", both, "", None))
        rows.append(Row("bit-equal across batches", "yes" if self.bit_equal else "no", "", None))
        return tuple(rows)

    def to_json(self) -> dict[str, Scalar]:
        """The table for the manifest; `accepted` is True if figures missed their thresholds.

        A bundle with such figures is written only if the user accepted them.
        """
        table: dict[str, Scalar] = {
            "passed": not self.missed,
            "accepted": bool(self.missed),
            "pictures": self.pictures,
            "source": self.source,
            "batches": ", ".join(map(str, (*_OTHER_BATCHES, _BATCH))),
            **{name: _kept(value) for name, value in self.figures.items()},
            "zero_shot_agreement": self.zero_shot_agreement,
            "bit_equal": self.bit_equal,
        }
        if self.zero_shot is not None and self.zero_shot_reference is not None:
            table["zero_shot"] = self.zero_shot
            table["zero_shot_reference"] = self.zero_shot_reference
        if self.missed:
            table["missed"] = "; ".join(self.missed)
        return table


def of_tower(tower: torch.nn.Module) -> Reference:
    """Reference that computes raw features with the PyTorch module `tower` on the CPU.

    `tower` maps pixels float32 (N, 3, S, S) to features (N, D); its exceptions pass through.
    """
    import torch

    def features(pixels: F32) -> F32:
        with torch.inference_mode():
            return np.asarray(tower(torch.from_numpy(pixels)).numpy(), np.float32)

    return features


def measure(
    encoder: Encoder,
    reference: Reference,
    pictures: GatePictures,
    texts: ClassTexts,
    precision: Precision,
    progress: Progress = lambda _done, _total: None,
) -> Parity:
    """Compare `encoder` with `reference` on all pictures in batches of 8.

    The encoder also runs on the first 64 pictures in batches of 1 and of 5. `progress` is called
    with (done, total) after each batch; a picture counts once for each pass through the encoder or
    the reference. Figures that miss the thresholds of `precision` raise no error here; see `check`.

    Raises ExportError if the encoder fails or returns NaN, infinity or another shape than the
    reference, or if the reference returns NaN, infinity or a feature of 0.
    """
    pixels = pictures.pixels
    total = 2 * len(pixels) + len(_OTHER_BATCHES) * LEAST
    done = 0

    def passed(features: Reference, some: F32, size: int) -> F64:
        nonlocal done
        parts = []
        for i in range(0, len(some), size):
            parts.append(features(some[i : i + size]).astype(np.float64))
            done += len(parts[-1])
            progress(done, total)
        return np.concatenate(parts)

    try:
        theirs = passed(reference, pixels, _BATCH)  # (N, D)
        ours = passed(encoder.embed, pixels, _BATCH)  # (N, D)
        again = [passed(encoder.embed, pixels[:LEAST], size) for size in _OTHER_BATCHES]
    except BundleError as error:
        raise ExportError(str(error)) from error
    if ours.shape != theirs.shape:
        raise ExportError(
            f"the exported encoder returns features {list(ours.shape)}, but the original model "
            f"returns {list(theirs.shape)}; nothing was written"
        )
    norms = np.linalg.norm(theirs, axis=1)  # (N,)
    if not (np.isfinite(theirs).all() and norms.all()):
        raise ExportError(
            "the original model returns NaN, infinity or 0, so its weights are damaged; nothing "
            "was written"
        )
    units, exact = _unit(ours), _unit(theirs)  # (N, D) each
    centred = _unit(units - exact.mean(axis=0)), _unit(exact - exact.mean(axis=0))
    cosines = (centred[0] * centred[1]).sum(axis=1)  # (N,)
    tops = [(vectors @ texts.vectors.T).argmax(axis=1) for vectors in (units, exact)]
    first = norms[:LEAST, None]  # (64, 1)
    figures = {
        "largest_difference": float(np.abs(units - exact).max()),
        "centred_cosine_min": float(cosines.min()),
        "centred_cosine_mean": float(cosines.mean()),
        "neighbour_agreement": _neighbour_agreement(units, exact),
        "norm_difference": float(np.abs(np.linalg.norm(ours, axis=1) / norms - 1).max()),
        "batch_difference": max(float((abs(o - ours[:LEAST]) / first).max()) for o in again),
    }
    top1: list[float] = []
    if pictures.labels is not None:
        top1 = [100 * float((top == pictures.labels).mean()) for top in tops]
        figures["zero_shot_drop"] = top1[1] - top1[0]
    return Parity(
        precision=precision,
        pictures=len(pixels),
        source=pictures.source,
        figures=figures,
        zero_shot_agreement=float((tops[0] == tops[1]).mean()),
        zero_shot=top1[0] if top1 else None,
        zero_shot_reference=top1[1] if top1 else None,
        bit_equal=all(np.array_equal(other, ours[:LEAST]) for other in again),
    )


def check(parity: Parity) -> None:
    """Raise ExportError if any figure misses its threshold; the message names all that do."""
    if parity.missed:
        smaller = parity.precision != "fp32"
        advice = (
            "Export in int8-weights or fp16, which a CPU computes in fp32"
            if parity.precision == "int8"
            else "Export in fp16, which a CPU computes in fp32"
            if parity.precision == "int8-weights"
            else "Export in fp32"
            if smaller
            else "Export with the versions in constraints.txt"
        )
        raise ExportError(
            f"the {parity.precision} features differ too much from the original model's: "
            f"{'; '.join(parity.missed)}; nothing was written. {advice}, or accept the difference "
            "with --accept-parity"
        )


def _kept(value: float) -> float:
    """Round a figure, because its last digits depend on PyTorch's number of threads."""
    return float(f"{value:.1g}") if abs(value) < 0.01 else round(value, 4)


def _row(label: str, value: float, limit: Limit | None) -> Row:
    shown = f"{value:.2g}" if abs(value) < 0.01 else f"{value:.4f}"
    if limit is None:
        return Row(label, shown, "", None)
    passed = value <= limit.bound if limit.most else value >= limit.bound
    return Row(label, shown, f"at {'most' if limit.most else 'least'} {limit.bound:g}", passed)


def _unit(vectors: F64) -> F64:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))


def _neighbour_agreement(units: F64, exact: F64) -> float:
    """Share of pictures whose nearest neighbour in their group of 64 is the same.

    Pictures after the last full group are left out.
    """
    same = []
    for start in range(0, len(units) - LEAST + 1, LEAST):
        some = slice(start, start + LEAST)
        nearest = [_nearest(vectors[some]) for vectors in (units, exact)]
        same.append((nearest[0] == nearest[1]).mean())
    return float(np.mean(same))


def _nearest(units: F64) -> NDArray[np.intp]:
    cosines = units @ units.T  # (64, 64)
    np.fill_diagonal(cosines, -np.inf)
    return np.asarray(cosines.argmax(axis=1))
