"""Export of encoder, adapter and class texts to one ONNX file that runs without this package.

    pixels uint8 (N, S, S, 3)  ->  probabilities float32 (N, C)
                                   score float32 (N,), unknown bool (N,)

`pixels` are RGB pictures as Pillow returns them, already scaled and cropped. The graph does not
scale pictures, because that would be slower, and pictures of different sizes do not fit into one
batch. The outputs `score` and `unknown` exist only if the model has a threshold; a picture is
unknown if its score is below it (learning/unknown.py). The file's metadata holds the rule for
scaling, the labels, the threshold and the origin of the classifier; see `_metadata`.

Laws:

- The file is written only if ONNX Runtime computes the same probabilities and scores with it as
  `predict`, within TOLERANCE, and the same unknown pictures, except at the threshold.
- The same bundle and model give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from fedclip_edge import __version__
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import ConfigError, DiskError, ExportError, reason_of
from fedclip_edge.exporting.fusion import INPUT, fuse
from fedclip_edge.exporting.golden import noise_pixels
from fedclip_edge.exporting.onnx_file import OPSET, opset_of, serialise
from fedclip_edge.learning import unknown
from fedclip_edge.learning.classification import classify
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.records import F32, U8, Model
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import Encoder, open_encoder
from fedclip_edge.vision.pictures import Preprocessing, normalise

# Largest difference of a probability, divided by the probability, because most are small. Pixels
# and features have the same bits as in `predict`. The head sums float32 in another order, which
# changes a cosine by 1e-7, a logit by 1e-5 at a scale of 100, and a probability by a relative 1e-5.
# A wrong operator changes it by far more than the tolerance.
TOLERANCE = 1e-3
_LEAST = 1e-20  # smaller probabilities are rounding error of float32
_LEAST_SCORE = 0.1  # a score is a sum of cosines, which may be near 0

_BATCHES = (1, 5)  # one picture, and an odd count


@dataclass(frozen=True, eq=False)
class _Expected:
    """Pictures, and the answers of `predict`."""

    pixels: U8  # (N, S, S, 3)
    probabilities: F32  # (N, C)
    scores: F32  # (N,)
    threshold: float


@dataclass(frozen=True)
class Classifier:
    """The file that `export_classifier` wrote."""

    path: Path
    difference: float  # largest relative difference from `predict`
    opset: int


def export_classifier(
    bundle: Bundle, trained: TrainedModel | None, out: Path, *, replace_existing: bool = False
) -> Classifier:
    """Write the classifier of `bundle` and a model that fits it to the file `out`.

    Without a model (`trained` is None), the classifier is the zero-shot one. Raises ConfigError if
    `out` is a folder, or exists and `replace_existing` is not set; BundleError if the bundle's
    encoder cannot be loaded or run; ExportError if encoder and head cannot be joined, or if the
    file's answers differ from those of `predict` by more than TOLERANCE; DiskError if the
    file cannot be written. Nothing is written in any of these cases.
    """
    if out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file")
    if out.exists() and not replace_existing:
        raise ConfigError(f"{out} already exists; name another file, or add --replace")
    model = zeroshot.MODEL if trained is None else trained.model
    encoder = open_encoder(bundle, EncoderConfig())
    expected = [_predicted(count, encoder, bundle, model) for count in _BATCHES]
    ends = (encoder.input_name, encoder.output_name)
    del encoder  # frees its copy of the weights
    joined = fuse(bundle, ends, model)
    joined.producer_name, joined.producer_version = "fedclip-edge", __version__
    helper.set_model_props(joined, _metadata(bundle, trained))
    data, opset = serialise(joined), opset_of(joined)
    del joined
    difference = _compare(data, expected)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the classifier's answers differ from those of `predict` by {difference:.2g} "
            f"(relative), more than {TOLERANCE:g}; nothing was written. Try another version of "
            "torch, onnx or onnxruntime: constraints.txt lists versions that were tested together"
        )
    try:
        atomic.write_file(out, data)
    except OSError as error:
        raise DiskError(
            f"{out} cannot be written: {error.strerror or error}; no file was left behind. Free "
            "disk space, or name another file"
        ) from error
    return Classifier(out, difference, opset)


def usage(path: Path, preprocessing: Preprocessing, *, says_unknown: bool = False) -> str:
    """Python source that labels `picture.jpg` with the classifier in `path`.

    With `says_unknown` the file has the outputs of a threshold. The source imports only Pillow,
    numpy and onnxruntime.
    """
    size, short_px = preprocessing.image_size, preprocessing.resize_px
    kind = f"Image.Resampling.{preprocessing.interpolation.upper()}"
    lines = [
        "import json, numpy, onnxruntime",
        "from PIL import Image",
        f"classifier = onnxruntime.InferenceSession({str(path)!r})",
        "about = classifier.get_modelmeta().custom_metadata_map",
        'labels = json.loads(about["labels"])',
        'picture = Image.open("picture.jpg").convert("RGB")',
    ]
    if preprocessing.resize == "squash":
        lines.append(f"picture = picture.resize(({size}, {size}), {kind})")
    else:
        lines += [
            "w, h = picture.size",
            f"w, h = int(max({short_px}, {short_px} * w / h)), int(max({short_px}, {short_px} * h / w))",
            f"picture = picture.resize((w, h), {kind})",
            f"x, y = round((w - {size}) / 2), round((h - {size}) / 2)",
            f"picture = picture.crop((x, y, x + {size}, y + {size}))",
        ]
    lines.append(f'found = classifier.run(None, {{"{INPUT}": numpy.asarray(picture)[None]}})')
    if says_unknown:
        lines.append("(p,), (score,), (is_unknown,) = found")
        lines.append('print(labels[p.argmax()], p.max(), "unknown" if is_unknown else "")')
    else:
        lines += ["((p,),) = found", "print(labels[p.argmax()], p.max())"]
    return "\n".join(lines)


def _metadata(bundle: Bundle, trained: TrainedModel | None) -> dict[str, str]:
    """Metadata of the file: strings, with JSON for the labels and the scaling."""
    manifest, preprocessing = bundle.manifest, bundle.manifest.preprocessing
    scaling = {
        name: getattr(preprocessing, name)
        for name in ("resize", "resize_px", "interpolation", "image_size")
    }
    table: dict[str, Any] = {
        "labels": json.dumps(bundle.classes.names),
        "preprocessing": json.dumps(scaling),  # mean and std are in the graph
        "model": manifest.model,
        "pretrained": manifest.pretrained,
        "precision": manifest.precision,
        "encoder_id": manifest.encoder_id,
        "classes_digest": bundle.classes.digest,
        "prompt": bundle.classes.prompt,
        "method": "zeroshot" if trained is None else trained.model.method,
        "made_with": f"fedclip-edge {__version__}",
    }
    if trained is not None:
        table |= {"run": trained.run, "round": trained.model.round}
        rule = unknown.rule_of(trained.model.parameters)
        if rule.applies:
            table["unknown_below"] = rule.threshold
    return {name: str(table[name]) for name in sorted(table)}


def _predicted(count: int, encoder: Encoder, bundle: Bundle, model: Model) -> _Expected:
    """Noise pictures uint8 (count, S, S, 3) and the answers of `predict`."""
    preprocessing = bundle.manifest.preprocessing
    pixels = _noise(count, preprocessing)
    vectors = encoder.embed(normalise(pixels, preprocessing))  # (N, D)
    found = classify(vectors, bundle.classes, model)
    assert found.adapted is not None  # there is a model
    threshold = unknown.rule_of(model.parameters).threshold
    return _Expected(pixels, found.adapted, found.scores, threshold)


def _compare(data: bytes, expected: Sequence[_Expected]) -> float:
    """Largest relative difference between the file and `predict`.

    It is infinity for NaN, for another shape, and if another picture is unknown.
    """
    import onnxruntime  # after vision/encoder.py, which must be the first to import it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    worst = 0.0
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for its in expected:
            ours = session.run(None, {INPUT: its.pixels})
            both = ((its.probabilities, _LEAST), (its.scores, _LEAST_SCORE))
            for values, (theirs, least) in zip(ours, both, strict=False):
                if values.shape != theirs.shape:
                    return float("inf")
                gaps = np.abs(values - theirs) / np.maximum(np.abs(theirs), least)
                worst = max(worst, float(np.nan_to_num(gaps, nan=np.inf).max()))
            if len(ours) > 1:
                wrong = ours[2] != (its.scores < its.threshold)  # (N,)
                if (wrong & (np.abs(its.scores - its.threshold) > TOLERANCE)).any():
                    return float("inf")
    except Exception as error:  # onnxruntime's errors share no base but Exception
        raise ExportError(
            f"ONNX Runtime cannot run the classifier ({reason_of(error)}); nothing was written. "
            f"Export the encoder again with opset {OPSET}"
        ) from error
    return worst


def _noise(count: int, preprocessing: Preprocessing) -> U8:
    """Noise pictures in the format of the file's input: uint8 (count, S, S, 3)."""
    normal = noise_pixels(count, preprocessing, seed=count)  # (N, 3, S, S)
    mean = np.reshape(preprocessing.mean, (3, 1, 1))
    std = np.reshape(preprocessing.std, (3, 1, 1))
    levels = np.clip(np.rint((normal * std + mean) * 255), 0, 255)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))
