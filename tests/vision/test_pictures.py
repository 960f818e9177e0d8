"""Pixels equal to those of open_clip, and errors for files that are not pictures."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, features

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.vision import pictures
from fedclip_edge.vision.pictures import Preprocessing, load, picture_hash

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
PLAIN: dict[str, Any] = {
    "image_size": 32,
    "resize": "shortest",
    "resize_px": 32,
    "interpolation": "bicubic",
    "mean": list(MEAN),
    "std": list(STD),
}
P32 = read_table(Preprocessing, PLAIN, "plain")


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (101, 40), (20, 31), (64, 63), (5, 90)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_open_clips(
    size: tuple[int, int],
    resize: Literal["shortest", "squash"],
    interpolation: Literal["bilinear", "bicubic"],
) -> None:
    declare_missing()
    from open_clip.transform import image_transform

    picture = drawn(*size)
    theirs = image_transform(
        32, is_train=False, mean=MEAN, std=STD, resize_mode=resize, interpolation=interpolation
    )(picture).numpy()
    ours = load(encoded(picture), Preprocessing(32, resize, 32, interpolation, MEAN, STD))
    assert ours.shape == (3, 32, 32)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 57), (301, 64), (63, 64)])
def test_crop_after_a_larger_resize_is_torchvisions(size: tuple[int, int]) -> None:
    declare_missing()
    from torchvision.transforms import functional as tv

    picture = drawn(*size)
    theirs = np.asarray(tv.center_crop(tv.resize(picture, 45), 32))
    plain = Preprocessing(32, "shortest", 45, "bilinear", (0.0,) * 3, (1.0,) * 3)
    ours = load(encoded(picture), plain)
    np.testing.assert_array_equal(np.rint(ours * 255).transpose(1, 2, 0), theirs)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_mode_becomes_rgb_first(mode: str) -> None:
    picture = drawn(50, 40, mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    expected = load(encoded(picture.convert("RGB")), P32)
    np.testing.assert_array_equal(load(encoded(picture, kind), P32), expected)


def test_palette_with_transparency_warns_nobody() -> None:
    picture = drawn(40, 40, "P")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=bytes(range(256)))
    assert load(buffer.getvalue(), P32).shape == (3, 32, 32)


def test_orientation_is_not_applied() -> None:
    picture = drawn(48, 32)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    picture.save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(load(buffer.getvalue(), P32), load(encoded(picture), P32))


def test_a_path_reads_like_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(drawn(50, 50), "JPEG"))
    np.testing.assert_array_equal(load(path, P32), load(path.read_bytes(), P32))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is no picture", "not a picture"),
        (encoded(drawn(200, 200), "JPEG")[:4000], "incomplete or damaged"),
        (encoded(drawn(200, 200), "PNG")[:9000], "incomplete or damaged"),
        (encoded(drawn(200, 200), "JPEG")[:20], "not a picture"),
        (encoded(Image.fromarray(np.full((40, 40), 7, np.int32)), "TIFF"), "32-bit"),
    ],
)
def test_an_unusable_file_is_named_with_its_reason(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"broken\.jpg cannot be used.*{reason}"):
        load(path, P32)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png cannot be read: No such file"):
        load(tmp_path / "gone.png", P32)


def test_a_picture_that_claims_too_many_pixels_is_refused() -> None:
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 1_000_000
    with pytest.raises(DataError, match=r"larger than|more than"):
        load(bomb, P32)


def test_a_thread_of_a_picture_is_refused_before_it_is_scaled_up() -> None:
    with pytest.raises(DataError, match="scaled for the encoder"):
        load(encoded(Image.new("L", (1, 200_000))), P32)


def test_hash_is_of_the_files_bytes() -> None:
    assert picture_hash(b"abc").startswith("ba7816bf")


def test_preprocessing_survives_json() -> None:
    assert read_table(Preprocessing, P32.to_json(), "again") == P32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "image_size: expected 1"),
        ({"resize_px": 31}, "resize_px: expected image_size"),
        ({"resize": "squash", "resize_px": 40}, "with resize = squash"),
        ({"resize": "longest"}, "'shortest' or 'squash', got 'longest'"),
        ({"interpolation": "nearest"}, "'bilinear' or 'bicubic', got 'nearest'"),
        ({"mean": [0.5]}, "mean: expected three numbers"),
        ({"std": [0.5, 0.5, 0.0]}, "std: expected three numbers above 0"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean: expected three numbers"),
        ({"imagesize": 3}, "did you mean 'image_size'"),
    ],
)
def test_wrong_preprocessing_says_what_was_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_table(Preprocessing, {**PLAIN, **change}, "preprocess.toml")


def test_preprocessing_itself_refuses_wrong_words() -> None:
    with pytest.raises(ValueError, match="resize: expected"):
        Preprocessing(32, "longest", 32, "bicubic", MEAN, STD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="interpolation: expected"):
        Preprocessing(32, "squash", 32, "nearest", MEAN, STD)  # type: ignore[arg-type]


def test_importing_pictures_loads_no_pillow() -> None:
    code = f"import sys, {pictures.__name__}; sys.exit('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sixteen_bits_of_grey_are_refused_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(path)
    with pytest.raises(DataError, match="8 bits per channel"):
        load(path, Preprocessing(32, "shortest", 32, "bicubic", (0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_further_formats_are_decoded(kind: str, mode: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = drawn(40, 50, mode)
    found = load(encoded(picture, kind), P32)
    expected = load(encoded(picture, "PNG"), P32)
    assert found.shape == (3, 32, 32)
    if kind == "TIFF":
        assert np.array_equal(found, expected)
    else:  # it loses details of noise
        assert abs(float(found.mean() - expected.mean())) < 0.2


def test_of_a_tiff_with_pages_the_first_counts() -> None:
    buffer = io.BytesIO()
    drawn(40, 50).save(buffer, "TIFF", save_all=True, append_images=[drawn(60, 60)])
    assert np.array_equal(load(buffer.getvalue(), P32), load(encoded(drawn(40, 50)), P32))


def test_a_heic_without_its_reader_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    pictures._pillow.cache_clear()
    with pytest.raises(DataError, match=r"install Pillow 11\.3 or later for AVIF, pillow-heif"):
        load(heic, P32)
    pictures._pillow.cache_clear()


def test_heic_is_decoded_if_its_reader_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    picture = Image.new("RGB", (64, 64), (200, 100, 50))
    found = load(encoded(picture, "HEIF"), P32)
    assert np.abs(found - load(encoded(picture), P32)).max() < 0.2
