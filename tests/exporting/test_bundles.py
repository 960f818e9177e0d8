"""Export of an open_clip model to a complete bundle, or no bundle at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.demo import gate_pictures, world
from fedclip_edge.errors import ConfigError, ExportError
from fedclip_edge.exporting import bundles
from fedclip_edge.exporting.bundles import export_open_clip
from fedclip_edge.exporting.parity import Parity
from fedclip_edge.exporting.recipe import Precision, Recipe
from fedclip_edge.vision.bundle import Bundle, read_bundle
from fedclip_edge.vision.encoder import open_encoder

pytestmark = pytest.mark.one_python
MakeEncoder = Callable[..., bytes]
Export = Callable[..., Bundle]


@pytest.fixture
def again(clip_folder: Path, clip_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Export:
    """`again(out, **changes)`: exports `clip_bundle` again without the slow graph export."""
    graph = onnx.load_model_from_string(clip_bundle.encoder_path.read_bytes())
    monkeypatch.setattr(bundles, "export_image_tower", lambda *_: graph)

    def export(
        out: Path,
        classes: tuple[str, ...] = ("circle", "square"),
        precision: Precision = "fp32",
        **options: Any,
    ) -> Bundle:
        recipe = Recipe(f"local-dir:{clip_folder}", prompts=("a {}",), precision=precision)
        return export_open_clip(recipe, classes, out, draw=gate_pictures.draw, **options)

    return export


def test_an_exported_model_is_a_whole_bundle(clip_bundle: Bundle, clip_folder: Path) -> None:
    manifest = read_bundle(clip_bundle.folder).manifest
    assert (manifest.model, manifest.pretrained) == ("random-clip", "local-dir")
    assert (manifest.dim, manifest.activation, manifest.precision) == (128, "relu", "fp32")
    assert manifest.preprocessing.image_size == 64
    assert manifest.parity is not None
    assert 0 < float(manifest.parity["largest_difference"]) < 1e-5
    assert manifest.parity["pictures"] == len(world.CLASSES) * len(world.STYLES) >= 64
    assert manifest.parity["passed"] is True
    assert {"fedclip-edge", "torch", "open_clip_torch", "onnx"} <= set(manifest.made_with)
    assert clip_bundle.classes.names == ("circle", "square")
    assert clip_bundle.classes.logit_scale == pytest.approx(14.28, abs=0.05)
    text = (clip_bundle.folder / "manifest.json").read_text()
    assert str(clip_folder.parent) not in text  # no local path may be in the file
    encoder = open_encoder(clip_bundle, EncoderConfig())
    golden = clip_bundle.golden()
    np.testing.assert_array_equal(encoder.embed(golden.pixels), golden.features)


def test_steps_and_the_gate_are_told(again: Export, tmp_path: Path) -> None:
    steps: list[str] = []
    seen: list[Parity] = []
    again(tmp_path / "b", world.CLASSES, say=steps.append, report=seen.append)
    assert [step.split()[0] for step in steps] == ["loading", "encoding", "building", "converting"]
    (parity,) = seen
    assert parity.missed == ()
    # The generated pictures belong to these classes, so they have labels.
    assert parity.zero_shot is not None


def test_other_classes_leave_the_encoder_id_and_so_every_cache(
    again: Export, clip_bundle: Bundle, tmp_path: Path
) -> None:
    other = again(tmp_path / "b", ("a", "b", "c"))
    assert other.manifest.encoder_id == clip_bundle.manifest.encoder_id
    assert other.classes.digest != clip_bundle.classes.digest
    keys = {open_encoder(b, EncoderConfig()).feature_key for b in (other, clip_bundle)}
    assert len(keys) == 1


def test_a_smaller_encoder_is_the_same_encoder_under_another_feature_key(
    again: Export, clip_bundle: Bundle, tmp_path: Path
) -> None:
    half = again(tmp_path / "b", precision="fp16")
    assert half.manifest.precision == "fp16"
    assert half.manifest.encoder_id == clip_bundle.manifest.encoder_id
    keys = {open_encoder(b, EncoderConfig()).feature_key for b in (half, clip_bundle)}
    assert len(keys) == 2
    assert half.encoder_path.stat().st_size < 0.6 * clip_bundle.encoder_path.stat().st_size
    assert half.manifest.quantisation["scheme"]


def test_int8_without_the_fleets_pictures_is_refused_before_anything_is_loaded(
    tmp_path: Path,
) -> None:
    recipe = Recipe("local-dir:nowhere", precision="int8")
    with pytest.raises(ConfigError, match="give --calibration FOLDER"):
        export_open_clip(recipe, ("a", "b"), tmp_path / "b", draw=gate_pictures.draw)


def test_what_the_gate_refuses_is_written_only_when_accepted_and_says_so(
    again: Export, clip_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load_model_from_string(clip_bundle.encoder_path.read_bytes())
    for tensor in graph.graph.initializer:
        if len(tensor.dims) > 1:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1.001)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    monkeypatch.setattr(bundles, "export_image_tower", lambda *_: graph)
    with pytest.raises(ExportError, match=r"differ too much .*--accept-parity"):
        again(tmp_path / "out" / "b")
    assert list(tmp_path.iterdir()) == []
    bundle = again(tmp_path / "out" / "b", accept_parity=True)
    parity = read_bundle(bundle.folder).manifest.parity
    assert parity is not None
    assert (parity["passed"], parity["accepted"]) == (False, True)


def test_a_graph_of_another_shape_is_not_written(
    again: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_encoder: MakeEncoder
) -> None:
    other = onnx.load_model_from_string(make_encoder(side=64, dim=64))
    monkeypatch.setattr(bundles, "export_image_tower", lambda *_: other)
    with pytest.raises(ExportError, match=r"returns features \[70, 64\], but .* \[70, 128\]"):
        again(tmp_path / "out" / "b", accept_parity=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["export_image_tower", "make_candidate", "write_bundle"])
def test_an_interrupted_export_leaves_nothing(
    again: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundles, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        again(tmp_path / "out" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    recipe = Recipe("local-dir:nowhere")
    with pytest.raises(ConfigError, match="bundle already exists"):
        export_open_clip(recipe, ("a", "b"), tmp_path / "bundle", draw=gate_pictures.draw)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        export_open_clip(recipe, ("a", "b"), tmp_path / "file" / "b", draw=gate_pictures.draw)
