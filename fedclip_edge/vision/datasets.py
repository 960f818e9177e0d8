"""Labelled pictures on disk, one folder per class, and their split by picture hash.

Laws:

- The side of a picture (train, validation, test) depends only on its bytes and the shares. So it is
  the same across restarts, devices and file names, and exact copies are on the same side.
- Every visible file that is not used is listed, as ignored or as skipped.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedclip_edge.config import DataConfig
from fedclip_edge.errors import DataError
from fedclip_edge.vision.pictures import picture_hash

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


class Skipped(NamedTuple):
    """A file that could not be used, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Picture:
    """One labelled file; two files with the same bytes have the same hash."""

    path: Path
    label: int  # index into the class names
    hash: str


@dataclass(frozen=True)
class Dataset:
    """The content of a folder, ordered by class and file name."""

    folder: Path
    classes: tuple[str, ...]  # C of them; the order is the label
    pictures: tuple[Picture, ...]
    absent_classes: tuple[str, ...]  # classes without a folder: this device has no pictures of them
    ignored: tuple[Path, ...]  # files whose extension is not one of EXTENSIONS
    skipped: tuple[Skipped, ...]  # picture files that could not be opened


@dataclass(frozen=True)
class Split:
    """The three sides of a dataset; every picture is on exactly one of them."""

    train: tuple[Picture, ...]
    validation: tuple[Picture, ...]
    test: tuple[Picture, ...]
    classes_without_test: tuple[str, ...]  # classes with pictures, but without a test picture


def read_folder(folder: Path, classes: Sequence[str]) -> Dataset:
    """List the pictures in `folder`/CLASS/, at any depth; each is read once, to hash it.

    A label is the index of CLASS in `classes`. Hidden files and folders are left out. Other files
    that are not pictures are listed in `ignored`, pictures that cannot be read in `skipped`, and
    classes without a folder in `absent_classes`.

    Raises DataError if the folder is missing, unreadable or has no class folder, if a subfolder is
    not named after a class (the message names the nearest class), or if a class folder has no
    picture.
    """
    known = {name: label for label, name in enumerate(classes)}
    entries = _entries(folder, classes)
    found = [entry for entry in entries if entry.is_dir()]
    for entry in found:
        if entry.name not in known:
            raise DataError(_no_class(entry, classes))
    if not found:
        raise DataError(
            f"{folder} has no class folder; put the pictures into one folder for each class: "
            f"{', '.join(classes)}"
        )
    pictures: list[Picture] = []
    ignored = [entry for entry in entries if not entry.is_dir()]
    skipped: list[Skipped] = []
    for entry in sorted(found, key=lambda entry: known[entry.name]):
        files = list(files_below(entry))
        candidates = [path for path in files if path.suffix.lower() in EXTENSIONS]
        ignored += [path for path in files if path.suffix.lower() not in EXTENSIONS]
        if not candidates:
            raise DataError(
                f"{entry} has no picture ({', '.join(sorted(EXTENSIONS))}); add some, or remove "
                "the folder if this device has no pictures of the class"
            )
        for path in candidates:
            try:
                pictures.append(Picture(path, known[entry.name], picture_hash(path.read_bytes())))
            except OSError as error:
                skipped.append(Skipped(path, f"cannot be read: {error.strerror or error}"))
    present = {entry.name for entry in found}
    return Dataset(
        folder=folder,
        classes=tuple(classes),
        pictures=tuple(pictures),
        absent_classes=tuple(name for name in classes if name not in present),
        ignored=tuple(ignored),
        skipped=tuple(skipped),
    )


def split(dataset: Dataset, shares: DataConfig) -> Split:
    """Assign every picture to the side that `side_of` gives for its hash.

    The sizes of the sides are close to the shares, not equal to them.
    """
    sides: dict[str, list[Picture]] = {"train": [], "validation": [], "test": []}
    for picture in dataset.pictures:
        sides[side_of(picture.hash, shares)].append(picture)
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


def _entries(folder: Path, classes: Sequence[str]) -> list[Path]:
    try:
        entries = sorted(entry for entry in folder.iterdir() if not _hidden(entry.name))
    except FileNotFoundError:
        raise DataError(
            f"{folder} does not exist; create it, with one folder for each class: "
            f"{', '.join(classes)}"
        ) from None
    except NotADirectoryError:
        raise DataError(
            f"{folder} is a file; name the folder that has one folder for each class"
        ) from None
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error
    if not entries:
        raise DataError(
            f"{folder} is empty; put the pictures into one folder for each class: "
            f"{', '.join(classes)}"
        )
    return entries


def files_below(folder: Path) -> Iterator[Path]:
    """Yield every visible file below `folder`, in the same order on every machine."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _hidden(name))
        for name in sorted(names):
            if not _hidden(name):
                yield Path(root) / name


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _no_class(entry: Path, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(entry.name, classes, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? Rename" if near else "rename"
    return (
        f"{entry} is not named after a class of the bundle; {hint} the folder, or move it away "
        f"(classes: {', '.join(classes)})"
    )
