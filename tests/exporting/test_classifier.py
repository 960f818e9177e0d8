"""The exported classifier: equal to `predict`, in one file that runs without this package."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import system
from checkout import SHARED
from onnx import TensorProto, helper, numpy_helper
from trained_run import OPTIONS_OF, train

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.demo import tiny_clip, world
from fedclip_edge.errors import ConfigError, DiskError, ExportError
from fedclip_edge.exporting import fusion
from fedclip_edge.exporting.classifier import Classifier, export_classifier, usage
from fedclip_edge.exporting.precision import convert
from fedclip_edge.exporting.recipe import Precision
from fedclip_edge.learning import methods, unknown
from fedclip_edge.learning.operations import Array, Operations
from fedclip_edge.learning.unknown import Rule, with_rule
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.prediction import Prediction, find_pictures, predict_pictures
from fedclip_edge.records import U8, ClassTexts, Model
from fedclip_edge.vision.bundle import Bundle, Golden, read_bundle, replace_classes, write_bundle
from fedclip_edge.vision.encoder import open_encoder, open_onnx
from fedclip_edge.vision.pictures import Preprocessing, load, normalise

NAMES = ("circle", "square", "triangle")
pytestmark = pytest.mark.one_python


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages onnxruntime, numpy and Pillow only."""
    folder: Path = tmp_path_factory.mktemp("site") / "packages"
    folder.mkdir()
    for name in ("onnxruntime", "numpy", "PIL"):
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        home = Path(spec.origin).parent
        (folder / name).symlink_to(home)
        for libraries in home.parent.glob(f"{'pillow' if name == 'PIL' else name}.libs"):
            (folder / libraries.name).symlink_to(libraries)
    return folder


@pytest.fixture(scope="module")
def written(
    random_bundle: Bundle, trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Classifier:
    out: Path = tmp_path_factory.mktemp("classifier") / "c.onnx"
    return export_classifier(random_bundle, trained, out)


ALONE = """
import functools, importlib.util, json, os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
sys.path.append({bare!r})
for name in ("torch", "onnx", "safetensors", "click", "open_clip", "fedclip_edge"):
    assert importlib.util.find_spec(name) is None, name
import onnxruntime
onnxruntime.InferenceSession = functools.cache(onnxruntime.InferenceSession)  # one for all
said, print = [], lambda *words: said.append(words)
for picture in json.load(sys.stdin):
    exec({usage!r}.replace("picture.jpg", picture))
json.dump([[label, float(p), *more] for label, p, *more in said], sys.stdout)
"""


def labelled_alone(
    file: Path,
    preprocessing: Preprocessing,
    bare: Path,
    paths: list[Path],
    *,
    says_unknown: bool = False,
) -> list[tuple[str, float, bool]]:
    """The output of the code from `usage`, in an interpreter without torch and this package.

    The last of the three is True if it says unknown.
    """
    its = usage(file.absolute(), preprocessing, says_unknown=says_unknown)
    script = ALONE.format(bare=str(bare), usage=its)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        input=json.dumps([str(path.absolute()) for path in paths]),
        cwd=os.sep,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return [(label, probability, more == ["unknown"]) for label, probability, *more in said]


def same_as_predict(
    bundle: Bundle, trained: TrainedModel | None, pictures: Path, bare: Path, out: Path
) -> float:
    """Export, label all pictures both ways, and return the share of changed labels."""
    export_classifier(bundle, trained, out)
    asked, _ = find_pictures([pictures], bundle.classes.names)
    model = None if trained is None else trained.model
    encoder, preprocessing = open_encoder(bundle, EncoderConfig()), bundle.manifest.preprocessing
    expected = list(
        predict_pictures(asked, encoder, preprocessing, bundle.classes, model, EncoderConfig())
    )
    alone = labelled_alone(out, preprocessing, bare, [one.path for one in asked])
    moved = 0
    for made, (label, probability, _) in zip(expected, alone, strict=True):
        assert isinstance(made, Prediction)
        shown = made.zero_shot if made.adapted is None else made.adapted
        assert label == bundle.classes.names[shown.argmax()], made.asked.path
        assert probability == pytest.approx(float(shown.max()), abs=1e-4)
        moved += int(shown.argmax() != made.zero_shot.argmax())
    assert len({label for label, _, _ in alone}) > 1, (
        "one label for all pictures would prove nothing"
    )
    return moved / len(asked)


# --- same results as predict, without this package -----------------------------------------------


def test_its_labels_are_those_of_predict(
    random_bundle: Bundle, trained: TrainedModel, pictures: Path, bare: Path, tmp_path: Path
) -> None:
    moved = same_as_predict(random_bundle, trained, pictures, bare, tmp_path / "c.onnx")
    assert moved > 0.2  # otherwise the test would not notice a missing adapter


@pytest.mark.parametrize("name", sorted(OPTIONS_OF.keys() - {"fedclip", "zeroshot"}))
def test_every_method_has_a_way_out(
    random_bundle: Bundle, pictures: Path, bare: Path, tmp_path: Path, name: str
) -> None:
    trained = train(random_bundle, pictures, method=name)
    moved = same_as_predict(random_bundle, trained, pictures, bare, tmp_path / "c.onnx")
    assert moved > 0.2
    about = onnx.load(tmp_path / "c.onnx").metadata_props
    assert {entry.key: entry.value for entry in about}["method"] == name


def test_the_list_of_ways_out_is_that_of_the_methods() -> None:
    single = {name for name in methods.names() if methods.get(name).stages is None}
    assert set(OPTIONS_OF) == single  # a model of several methods is a mixture of theirs


def test_zero_shot_needs_no_model(
    random_bundle: Bundle, pictures: Path, bare: Path, tmp_path: Path
) -> None:
    assert same_as_predict(random_bundle, None, pictures, bare, tmp_path / "c.onnx") == 0


def knowing(trained: TrainedModel, rule: Rule) -> TrainedModel:
    """The same model with a threshold."""
    terms = with_rule(trained.model.parameters, rule)
    return replace(trained, model=replace(trained.model, parameters=terms))


@pytest.mark.parametrize("gain", [1.0, 0.25])
def test_unknown_pictures_are_those_of_predict(
    random_bundle: Bundle,
    trained: TrainedModel,
    pictures: Path,
    bare: Path,
    tmp_path: Path,
    gain: float,
) -> None:
    asked, _ = find_pictures([pictures], NAMES)
    preprocessing = random_bundle.manifest.preprocessing
    encoder = open_encoder(random_bundle, EncoderConfig())

    def predicted(model: Model) -> list[Prediction]:
        found = predict_pictures(
            asked, encoder, preprocessing, random_bundle.classes, model, EncoderConfig()
        )
        return [one for one in found if isinstance(one, Prediction)]

    scores = sorted(one.score for one in predicted(knowing(trained, Rule(0.0, gain)).model))
    rule = Rule((scores[6] + scores[7]) / 2, gain)
    its = knowing(trained, rule)
    done = export_classifier(random_bundle, its, tmp_path / "c.onnx")
    assert done.difference < 1e-5
    made = predicted(its.model)
    assert [one.score < rule.threshold for one in made].count(True) == 7
    session = onnxruntime.InferenceSession(str(done.path))
    outputs = {one.name: (one.type, one.shape) for one in session.get_outputs()}
    assert outputs["score"] == ("tensor(float)", ["batch"])
    assert outputs["unknown"] == ("tensor(bool)", ["batch"])
    told = session.get_modelmeta().custom_metadata_map
    assert float(told["unknown_below"]) == np.float32(rule.threshold)
    normal = np.stack([load(one.path, preprocessing) for one in asked]).transpose(0, 2, 3, 1)
    levels = np.rint(255 * (normal * preprocessing.std + preprocessing.mean))
    pixels = levels.astype(np.uint8)  # (N, 32, 32, 3)
    probabilities, ours, is_unknown = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(ours, [one.score for one in made], atol=1e-5)
    np.testing.assert_array_equal(is_unknown, [one.score < rule.threshold for one in made])
    for row, one in zip(probabilities, made, strict=True):
        assert one.adapted is not None
        np.testing.assert_allclose(row, one.adapted, atol=1e-5)
    paths = [one.path for one in asked]
    alone = labelled_alone(done.path, preprocessing, bare, paths, says_unknown=True)
    assert [said for _, _, said in alone] == is_unknown.tolist()


def test_a_file_whose_unknown_pictures_differ_is_not_written(
    random_bundle: Bundle, trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(ops: Operations, logits: Array, *_: object) -> Array:
        return ops.largest(logits)

    altered = SimpleNamespace(rule_of=unknown.rule_of, score=wrong)
    monkeypatch.setattr(fusion, "unknown", altered)
    with pytest.raises(ExportError, match="answers differ from those of `predict`"):
        export_classifier(random_bundle, knowing(trained, Rule(0.2)), tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()


def rescaled(bundle: Bundle, folder: Path, preprocessing: Preprocessing) -> Bundle:
    manifest = replace(bundle.manifest, preprocessing=preprocessing, files={})
    encoder = bundle.encoder_path.read_bytes()
    return write_bundle(folder, manifest, encoder, bundle.classes, bundle.golden())


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(32, "squash", 32, "bilinear", (0.5,) * 3, (0.5,) * 3),
        Preprocessing(32, "shortest", 45, "bilinear", (0.0,) * 3, (1.0,) * 3),
    ],
    ids=["squash", "crop"],
)
def test_every_rule_of_scaling(
    random_bundle: Bundle, pictures: Path, bare: Path, tmp_path: Path, preprocessing: Preprocessing
) -> None:
    bundle = rescaled(random_bundle, tmp_path / "bundle", preprocessing)
    same_as_predict(bundle, None, pictures, bare, tmp_path / "c.onnx")


def test_the_tiny_clip_on_drawn_pictures(bare: Path, tmp_path: Path) -> None:
    if not tiny_clip.FOLDER.is_dir():
        pytest.skip(
            f"{tiny_clip.FOLDER.name}/ does not exist: run demo/train_tiny_clip.py to train it"
        )
    done = system.run("export", "tiny", "--out", tmp_path / "tiny")
    assert done.returncode == 0, done.stderr
    world.write_pictures(tmp_path / "drawn", "chalk", per_class=3, seed=1)
    bundle = read_bundle(tmp_path / "tiny")
    trained = train(bundle, tmp_path / "drawn", lr=2e-3)
    moved = same_as_predict(bundle, trained, tmp_path / "drawn", bare, tmp_path / "c.onnx")
    assert moved > 0.2


@pytest.mark.slow
@pytest.mark.not_in_ci  # CI has the tiny CLIP
def test_the_stand_in_encoder_on_real_pictures(bare: Path, tmp_path: Path) -> None:
    if not (SHARED / "standin").is_dir():
        pytest.skip("the stand-in encoder is not in ../shared/data, next to the checkout")
    theirs = SHARED / "standin"
    files = {
        "--onnx": "image_encoder.onnx",
        "--preprocess": "preprocess.toml",
        "--class-texts": "class_texts.npy",
        "--classes": "classes.json",
    }
    words = [word for option, name in files.items() for word in (option, theirs / name)]
    done = system.run("export", *words, "--out", tmp_path / "bundle")
    assert done.returncode == 0, done.stderr
    bundle = read_bundle(tmp_path / "bundle")
    trained = train(bundle, SHARED / "pacs" / "sketch", lr=1e-3)
    moved = same_as_predict(bundle, trained, SHARED / "pacs" / "sketch", bare, tmp_path / "c.onnx")
    assert moved > 0.2


# --- the graph -----------------------------------------------------------------------------------


def test_its_pixels_are_normalised_to_the_same_bits(tmp_path: Path) -> None:
    preprocessing = Preprocessing(
        16, "shortest", 20, "bicubic", (0.48145466, 0.4578275, 0.40821073), (0.268, 0.261, 0.2757)
    )
    graph = fusion.pixels_graph(preprocessing, "out")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, 3)
    (found,) = session.run(None, {"pixels": levels})
    np.testing.assert_array_equal(found, normalise(levels, preprocessing))


def test_what_stands_in_the_file(
    random_bundle: Bundle, written: Classifier, tmp_path: Path
) -> None:
    assert written.difference < 1e-5
    session = onnxruntime.InferenceSession(str(written.path))
    (given,), (result,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == (
        "pixels",
        "tensor(uint8)",
        ["batch", 32, 32, 3],
    )
    assert (result.name, result.type, result.shape) == (
        "probabilities",
        "tensor(float)",
        ["batch", 3],
    )
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == list(NAMES)
    assert json.loads(told["preprocessing"]) == {
        "resize": "shortest",
        "resize_px": 32,
        "interpolation": "bicubic",
        "image_size": 32,
    }
    assert (told["method"], told["run"], told["round"]) == ("fedclip", "run-1234abcd", "1")
    assert told["encoder_id"] == random_bundle.manifest.encoder_id
    assert (told["model"], told["precision"]) == ("random", "fp32")
    export_classifier(random_bundle, None, tmp_path / "z.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "z.onnx"))
    told = session.get_modelmeta().custom_metadata_map
    assert told["method"] == "zeroshot"
    assert "run" not in told


@pytest.mark.parametrize("precision", get_args(Precision))
def test_a_bundle_of_every_precision(
    random_bundle: Bundle, trained: TrainedModel, tmp_path: Path, precision: Precision
) -> None:
    pixels = random_bundle.golden().pixels
    fp32 = onnx.load_model_from_string(tanh_encoder(18))
    encoder = convert(fp32, precision, [pixels]).SerializeToString()
    golden = Golden(pixels, open_onnx(encoder, EncoderConfig(), image_size=32).embed(pixels))
    manifest = replace(random_bundle.manifest, precision=precision, files={})
    bundle = write_bundle(tmp_path / "b", manifest, encoder, random_bundle.classes, golden)
    written = export_classifier(bundle, trained, tmp_path / "c.onnx")
    assert written.difference < 1e-4


@pytest.mark.parametrize("count", [1, 2, 7, 33])
def test_any_number_of_pictures_at_a_time(written: Classifier, count: int) -> None:
    session = onnxruntime.InferenceSession(str(written.path))
    pixels: U8 = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    (together,) = session.run(None, {"pixels": pixels})
    assert together.shape == (count, 3)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    for i in range(count):
        (alone,) = session.run(None, {"pixels": pixels[i : i + 1]})
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_another_process_writes_the_same_bytes(random_bundle: Bundle, tmp_path: Path) -> None:
    export_classifier(random_bundle, None, tmp_path / "a.onnx")
    done = system.run(
        "export-classifier",
        "--bundle",
        random_bundle.folder,
        "--zero-shot",
        "--out",
        tmp_path / "b.onnx",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "a.onnx").read_bytes()


# --- encoders of other exporters -----------------------------------------------------------------


def tanh_encoder(
    opset: int, *, extra: bool = False, initializer_inputs: bool = False, name: str = "x"
) -> bytes:
    """The graph tanh(x @ first) @ head with this opset and this name of the input."""
    random = np.random.default_rng(0)
    first = random.normal(size=(3072, 64)).astype(np.float32) / 50
    head = random.normal(size=(64, 16)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", [name], ["head/val_0"]),
        helper.make_node("MatMul", ["head/val_0", "first"], ["probabilities"]),
        helper.make_node("Tanh", ["probabilities"], ["bent"]),
        helper.make_node("MatMul", ["bent", "head"], ["image_features"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, 32, 32])]
    if initializer_inputs:  # files before IR 4 list them
        inputs.append(helper.make_tensor_value_info("head", TensorProto.FLOAT, [64, 16]))
    outputs = [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["N", 16])]
    if extra:
        outputs.append(helper.make_tensor_value_info("bent", TensorProto.FLOAT, ["N", 64]))
    graph = helper.make_graph(
        nodes,
        "tanh",
        inputs,
        outputs,
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(head, "head")],
    )
    imports = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())


def foreign(bundle: Bundle, folder: Path, encoder: bytes) -> Bundle:
    pixels = bundle.golden().pixels
    golden = Golden(pixels, open_onnx(encoder, EncoderConfig(), image_size=32).embed(pixels))
    manifest = replace(bundle.manifest, files={})
    return write_bundle(folder, manifest, encoder, bundle.classes, golden)


@pytest.mark.parametrize(
    ("opset", "options"),
    [
        (11, {}),
        (13, {"initializer_inputs": True}),
        (17, {"extra": True}),
        (18, {"name": "pixels"}),
        (20, {}),
        (22, {}),
    ],
)
def test_an_encoder_of_any_opset(
    random_bundle: Bundle, tmp_path: Path, opset: int, options: dict[str, Any]
) -> None:
    bundle = foreign(random_bundle, tmp_path / "bundle", tanh_encoder(opset, **options))
    model = methods.get("fedclip").initial(bundle.classes, 16, 0)
    trained = replace(train_nothing(bundle), model=model)
    written = export_classifier(bundle, trained, tmp_path / "c.onnx")
    assert written.opset == max(18, opset)
    onnx.checker.check_model(str(tmp_path / "c.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(str(tmp_path / "c.onnx"))
    assert [node.name for node in session.get_inputs()] == ["pixels"]
    assert [node.name for node in session.get_outputs()] == ["probabilities"]


def train_nothing(bundle: Bundle) -> TrainedModel:
    from fedclip_edge.records import Plan

    model = methods.get("fedclip").initial(bundle.classes, bundle.manifest.dim, 0)
    return TrainedModel(
        model, "run-0", Plan("fedclip"), bundle.manifest.encoder_id, bundle.classes.digest
    )


def test_an_encoder_that_cannot_be_joined_is_refused_in_a_sentence(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no adapter for Dropout\nand more")

    monkeypatch.setattr("onnx.version_converter.convert_version", fails)
    bundle = foreign(random_bundle, tmp_path / "bundle", tanh_encoder(13))
    with pytest.raises(
        ExportError, match=r"no adapter for Dropout and more\).*nothing was written.*opset"
    ):
        export_classifier(bundle, None, tmp_path / "c.onnx")
    assert not (tmp_path / "c.onnx").exists()


# --- checks, and complete files only -------------------------------------------------------------


def test_a_wrong_graph_is_not_written(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fusion.pixels_graph

    def wrong(preprocessing: Preprocessing, output: str) -> onnx.GraphProto:
        mean = tuple(value + 0.05 for value in preprocessing.mean)
        return right(replace(preprocessing, mean=mean), output)

    monkeypatch.setattr(fusion, "pixels_graph", wrong)
    said = r"differ from those of `predict` by [\d.e+]+ \(relative\), more than"
    with pytest.raises(ExportError, match=said):
        export_classifier(random_bundle, None, tmp_path / "c.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_head_is_not_written_however_many_classes_there_are(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 10,000 classes probabilities are tiny, so only their ratio shows a difference."""
    vectors = np.random.default_rng(0).normal(size=(10_000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = tuple(map(str, range(len(vectors))))
    folder = Path(shutil.copytree(random_bundle.folder, tmp_path / "bundle"))
    bundle = replace_classes(read_bundle(folder), ClassTexts(names, vectors, 1.0, "a {}"))
    right = fusion._head

    def wrong(model: Model, classes: ClassTexts) -> onnx.ModelProto:
        return right(model, replace(classes, logit_scale=1.1 * classes.logit_scale))

    monkeypatch.setattr(fusion, "_head", wrong)
    with pytest.raises(ExportError, match="differ from those of `predict`"):
        export_classifier(bundle, None, tmp_path / "c.onnx")


def test_a_file_that_is_there_stays(random_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "c.onnx"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"c\.onnx already exists; .*--replace"):
        export_classifier(random_bundle, None, out)
    assert out.read_text() == "mine"
    export_classifier(random_bundle, None, out, replace_existing=True)
    onnx.checker.check_model(str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["c.onnx"]
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        export_classifier(random_bundle, None, tmp_path, replace_existing=True)


def test_a_disk_that_refuses(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="cannot be written: No space left"):
        export_classifier(random_bundle, None, tmp_path / "c.onnx")
    assert list(tmp_path.iterdir()) == []
