"""How a SQLite file is set up whose every commit must survive a power cut, at a body's size.

Law: a commit is on disk when it returns, but for those made under `unsynced`, which are there
with the next one: a killed process loses neither, a power cut the latter alone, in order and whole.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

# A body is megabytes. In pages of 4 kB, SQLite's own, 2.5 MB cost 16 ms of a core; in these 5.
_PAGE_BYTES = 32 * 1024
# 8 MB of log, twice what it is with SQLite's own two numbers; the log is memory on a small disk.
_CHECKPOINT_PAGES = 256


def set_up(database: sqlite3.Connection) -> None:
    """Sets a connection's pragmas; outside a transaction. A file that is there keeps its pages."""
    database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")  # survives power loss, not only a crash
    database.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    # Debian's SQLite writes zeros over all that is deleted, and thereby every body twice.
    database.execute("PRAGMA secure_delete = FAST")


@contextmanager
def unsynced(database: sqlite3.Connection) -> Iterator[None]:
    """The commits within are not waited for; outside a transaction."""
    database.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        database.execute("PRAGMA synchronous = FULL")
