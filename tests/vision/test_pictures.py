"""Pixels equal to those of open_clip, and errors for files that are not pictures."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image, features
from system import DEADLINE_S

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.exporting.torchvision_ops import declare_missing
from fedclip_edge.records import U8
from fedclip_edge.vision import pictures
from fedclip_edge.vision.pictures import Preprocessing, decode, load, normalise, picture_hash
from fedclip_edge.vision.pixel_budget import PixelBudget

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


@given(
    hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=3, max_side=6).map(lambda s: (*s, 3))
    )
)
def test_normalise_gives_the_bits_of_the_formula(pixels: U8) -> None:
    """The formula of torchvision's ToTensor and Normalize, over all colours at once."""
    mean, std = np.asarray(MEAN, np.float32), np.asarray(STD, np.float32)
    expected = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    found = normalise(pixels, P32)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.moveaxis(expected, -1, -3))


def test_every_level_of_every_colour_is_torchvisions() -> None:
    declare_missing()
    from torchvision.transforms import functional as tv

    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = tv.normalize(tv.to_tensor(Image.fromarray(levels)), list(MEAN), list(STD))
    np.testing.assert_array_equal(normalise(levels, P32), tensor.numpy())


def scene(width: int, height: int) -> Image.Image:
    """A picture with edges, smooth areas and noise, like a photograph."""
    rng = np.random.default_rng(width + height)
    coarse = Image.fromarray(rng.integers(40, 210, (9, 16, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    smooth[height // 3 : height // 2, width // 4 : width // 2] = (200, 40, 90)
    noisy = smooth + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("size", [(1920, 1080), (1080, 1921), (640, 480), (300, 300), (101, 40)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_fast_is_close_to_exact(
    size: tuple[int, int], resize: Literal["shortest", "squash"], mode: str
) -> None:
    levels = Preprocessing(64, resize, 64, "bicubic", (0.0,) * 3, (1 / 255,) * 3)
    data = encoded(scene(*size).convert(mode), "JPEG")
    exact, fast = decode(data, levels), decode(data, levels, fast=True)
    assert fast.shape == exact.shape
    assert np.abs(fast - exact).mean() < 2  # grey levels


def test_fast_decodes_fewer_pixels_of_a_jpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """At least twice the size of the result: of 1600 x 1200, a quarter for 120, all for 601."""
    decoded: list[int] = []

    class Counting(PixelBudget):
        @contextmanager
        def of(self, pixels: int) -> Iterator[None]:
            decoded.append(pixels)
            with super().of(pixels):
                yield

    monkeypatch.setattr(pictures, "_DECODING", Counting(pictures.MAX_PIXELS))
    data = encoded(scene(1600, 1200), "JPEG")
    for side in (75, 76, 120, 300, 601):
        decode(data, Preprocessing(side, "shortest", side, "bicubic", MEAN, STD), fast=True)
    assert decoded == [200 * 150, 400 * 300, 400 * 300, 800 * 600, 1600 * 1200]
    decoded.clear()
    decode(data, P32)
    assert decoded == [1600 * 1200]


def test_fast_changes_little_of_other_formats() -> None:
    """Only the edges of the crop are rounded in another way."""
    levels = Preprocessing(32, "shortest", 40, "bicubic", (0.0,) * 3, (1 / 255,) * 3)
    data = encoded(drawn(401, 300))
    assert np.abs(decode(data, levels, fast=True) - decode(data, levels)).max() <= 1.01


@pytest.mark.parametrize("cut", [20, 400, 4000])
def test_fast_gives_no_half_picture(cut: int) -> None:
    data = encoded(scene(640, 480), "JPEG")
    with pytest.raises(DataError, match=r"incomplete or damaged|not a picture"):
        decode(data[:cut], P32, fast=True)


def test_threads_decode_no_more_pixels_together_than_one_picture_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pictures, "_DECODING", PixelBudget(100 * 100))
    data = [encoded(drawn(90 + i, 95)) for i in range(8)]  # each nearly all of the budget
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda one: decode(one, P32), data, timeout=DEADLINE_S))
    for one, pixels in zip(data, found, strict=True):
        np.testing.assert_array_equal(decode(one, P32), pixels)
