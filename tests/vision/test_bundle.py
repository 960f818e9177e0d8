"""Reading and writing a bundle: complete and unaltered, or an error that names the file."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedclip_edge.errors import BundleError, ConfigError, DiskError
from fedclip_edge.records import ClassTexts
from fedclip_edge.storage import atomic
from fedclip_edge.vision.bundle import (
    Bundle,
    Golden,
    Manifest,
    read_bundle,
    replace_classes,
    write_bundle,
)
from fedclip_edge.vision.manifest import feature_key

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def copied(random_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(random_bundle.folder, tmp_path / "bundle"))


def rewrite(folder: Path, edit: Edit) -> None:
    path = folder / "manifest.json"
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))


def put(folder: Path, name: str, arrays: dict[str, Any], metadata: dict[str, str]) -> None:
    """Replace a file and update its hash in the manifest."""
    save_file(arrays, folder / name, metadata)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    rewrite(folder, lambda table: table["files"].update({name: digest}))


def again(bundle: Bundle, folder: Path, **change: bool) -> Bundle:
    encoder = bundle.encoder_path.read_bytes()
    return write_bundle(folder, bundle.manifest, encoder, bundle.classes, bundle.golden(), **change)


def test_reads_back_what_was_written(random_bundle: Bundle) -> None:
    found = read_bundle(random_bundle.folder)
    assert found.manifest == random_bundle.manifest
    assert found.classes.names == ("circle", "square", "triangle")
    assert found.classes.digest == random_bundle.classes.digest
    assert found.classes.prompt == "a {}"
    assert found.golden().pixels.shape == (4, 3, 32, 32)
    assert found.golden().features.shape == (4, 16)
    assert sorted(p.name for p in found.folder.iterdir()) == [
        "classes.safetensors",
        "golden.safetensors",
        "image_encoder.onnx",
        "manifest.json",
    ]


def test_manifest_says_unknown_where_nothing_is_known(random_bundle: Bundle) -> None:
    table = json.loads((random_bundle.folder / "manifest.json").read_text())
    assert table["schema"] == 1
    assert table["parity"] == "unknown"
    assert table["encoder_id"] == random_bundle.manifest.encoder_id


def test_parity_survives(random_bundle: Bundle, tmp_path: Path) -> None:
    manifest = replace(random_bundle.manifest, parity={"worst_relative": 3e-7, "batches": "1, 2"})
    found = again(replace(random_bundle, manifest=manifest), tmp_path / "b")
    assert read_bundle(found.folder).manifest.parity == manifest.parity


def test_written_twice_is_the_same_bytes(random_bundle: Bundle, tmp_path: Path) -> None:
    other = again(random_bundle, tmp_path / "b").folder
    for path in random_bundle.folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_encoder_id_follows_weights_activation_and_preprocessing(random_bundle: Bundle) -> None:
    manifest = random_bundle.manifest
    same = (
        replace(
            manifest, model="another name", parity={"x": 1}, opset=20, made_with={"torch": "x"}
        ),
        replace(
            manifest,
            preprocessing=replace(manifest.preprocessing, mean=(0.5, 0.5, np.float64(0.5))),
        ),
    )
    for other in same:
        assert other.encoder_id == manifest.encoder_id
    different = (
        replace(manifest, weights_sha256="1" * 64),
        replace(manifest, activation="gelu"),
        replace(manifest, preprocessing=replace(manifest.preprocessing, interpolation="bilinear")),
    )
    assert len({m.encoder_id for m in (manifest, *different)}) == 4


def test_feature_key_differs_in_every_part() -> None:
    keys = [
        feature_key("a", "b", "fp32", "cpu"),
        feature_key("x", "b", "fp32", "cpu"),
        feature_key("a", "x", "fp32", "cpu"),
        feature_key("a", "b", "fp16", "cpu"),
        feature_key("a", "b", "fp32", "cuda"),
        feature_key("ab", "", "fp32", "cpu"),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "name", ["image_encoder.onnx", "classes.safetensors", "golden.safetensors"]
)
def test_one_changed_byte_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is not the file .* copy the bundle again"):
        read_bundle(copied)


@pytest.mark.parametrize(
    "name", ["image_encoder.onnx", "classes.safetensors", "golden.safetensors"]
)
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing; copy the bundle again"):
        read_bundle(copied)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere is not a folder; name the folder"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json; name the folder"):
        read_bundle(tmp_path)


def test_truncated_manifest(copied: Path) -> None:
    path = copied / "manifest.json"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"manifest\.json is incomplete or not JSON"):
        read_bundle(copied)


@pytest.mark.parametrize("text", ["[]", "null", '"x"', "1" + " " * (1 << 20)])
def test_manifest_that_is_none(copied: Path, text: str) -> None:
    (copied / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match="is not the manifest of a bundle"):
        read_bundle(copied)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.update(schema=2), "schema 2, but this version reads schema 1"),
        (lambda t: t.pop("schema"), "schema None"),
        (lambda t: t.update(dim=17), "of width 16, but the encoder's features have width 17"),
        (lambda t: t.update(dim="16"), "dim: expected int, got str"),
        (lambda t: t.pop("model"), "the key 'model' is missing"),
        (lambda t: t.update(modle="x"), "unknown key 'modle'; did you mean 'model'"),
        (lambda t: t.update(activation="gelu"), "encoder_id does not match"),
        (lambda t: t["preprocessing"].update(resize_px=40), "encoder_id does not match"),
        (lambda t: t["preprocessing"].update(resize_px=2), "resize_px: expected image_size"),
        (lambda t: t["files"].pop("golden.safetensors"), "files: expected image_encoder"),
        (lambda t: t["files"].update({"../x": "0" * 64}), "files: expected image_encoder"),
        (lambda t: t["files"].update({"golden.safetensors": "abc"}), "is not 64 lower-case hex"),
        (lambda t: t.update(parity="good"), "parity"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(copied: Path, edit: Edit, message: str) -> None:
    rewrite(copied, edit)
    with pytest.raises(BundleError, match=message):
        read_bundle(copied)


def test_golden_vectors_of_another_encoder(copied: Path) -> None:
    arrays = {"pixels": np.zeros((4, 3, 16, 16), np.float32), "features": np.zeros((4, 16))}
    put(copied, "golden.safetensors", arrays, {})
    with pytest.raises(BundleError, match=r"pixels \[4, 3, 16, 16\].*are \[n, 3, 32, 32\]"):
        read_bundle(copied)
    put(copied, "golden.safetensors", {"pixels": arrays["pixels"]}, {})
    with pytest.raises(BundleError, match="has no valid golden vectors"):
        read_bundle(copied)


@pytest.mark.parametrize(
    ("count", "kind", "message"), [(0, "float32", "in F32"), (4, "float64", "in F32 and F64")]
)
def test_golden_vectors_that_no_encoder_takes(
    copied: Path, count: int, kind: str, message: str
) -> None:
    pixels, features = np.zeros((count, 3, 32, 32), kind), np.zeros((count, 16), np.float32)
    put(copied, "golden.safetensors", {"pixels": pixels, "features": features}, {})
    with pytest.raises(BundleError, match=message):
        read_bundle(copied)


def test_a_manifest_that_is_nested_without_end(copied: Path) -> None:
    (copied / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleError, match="incomplete or not JSON"):
        read_bundle(copied)


@pytest.mark.parametrize(
    "head", ["{}", "no json", '{"names": ["a", "a"], "prompt": "", "logit_scale": 1}', "[]"]
)
def test_classes_that_are_none(copied: Path, head: str) -> None:
    vectors = np.eye(2, 16, dtype=np.float32)
    put(copied, "classes.safetensors", {"vectors": vectors}, {"classes": head})
    with pytest.raises(BundleError, match="has no valid class texts"):
        read_bundle(copied)


def test_an_existing_folder_is_refused_unless_it_is_a_bundle_to_replace(
    random_bundle: Bundle, copied: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="is already a bundle; name another folder, or add --replace"
    ):
        again(random_bundle, copied)
    (copied / "old").write_text("")
    assert again(random_bundle, copied, replace_existing=True).folder == copied
    assert not (copied / "old").exists()
    (tmp_path / "precious").mkdir()
    with pytest.raises(ConfigError, match="already exists and is not a bundle; name"):
        again(random_bundle, tmp_path / "precious", replace_existing=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "precious"]


@pytest.mark.parametrize("step", ["write_folder", "_write", "_move"])
def test_a_full_disk_is_said_and_leaves_nothing(
    random_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, step, fail)
    with pytest.raises(DiskError, match="b cannot be written: No space left on device; no file"):
        again(random_bundle, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_other_classes_keep_the_encoder_and_its_identity(
    random_bundle: Bundle, copied: Path
) -> None:
    encoder = (copied / "image_encoder.onnx").read_bytes()
    texts = ClassTexts(("a", "b"), np.eye(2, 16, dtype=np.float32), 50.0, "the {}")
    replace_classes(read_bundle(copied), texts)
    after = read_bundle(copied)
    assert (after.classes.names, after.classes.prompt) == (("a", "b"), "the {}")
    assert after.manifest.encoder_id == random_bundle.manifest.encoder_id
    assert (copied / "image_encoder.onnx").read_bytes() == encoder


def test_classes_of_another_width_change_nothing(random_bundle: Bundle, copied: Path) -> None:
    texts = ClassTexts(("a", "b"), np.eye(2, 8, dtype=np.float32), 50.0, "the {}")
    with pytest.raises(
        ConfigError, match=r"width 8, but the features of .* have width 16; use the model"
    ):
        replace_classes(read_bundle(copied), texts)
    assert read_bundle(copied).manifest == random_bundle.manifest


def test_a_place_that_cannot_be_written(random_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"b cannot be written: .*file is a file; name"):
        again(random_bundle, tmp_path / "file" / "b")


def test_texts_that_do_not_fit_the_encoder_are_not_written(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    texts = ClassTexts(("a", "b"), np.eye(2, 8, dtype=np.float32), 100.0, "unknown")
    with pytest.raises(BundleError, match="width 8, but the encoder's features have width 16"):
        write_bundle(
            tmp_path / "b",
            random_bundle.manifest,
            b"",
            texts,
            Golden(random_bundle.golden().pixels, random_bundle.golden().features),
        )
    assert list(tmp_path.iterdir()) == []


def test_manifest_refuses_nonsense(random_bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="weights_sha256"):
        replace(random_bundle.manifest, weights_sha256="abc")
    with pytest.raises(ValueError, match="dim: expected 1"):
        replace(random_bundle.manifest, dim=0)
    assert isinstance(random_bundle.manifest, Manifest)


def test_reading_needs_neither_onnxruntime_nor_pillow(random_bundle: Bundle) -> None:
    code = (
        "import sys, pathlib\n"
        "from fedclip_edge.vision.bundle import read_bundle\n"
        "read_bundle(pathlib.Path(sys.argv[1]))\n"
        "sys.exit(bool({'onnxruntime', 'PIL', 'torch', 'onnx'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code, str(random_bundle.folder)]
    assert subprocess.run(command, check=False).returncode == 0


def test_names_are_read_in_one_unicode_form(random_bundle: Bundle, copied: Path) -> None:
    head = {"names": ["cafe\u0301", "b", "c"], "prompt": "a {}", "logit_scale": 100.0}
    vectors = {"vectors": random_bundle.classes.vectors}
    put(copied, "classes.safetensors", vectors, {"classes": json.dumps(head)})
    classes = read_bundle(copied).classes
    assert classes.names == ("caf\u00e9", "b", "c")
    composed = ClassTexts(("caf\u00e9", "b", "c"), vectors["vectors"], 100.0, "a {}")
    assert classes.digest == composed.digest


def test_two_spellings_of_one_name_are_refused(random_bundle: Bundle, copied: Path) -> None:
    head = {"names": ["cafe\u0301", "caf\u00e9", "c"], "prompt": "a {}", "logit_scale": 100.0}
    vectors = {"vectors": random_bundle.classes.vectors}
    put(copied, "classes.safetensors", vectors, {"classes": json.dumps(head)})
    with pytest.raises(BundleError, match=r"has no valid class texts .*expected different names"):
        read_bundle(copied)
