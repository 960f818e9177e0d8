"""Prediction: pictures to probabilities with the method's own logits."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from trained_run import write_mixed

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import DataError
from fedclip_edge.learning import methods
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.prediction import Asked, Prediction, find_pictures, predict_pictures
from fedclip_edge.records import F32, Model
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import open_encoder
from fedclip_edge.vision.picture_files import Skipped
from fedclip_edge.vision.pictures import load

NAMES = ("circle", "square", "triangle")


def predicted(
    bundle: Bundle, paths: list[Path], model: Model | None, batch_size: int = 4
) -> list[Prediction | Skipped]:
    asked, _ = find_pictures(paths, bundle.classes.names)
    config = EncoderConfig(batch_size=batch_size)
    encoder = open_encoder(bundle, config)
    preprocessing = bundle.manifest.preprocessing
    return list(predict_pictures(asked, encoder, preprocessing, bundle.classes, model, config))


def softmax(logits: F32) -> F32:
    wide = np.exp(logits.astype(np.float64))
    return np.asarray(wide / wide.sum(axis=1, keepdims=True), np.float32)


def test_probabilities_are_the_softmax_of_the_methods_logits(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel
) -> None:
    found = predicted(random_bundle, [pictures], trained.model)
    assert len(found) == 15
    encoder = open_encoder(random_bundle, EncoderConfig())
    adapted_differs = False
    for result in found:
        assert isinstance(result, Prediction)
        pixels = load(result.asked.path, random_bundle.manifest.preprocessing)
        vectors = encoder.embed(pixels[None])  # (1, D)
        for shown, model in ((result.zero_shot, zeroshot.MODEL), (result.adapted, trained.model)):
            assert shown is not None
            expected = softmax(methods.predict(model, vectors, random_bundle.classes))[0]
            np.testing.assert_allclose(shown, expected, atol=1e-5)
            assert shown.sum() == pytest.approx(1, abs=1e-5)
        assert result.adapted is not None
        adapted_differs |= bool(result.adapted.argmax() != result.zero_shot.argmax())
    assert adapted_differs


def test_without_a_model_there_is_the_zero_shot_answer_alone(
    random_bundle: Bundle, pictures: Path
) -> None:
    found = predicted(random_bundle, [pictures / "square"], None)
    assert all(isinstance(r, Prediction) and r.adapted is None for r in found)


@pytest.mark.parametrize("batch_size", [1, 3, 15, 100])
def test_the_batch_changes_no_answer(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, batch_size: int
) -> None:
    together = predicted(random_bundle, [pictures], trained.model, 4)
    otherwise = predicted(random_bundle, [pictures], trained.model, batch_size)
    for one, other in zip(together, otherwise, strict=True):
        assert isinstance(one, Prediction)
        assert isinstance(other, Prediction)
        assert one.asked == other.asked
        assert one.adapted is not None
        assert other.adapted is not None
        np.testing.assert_allclose(one.adapted, other.adapted, atol=1e-5)


def test_unreadable_pictures_are_named_and_the_others_answered(
    random_bundle: Bundle, tmp_path: Path
) -> None:
    write_mixed(tmp_path / "p", NAMES, per_class=2)
    (tmp_path / "p" / "circle" / "0.png").write_text("a letter")
    (tmp_path / "p" / "square" / "1.png").write_bytes(b"")
    found = predicted(random_bundle, [tmp_path / "p"], None)
    skipped = {r.path.name: r.reason for r in found if isinstance(r, Skipped)}
    assert skipped == {
        "0.png": "it is not a picture in a known format",
        "1.png": "the file is empty",
    }
    assert sum(isinstance(r, Prediction) for r in found) == 4


# --- selection of pictures, and their labels -----------------------------------------------------


def made(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return paths


def test_a_folder_means_every_picture_below_it(tmp_path: Path) -> None:
    paths = made(tmp_path, "b.JPG", "a/c/d.png", "e.webp")
    made(tmp_path, "notes.txt", ".hidden.png", "a/.cache/f.png")
    assert {asked.path for asked in find_pictures([tmp_path], NAMES)[0]} == set(paths)


def test_a_file_that_was_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    paths = made(tmp_path, "frame", "z.tiff", "a.png")
    assert [asked.path for asked in find_pictures(paths, NAMES)[0]] == paths


def test_a_file_that_is_meant_twice_is_there_once(tmp_path: Path) -> None:
    paths = made(tmp_path, "square/a.png", "b.png")
    found = find_pictures([tmp_path, *paths, tmp_path / "square"], NAMES)[0]
    assert {asked.path: asked.truth for asked in found} == {paths[0]: 1, paths[1]: None}
    assert len(found) == 2
    made(tmp_path, "square/deep/c.png")
    deep = tmp_path / "square" / "deep"
    (first,), _ = find_pictures([deep, deep], NAMES)
    assert first.truth is None
    twice, _ = find_pictures([deep, tmp_path / "square"], NAMES)
    assert twice[0] == first


def test_the_truth_is_the_nearest_folder_with_a_classs_name(tmp_path: Path) -> None:
    made(tmp_path, "square/a.png", "square/deep/b.png", "square/circle/c.png", "other/d.png")
    found = {asked.path.name: asked.truth for asked in find_pictures([tmp_path], NAMES)[0]}
    assert found == {"a.png": 1, "b.png": 1, "c.png": 0, "d.png": None}


def test_the_truth_is_looked_for_no_higher_than_what_was_named(tmp_path: Path) -> None:
    (path,) = made(tmp_path, "square/mixed/a.png")
    by = {
        "folder": [tmp_path / "square" / "mixed"],
        "class": [tmp_path / "square"],
        "file": [path],
    }
    truths = {name: find_pictures(paths, NAMES)[0][0].truth for name, paths in by.items()}
    assert truths == {"folder": None, "class": 1, "file": None}
    (inside,) = made(tmp_path, "square/b.png")
    assert find_pictures([inside], NAMES)[0] == (Asked(inside, 1),)


def test_a_folder_named_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "square/a.png")
    monkeypatch.chdir(tmp_path)
    assert find_pictures([Path()], NAMES)[0] == (Asked(Path("square/a.png"), 1),)
    assert find_pictures([Path("square/a.png")], NAMES)[0][0].truth == 1


def test_a_folder_in_the_other_unicode_form_is_of_the_class(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"))
    made(tmp_path, f"{apart}/a.png")
    paths = ([tmp_path], [tmp_path / apart], [tmp_path / apart / "a.png"])
    for names in ((composed, "tea"), (apart, "tea")):
        truths = [find_pictures(given, names)[0][0].truth for given in paths]
        assert truths == [0, 0, 0]


def test_links_and_system_folders_are_as_on_an_agent(tmp_path: Path) -> None:
    made(tmp_path, "disk/a.png", "site/circle/@eaDir/thumb.jpg", "site/circle/b.png", "site/n.txt")
    site = tmp_path / "site"
    (site / "square").symlink_to(tmp_path / "disk")
    (site / "circle" / "loop").symlink_to(site)
    (site / "gone").symlink_to(tmp_path / "unplugged")
    found, left_out = find_pictures([site], NAMES)
    assert found == (Asked(site / "circle" / "b.png", 0), Asked(site / "square" / "a.png", 1))
    assert left_out.others == (site / "n.txt",)
    assert [path for path, _ in left_out.skipped] == [site / "gone"]
    assert [path for path, _ in left_out.unused] == [site / "circle" / "loop"]
    assert find_pictures([site, site / "circle", site], NAMES) == (found, left_out)
    shutil.rmtree(site / "circle")
    (site / "square").unlink()
    with pytest.raises(DataError, match=r"no picture .* was found in .*gone: it is a link to"):
        find_pictures([site], NAMES)


def test_nothing_to_predict(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png does not exist; name pictures"):
        find_pictures([tmp_path / "gone.png"], NAMES)
    made(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=r"no picture \(\.avif, .*\.webp\) was found in"):
        find_pictures([tmp_path], NAMES)


def test_the_unicode_form_of_a_folder_does_not_matter(tmp_path: Path) -> None:
    made(tmp_path, "cafe\u0301/a.png", "caf\u00e9/b.png")
    found, _ = find_pictures([tmp_path], ("tea", "caf\u00e9"))
    assert [asked.truth for asked in found] == [1, 1]
