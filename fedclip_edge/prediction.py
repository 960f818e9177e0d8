"""Class probabilities and scores of picture files, zero-shot and from an adapted model.

Laws:

- Logits are computed by the same functions as in training and evaluation (learning/methods), and
  answers as on a device (learning/classification.py).
- At most two batches of pixels are held at a time, for any number of pictures.
- A picture that cannot be decoded is skipped and named.
- A picture whose feature is in the cache is neither decoded nor encoded.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedclip_edge.errors import DataError
from fedclip_edge.learning.classification import classify
from fedclip_edge.records import F32, ClassTexts, Model, normalized_name
from fedclip_edge.vision import picture_files
from fedclip_edge.vision.embedding import Cache, PictureEncoder
from fedclip_edge.vision.picture_files import (
    EXTENSIONS,
    NO_FILE,
    LeftOut,
    Skipped,
    labels_of,
    unreadable,
)
from fedclip_edge.vision.pictures import Preprocessing, decode, picture_hash
from fedclip_edge.vision.prefetch import prefetch


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
    batch_size: int = 8,
    *,
    cache: Cache | None = None,
) -> Iterator[Prediction | Skipped]:
    """Yield one result per picture: probabilities float32 (C,), or `Skipped`.

    The pictures skipped in a batch come before its predictions. Raises BundleError like
    `Encoder.embed`, and DataError if `cache` cannot be used.
    """
    key = encoder.feature_key

    def looked_up(batch: Sequence[_Read]) -> tuple[Sequence[_Read], dict[str, F32]]:
        hashes = [one.hash for one in batch if isinstance(one.data, bytes)]
        return batch, {} if cache is None else cache.get(hashes, key)

    batches = [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]
    # Files are read and decoded in threads; the cache is used in this one.
    known = map(looked_up, prefetch(_read, batches))
    for batch, cached, pixels in prefetch(lambda some: _decode(some, preprocessing), known):
        yield from (Skipped(one.asked.path, one.data) for one in batch if isinstance(one.data, str))
        features = dict(cached)
        if pixels:
            encoded = encoder.embed(np.stack(list(pixels.values())))  # (B, D)
            fresh = dict(zip(pixels, encoded, strict=True))
            features |= fresh
            if cache is not None:
                cache.put(fresh, key)
        usable = [one for one in batch if one.hash in features]
        if not usable:
            continue
        vectors = np.stack([features[one.hash] for one in usable])  # (B, D)
        found = classify(vectors, classes, model)
        for i, one in enumerate(usable):
            adapted = None if found.adapted is None else found.adapted[i]
            yield Prediction(one.asked, found.zero_shot[i], adapted, float(found.scores[i]))


@dataclass(frozen=True)
class _Read:
    asked: Asked
    hash: str  # empty if the file could not be read
    data: bytes | str  # the file's bytes, or why the picture is skipped


def _read(batch: Sequence[Asked]) -> list[_Read]:
    return [_read_file(one) for one in batch]


def _read_file(asked: Asked) -> _Read:
    try:
        data = asked.path.read_bytes()
    except OSError as error:
        return _Read(asked, "", unreadable(error))
    return _Read(asked, picture_hash(data), data)


def _decode(
    known: tuple[Sequence[_Read], dict[str, F32]], preprocessing: Preprocessing
) -> tuple[list[_Read], dict[str, F32], dict[str, F32]]:
    """Decode the pictures whose feature is not known; return their pixels by hash as well."""
    batch, features = known
    pixels: dict[str, F32] = {}
    done: list[_Read] = []
    for one in batch:
        if isinstance(one.data, bytes) and one.hash not in features and one.hash not in pixels:
            try:
                pixels[one.hash] = decode(one.data, preprocessing)
            except DataError as error:
                done.append(replace(one, data=str(error)))
                continue
        done.append(one)
    return done, features, pixels
