"""Export of an external ONNX encoder to a bundle: unchanged, or smaller with a parity check."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkout import SHARED
from PIL import Image

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.demo import gate_pictures
from fedclip_edge.errors import ConfigError, ExportError
from fedclip_edge.exporting import external_onnx, precision
from fedclip_edge.exporting.external_onnx import export_onnx
from fedclip_edge.exporting.parity import Parity
from fedclip_edge.vision.bundle import Bundle, read_bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import read_folder
from fedclip_edge.vision.embedding import embed_pictures
from fedclip_edge.vision.encoder import open_encoder

PREPROCESS = """
image_size = 32
resize = "shortest"
resize_px = 40
interpolation = "bilinear"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""
MakeEncoder = Callable[..., bytes]


def unit(count: int, dim: int) -> Any:
    vectors = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def own(tmp_path: Path, make_encoder: MakeEncoder) -> dict[str, Any]:
    """The arguments of the export: the four files of an external encoder and the output folder."""
    (tmp_path / "encoder.onnx").write_bytes(make_encoder())
    (tmp_path / "preprocess.toml").write_text(PREPROCESS)
    np.save(tmp_path / "texts.npy", unit(2, 16))
    (tmp_path / "classes.txt").write_text("cat\ntea cup\n\n")
    return {
        "encoder": tmp_path / "encoder.onnx",
        "preprocess": tmp_path / "preprocess.toml",
        "class_texts": tmp_path / "texts.npy",
        "classes": tmp_path / "classes.txt",
        "out": tmp_path / "out" / "bundle",
        "draw": gate_pictures.draw,
    }


def test_a_place_that_is_taken_is_refused(own: dict[str, Any]) -> None:
    own["out"].mkdir(parents=True)
    with pytest.raises(ConfigError, match="bundle already exists"):
        export_onnx(**own)


def test_an_own_encoder_becomes_a_bundle_that_says_unknown(own: dict[str, Any]) -> None:
    bundle = export_onnx(**own)
    again = read_bundle(own["out"])
    table = json.loads((own["out"] / "manifest.json").read_text())
    unknown = ("activation", "parity", "pretrained", "model")
    assert [table[key] for key in unknown] == ["unknown"] * 4
    assert (again.manifest.dim, again.manifest.precision, again.manifest.opset) == (16, "fp32", 18)
    assert again.manifest.preprocessing.resize_px == 40
    assert again.classes.names == ("cat", "tea cup")
    assert again.classes.logit_scale == 100
    assert again.classes.prompt == "unknown"
    assert bundle.encoder_path.read_bytes() == own["encoder"].read_bytes()
    encoder = open_encoder(again, EncoderConfig())
    np.testing.assert_array_equal(encoder.embed(again.golden().pixels), again.golden().features)


def test_what_is_known_of_an_own_encoder_is_kept(own: dict[str, Any]) -> None:
    extra = 'logit_scale = 20\nprompt = "a {}"\nmodel = "mine"\n'
    own["preprocess"].write_text(PREPROCESS + extra)
    own["classes"] = own["classes"].with_suffix(".json")
    own["classes"].write_text('["cat", "dog"]')
    bundle = export_onnx(**own)
    assert bundle.manifest.model == "mine"
    assert (bundle.classes.logit_scale, bundle.classes.prompt) == (20.0, "a {}")
    assert bundle.classes.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            {"side": 16},
            r"the input pixel_values of .*encoder\.onnx is .*expected float32 \[batch, 3, 32, 32\]",
        ),
        ({"batch": 1}, "has a fixed batch size of 1"),
        ({"dim": 8}, "returns features of width 8, but .*texts.npy has text vectors of width 16"),
        ({"outputs": ("a", "b")}, "has the outputs a, b; expected only one output"),
        ({"scale": np.inf}, r"encoder\.onnx returned NaN or infinity"),
    ],
)
def test_an_encoder_that_does_not_fit(
    own: dict[str, Any], make_encoder: MakeEncoder, made: dict[str, Any], message: str
) -> None:
    own["encoder"].write_bytes(make_encoder(**made))
    with pytest.raises(ExportError, match=message):
        export_onnx(**own)
    assert not own["out"].parent.exists()


@pytest.mark.parametrize("data", [b"", b"no onnx", b"\x08\x07"])
def test_a_file_that_is_no_onnx(own: dict[str, Any], data: bytes) -> None:
    own["encoder"].write_bytes(data)
    with pytest.raises(ConfigError, match=r"encoder\.onnx is not a complete ONNX file"):
        export_onnx(**own)


def test_weights_in_another_file(own: dict[str, Any]) -> None:
    model = onnx.load(own["encoder"])
    onnx.save(model, own["encoder"], save_as_external_data=True, size_threshold=0)
    with pytest.raises(ConfigError, match="keeps its weights in another file"):
        export_onnx(**own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PREPROCESS.replace("image_size", "imagesize"), "did you mean 'image_size'"),
        (PREPROCESS.replace("resize_px = 40", ""), "the key 'resize_px' is missing"),
        (PREPROCESS.replace("40", '"40"'), "resize_px: expected int, got str"),
        (PREPROCESS.replace("bilinear", "nearest"), "expected 'bilinear' or 'bicubic'"),
        (PREPROCESS.replace("mean = [0.5, ", "mean = ["), "mean: expected three numbers"),
        (PREPROCESS + "logit_scale = 0", "logit scale: expected above 0"),
        (PREPROCESS + "logit_scal = 1", "did you mean 'logit_scale'"),
        ("image_size = ", "is not valid TOML"),
    ],
)
def test_a_wrong_preprocessing_file(own: dict[str, Any], text: str, message: str) -> None:
    own["preprocess"].write_text(text)
    with pytest.raises(ConfigError, match=message):
        export_onnx(**own)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (unit(2, 16) * 10, r"expected unit rows, got norms from 10\.000"),
        (unit(3, 16), "2 class names but 3 text vectors"),
        (unit(2, 16)[0], r"texts\.npy: expected floats \[C, D\], .*got float32 \[16\]"),
        (np.ones((2, 16), np.int64), r"expected floats \[C, D\].*got int64 \[2, 16\]"),
        (np.full((2, 16), np.nan), "NaN or infinity"),
        (np.array([{"a": 1}]), "is not a .npy file of numbers"),
    ],
)
def test_wrong_class_texts(own: dict[str, Any], vectors: Any, message: str) -> None:
    np.save(own["class_texts"], vectors, allow_pickle=True)
    with pytest.raises(ConfigError, match=message):
        export_onnx(**own)


def test_class_texts_in_double_or_half_are_taken(own: dict[str, Any]) -> None:
    np.save(own["class_texts"], unit(2, 16).astype(np.float64))
    assert export_onnx(**own).classes.vectors.dtype == np.float32


@pytest.mark.parametrize("data", [b"", b"no npy", b"\x93NUMPY"])
def test_class_texts_that_are_no_npy(own: dict[str, Any], data: bytes) -> None:
    own["class_texts"].write_bytes(data)
    with pytest.raises(ConfigError, match=r"texts\.npy is not a \.npy file of numbers"):
        export_onnx(**own)


@pytest.mark.parametrize("name", ["encoder", "preprocess", "class_texts", "classes"])
def test_a_missing_file_is_named(own: dict[str, Any], name: str) -> None:
    own[name].unlink()
    with pytest.raises(ConfigError, match=f"{own[name].name} (cannot be read|does not exist)"):
        export_onnx(**own)
    assert not own["out"].exists()


@pytest.mark.parametrize(
    ("kinds", "precision"),
    [
        ([onnx.TensorProto.FLOAT], "fp32"),
        ([onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64], "fp16"),
        ([onnx.TensorProto.FLOAT, onnx.TensorProto.INT8], "int8"),
        ([onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16], "unknown"),
        ([], "unknown"),
    ],
)
def test_precision_is_that_of_the_stored_weights(kinds: list[int], precision: str) -> None:
    tensors = [
        onnx.TensorProto(data_type=kind, dims=[2, 2], name=str(i)) for i, kind in enumerate(kinds)
    ]
    bias = onnx.TensorProto(data_type=onnx.TensorProto.DOUBLE, dims=[2], name="bias")
    graph = onnx.helper.make_graph([], "g", [], [], [*tensors, bias])
    assert external_onnx._precision(onnx.helper.make_model(graph)) == precision


def test_an_own_encoder_needs_no_torch(own: dict[str, Any]) -> None:
    code = (
        "import sys, pathlib\n"
        "from fedclip_edge.exporting.external_onnx import export_onnx\n"
        "export_onnx(*map(pathlib.Path, sys.argv[1:]), draw=None)\n"
        "sys.exit(bool({'torch', 'open_clip'} & set(sys.modules)))\n"
    )
    del own["draw"]
    command = [sys.executable, "-c", code, *map(str, own.values())]
    assert subprocess.run(command, check=False).returncode == 0


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    files = SHARED / "standin"
    if not files.is_dir():
        pytest.skip(
            f"{files} does not exist: the stand-in encoder is in ../shared/data, next to the checkout"
        )
    return export_onnx(
        files / "image_encoder.onnx",
        files / "preprocess.toml",
        files / "class_texts.npy",
        files / "classes.json",
        tmp_path_factory.mktemp("standin") / "bundle",
        draw=gate_pictures.draw,
    )


@pytest.mark.one_python
@pytest.mark.parametrize(
    ("domain", "top1"),
    [("photo", 86.19), ("art_painting", 57.62), ("cartoon", 46.43), ("sketch", 25.71)],
)
def test_zero_shot_on_real_pictures_is_the_known_figure(
    standin: Bundle, tmp_path: Path, domain: str, top1: float
) -> None:
    config = EncoderConfig(threads=2)
    dataset = read_folder(SHARED / "pacs" / domain, standin.classes.names)
    assert len(dataset.pictures) == 420
    with FeatureCache(tmp_path / "features.sqlite") as cache:
        embedded = embed_pictures(
            dataset.pictures,
            open_encoder(standin, config),
            cache,
            standin.manifest.preprocessing,
            config,
        )
    units = embedded.vectors / np.linalg.norm(embedded.vectors, axis=1, keepdims=True)  # (N, D)
    found = (units @ standin.classes.vectors.T).argmax(axis=1)  # (N,)
    assert embedded.skipped == ()
    assert 100 * (found == embedded.labels).mean() == pytest.approx(top1, abs=0.5)


def test_replacing_is_explicit(own: dict[str, Any]) -> None:
    first = export_onnx(**own)
    own["preprocess"].write_text(PREPROCESS.replace("40", "48"))
    second = export_onnx(**own, replace_existing=True)
    assert read_bundle(own["out"]).manifest.encoder_id == second.manifest.encoder_id
    assert second.manifest.encoder_id != first.manifest.encoder_id
    shutil.rmtree(own["out"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 96 pictures without labels."""
    (tmp_path / "pictures").mkdir()
    for seed in range(96):
        (tmp_path / "pictures" / f"{seed}.png").write_bytes(picture(seed))
    return tmp_path / "pictures"


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).resize((48, 40)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("precision", ["fp16", "int8", "int8-weights"])
def test_another_precision_is_proven_and_keeps_the_identity(
    own: dict[str, Any], folder: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This model is small.
    monkeypatch.setattr("fedclip_edge.exporting.precision._STORED_VALUES", 256)
    plain = export_onnx(**own)
    own["out"] = own["out"].with_name("smaller")
    told: list[Parity] = []
    bundle = export_onnx(**own, precision=precision, calibration=folder, report=told.append)
    manifest = read_bundle(own["out"]).manifest
    assert manifest.precision == precision
    assert manifest.encoder_id == plain.manifest.encoder_id
    assert manifest.parity == told[0].to_json()
    assert manifest.parity["passed"] is True
    assert manifest.parity["pictures"] == 64
    assert (manifest.quantisation["calibration_pictures"] == 32) if precision != "fp16" else True
    encoder = open_encoder(bundle, EncoderConfig())
    golden = bundle.golden()
    np.testing.assert_array_equal(encoder.embed(golden.pixels), golden.features)
    assert not np.array_equal(golden.features, plain.golden().features)


def test_a_gate_that_is_missed_is_refused_or_accepted_and_said(
    own: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(model: onnx.ModelProto, *_: object) -> onnx.ModelProto:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.node[1].op_type = "Sigmoid"
        return changed

    monkeypatch.setattr(precision, "convert", damaged)
    told: list[Parity] = []
    how: dict[str, Any] = {"precision": "int8", "calibration": folder, "report": told.append}
    with pytest.raises(ExportError, match=r"int8 features differ too much .*nothing was written"):
        export_onnx(**own, **how)
    assert not own["out"].parent.exists()
    assert len(told) == 1
    bundle = export_onnx(**own, **how, accept_parity=True)
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity["accepted"] is True
    assert "centred cosine" in str(bundle.manifest.parity["missed"])


def test_drawn_pictures_judge_but_do_not_calibrate(own: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give --calibration FOLDER"):
        export_onnx(**own, precision="int8")
    with pytest.raises(ExportError, match="no large float32 weights"):
        export_onnx(**own, precision="fp16")
    assert not own["out"].parent.exists()


def test_only_an_fp32_file_can_be_made_smaller(own: dict[str, Any], folder: Path) -> None:
    model = onnx.load(own["encoder"])
    for tensor in model.graph.initializer:
        half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        widen = onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=1)
        model.graph.node.insert(0, widen)
    onnx.save(model, own["encoder"])
    with pytest.raises(ConfigError, match="is stored in fp16, and only an fp32 file"):
        export_onnx(**own, precision="int8", calibration=folder)
    assert export_onnx(**own).manifest.precision == "fp16"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "missed"),
    [
        pytest.param("fp16", (), marks=pytest.mark.not_in_ci),
        pytest.param("int8-weights", (), marks=pytest.mark.not_in_ci),
        ("int8", ("nearest neighbour",)),
    ],
)
def test_the_stand_in_encoder_on_real_pictures(
    standin: Bundle, tmp_path: Path, precision: Any, missed: tuple[str, ...]
) -> None:
    """With int8 the cosine is 0.99, but too many pictures get another nearest neighbour."""
    files = SHARED / "standin"
    told: list[Parity] = []
    bundle = export_onnx(
        files / "image_encoder.onnx",
        files / "preprocess.toml",
        files / "class_texts.npy",
        files / "classes.json",
        tmp_path / "bundle",
        precision=precision,
        draw=gate_pictures.draw,
        calibration=SHARED / "pacs",
        accept_parity=bool(missed),
        report=told.append,
    )
    (parity,) = told
    assert bundle.manifest.encoder_id == standin.manifest.encoder_id
    assert parity.pictures == 512
    assert parity.bit_equal
    assert all(any(line.startswith(one) for line in parity.missed) for one in missed)
    assert bool(parity.missed) == bool(missed)
    assert parity.figures["centred_cosine_mean"] > 0.99
    size = bundle.encoder_path.stat().st_size / standin.encoder_path.stat().st_size
    assert size < {"fp16": 0.53, "int8-weights": 0.33, "int8": 0.28}[precision]


def test_features_that_could_not_be_cached_are_refused(own: dict[str, Any]) -> None:
    """Dynamic int8 quantization scales activations by the contents of the whole batch."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(own["encoder"], own["encoder"], op_types_to_quantize=["MatMul"])
    with pytest.raises(ExportError, match=r"depends on the rest of its batch.*--precision"):
        export_onnx(**own)
    assert not own["out"].exists()


def test_features_of_nothing_are_refused(own: dict[str, Any], make_encoder: MakeEncoder) -> None:
    own["encoder"].write_bytes(make_encoder(scale=0.0))
    with pytest.raises(ExportError, match="a feature that is 0 everywhere"):
        export_onnx(**own)
    assert not own["out"].exists()
