"""The label of a picture, from a person, a manifest, a side-car or its class folder.

Laws:

- If two of them disagree, the first in this order counts: a label that a person gave on this
  device, the manifest (`[data] labels`), the side-car, the class folder.
- A name that is no class of the bundle labels nothing, and is listed with the nearest class.
- A side-car or a manifest may be UTF-8, or UTF-16 or UTF-32 with a mark (BOM). A side-car in
  another encoding, or a .json that is no JSON, labels nothing and is listed.
- Class names are compared in Unicode form NFC.

A manifest is a CSV file with a header and the columns `file` and `label`, or a file of JSON lines
(.jsonl, .ndjson) with these keys; other columns are ignored. Relative paths are relative to the
folder of the manifest. The side-car of `a/b.jpg` is `a/b.json`, an object with the key `label`, or
`a/b.txt`, of which the first line is the label.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fedclip_edge.errors import ConfigError, DataError
from fedclip_edge.records import normalized_name
from fedclip_edge.storage.text_file import decode, parse_json, read_text
from fedclip_edge.vision.picture_bytes import open_file
from fedclip_edge.vision.picture_files import Skipped, labels_of, unreadable
from fedclip_edge.vision.picture_index import FileState, state_of

UNLABELLED = -1  # the label of a picture without one
_FOLDER = "the folder"
_SIDE_CARS = (".json", ".txt")
_SIDE_CAR_BYTES = 64 * 1024  # a longer file is none


class _Source(NamedTuple):
    """One of the places of a label, and the class name that it gives."""

    words: str
    name: str


@dataclass(eq=False)
class Labels:
    """The labels of one device's pictures; `folder` has the class folders.

    `by_person` gives the class names by picture hash. Call `refresh` before each reading of the
    folder: afterwards `unused` lists the labels that do not count, and `overruled` the pictures
    with two labels.
    """

    folder: Path
    classes: Sequence[str]
    manifest: Path | None = None
    by_person: Callable[[], Mapping[str, str]] = dict
    unused: list[Skipped] = field(default_factory=list)
    overruled: list[Skipped] = field(default_factory=list)
    side_cars: set[Path] = field(default_factory=set)  # with a label, or in `unused`
    _person: Mapping[str, str] = field(default_factory=dict)
    _named: dict[str, str] = field(default_factory=dict)  # class name by path, of the manifest
    _state: FileState | None = None  # of the manifest
    _beside: dict[str, frozenset[str]] = field(default_factory=dict)  # side-cars by folder
    _by_name: dict[str, int] = field(default_factory=dict)  # names as they were met

    def __post_init__(self) -> None:
        self._labels = labels_of(self.classes)

    def refresh(self) -> None:
        """Read the manifest again if it has changed, and the labels that a person gave.

        Raises DataError if the manifest cannot be read; the labels then stay as they were.
        """
        if self.manifest is not None:
            try:
                state = state_of(self.manifest)
            except OSError as error:
                raise DataError(
                    f"the labels {self.manifest} {unreadable(error)}; correct `labels` under "
                    "[data], or write the file"
                ) from error
            if state != self._state:
                self._named = dict(read_labels(self.manifest))
                self._state = state
        self._person = self.by_person()
        self.unused, self.overruled, self.side_cars = [], [], set()
        self._beside = {}

    def missing(self) -> list[Skipped]:
        """List the pictures of the manifest that do not exist."""
        return [
            Skipped(Path(name), "the labels name it, but it does not exist")
            for name in self._named
            if not os.path.exists(name)  # noqa: PTH110 - no Path for each of many names
        ]

    def of(self, path: Path, picture: str) -> int:
        """The label of a file with this hash, or UNLABELLED."""
        found = list(self._sources(str(path), picture))
        if not found:
            return UNLABELLED
        first = found[0]
        label = self._label(first.name)
        if label == UNLABELLED:
            near = nearest(first.name, self.classes)
            hint = f"; did you mean {near!r}?" if near else ""
            reason = f"{first.words} names {first.name!r}, which is no class of the bundle{hint}"
            self.unused.append(Skipped(path, reason))
        for other in found[1:]:
            if normalized_name(other.name) != normalized_name(first.name):
                reason = f"{first.words} says {first.name!r}, {other.words} {other.name!r}"
                self.overruled.append(Skipped(path, reason))
        return label

    def has_own(self, path: Path, picture: str) -> bool:
        """True if the picture has a label of its own, not only that of its class folder."""
        return any(source.words != _FOLDER for source in self._sources(str(path), picture))

    def giver(self, path: Path, picture: str) -> str:
        """The place that the label of a picture comes from, in words; empty without a label."""
        source = next(self._sources(str(path), picture), None)
        is_used = source is not None and self._label(source.name) != UNLABELLED
        return source.words if source is not None and is_used else ""

    def _sources(self, name: str, picture: str) -> Iterator[_Source]:
        """Yield the labels of a file. There may be many files, so its name is no Path here."""
        if picture in self._person:
            yield _Source("a person", self._person[picture])
        named = self._named.get(os.path.abspath(name)) if self._named else None  # noqa: PTH100
        if named:
            yield _Source("the manifest", named)
        beside = self._side_car(name)
        if beside:
            yield _Source("the side-car", beside)
        base = f"{self.folder}{os.sep}"
        top, separator, _ = name.removeprefix(base).partition(os.sep)
        if separator and name.startswith(base) and self._label(top) != UNLABELLED:
            yield _Source(_FOLDER, top)

    def _label(self, name: str) -> int:
        if name not in self._by_name:
            self._by_name[name] = self._labels.get(normalized_name(name), UNLABELLED)
        return self._by_name[name]

    def _leave_out(self, side_car: Path, reason: str) -> None:
        """List a side-car once, although its picture may be asked for again."""
        if side_car not in self.side_cars:
            self.side_cars.add(side_car)
            self.unused.append(Skipped(side_car, reason))

    def _side_car(self, name: str) -> str:
        folder, _, file = name.rpartition(os.sep)
        if folder not in self._beside:
            try:
                names = os.listdir(folder)  # noqa: PTH208 - only the names
            except OSError:
                names = []
            self._beside[folder] = frozenset(n for n in names if n.endswith(_SIDE_CARS))
        if self._beside[folder]:
            stem = os.path.splitext(file)[0]  # noqa: PTH122 - as above
            for ending in _SIDE_CARS:
                if stem + ending in self._beside[folder]:
                    path = Path(folder, stem + ending)
                    try:
                        label = _read_side_car(path)
                    except ConfigError as error:
                        self._leave_out(path, str(error))
                        continue
                    if label:
                        self.side_cars.add(path)
                        return label
        return ""


def read_labels(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the absolute path and the class name of each line of a manifest that has a label.

    Raises DataError with the line if a line has no file or label.
    """
    try:
        text = read_text(path)
    except OSError as error:
        raise DataError(
            f"the labels {path} {unreadable(error)}; correct its permissions"
        ) from error
    except ConfigError as error:
        raise DataError(str(error)) from error
    rows = _json_lines(path, text) if path.suffix in (".jsonl", ".ndjson") else _csv(path, text)
    for file, label in rows:
        if label:
            yield os.path.abspath(path.parent / file), label  # noqa: PTH100 - links stay


def nearest(name: str, classes: Sequence[str]) -> str | None:
    """The class with the most similar name; None if none is similar."""
    names = {normalized_name(one).casefold(): one for one in classes}
    found = difflib.get_close_matches(normalized_name(name).casefold(), names, 1, 0.5)
    return names[found[0]] if found else None


def _csv(path: Path, text: str) -> Iterator[tuple[str, str]]:
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)  # a spreadsheet writes that of its language
    rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        header = [cell.strip().lower() for cell in next(rows, [])]
        if "file" not in header or "label" not in header:
            raise DataError(f"{path}: the first line must name the columns file and label")
        places = header.index("file"), header.index("label")
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) <= max(places) or not row[places[0]].strip():
                raise DataError(f"{path}: line {rows.line_num}: expected a file and a label")
            yield row[places[0]].strip(), row[places[1]].strip()
    except csv.Error as error:
        raise DataError(f"{path}: line {rows.line_num}: {error}") from error


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON: {error}") from error
        file, label = (row.get(key) if isinstance(row, dict) else None for key in ("file", "label"))
        if not isinstance(file, str) or not file or not isinstance(label, str | None):
            raise DataError(f"{path}: line {number}: expected the keys file and label, with text")
        yield file, (label or "").strip()


def _read_side_car(path: Path) -> str:
    """The label of a side-car; empty if the file is something else.

    Raises ConfigError if it is not text in one of the encodings, or no JSON.
    """
    try:
        with open_file(path) as file:
            data = file.read(_SIDE_CAR_BYTES + 1)
    except OSError:
        return ""
    if len(data) > _SIDE_CAR_BYTES:
        return ""
    text = decode(data, f"the side-car {path.name}")
    if path.suffix == ".txt":
        return text.strip().partition("\n")[0].strip()
    found = parse_json(text, f"the side-car {path.name}")
    label = found.get("label") if isinstance(found, dict) else None
    return label.strip() if isinstance(label, str) else ""
