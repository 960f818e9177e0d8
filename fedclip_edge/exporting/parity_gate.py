"""Conversion of a graph to another precision, followed by the parity gate."""

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
    """An encoder that passed the parity gate, or whose misses were accepted."""

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
    """Convert the fp32 `graph` to the precision `wanted` and compare it with `reference`.

    The features of `reference` are taken as correct. `progress` is called with (done, total) during
    the comparison, and `report` once with its result, passed or not. `name` appears in messages.
    Raises ValueError for int8 without calibration pictures; ExportError if the graph cannot be
    converted or run, returns NaN or infinity, or fails the gate without `accept_parity`.
    """
    calibration = [pictures.calibration] if len(pictures.calibration) else []
    onnx_file = serialise(precision.convert(graph, wanted, calibration))
    encoder = open_candidate(onnx_file, preprocessing, f"{name} in {wanted}", wanted)
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
