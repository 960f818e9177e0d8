"""Class probabilities of picture files, zero-shot and from an adapted model.

Laws:

- Logits are computed by the same functions as in training and evaluation (learning/methods).
- At most two batches of pixels are held at a time, for any number of pictures.
- A picture that cannot be decoded is skipped and named.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedclip_edge.errors import DataError
from fedclip_edge.learning import methods
from fedclip_edge.learning.evaluation import probabilities
from fedclip_edge.learning.methods import zeroshot
from fedclip_edge.records import F32, ClassTexts, Model, normalized_name
from fedclip_edge.vision import picture_files
from fedclip_edge.vision.encoder import Encoder
from fedclip_edge.vision.picture_files import EXTENSIONS, LeftOut, Skipped, labels_of, unreadable
from fedclip_edge.vision.pictures import Preprocessing, decode
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
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except FileNotFoundError:
            raise DataError(
                f"{path} does not exist; name pictures, or folders of pictures"
            ) from None
        except OSError as error:
            raise DataError(
                f"{path} {unreadable(error)}; name other pictures, or folders of pictures"
            ) from error
        if is_folder:
            label = labels.get(normalized_name(path.name))
            below = picture_files.find_pictures(path, labels, label)
            left_out += below.left_out
            for file, truth in below.pictures:
                found.setdefault(file, Asked(file, truth))
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
    encoder: Encoder,
    preprocessing: Preprocessing,
    classes: ClassTexts,
    model: Model | None,
    batch_size: int = 8,
) -> Iterator[Prediction | Skipped]:
    """Yield one result per picture: probabilities float32 (C,), or `Skipped`.

    The pictures skipped in a batch come before its predictions. Raises BundleError like
    `Encoder.embed`.
    """
    batches = [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]
    for batch, pixels, skipped in prefetch(lambda some: _decode(some, preprocessing), batches):
        yield from skipped
        if not batch:
            continue
        vectors = encoder.embed(pixels)  # (B, D)
        zero_shot, adapted = classify(vectors, classes, model)  # (B, C) each
        for i, one in enumerate(batch):
            yield Prediction(one, zero_shot[i], None if adapted is None else adapted[i])


def classify(vectors: F32, classes: ClassTexts, model: Model | None) -> tuple[F32, F32 | None]:
    """Return two arrays of probabilities float32 (N, C) for raw features float32 (N, D).

    The first is from zero-shot CLIP, the second from `model`; without a model, it is None.
    """
    zero_shot = probabilities(methods.predict(zeroshot.MODEL, vectors, classes))
    if model is None:
        return zero_shot, None
    return zero_shot, probabilities(methods.predict(model, vectors, classes))


def _decode(
    batch: Sequence[Asked], preprocessing: Preprocessing
) -> tuple[list[Asked], F32, list[Skipped]]:
    readable: list[Asked] = []
    pixels: list[F32] = []
    skipped: list[Skipped] = []
    for one in batch:
        try:
            pixels.append(decode(one.path.read_bytes(), preprocessing))
            readable.append(one)
        except DataError as error:
            skipped.append(Skipped(one.path, str(error)))
        except OSError as error:
            skipped.append(Skipped(one.path, unreadable(error)))
    side = preprocessing.image_size
    stacked = np.stack(pixels) if pixels else np.zeros((0, 3, side, side), np.float32)
    return readable, stacked, skipped
