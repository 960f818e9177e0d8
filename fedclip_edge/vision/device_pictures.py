"""All pictures of a device: in class folders or beside them, in its inbox, labelled or not.

Laws:

- A picture without a label is listed as unlabelled, and never trained on.
- A picture directly in the folder or in the inbox is welcome without a label. Another folder beside
  the class folders counts if a label from elsewhere names a picture in it. Otherwise it is left out
  and listed, because its name may be a misspelt class.
- A label that does not count is listed, and so are two labels that disagree.
- A device may have no picture yet: an empty folder, or one with empty class folders, is no error.
  It is one if something lies there that a person must have meant as pictures, and none can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedclip_edge.vision.class_folders import list_class_folders
from fedclip_edge.vision.datasets import Dataset, Picture, read_class_folders, read_folder
from fedclip_edge.vision.labels import UNLABELLED, Labels
from fedclip_edge.vision.picture_files import Found, LeftOut, Skipped, find_pictures, unreadable
from fedclip_edge.vision.picture_index import hash_file


def read_device(
    labels: Labels, inbox: Path | None, hash_of: Callable[[Path], str] = hash_file
) -> Dataset:
    """List the pictures in `labels.folder`, and in `inbox` if there is one, with their hashes.

    The pictures of the class folders come first, in the order of `read_folder`; the others follow
    in the order of the search.

    Raises DataError as `Labels.refresh` does. If no picture can be used, it raises DataError as
    `read_folder` does for a folder that is missing or cannot be read, for pictures in folders that
    are not named after a class, and for those that cannot be read.
    """
    labels.refresh()
    folder, classes = labels.folder, labels.classes
    class_folders = list_class_folders(folder, classes)
    dataset = read_class_folders(folder, classes, class_folders, hash_of)
    reading = _Reading(labels, hash_of)
    reading.add(dataset.pictures)
    reading.add_files(class_folders.pictures)
    used = set(class_folders.pictures)
    has_unused = False
    others = dataset.left_out.others
    for entry in class_folders.unknown:
        if inbox is not None and entry.samefile(inbox):
            used.add(entry)
            continue
        inside = find_pictures(entry)
        if reading.add_folder(inside, is_welcome=False):
            used.add(entry)
            others += inside.left_out.others
        else:
            has_unused |= bool(inside.pictures or inside.left_out.skipped)
    if inbox is not None:
        inside = find_pictures(inbox)
        reading.add_folder(inside, is_welcome=True)
        others += inside.left_out.others
        reading.skipped += inside.left_out.skipped
    has_unused |= bool(reading.skipped or dataset.left_out.skipped)
    if has_unused and not reading.labelled and not reading.unlabelled:
        return read_folder(folder, classes, hash_of)  # it raises the reason
    left_out = dataset.left_out
    return Dataset(
        folder,
        tuple(classes),
        tuple(reading.labelled),
        LeftOut(
            tuple(path for path in others if path not in labels.side_cars),
            (*left_out.skipped, *reading.skipped),
            (
                *(entry for entry in left_out.unused if entry.path not in used),
                *labels.unused,
                *labels.missing(),
            ),
        ),
        tuple(reading.unlabelled),
    )


@dataclass(eq=False)
class _Reading:
    """The pictures so far; each path once."""

    labels: Labels
    hash_of: Callable[[Path], str]
    labelled: list[Picture] = field(default_factory=list)
    unlabelled: list[Picture] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    _seen: set[Path] = field(default_factory=set)

    def add(self, pictures: Iterable[Picture]) -> None:
        """Add pictures with the label that counts for each."""
        for picture in pictures:
            label = self.labels.of(picture.path, picture.hash)
            self._seen.add(picture.path)
            if label == UNLABELLED:
                self.unlabelled.append(replace(picture, label=UNLABELLED))
            elif label == picture.label:
                self.labelled.append(picture)
            else:
                self.labelled.append(replace(picture, label=label))

    def add_files(self, paths: Iterable[Path]) -> None:
        """Add files, which are read."""
        self.add(self._read(paths))

    def add_folder(self, found: Found, *, is_welcome: bool) -> bool:
        """Add the pictures of a folder, if it is welcome or a picture in it has a label."""
        pictures = self._read(entry.path for entry in found.pictures)
        if not is_welcome and not any(
            self.labels.has_own(picture.path, picture.hash) for picture in pictures
        ):
            return False
        self.add(pictures)
        return True

    def _read(self, paths: Iterable[Path]) -> list[Picture]:
        found = []
        for path in paths:
            if path not in self._seen:
                try:
                    found.append(Picture(path, UNLABELLED, self.hash_of(path)))
                except OSError as error:
                    self.skipped.append(Skipped(path, unreadable(error)))
        return found
