"""Search for picture files below a folder, by the same rules for every command.

Laws:

- Every entry below the folder is used, or left out and listed with its reason, or of an ignored
  kind (`is_ignored`). What lies in a folder that is listed or ignored is covered by that folder.
- Links to files and folders are followed. A folder is searched at most once for each class, and
  never below itself. So loops of links end, and no picture counts twice, but a folder that several
  classes link to counts in each of them.
- The result depends only on the names and links in the folder, so it has the same order on every
  machine.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fedclip_edge.records import normalized_name
from fedclip_edge.vision.picture_bytes import NO_FILE

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)
_ENDINGS = tuple(EXTENSIONS)
NAMED = 10  # entries named one by one in a log or on a screen; the others are only counted

# Files and folders that systems make for themselves, in lower case. Names that a person could give
# to a folder of pictures are not in it.
_SYSTEM_NAMES = frozenset(
    {
        # Linux and Android
        "lost+found",
        "lost.dir",
        # Windows
        "$recycle.bin",
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        # macOS
        "__macosx",
        "icon\r",
        "network trash folder",
        "temporary items",
        # network storage: Synology, QNAP, NetApp
        "@eadir",
        "@tmp",
        "@sharesnap",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "@transcode",
        "~snapshot",
    }
)
_FOUND = re.compile(r"found\.\d{3}")  # folders of Windows' chkdsk


class Skipped(NamedTuple):
    """A file or folder that is not used, and the reason."""

    path: Path
    reason: str


class PictureFile(NamedTuple):
    """A file with a picture's extension."""

    path: Path
    label: int | None  # of the nearest folder above it that is named after a class


@dataclass(frozen=True)
class LeftOut:
    """Files and folders that a search found and that are not used."""

    others: tuple[Path, ...] = ()  # files whose extension is not one of EXTENSIONS
    skipped: tuple[Skipped, ...] = ()  # files and folders that cannot be read
    unused: tuple[Skipped, ...] = ()  # readable ones that do not count, such as an unknown folder

    def __add__(self, more: LeftOut) -> LeftOut:
        return LeftOut(
            self.others + more.others, self.skipped + more.skipped, self.unused + more.unused
        )

    def distinct(self) -> LeftOut:
        """Return the same with each entry once, for searches of the same folder."""
        listed = (tuple(dict.fromkeys(entries)) for entries in (self.skipped, self.unused))
        return LeftOut(tuple(dict.fromkeys(self.others)), *listed)

    def kinds(self) -> str:
        """The extensions of `others`, in lower case: all of them, or the first NAMED."""
        kinds = sorted({path.suffix.lower() for path in self.others} - {""})
        return " ".join([*kinds[:NAMED], *(["..."] if len(kinds) > NAMED else [])])

    def lines(self, named: int = NAMED) -> list[str]:
        """Describe everything in a few lines for a screen; no line if nothing is left out."""
        listed = (*self.unused, *self.skipped)
        some = examples(listed, named)
        lines = [f"skipped {printable(path)}: {reason}" for path, reason in some]
        if len(listed) > len(some):
            lines.append(f"skipped {len(listed) - len(some)} more, {len(listed)} in all")
        if count := len(self.others):
            files = "file that is not a picture" if count == 1 else "files that are not pictures"
            kinds = f" ({self.kinds()})" if self.kinds() else ""
            lines.append(f"ignored {count} {files}{kinds}, such as {printable(self.others[0])}")
        return lines

    def reasons(self) -> str:
        """Describe everything in brackets, for an error; empty if nothing is left out."""
        lines = self.lines(named=3)
        return f" ({'; '.join(lines)})" if lines else ""


@dataclass(frozen=True)
class Found:
    """The result of a search: pictures in the order of the search, and everything else."""

    pictures: tuple[PictureFile, ...]
    left_out: LeftOut


@dataclass(frozen=True)
class Listing:
    """The entries of one folder, each kind sorted by name, without the ignored ones."""

    folders: tuple[Path, ...] = ()
    links: tuple[Path, ...] = ()  # links that lead to folders
    pictures: tuple[Path, ...] = ()  # files, and links to files, with a picture's extension
    others: tuple[Path, ...] = ()  # other files, and links to them
    skipped: tuple[Skipped, ...] = ()  # what cannot be read, as far as a listing shows it

    def all_folders(self) -> list[Path]:
        """Folders and links to folders, sorted by name."""
        return sorted((*self.folders, *self.links))


def find_pictures(
    folder: Path, classes: Mapping[str, int] | None = None, label: int | None = None
) -> Found:
    """Find all picture files below `folder`, at any depth.

    `classes` are the labels of the classes by normalised name, as `labels_of` returns them. The
    label of a picture is that of the nearest folder below `folder` that is named after a class,
    otherwise `label`. Outside of all class folders, a folder with an ignored name that is the name
    of a class is a class folder.

    Raises no error: if `folder` itself cannot be read, it is in `left_out`.
    """
    classes = classes or {}
    pictures: list[PictureFile] = []
    others: list[Path] = []
    skipped: list[Skipped] = []
    unused: list[Skipped] = []
    # The folders above would be enough to end loops, but not soon: thirty folders with links to
    # each other have more paths than anyone can follow. The label is in the key because a folder
    # counts in every class that has a link to it.
    searched: dict[tuple[Identity, int | None], Path] = {}
    # Real folders first: then a link to a folder that is also there by itself is the one left out.
    stack = [(folder, label, _above(folder))]
    links: deque[tuple[Path, int | None, frozenset[Identity]]] = deque()
    while stack or links:
        path, label, above = stack.pop() if stack else links.popleft()
        try:
            identity = identity_of(path)
            if identity in above:
                unused.append(Skipped(path, "it leads back to a folder that it is in"))
                continue
            first = searched.setdefault((identity, label), path)
            if first is not path:
                unused.append(Skipped(path, counted_as(first)))
                continue
            listing = list_folder(path, classes if label is None else {})
        except OSError as error:
            skipped.append(Skipped(path, unreadable(error)))
            continue
        skipped += listing.skipped
        pictures += [PictureFile(file, label) for file in listing.pictures]
        others += listing.others
        above |= {identity}
        for below, into in ((reversed(listing.folders), stack), (listing.links, links)):
            for inner in below:
                into.append((inner, classes.get(normalized_name(inner.name), label), above))
    return Found(tuple(pictures), LeftOut(tuple(others), tuple(skipped), tuple(unused)))


def list_folder(folder: Path, classes: Mapping[str, int]) -> Listing:
    """List the entries of one folder; ignored names stay if they name a class in `classes`.

    Raises OSError if the folder cannot be read completely.
    """
    folders: list[Path] = []
    links: list[Path] = []
    pictures: list[Path] = []
    others: list[Path] = []
    skipped: list[Skipped] = []
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        ignored = is_ignored(entry.name)
        if ignored and normalized_name(entry.name) not in classes:
            continue
        path = folder / entry.name
        try:
            if entry.is_dir():  # the type comes with the name; only links cost another call
                (links if entry.is_symlink() else folders).append(path)
            elif ignored:
                continue
            elif entry.is_file():
                (pictures if is_picture(entry.name) else others).append(path)
            else:
                entry.stat()  # raises the reason if it is a broken link
                skipped.append(Skipped(path, NO_FILE))
        except FileNotFoundError:
            skipped.append(Skipped(path, _broken(path)))
        except OSError as error:
            skipped.append(Skipped(path, unreadable(error)))
    return Listing(tuple(folders), tuple(links), tuple(pictures), tuple(others), tuple(skipped))


def labels_of(classes: Sequence[str]) -> dict[str, int]:
    """Return the labels by class name, in the Unicode form in which names are compared."""
    return {normalized_name(name): label for label, name in enumerate(classes)}


def is_ignored(name: str) -> bool:
    """Return whether a file or folder is hidden, or made by a system for itself.

    Hidden names begin with a dot. The system's names are recycle bins, thumbnails, snapshots and
    the like, in lower or upper case; see _SYSTEM_NAMES.
    """
    if name.startswith("."):
        return True
    lower = name.lower()
    return lower in _SYSTEM_NAMES or _FOUND.fullmatch(lower) is not None


def is_picture(name: str) -> bool:
    """Return whether a file's name has a picture's extension."""
    return name.lower().endswith(_ENDINGS)


def examples(entries: Sequence[Skipped], most: int = NAMED) -> list[Skipped]:
    """Return at most `most` entries: one for each reason before a second one for any reason."""
    seen: Counter[str] = Counter()
    ranks = []
    for entry in entries:
        ranks.append(seen[entry.reason])
        seen[entry.reason] += 1
    places = sorted(range(len(entries)), key=lambda place: (ranks[place], place))
    return [entries[place] for place in sorted(places[:most])]


def unreadable(error: OSError) -> str:
    """Format the reason why a file or folder cannot be read."""
    return f"cannot be read: {error.strerror or error}"


def printable(path: Path | str) -> str:
    """Return a path that can be printed in one line: escaped if it has control characters."""
    text = str(path)
    return text if text.isprintable() else ascii(text)[1:-1]


def counted_as(first: Path) -> str:
    """Format the reason why a second name of the folder `first` does not count."""
    return f"it leads to {printable(first)}, which counts already"


Identity = tuple[int, int | str]  # equal for all names of one folder


def identity_of(folder: Path) -> Identity:
    """Return device and inode; the real path for file systems that have no inodes.

    Raises OSError if the folder cannot be examined.
    """
    found = folder.stat()
    return found.st_dev, found.st_ino or os.path.realpath(folder)


def _above(folder: Path) -> frozenset[Identity]:
    """Return all folders above `folder`, by its name and by the place that a link leads to."""
    found = set()
    by_name = os.path.abspath(folder)  # noqa: PTH100 - Path.resolve follows links
    for place in (by_name, os.path.realpath(folder)):
        for parent in Path(place).parents:
            try:
                found.add(identity_of(parent))
            except OSError:  # it cannot be searched either
                continue
    return frozenset(found)


def _broken(path: Path) -> str:
    """Format the reason for an entry that was listed and does not exist."""
    try:
        return f"it is a link to {printable(path.readlink())}, which does not exist"
    except OSError:
        return "it was deleted during the search"
