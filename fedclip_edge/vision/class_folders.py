"""Class folders and domain folders in a folder of pictures.

Law: a folder is an error only if nothing in it can be used. Everything else that does not fit is
listed, and named with the nearest class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.errors import DataError
from fedclip_edge.records import normalized_name
from fedclip_edge.vision.labels import nearest
from fedclip_edge.vision.picture_files import (
    Identity,
    LeftOut,
    Listing,
    Skipped,
    counted_as,
    identity_of,
    labels_of,
    list_folder,
    unreadable,
)


@dataclass(frozen=True)
class ClassFolders:
    """The class folders directly in a folder, and what lies beside them."""

    found: tuple[tuple[int, Path], ...]  # label and folder, ordered by label, then by name
    left_out: LeftOut
    unknown: tuple[Path, ...] = ()  # the other folders, also in `left_out`
    pictures: tuple[Path, ...] = ()  # beside the folders, also in `left_out`


@dataclass(frozen=True)
class DomainFolders:
    """The domain folders directly in a folder: those that hold class folders."""

    domains: tuple[Path, ...]
    class_folders: tuple[Path, ...]  # the other folders that are named after a class
    left_out: LeftOut  # everything else


def find_class_folders(folder: Path, classes: Sequence[str]) -> ClassFolders:
    """Find the folders in `folder` that are named after a class; a link to a folder is one.

    Names are compared in Unicode form NFC. Raises DataError if `folder` is missing, unreadable or
    empty, or has no class folder; the message names the nearest class.
    """
    found = list_class_folders(folder, classes)
    if not found.found:
        if found.left_out == LeftOut():
            raise DataError(f"{folder} is empty; put the pictures into {_expected(classes)}")
        raise DataError(_no_class_folder(folder, classes, found))
    return found


def list_class_folders(folder: Path, classes: Sequence[str]) -> ClassFolders:
    """Find them as `find_class_folders` does; there may be none.

    Raises DataError if `folder` is missing or unreadable.
    """
    labels = labels_of(classes)
    listing = _list(folder, labels, _expected(classes))
    named = [(labels.get(normalized_name(entry.name)), entry) for entry in listing.all_folders()]
    unknown = [entry for label, entry in named if label is None]
    found = sorted((label, entry) for label, entry in named if label is not None)
    left_out = _beside(listing, "it is not in a class folder") + LeftOut(
        unused=tuple(Skipped(entry, _unknown(entry, classes)) for entry in unknown)
    )
    return ClassFolders(tuple(found), left_out, tuple(unknown), listing.pictures)


def find_domains(folder: Path, classes: Sequence[str]) -> DomainFolders:
    """Find the folders in `folder` that hold class folders themselves.

    A link to a folder is one, unless the folder is a domain already: its pictures would be on two
    devices, or both held out and trained on.

    Raises DataError if `folder` is missing or unreadable.
    """
    labels = labels_of(classes)
    expected = f"a folder for each domain, and in it one for each class: {', '.join(classes)}"
    listing = _list(folder, labels, expected)
    domains: list[Path] = []
    class_folders: list[Path] = []
    left_out = _beside(listing, "it is not in a class folder of a domain")
    known: dict[Identity, Path] = {}
    for entry in (*listing.folders, *listing.links):  # of two names of a folder, its own counts
        try:
            inside = list_folder(entry, labels)
            identity = identity_of(entry)
        except OSError as error:
            left_out += LeftOut(skipped=(Skipped(entry, unreadable(error)),))
            continue
        if _class_folders(inside, labels):
            if (first := known.setdefault(identity, entry)) is entry:
                domains.append(entry)
            else:
                left_out += LeftOut(unused=(Skipped(entry, counted_as(first)),))
        elif normalized_name(entry.name) in labels:
            class_folders.append(entry)
        else:
            reason = "it has no folder that is named after a class"
            left_out += LeftOut(unused=(Skipped(entry, reason),))
    return DomainFolders(tuple(sorted(domains)), tuple(sorted(class_folders)), left_out)


def _list(folder: Path, labels: Mapping[str, int], expected: str) -> Listing:
    try:
        return list_folder(folder, labels)
    except FileNotFoundError:
        raise DataError(f"{folder} does not exist; create it, with {expected}") from None
    except NotADirectoryError:
        raise DataError(f"{folder} is a file; name the folder that has {expected}") from None
    except OSError as error:
        raise DataError(
            f"{folder} {unreadable(error)}; correct its permissions, or name another folder"
        ) from error


def _beside(listing: Listing, reason: str) -> LeftOut:
    pictures = tuple(Skipped(file, reason) for file in listing.pictures)
    return LeftOut(listing.others, listing.skipped, pictures)


def _class_folders(listing: Listing, labels: Mapping[str, int]) -> list[Path]:
    return [e for e in listing.all_folders() if normalized_name(e.name) in labels]


def _unknown(entry: Path, classes: Sequence[str]) -> str:
    near = nearest(entry.name, classes)
    hint = f"; did you mean {near!r}?" if near else ""
    try:
        count = len(list_folder(entry, {}).pictures)
    except OSError:
        count = 0
    pictures = f" ({count} picture{'s' * (count != 1)})" if count else ""
    return f"it is not named after a class of the bundle{hint}{pictures}"


def _expected(classes: Sequence[str]) -> str:
    return f"one folder for each class: {', '.join(classes)}"


def _no_class_folder(folder: Path, classes: Sequence[str], found: ClassFolders) -> str:
    labels, unknown, left_out = labels_of(classes), found.unknown, found.left_out
    for entry in unknown:
        try:
            inside = _class_folders(list_folder(entry, labels), labels)
        except OSError:
            continue
        if inside:
            return (
                f"{folder} has no class folder, but its folder {entry.name} has one "
                f"({inside[0].name}); "
                f"if each folder in it is a domain, name the folder of one, such as {entry}"
            )
    if unknown:
        # The one that most probably is a mistake in spelling.
        entry = next((one for one in unknown if nearest(one.name, classes)), unknown[0])
        near = nearest(entry.name, classes)
        hint = f"did you mean {near!r}? Rename" if near else "rename"
        more = f", nor is any other folder in {folder}" if len(unknown) > 1 else ""
        return (
            f"{entry} is not named after a class of the bundle{more}; {hint} the folder, or move "
            f"it away (classes: {', '.join(classes)})"
        )
    return (
        f"{folder} has no class folder; put the pictures into one folder for each class: "
        f"{', '.join(classes)}{left_out.reasons()}"
    )
