"""The labels that a person gave on this device, in a file of their own in state_dir.

Laws:

- A label belongs to the bytes of a picture, so it stays when the file is renamed or moved.
- A label is on disk when `set_labels` returns.
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
    version=1,
    table="label",
    script="CREATE TABLE IF NOT EXISTS label (picture TEXT PRIMARY KEY, class TEXT NOT NULL, "
    "set_s REAL NOT NULL) WITHOUT ROWID;",
)


def set_labels(
    state_dir: Path, labels: Mapping[str, str | None], clock: Callable[[], float] = time.time
) -> None:
    """Store class names by picture hash; None takes a label back.

    A class name may be one that the bundle lacks: it counts when a bundle has it. Raises ValueError
    for a key that is no picture hash or an empty name, DataError if the file is not one of labels
    or is damaged, and DiskError if it cannot be written.
    """
    for picture, name in labels.items():
        check_sha256(picture, "picture")
        if name is not None and not name.strip():
            raise ValueError("the name of a class is empty; give None to take a label back")
    with _opened(state_dir / LABELS) as database, database:
        database.executemany(
            "DELETE FROM label WHERE picture = ?",
            [(picture,) for picture, name in labels.items() if name is None],
        )
        database.executemany(
            "INSERT OR REPLACE INTO label VALUES (?, ?, ?)",
            [
                (picture, normalized_name(name), clock())
                for picture, name in labels.items()
                if name is not None
            ],
        )


def labels_in(state_dir: Path) -> dict[str, str]:
    """The class names by picture hash; raises the errors of `set_labels`."""
    if not (state_dir / LABELS).exists():
        return {}
    with _opened(state_dir / LABELS) as database:
        return dict(database.execute("SELECT picture, class FROM label"))


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
