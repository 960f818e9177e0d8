"""Labelled pictures on disk, one folder per class, and their split by picture hash.

Laws:

- The side of a picture (train, validation, test) depends only on the shares and its bytes, or its
  group's key. So it is the same across restarts, devices and file names, and exact copies are on
  the same side.
- Everything that is not used is listed, by the rules of picture_files.py. It is an error only if
  no class folder has a readable picture.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.config.agent import DataConfig
from fedclip_edge.errors import DataError
from fedclip_edge.vision.class_folders import ClassFolders, find_class_folders
from fedclip_edge.vision.picture_files import (
    EXTENSIONS,
    LeftOut,
    Skipped,
    find_pictures,
    unreadable,
)
from fedclip_edge.vision.picture_index import hash_file


@dataclass(frozen=True)
class Picture:
    """One file; two files with the same bytes have the same hash."""

    path: Path
    label: int  # index into the class names, or UNLABELLED (labels.py)
    hash: str


@dataclass(frozen=True)
class Dataset:
    """The content of a folder, ordered by class and file name."""

    folder: Path
    classes: tuple[str, ...]  # C of them; the order is the label
    pictures: tuple[Picture, ...]
    left_out: LeftOut
    unlabelled: tuple[Picture, ...] = ()  # only of a device's folders, in the order of the search


@dataclass(frozen=True)
class Split:
    """The three sides of a dataset; every picture is on exactly one of them."""

    train: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    test: tuple[Picture, ...]
    classes_without_test: tuple[str, ...]  # classes with pictures, but without a test picture


def read_folder(
    folder: Path, classes: Sequence[str], hash_of: Callable[[Path], str] = hash_file
) -> Dataset:
    """List the pictures in `folder`/CLASS/, at any depth, with their hashes.

    `hash_of` gives the hash of a file; the default reads it.

    A label is the index of CLASS in `classes`; names are compared in Unicode form NFC. Everything
    else is in `left_out`, also folders that are not named after a class, and class folders without
    a picture.

    Raises DataError if the folder is missing or unreadable, or if no class folder has a readable
    picture. If no folder is named after a class, the message names the nearest class.
    """
    dataset = read_class_folders(folder, classes, find_class_folders(folder, classes), hash_of)
    if not dataset.pictures:
        raise DataError(
            f"no class folder in {folder} has a readable picture{dataset.left_out.reasons()}; add "
            "pictures or repair what is skipped, then start again"
        )
    return dataset


def read_class_folders(
    folder: Path,
    classes: Sequence[str],
    class_folders: ClassFolders,
    hash_of: Callable[[Path], str],
) -> Dataset:
    """List the pictures of the class folders that were found in `folder`; there may be none.

    `hash_of` and the labels are those of `read_folder`. What cannot be read is in `left_out`.
    """
    left_out = class_folders.left_out
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    empty: list[Skipped] = []
    for label, entry in class_folders.found:
        inside = find_pictures(entry)
        left_out += inside.left_out
        # If something is skipped, nobody knows that there is no picture.
        if not (inside.pictures or inside.left_out.skipped or inside.left_out.unused):
            empty.append(Skipped(entry, f"it has no picture ({', '.join(sorted(EXTENSIONS))})"))
        for path, _ in inside.pictures:
            try:
                pictures.append(Picture(path, label, hash_of(path)))
            except OSError as error:
                skipped.append(Skipped(path, unreadable(error)))
    left_out += LeftOut(skipped=tuple(skipped), unused=tuple(empty))
    return Dataset(folder, tuple(classes), tuple(pictures), left_out)


def split(dataset: Dataset, shares: DataConfig, groups: Mapping[str, str] | None = None) -> Split:
    """Assign every picture to the side that `side_of` gives for its hash, or its group's key.

    `groups` has the keys by picture hash (groups.py). The sizes of the sides are close
    to the shares, not equal to them.
    """
    sides: dict[str, list[Picture]] = {"train": [], "validation": [], "test": []}
    for picture in dataset.pictures:
        key = picture.hash if groups is None else groups[picture.hash]
        sides[side_of(key, shares)].append(picture)
    tested = {picture.label for picture in sides["test"]}
    present = {picture.label for picture in dataset.pictures}
    return Split(
        train=tuple(sides["train"]),
        validation=tuple(sides["validation"]),
        test=tuple(sides["test"]),
        classes_without_test=tuple(dataset.classes[label] for label in sorted(present - tested)),
    )


def side_of(picture: str, shares: DataConfig) -> str:
    """Return "train", "validation" or "test" for a hash in hex digits.

    A side with a share of 0 is never returned. Raises ValueError if `picture` is not hex.
    """
    digest = hashlib.sha256(b"split" + bytes.fromhex(picture)).digest()
    # 53 bits: every value is an exact float below 1.
    u = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    bounds = {
        "train": shares.train,
        "validation": shares.train + shares.validation,
        "test": 1.0,
    }
    wanted = [name for name in bounds if getattr(shares, name) > 0]
    for name in wanted[:-1]:
        if u < bounds[name]:
            return name
    return wanted[-1]  # because of rounding, the shares may add up to slightly less than 1
