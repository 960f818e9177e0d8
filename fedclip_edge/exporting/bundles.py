"""Export of an open_clip model to a bundle: load, encode texts, build, convert, compare, write.

Law: everything is computed and checked before the first byte is written.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fedclip_edge.exporting import parity
from fedclip_edge.exporting.calibration import Draw, calibrated, check_calibration, gather
from fedclip_edge.exporting.image_tower import export_image_tower
from fedclip_edge.exporting.onnx_file import OPSET
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.parity_gate import Report, make_candidate
from fedclip_edge.exporting.recipe import Recipe
from fedclip_edge.exporting.texts import class_texts
from fedclip_edge.exporting.versions import versions
from fedclip_edge.vision.bundle import Bundle, Manifest, check_free, write_bundle


def export_open_clip(
    recipe: Recipe,
    classes: Sequence[str],
    out: Path,
    *,
    draw: Draw,
    calibration: Path | None = None,
    accept_parity: bool = False,
    replace_existing: bool = False,
    say: Callable[[str], None] = lambda _: None,
    report: Report = lambda _: None,
    progress: parity.Progress = lambda _done, _total: None,
) -> Bundle:
    """Export the model that `recipe` names, with texts for `classes`, to the folder `out`.

    The parity gate compares the encoder with PyTorch on the pictures in the folder `calibration`;
    if that is None, on the pictures that `draw` returns. `say` is called with a line of text
    before each step and with lines about files that are not used, `progress` with (done, total)
    while texts are encoded and again during the comparison, and `report` once with the gate's
    result, passed or not.

    Raises ConfigError for a wrong argument. Raises ExportError if the model cannot be loaded or
    exported, if it gives NaN or infinity, if its features differ by more than the precision allows
    and `accept_parity` is not set. Raises DiskError if the folder cannot be written. No file is
    left behind after an error.
    """
    check_free(out, replace_existing=replace_existing)
    check_calibration(recipe.precision, calibration)
    say(f"loading {Path(recipe.model).name}")  # of a path, only the last part
    with _collector_paused():
        model = load_open_clip(recipe)
    for note in model.notes:
        say(note)
    pictures = gather(calibration, draw, model.preprocessing, classes, say)
    say(f"encoding the texts of {len(classes)} classes")
    texts = class_texts(model, classes, recipe.prompts, progress)
    tower, preprocessing = model.image_tower, model.preprocessing
    manifest = Manifest(
        model=model.name,
        pretrained=model.pretrained,
        weights_sha256=model.weights_sha256,
        dim=texts.vectors.shape[1],
        preprocessing=preprocessing,
        activation=model.activation,
        precision=recipe.precision,
        opset=OPSET,
        made_with=versions("torch", "open_clip_torch", "onnx", "onnxscript", "onnxruntime"),
    )
    del model  # frees the text tower
    say("building the graph of the image tower")
    with _collector_paused():
        graph = export_image_tower(tower, preprocessing.image_size)
    made_how = f"{recipe.precision}{calibrated(pictures, recipe.precision)}"
    say(f"converting to {made_how} and comparing with PyTorch")
    made = make_candidate(
        graph,
        recipe.precision,
        pictures,
        parity.of_tower(tower),
        texts,
        preprocessing,
        accept_parity=accept_parity,
        report=report,
        progress=progress,
        name=f"the exported {manifest.model}",
    )
    manifest = replace(manifest, parity=made.parity.to_json(), quantisation=made.quantisation)
    return write_bundle(
        out, manifest, made.onnx_file, texts, made.golden, replace_existing=replace_existing
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector.

    Loading and exporting create millions of objects and no garbage; the collector would take a
    sixth of their time.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
