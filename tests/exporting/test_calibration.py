"""The choice of pictures for the parity check and for int8 calibration."""

from __future__ import annotations

import io
import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting import calibration
from fedclip_edge.exporting.calibration import (
    GatePictures,
    from_bytes,
    gather,
    read_pictures,
)
from fedclip_edge.vision.picture_files import LeftOut
from fedclip_edge.vision.pictures import Preprocessing, load

PLAIN = Preprocessing(8, "squash", 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
CLASSES = ("cat", "dog")


def image(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, count: int, names: tuple[str, ...] = CLASSES) -> Path:
    for seed in range(count):
        path = folder / names[seed % len(names)] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(seed))
    return folder


def rows(pixels: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in pixels}


@pytest.mark.parametrize(
    ("count", "gate", "calibrated"),
    [(64, 64, 64), (95, 95, 95), (96, 64, 32), (200, 134, 66), (400, 272, 128), (700, 512, 128)],
)
def test_gate_and_calibration_share_no_picture_where_there_are_enough(
    tmp_path: Path, count: int, gate: int, calibrated: int
) -> None:
    found = read_pictures(fill(tmp_path, count), PLAIN, CLASSES)
    assert (len(found.pixels), len(found.calibration)) == (gate, calibrated)
    shared = rows(found.pixels) & rows(found.calibration)
    assert len(shared) == (0 if count >= 96 else count)
    assert found.labels is not None
    assert len(found.labels) == gate
    assert (found.left_out, found.source) == (LeftOut(), "folder")


def test_without_labels_fewer_do(tmp_path: Path) -> None:
    found = read_pictures(fill(tmp_path, 300, ("a", "b")), PLAIN, CLASSES)
    assert found.labels is None
    assert (len(found.pixels), len(found.calibration)) == (171, 85)  # from the first 256 pictures


def test_labels_are_those_of_the_pictures(tmp_path: Path) -> None:
    """Folders may be nested: one per domain, with one per class in each."""
    fill(tmp_path / "photo", 40)
    fill(tmp_path / "sketch", 80)
    found = read_pictures(tmp_path, PLAIN, CLASSES)
    paths = {load(p, PLAIN).tobytes(): p.parent.name for p in tmp_path.rglob("*.png")}
    assert found.labels is not None
    for row, label in zip(found.pixels, found.labels, strict=True):
        assert paths[row.tobytes()] == CLASSES[label]
    (tmp_path / "stray.png").write_bytes(image(999))
    assert read_pictures(tmp_path, PLAIN, CLASSES).labels is None


def test_the_choice_follows_from_the_bytes_alone(tmp_path: Path) -> None:
    one = read_pictures(fill(tmp_path / "one", 150), PLAIN, CLASSES)
    names = list(range(150))
    random.Random(0).shuffle(names)
    for seed in range(150):
        path = tmp_path / "other" / CLASSES[seed % 2] / f"{names[seed]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(seed))
    other = read_pictures(tmp_path / "other", PLAIN, CLASSES)
    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.calibration, other.calibration)


def test_broken_pictures_and_copies(tmp_path: Path) -> None:
    fill(tmp_path, 64)
    (tmp_path / "cat" / "cut.png").write_bytes(image(1000)[:60])
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    shutil.copy(tmp_path / "cat" / "0.png", tmp_path / "cat" / "copy.png")
    found = read_pictures(tmp_path, PLAIN, CLASSES)
    (cut,) = found.left_out.skipped
    assert cut.path == tmp_path / "cat" / "cut.png"
    assert found.left_out.others == (tmp_path / "cat" / "notes.txt",)
    assert len(rows(found.pixels)) == len(found.pixels) == 64
    (tmp_path / "cat" / "0.png").unlink()
    (tmp_path / "cat" / "copy.png").unlink()
    with pytest.raises(
        ConfigError, match=r"has 63 different readable pictures .*cut.png.*, but .* needs 64"
    ):
        read_pictures(tmp_path, PLAIN, CLASSES)


def test_links_and_system_folders_are_as_on_an_agent(tmp_path: Path) -> None:
    """Also a class folder in the other Unicode form has its label."""
    composed, apart = (unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café"))
    fill(tmp_path / "disk", 70, (apart, "dog"))
    site = tmp_path / "site"
    site.mkdir()
    for name in (apart, "dog"):
        (site / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "dog" / "loop").symlink_to(site)
    (tmp_path / "disk" / "dog" / "@eaDir").mkdir()
    (tmp_path / "disk" / "dog" / "@eaDir" / "thumb.png").write_bytes(image(1000))
    (site / "gone").symlink_to(tmp_path / "unplugged")
    said: list[str] = []

    def draw(*_: object) -> GatePictures:
        raise AssertionError("the pictures are in a folder")

    found = gather(site, draw, PLAIN, (composed, "dog"), said.append)
    assert len(found.pixels) == 70
    assert found.labels is not None
    assert sorted(found.labels) == [0] * 35 + [1] * 35
    assert said == [
        f"skipped {site / 'dog' / 'loop'}: it leads back to a folder that it is in",
        f"skipped {site / 'gone'}: it is a link to {tmp_path / 'unplugged'}, which does not exist",
    ]


def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none does not exist"):
        read_pictures(tmp_path / "none", PLAIN, CLASSES)
    with pytest.raises(ConfigError, match="has 0 different readable pictures"):
        read_pictures(tmp_path, PLAIN, CLASSES)


def test_drawn_pictures_are_for_the_gate_alone() -> None:
    images = [image(seed) for seed in range(70)]
    found = from_bytes(images, PLAIN, [seed % 2 for seed in range(70)])
    assert (found.pixels.shape, found.calibration.shape) == ((70, 3, 8, 8), (0, 3, 8, 8))
    assert found.labels is not None
    assert (found.source, found.labels[1]) == ("drawn", 1)
    with pytest.raises(ConfigError, match="only 63 drawn pictures"):
        from_bytes(images[:63], PLAIN)
    assert calibration.LEAST == 64


def test_the_unicode_form_of_a_folder_does_not_matter(tmp_path: Path) -> None:
    folder = fill(tmp_path, 64, ("cafe\u0301", "dog"))
    labels = read_pictures(folder, PLAIN, ("caf\u00e9", "dog")).labels
    assert labels is not None
    assert sorted(set(labels.tolist())) == [0, 1]
