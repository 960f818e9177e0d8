"""Class probabilities and scores of picture files, zero-shot and from an adapted model.

Laws:

- Logits are computed by the same functions as in training and evaluation (learning/methods), and
  answers as on a device (learning/classification.py).
- At most one batch of pixels for each thread (vision/pace.py), and twice as many batches of files,
  are held at a time, for any number of pictures.
- A picture that cannot be decoded is skipped and named.
- A picture whose feature is in the cache is neither decoded nor encoded.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import DataError
from fedclip_edge.learning.classification import classify
from fedclip_edge.records import F32, ClassTexts, Model, normalized_name
from fedclip_edge.vision import picture_files
from fedclip_edge.vision.embedding import Cache, PictureEncoder
from fedclip_edge.vision.pace import pace_of
from fedclip_edge.vision.picture_bytes import NO_FILE, read_picture
from fedclip_edge.vision.picture_files import (
    EXTENSIONS,
    LeftOut,
    Skipped,
    labels_of,
    unreadable,
)
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash


@dataclass(frozen=True)
class Asked:
    """A picture file to predict."""

    path: Path
    truth: int | None  # label of the class whose folder the file is in; None outside of one


@dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities for one picture: zero-shot, and from the model if one is given."""

    asked: Asked
    zero_shot: F32  # (C,) probabilities
    adapted: F32 | None  # (C,) probabilities
    score: float  # low for a picture of none of the classes (learning/unknown.py)


def find_pictures(
    paths: Sequence[Path], classes: Sequence[str]
) -> tuple[tuple[Asked, ...], LeftOut]:
    """List the pictures in `paths`: files as they are, folders with all pictures below them.

    A file that occurs twice is listed once. The truth is the class of the nearest folder with a
    class's name, from the picture up to the folder in `paths`; names are compared in Unicode form
    NFC. Also returns what is left out, each once. Raises DataError if a path does not exist or
    cannot be read, or if no picture is found.
    """
    labels = labels_of(classes)
    found: dict[Path, Asked] = {}
    left_out = LeftOut()
    for path in paths:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise DataError(
                f"{path} does not exist; name pictures, or folders of pictures"
            ) from None
        except OSError as error:
            raise DataError(
                f"{path} {unreadable(error)}; name other pictures, or folders of pictures"
            ) from error
        if stat.S_ISDIR(mode):
            label = labels.get(normalized_name(path.name))
            below = picture_files.find_pictures(path, labels, label)
            left_out += below.left_out
            for file, truth in below.pictures:
                found.setdefault(file, Asked(file, truth))
        elif not stat.S_ISREG(mode):
            left_out += LeftOut(skipped=(Skipped(path, NO_FILE),))
        else:
            truth = labels.get(normalized_name(path.parent.name))
            found.setdefault(path, Asked(path, truth))
    if not found:
        raise DataError(
            f"no picture ({', '.join(sorted(EXTENSIONS))}) was found in "
            f"{', '.join(map(str, paths))}{left_out.reasons()}; name pictures, or folders of "
            "pictures"
        )
    return tuple(found.values()), left_out.distinct()


def predict_pictures(
    asked: Sequence[Asked],
    encoder: PictureEncoder,
    preprocessing: Preprocessing,
    classes: ClassTexts,
    model: Model | None,
    config: EncoderConfig,
    *,
    cache: Cache | None = None,
) -> Iterator[Prediction | Skipped]:
    """Yield one result per picture: probabilities float32 (C,), or `Skipped`.

    The pictures skipped in a batch come before its predictions. `config` is the one that `encoder`
    was made with. Raises BundleError like `Encoder.embed`, and DataError if `cache` cannot be used.
    """
    key, pace = encoder.feature_key, pace_of(config, len(asked))

    def read(batch: Sequence[Asked]) -> list[_File]:
        return [_read(one) for one in batch]

    def looked_up(files: Iterable[list[_File]]) -> Iterator[_File]:
        for batch in files:
            known: dict[str, F32] = {}
            if cache is not None:
                known = cache.get([one.hash for one in batch if one.hash], key)
            yield from (replace(one, feature=known.get(one.hash)) for one in batch)

    def encoded(batch: Sequence[_File]) -> _Batch:
        files = [_decode(one, preprocessing, fast=config.fast) for one in batch]
        pixels = {one.hash: one.pixels for one in files if one.pixels is not None}
        fresh: dict[str, F32] = {}
        if pixels:
            vectors = pace.encode(encoder.embed, np.stack(list(pixels.values())))  # (B, D)
            fresh = dict(zip(pixels, vectors, strict=True))
        return _Batch([replace(one, pixels=None) for one in files], fresh)

    # Files are read and encoded in threads; the cache is used in this one.
    with (
        closing(pace.batches(read, asked)) as files,
        closing(pace.batches(encoded, looked_up(files))) as batches,
    ):
        for batch in batches:
            yield from (Skipped(one.asked.path, one.reason) for one in batch.files if one.reason)
            features = {one.hash: one.feature for one in batch.files if one.feature is not None}
            if batch.fresh and cache is not None:
                cache.put(batch.fresh, key)
            features |= batch.fresh
            usable = [one for one in batch.files if not one.reason]
            if not usable:
                continue
            vectors = np.stack([features[one.hash] for one in usable])  # (B, D)
            found = classify(vectors, classes, model)
            for i, one in enumerate(usable):
                adapted = None if found.adapted is None else found.adapted[i]
                yield Prediction(one.asked, found.zero_shot[i], adapted, float(found.scores[i]))


@dataclass(frozen=True, eq=False)
class _Batch:
    """One batch of files, and the features that were computed for it."""

    files: Sequence[_File]  # their pixels are gone
    fresh: Mapping[str, F32]  # new features (D,) by picture hash


@dataclass(frozen=True, eq=False)
class _File:
    """A picture file on its way to its feature: `feature`, `pixels` or `reason` is the result."""

    asked: Asked
    hash: str = ""  # empty if the file could not be read
    data: bytes = b""  # content of the file, until it is decoded
    feature: F32 | None = None  # (D,), from the cache
    pixels: F32 | None = None  # (3, S, S)
    reason: str = ""  # not empty if the picture is skipped


def _read(asked: Asked) -> _File:
    try:
        data = read_picture(asked.path)
    except OSError as error:
        return _File(asked, reason=unreadable(error))
    return _File(asked, picture_hash(data), data)


def _decode(file: _File, preprocessing: Preprocessing, *, fast: bool) -> _File:
    """Decode a picture whose feature is not known."""
    if file.reason or file.feature is not None:
        return replace(file, data=b"")
    try:
        return replace(file, data=b"", pixels=decode(file.data, preprocessing, fast=fast))
    except DataError as error:
        return replace(file, data=b"", reason=str(error))
