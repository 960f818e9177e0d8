"""A bundle of an open_clip model: load, write texts, export, compare, and only then write.

Law: everything is computed and checked before the first byte is written.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedclip_edge.exporting.golden import golden_vectors, open_candidate
from fedclip_edge.exporting.image_tower import OPSET, export_image_tower
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.parity import check_parity
from fedclip_edge.exporting.texts import class_texts
from fedclip_edge.exporting.versions import versions
from fedclip_edge.vision.bundle import Bundle, Manifest, check_free, write_bundle


def export_open_clip(
    source: str, classes: Sequence[str], prompt: str, out: Path, *, replace_existing: bool = False
) -> Bundle:
    """Exports the model `local-dir:FOLDER` with texts for `classes` to the folder `out`.

    `prompt` holds {} where the class name goes. Raises ConfigError for an argument that is
    wrong, ExportError where the model cannot be exported or ONNX Runtime's features differ from
    PyTorch's; then nothing is written.
    """
    check_free(out, replace_existing=replace_existing)
    with _collector_paused():
        model = load_open_clip(source)
        texts = class_texts(model, classes, prompt)
        onnx_file = export_image_tower(model.image_tower, model.preprocessing.image_size)
    encoder = open_candidate(onnx_file, model.preprocessing, f"the exported {model.name}")
    parity = check_parity(encoder, model.image_tower, model.preprocessing)
    manifest = Manifest(
        model=model.name,
        pretrained="local-dir",
        weights_sha256=model.weights_sha256,
        dim=texts.vectors.shape[1],
        preprocessing=model.preprocessing,
        activation=model.activation,
        precision="fp32",
        opset=OPSET,
        parity=parity,
        made_with=versions("torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime"),
    )
    golden = golden_vectors(encoder, model.preprocessing)
    return write_bundle(out, manifest, onnx_file, texts, golden, replace_existing=replace_existing)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """The exporter makes millions of objects and no garbage: collecting takes a sixth of it."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
