"""A graph in the precision asked for, judged before it becomes a bundle's encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from fedclip_edge.exporting import parity, precision
from fedclip_edge.exporting.calibration import GatePictures
from fedclip_edge.exporting.golden import golden_vectors, open_candidate
from fedclip_edge.exporting.onnx_file import serialise
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.records import ClassTexts, Scalar
from fedclip_edge.vision.bundle import Golden
from fedclip_edge.vision.pictures import Preprocessing

Report = Callable[[parity.Parity], None]


@dataclass(frozen=True, eq=False)
class Candidate:
    """An encoder that the gate let through."""

    onnx_file: bytes
    golden: Golden
    parity: parity.Parity
    quantisation: Mapping[str, Scalar]


def make_candidate(
    graph: onnx.ModelProto,
    wanted: Precision,
    pictures: GatePictures,
    reference: parity.Reference,
    texts: ClassTexts,
    preprocessing: Preprocessing,
    *,
    accept_parity: bool,
    report: Report,
    progress: parity.Progress,
    name: str,
) -> Candidate:
    """Converts the fp32 `graph` and compares it with `reference`, whose features are the truth.

    `report` is shown what the gate found, whether it passed or not; `progress` hears of the
    comparison. Raises ExportError where the
    graph cannot be converted or run, gives NaN, or misses the gate and is not accepted.
    """
    calibration = [pictures.calibration] if len(pictures.calibration) else []
    onnx_file = serialise(precision.convert(graph, wanted, calibration))
    encoder = open_candidate(onnx_file, preprocessing, f"{name} in {wanted}")
    found = parity.measure(encoder, reference, pictures, texts, wanted, progress)
    report(found)
    if not accept_parity:
        parity.check(found)
    return Candidate(
        onnx_file=onnx_file,
        golden=golden_vectors(encoder, preprocessing),
        parity=found,
        quantisation=precision.describe(wanted, calibration),
    )
