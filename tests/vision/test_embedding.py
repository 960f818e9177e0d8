"""Embedding: each picture is encoded once, and unreadable ones are skipped and named."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import system
from PIL import Image

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, DataError
from fedclip_edge.records import F32
from fedclip_edge.vision import embedding
from fedclip_edge.vision import pictures as pictures_module
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture, read_folder
from fedclip_edge.vision.embedding import Embedded, embed_pictures
from fedclip_edge.vision.encoder import Encoder, open_encoder
from fedclip_edge.vision.pictures import load

CLASSES = ("circle", "square", "triangle")


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Picture, ...]:
    """Eleven noise pictures of two classes."""
    rng = np.random.default_rng(5)
    for label, count in (("circle", 4), ("square", 7)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (36, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return read_folder(tmp_path / "pictures", CLASSES).pictures


@pytest.fixture
def encoder(random_bundle: Bundle) -> Encoder:
    return open_encoder(random_bundle, EncoderConfig())


class Counting:
    """An onnxruntime session that counts pictures, and may fail after some."""

    def __init__(self, session: Any, fail_after: int | None = None) -> None:
        self.session, self.fail_after, self.seen = session, fail_after, 0

    def run(self, names: Sequence[str], feeds: dict[str, F32]) -> Any:
        (pixels,) = feeds.values()
        self.seen += len(pixels)
        if self.fail_after is not None and self.seen > self.fail_after:
            raise RuntimeError("killed")
        return self.session.run(names, feeds)


def embed(
    bundle: Bundle, encoder: Encoder, cache: FeatureCache, pictures: Sequence[Picture]
) -> Embedded:
    return embed_pictures(
        pictures, encoder, cache, bundle.manifest.preprocessing, EncoderConfig(batch_size=3)
    )


def test_features_are_those_of_each_picture_in_the_order_given(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        result = embed(random_bundle, encoder, cache, pictures[::-1])
    preprocessing = random_bundle.manifest.preprocessing
    alone = [encoder.embed(load(p.path, preprocessing)[None])[0] for p in pictures[::-1]]
    np.testing.assert_array_equal(result.vectors, np.stack(alone))
    assert result.labels.tolist() == [1] * 7 + [0] * 4
    assert result.labels.dtype == np.int64
    assert result.pictures == pictures[::-1]
    assert (result.encoded, result.cached, result.skipped) == (11, 0, ())


def test_a_second_run_encodes_nothing(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        first = embed(random_bundle, encoder, cache, pictures)
    session = Counting(encoder.session)
    for picture in pictures:
        picture.path.unlink()  # the cache makes the file unnecessary
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        second = embed(random_bundle, replace(encoder, session=session), cache, pictures)
    assert session.seen == 0
    assert (second.encoded, second.cached) == (0, 11)
    np.testing.assert_array_equal(first.vectors, second.vectors)


def test_another_feature_key_encodes_again(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        embed(random_bundle, encoder, cache, pictures)
        other = embed(random_bundle, replace(encoder, feature_key="x"), cache, pictures)
    assert (other.encoded, other.cached) == (11, 0)


def test_copies_are_encoded_once(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    copy = Picture(pictures[0].path, 2, pictures[0].hash)
    session = Counting(encoder.session)
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        result = embed(
            random_bundle, replace(encoder, session=session), cache, [*pictures, copy, copy]
        )
    assert session.seen == result.encoded == 11
    assert result.labels.tolist()[-2:] == [2, 2]
    np.testing.assert_array_equal(result.vectors[-1], result.vectors[0])


def test_unreadable_pictures_are_skipped_counted_and_named(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "pictures" / "circle"
    (folder / "notes.jpg").write_text("this is no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)).save(
        folder / "half.jpg"
    )
    (folder / "half.jpg").write_bytes((folder / "half.jpg").read_bytes()[:2000])
    everything = read_folder(tmp_path / "pictures", CLASSES).pictures
    gone, changed = everything[0], everything[1]
    gone.path.unlink()
    changed.path.write_bytes(pictures[5].path.read_bytes())
    done: list[tuple[int, int]] = []
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        result = embed_pictures(
            everything,
            encoder,
            cache,
            random_bundle.manifest.preprocessing,
            EncoderConfig(batch_size=2),
            progress=lambda a, b: done.append((a, b)),
        )
        assert len(cache) == 9
    reasons = {skip.path.name: skip.reason for skip in result.skipped}
    assert reasons.keys() == {gone.path.name, changed.path.name, "notes.jpg", "half.jpg"}
    assert reasons["notes.jpg"] == "it is not a picture in a known format"
    assert "incomplete" in reasons["half.jpg"]
    assert reasons[gone.path.name] == "cannot be read: No such file or directory"
    assert reasons[changed.path.name] == "it changed after the folder was read"
    assert len(result.vectors) == len(result.labels) == len(result.pictures) == 9
    assert (result.encoded, result.cached) == (9, 0)
    assert done[-1] == (13, 13)
    assert done == sorted(done)


def test_nothing_readable_gives_empty_features(
    random_bundle: Bundle, encoder: Encoder, tmp_path: Path
) -> None:
    lost = Picture(tmp_path / "lost.png", 0, "0" * 64)
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        result = embed(random_bundle, encoder, cache, [lost])
        nothing = embed(random_bundle, encoder, cache, [])
    assert result.vectors.shape == nothing.vectors.shape == (0, 16)
    assert result.labels.dtype == np.int64
    assert len(result.skipped) == 1


def test_a_killed_run_resumes_after_its_last_batch(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    dying = replace(encoder, session=Counting(encoder.session, fail_after=6))
    about = random_bundle.manifest.preprocessing
    config = EncoderConfig(threads=1, batch_size=3)  # of several threads, any could have failed
    with FeatureCache(tmp_path / "f.sqlite") as cache, pytest.raises(BundleError, match="killed"):
        embed_pictures(pictures, dying, cache, about, config)
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        result = embed(random_bundle, encoder, cache, pictures)
    assert (result.encoded, result.cached) == (5, 6)


def test_a_mistake_while_decoding_is_not_swallowed(
    random_bundle: Bundle,
    encoder: Encoder,
    pictures: tuple[Picture, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(embedding, "decode", fail)
    with FeatureCache(tmp_path / "f.sqlite") as cache, pytest.raises(AssertionError, match="a bug"):
        embed(random_bundle, encoder, cache, pictures)


def test_few_batches_of_pixels_exist_at_a_time(
    random_bundle: Bundle, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pictures there are, and however slow the encoder is."""
    system.write_pictures(tmp_path / "pictures", CLASSES, 20, seed=0)
    pictures = read_folder(tmp_path / "pictures", CLASSES).pictures
    alive: set[int] = set()
    most = 0

    def decode(*arguments: Any, **options: Any) -> F32:
        nonlocal most
        pixels = pictures_module.decode(*arguments, **options)
        number = id(pixels)
        alive.add(number)
        most = max(most, len(alive))
        weakref.finalize(pixels, alive.discard, number)
        return pixels

    monkeypatch.setattr(embedding, "decode", decode)
    config = EncoderConfig(threads=4, batch_size=3)
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        preprocessing = random_bundle.manifest.preprocessing
        result = embed_pictures(pictures, encoder, cache, preprocessing, config)
    assert len(result.vectors) == 60
    assert 0 < most <= 3 * config.threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_and_batches_do_not_change_a_bit(
    random_bundle: Bundle,
    encoder: Encoder,
    pictures: tuple[Picture, ...],
    tmp_path: Path,
    threads: int,
) -> None:
    preprocessing = random_bundle.manifest.preprocessing
    expected = np.stack([encoder.embed(load(p.path, preprocessing)[None])[0] for p in pictures])
    for batch_size in (1, 4, 50):
        config = EncoderConfig(threads=threads, batch_size=batch_size)
        mine = open_encoder(random_bundle, config)
        with FeatureCache(tmp_path / f"{batch_size}.sqlite") as cache:
            result = embed_pictures(pictures, mine, cache, preprocessing, config)
        np.testing.assert_array_equal(result.vectors, expected)


def test_some_from_the_cache_and_some_from_the_encoder_in_their_order(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        embed(random_bundle, encoder, cache, pictures[3:7])
        result = embed(random_bundle, encoder, cache, [*pictures, pictures[0]])
    preprocessing = random_bundle.manifest.preprocessing
    alone = [encoder.embed(load(p.path, preprocessing)[None])[0] for p in result.pictures]
    np.testing.assert_array_equal(result.vectors, np.stack(alone))
    assert (result.encoded, result.cached, len(result.vectors)) == (7, 4, 12)


def test_features_of_another_width_in_the_cache(
    random_bundle: Bundle, encoder: Encoder, pictures: tuple[Picture, ...], tmp_path: Path
) -> None:
    with FeatureCache(tmp_path / "f.sqlite") as cache:
        cache.put({pictures[0].hash: np.zeros(3, np.float32)}, encoder.feature_key)
        with pytest.raises(
            DataError, match=r"of width 3, but the encoder's width is 16; delete it"
        ):
            embed(random_bundle, encoder, cache, pictures)
        cache.put({"n": np.full(16, np.nan, np.float32)}, encoder.feature_key)
        with pytest.raises(DataError, match="damaged"):
            embed(random_bundle, encoder, cache, [Picture(Path("n"), 0, "n")])
