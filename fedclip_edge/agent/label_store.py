"""The labels that a person gave on this device, in a file of their own in state_dir.

It also has the labels, from any place, that a person looked at and confirmed. A confirmation is no
label: it only keeps a review (review.py) from listing this label of this picture as doubtful again.

Laws:

- A label belongs to the bytes of a picture, so it stays when the file is renamed or moved.
- A label is on disk when `set_labels` returns, a confirmation when `confirm_labels` does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.records import check_sha256, normalized_name
from fedclip_edge.storage.sqlite import (
    Connection,
    OtherDatabaseError,
    OtherVersionError,
    Schema,
    errors_as,
    open_database,
)

LABELS = "labels.sqlite"  # in state_dir
_SCHEMA = Schema(
    version=2,
    table="label",
    script="".join(
        f"CREATE TABLE IF NOT EXISTS {table} (picture TEXT PRIMARY KEY, class TEXT NOT NULL, "
        "set_s REAL NOT NULL) WITHOUT ROWID;"
        for table in ("label", "confirmed")
    ),
)


def set_labels(
    state_dir: Path, labels: Mapping[str, str | None], clock: Callable[[], float] = time.time
) -> None:
    """Store class names by picture hash; None takes a label back.

    A class name may be one that the bundle lacks: it counts when a bundle has it. Raises ValueError
    for a key that is no picture hash or an empty name, DataError if the file is not one of labels
    or is damaged, and DiskError if it cannot be written.
    """
    _store(state_dir, "label", labels, clock)


def confirm_labels(
    state_dir: Path, labels: Mapping[str, str | None], clock: Callable[[], float] = time.time
) -> None:
    """Note that these class names, by picture hash, are right; None takes the note back.

    Raises the errors of `set_labels`.
    """
    _store(state_dir, "confirmed", labels, clock)


def labels_in(state_dir: Path) -> dict[str, str]:
    """The class names by picture hash; raises the errors of `set_labels`."""
    return _read(state_dir, "label")


def confirmed_in(state_dir: Path) -> dict[str, str]:
    """The confirmed class names by picture hash; raises the errors of `set_labels`."""
    return _read(state_dir, "confirmed")


def _store(
    state_dir: Path, table: str, labels: Mapping[str, str | None], clock: Callable[[], float]
) -> None:
    for picture, name in labels.items():
        check_sha256(picture, "picture")
        if name is not None and not name.strip():
            raise ValueError("the name of a class is empty; give None to take a label back")
    with _opened(state_dir / LABELS) as database, database:
        database.executemany(
            f"DELETE FROM {table} WHERE picture = ?",  # noqa: S608 - a constant
            [(picture,) for picture, name in labels.items() if name is None],
        )
        database.executemany(
            f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)",  # noqa: S608 - a constant
            [
                (picture, normalized_name(name), clock())
                for picture, name in labels.items()
                if name is not None
            ],
        )


def _read(state_dir: Path, table: str) -> dict[str, str]:
    if not (state_dir / LABELS).exists():
        return {}
    with _opened(state_dir / LABELS) as database:
        return dict(database.execute(f"SELECT picture, class FROM {table}"))  # noqa: S608 - as above


@contextmanager
def _opened(path: Path) -> Iterator[Connection]:
    def refused(error: Exception) -> DiskError:
        return DiskError(
            f"the labels in {path} cannot be used: {error}; check the free disk space and the "
            "permissions"
        )

    def damaged(error: Exception) -> DataError:
        return DataError(
            f"the file of labels {path} is damaged ({error}); restore it from a backup, or delete "
            "it and label the pictures again"
        )

    try:
        with errors_as(refused, damaged), contextlib.closing(open_database(path, _SCHEMA)) as found:
            yield found
    except OtherDatabaseError:
        raise DataError(f"{path} is not a file of labels but another database") from None
    except OtherVersionError as error:
        raise DataError(
            f"the file of labels {path} has {error}, which this program does not read; install the "
            "version that wrote it"
        ) from None
