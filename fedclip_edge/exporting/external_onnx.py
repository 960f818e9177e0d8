"""Export of a user's own ONNX encoder to a bundle, without PyTorch or open_clip.

Law: everything is checked before the first byte is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from fedclip_edge.errors import ConfigError, ExportError
from fedclip_edge.exporting.calibration import Draw, calibrated, check_calibration, gather
from fedclip_edge.exporting.golden import golden_vectors, open_candidate
from fedclip_edge.exporting.inputs import read_class_texts, read_encoder_file
from fedclip_edge.exporting.onnx_file import opset_of
from fedclip_edge.exporting.parity import Progress
from fedclip_edge.exporting.parity_gate import Report, make_candidate
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.exporting.versions import versions
from fedclip_edge.vision import verification
from fedclip_edge.vision.bundle import Bundle, Golden, Manifest, check_free, write_bundle
from fedclip_edge.vision.encoder import Encoder

_FLOATS = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
}
_QUANTISED = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)


def export_onnx(
    encoder: Path,
    preprocess: Path,
    class_texts: Path,
    classes: Path,
    out: Path,
    *,
    precision: Precision = "fp32",
    draw: Draw,
    calibration: Path | None = None,
    accept_parity: bool = False,
    replace_existing: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Bundle:
    """Make a bundle from an ONNX encoder, a description of its preprocessing, and class texts.

    `encoder` is an ONNX file from pixels float32 (N, 3, S, S) to features float32 (N, D) with a
    dynamic N. `preprocess` is the TOML file of `EncoderFile`. `class_texts` is a `.npy` of C unit
    vectors (C, D), in the order of the names in the file `classes`. Manifest fields that these
    files do not contain are "unknown".

    With the precision "fp32", the file is kept byte for byte, even if its weights are stored in
    another precision. There is no other encoder to compare its features with. The only check is
    that they do not depend on the rest of the batch. Any other precision needs an fp32 file. It is
    converted, and the parity gate compares both on the pictures in the folder `calibration`; if
    that is None, on the pictures that `draw` returns. The encoder id stays the same, so
    features of both precisions may be used together. With `accept_parity`, the bundle is written
    even if the gate fails.

    `say` is called with lines of text before the conversion, `progress` with (done, total)
    during the comparison, and `report` once with the gate's result, passed or not.

    Raises ConfigError, naming the file, if a file is missing or wrong; ExportError if the encoder
    does not fit the other files, cannot be converted, or fails the gate without `accept_parity`;
    DiskError if the folder cannot be written. No file is left behind after an error.
    """
    check_free(out, replace_existing=replace_existing)
    check_calibration(precision, calibration)
    described = read_encoder_file(preprocess)
    texts = read_class_texts(class_texts, classes, described.logit_scale, described.prompt)
    onnx_file = _read_bytes(encoder)
    graph = _parse(onnx_file, encoder)
    preprocessing = described.preprocessing()
    given = open_candidate(onnx_file, preprocessing, str(encoder), _precision(graph))
    golden = golden_vectors(given, preprocessing)
    _check_features(given, golden, str(encoder))
    dim = golden.features.shape[1]
    if dim != texts.vectors.shape[1]:
        raise ExportError(
            f"{encoder} returns features of width {dim}, but {class_texts} has text vectors of "
            f"width {texts.vectors.shape[1]}; give an encoder and text vectors of the same model"
        )
    manifest = Manifest(
        model=described.model,
        pretrained="unknown",
        weights_sha256=hashlib.sha256(onnx_file).hexdigest(),
        dim=dim,
        preprocessing=preprocessing,
        activation="unknown",
        precision=_precision(graph),
        opset=opset_of(graph),
        made_with=versions("onnx", "onnxruntime", "onnxruntime-gpu"),
    )
    if precision != "fp32":
        if manifest.precision != "fp32":
            raise ConfigError(
                f"{encoder} is stored in {manifest.precision}, and only an fp32 file can be "
                f"converted to {precision}; name the fp32 file, or leave out --precision"
            )
        pictures = gather(calibration, draw, preprocessing, texts.names, say)
        made_how = f"{precision}{calibrated(pictures, precision)}"
        say(f"converting to {made_how} and comparing with {encoder}")
        made = make_candidate(
            graph,
            precision,
            pictures,
            given.embed,
            texts,
            preprocessing,
            accept_parity=accept_parity,
            report=report,
            progress=progress,
            name=str(encoder),
        )
        onnx_file, golden = made.onnx_file, made.golden
        manifest = replace(
            manifest,
            precision=precision,
            parity=made.parity.to_json(),
            quantisation=made.quantisation,
        )
    return write_bundle(out, manifest, onnx_file, texts, golden, replace_existing=replace_existing)


def _check_features(encoder: Encoder, golden: Golden, name: str) -> None:
    """Raise ExportError if a feature is all 0, or depends on the rest of its batch.

    A feature that depends on its batch cannot be cached.
    """
    if not golden.features.any(axis=1).all():
        raise ExportError(
            f"{name} returned a feature that is 0 everywhere; its weights are damaged, so export "
            "it again"
        )
    alone = verification.one_by_one(encoder, golden.pixels)  # (N, D)
    found = verification.relative(alone, golden.features)
    allowed = verification.tolerance("unknown", "cpu").batch
    if not found <= allowed:
        raise ExportError(
            f"a picture's feature from {name} depends on the rest of its batch (relative "
            f"difference {found:.2g}, at most {allowed:g}), so it cannot be cached. Dynamic int8 quantisation "
            "has this effect: name the fp32 file, with --precision int8 for a smaller encoder"
        )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def _parse(onnx_file: bytes, path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(onnx_file)
    except Exception as error:  # protobuf's errors share no base but Exception
        raise ConfigError(_not_onnx(path)) from error
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise ConfigError(
            f"{path} keeps its weights in another file; save it as one file: "
            "onnx.save(onnx.load(PATH), NEW_PATH)"
        )
    if not opset_of(model):  # protobuf accepts almost any bytes
        raise ConfigError(_not_onnx(path))
    return model


def _not_onnx(path: Path) -> str:
    return f"{path} is not a complete ONNX file; name the encoder's .onnx file, or copy it again"


def _precision(model: onnx.ModelProto) -> str:
    """Precision of the stored weights: int8 if any are int8, "unknown" for a mixture of floats."""
    stored = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) > 1}
    if stored & set(_QUANTISED):
        return "int8"
    kinds = {_FLOATS[kind] for kind in stored if kind in _FLOATS}
    return kinds.pop() if len(kinds) == 1 else "unknown"
