"""A cache of features on disk, so that each picture is encoded only once.

Features are kept in blocks, each with the features of some pictures under one key as one array, so
that a hundred thousand of them are read in less than a second.

Laws:

- A feature is found only under the picture hash and the feature key that it was stored with.
- A `put` is stored completely or not at all, so a killed process resumes after its last batch.
- A feature that is not the one that was stored is deleted and counted, never returned. The other
  features of its block are deleted with it.
- The first feature that is stored stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from fedclip_edge.records import BOOL, F32
from fedclip_edge.vision.cache_file import UnusableCacheError, errors_of, open_cache_file
from fedclip_edge.vision.feature_block import Block, unpack

T = TypeVar("T")

# Not in the schema: only a cache that several commands share is trimmed, an agent's is not.
_USED = "CREATE TABLE IF NOT EXISTS used (block INTEGER PRIMARY KEY, day INTEGER NOT NULL)"
_NO_DAY = 2**62  # later than every day
_ASKED = 500  # old versions of SQLite allow 999 variables in one statement
# Most pictures in a block. A larger block is faster if all of it is wanted, and slower if not.
_BLOCK = 64
# A small put is added to the newest block up to this number of pictures, which rewrites the block.
_FILLED_UP = 16


@dataclass(frozen=True, eq=False)
class Rows:
    """Features of N pictures, of which some may be missing."""

    vectors: F32  # (N, D), zeros where a feature is missing; D is 0 if all are
    found: BOOL  # (N,)

    def named(self, hashes: Sequence[str]) -> dict[str, F32]:
        """Return the found ones of these N pictures, float32 (D,) each, by picture hash."""
        return {hashes[row]: self.vectors[row] for row in np.flatnonzero(self.found).tolist()}


class FeatureCache:
    """Features in one file. Several processes may use it at once; in each, only one thread."""

    def __init__(self, path: Path) -> None:
        """Open the file, or create it.

        Raises the errors of `open_cache_file`.
        """
        self.path = path
        self.damaged = 0  # features that were deleted because their block was damaged
        self._db = open_cache_file(path)

    def read(self, hashes: Sequence[str], feature_key: str) -> Rows:
        """Return the cached raw features of these distinct picture hashes as one array.

        Blocks whose checksum is wrong are deleted, and their features are added to `damaged`.
        Raises UnusableCacheError if the file is damaged otherwise, or has features of several
        widths under this key, and DiskError if it cannot be read.
        """
        with errors_of(self.path):
            rows, damaged = self._read(hashes, feature_key)
            if damaged:
                with self._db:
                    self.damaged += self._delete(damaged)
        return rows

    def get(self, hashes: Sequence[str], feature_key: str) -> dict[str, F32]:
        """Return the cached raw features, float32 (D,) each, by picture hash.

        The result leaves out pictures that are not cached. Raises the errors of `read`.
        """
        distinct = list(dict.fromkeys(hashes))
        return self.read(distinct, feature_key).named(distinct)

    def put(self, features: Mapping[str, F32], feature_key: str) -> None:
        """Store raw features, float32 (D,) each, by picture hash, in one transaction.

        A feature that is already stored is kept. Raises UnusableCacheError if the file is
        damaged, and DiskError if it cannot be written.
        """
        vectors = {picture: np.asarray(one, "<f4") for picture, one in features.items()}
        with errors_of(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")  # so that no other process stores them meanwhile
            known, damaged = self._read(list(vectors), feature_key)
            if damaged:
                self.damaged += self._delete(damaged)
            new = [picture for picture, has in zip(vectors, known.found, strict=True) if not has]
            for start in range(0, len(new), _BLOCK):
                some = new[start : start + _BLOCK]
                self._append(Block(feature_key, some, np.stack([vectors[one] for one in some])))

    def forget(self, hashes: Iterable[str]) -> int:
        """Delete the features of these pictures under all keys; return their number.

        Raises the errors of `put`.
        """
        gone, deleted = set(hashes), 0
        emptied: list[int] = []
        with errors_of(self.path), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for number in self._find(list(gone)):
                for _, block in list(self._blocks([number])):  # none, if the file was damaged
                    left = None if block is None else block.without(gone)
                    if block is None or left is None or not left.pictures:
                        emptied.append(number)
                        continue
                    self._write(number, left)
                    rows = [(picture, number) for picture in gone.intersection(block.pictures)]
                    self._db.executemany(
                        "DELETE FROM feature WHERE picture = ? AND block = ?", rows
                    )
                    deleted += len(rows)
            return deleted + (self._delete(emptied) if emptied else 0)

    def note_use(self, hashes: Sequence[str], feature_key: str, day: int) -> None:
        """Remember the day on which these features were used last, for `trim`.

        Only a cache that is trimmed needs this. Raises the errors of `put`.
        """
        with errors_of(self.path), self._db:
            self._db.execute(_USED)
            self._db.executemany(
                "INSERT INTO used VALUES (?, ?) ON CONFLICT (block) DO UPDATE "
                "SET day = excluded.day WHERE used.day < excluded.day",
                [(number, day) for number in self._find(hashes, feature_key)],
            )

    def held_bytes(self) -> int:
        """The size of what the file holds, without what is free in it; raises as `put`."""
        with errors_of(self.path):
            size, pages, free = (
                self._db.execute(f"PRAGMA {what}").fetchone()[0]
                for what in ("page_size", "page_count", "freelist_count")
            )
        return int(size * (pages - free))

    def trim(self, most_bytes: int, *, unused_since: int | None = None) -> int:
        """Delete the features whose last use is longest ago if the file holds over `most_bytes`.

        A block is deleted as a whole. With `unused_since`, blocks that were used on this day or
        later stay. Without, the file holds at most four fifths of `most_bytes` afterwards. It does
        not shrink, but what is free in it is used again. Returns the number of deleted features.
        Raises the errors of `put`.
        """
        held = self.held_bytes()
        if held <= most_bytes:
            return 0
        with errors_of(self.path), self._db:
            self._db.execute(_USED)
            counts: dict[int, int] = dict(
                self._db.execute("SELECT block, count(*) FROM feature GROUP BY block")
            )
            surplus = math.ceil(sum(counts.values()) * (1 - 0.8 * most_bytes / held))
            by_use = self._db.execute(
                "SELECT id FROM block LEFT JOIN used ON used.block = block.id "
                "WHERE coalesce(day, 0) < ? ORDER BY coalesce(day, 0), id",
                (_NO_DAY if unused_since is None else unused_since,),
            )
            oldest: list[int] = []
            for (number,) in by_use:
                if surplus <= 0:
                    break
                oldest.append(number)
                surplus -= counts.get(number, 0)
            deleted = self._delete(oldest)
            self._db.execute("DELETE FROM used WHERE block NOT IN (SELECT id FROM block)")
            return deleted

    def __len__(self) -> int:
        with errors_of(self.path):
            (count,) = self._db.execute("SELECT count(*) FROM feature").fetchone()
        return int(count)

    def _read(self, hashes: Sequence[str], key: str) -> tuple[Rows, list[int]]:
        """Return the features, and the numbers of blocks that are damaged."""
        row_of = {picture: row for row, picture in enumerate(hashes)}
        vectors = np.zeros((len(hashes), 0), np.float32)
        found = np.zeros(len(hashes), np.bool_)
        damaged = []
        for number, block in self._blocks(self._candidates(hashes, key)):
            if block is None:
                damaged.append(number)
                continue
            rows = np.array([row_of.get(picture, -1) for picture in block.pictures])
            is_new = (rows >= 0) & ~found[rows]
            if block.key != key or not is_new.any():
                continue
            dim = block.vectors.shape[1]
            if not found.any():
                vectors = np.zeros((len(hashes), dim), np.float32)
            elif vectors.shape[1] != dim:
                raise UnusableCacheError(
                    f"the feature cache {self.path} has features of width {vectors.shape[1]} and "
                    f"{dim} of one encoder; delete it, and the features are computed again"
                )
            vectors[rows[is_new]] = block.vectors[is_new]
            found[rows[is_new]] = True
        return Rows(vectors, found), damaged

    def _candidates(self, hashes: Sequence[str], key: str) -> Sequence[int]:
        """Numbers of the blocks of this key that can have these pictures."""
        if len(hashes) > _ASKED:
            every = [n for (n,) in self._db.execute("SELECT id FROM block WHERE key = ?", (key,))]
            if len(every) * 4 <= len(hashes):  # then reading all of them takes less time
                return every
        return self._find(hashes, key)

    def _find(self, hashes: Sequence[str], key: str | None = None) -> list[int]:
        """Numbers of the blocks with these pictures, of one key or of all keys."""
        numbers: set[int] = set()
        of_key = "" if key is None else "AND (SELECT key FROM block WHERE id = block) = ?"
        for some in _parts(hashes):
            asked = (
                "SELECT DISTINCT block FROM feature "  # noqa: S608 - constants and question marks
                f"WHERE picture IN ({_marks(some)}) {of_key}"
            )
            values = some if key is None else (*some, key)
            found = self._db.execute(asked, values)
            numbers.update(number for (number,) in found if isinstance(number, int))
        return list(numbers)

    def _blocks(self, numbers: Iterable[int]) -> Iterator[tuple[int, Block | None]]:
        """Yield these blocks with their numbers, the oldest first; None for a damaged one."""
        for some in _parts(sorted(numbers)):
            asked = (
                "SELECT id, key, pictures, checksum, vectors FROM block "  # noqa: S608 - only question marks
                f"WHERE id IN ({_marks(some)}) ORDER BY id"
            )
            for number, *content in self._db.execute(asked, some):
                yield number, unpack(*content)

    def _append(self, block: Block) -> None:
        """Add features that are not stored yet."""
        newest = self._db.execute(
            "SELECT id FROM block WHERE key = ? ORDER BY id DESC LIMIT 1", (block.key,)
        ).fetchall()
        number = None
        for candidate, before in self._blocks(one for (one,) in newest):
            if before is not None and before.fits(block, _FILLED_UP):
                number, block = candidate, before.joined(block)
        self._write(number, block)

    def _write(self, number: int | None, block: Block) -> None:
        """Write a block in place of the one with this number, or as a new one."""
        cursor = self._db.execute(
            "INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?)", (number, *block.packed())
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO feature VALUES (?, ?)",
            [(picture, cursor.lastrowid) for picture in block.pictures],
        )

    def _delete(self, numbers: Iterable[int]) -> int:
        """Delete these blocks; return the number of their features."""
        self._db.executemany("DELETE FROM block WHERE id = ?", [(one,) for one in numbers])
        gone = self._db.execute("DELETE FROM feature WHERE block NOT IN (SELECT id FROM block)")
        return gone.rowcount

    def close(self) -> None:
        """Close the file; the cache cannot be used afterwards."""
        self._db.close()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _ASKED):
        yield values[start : start + _ASKED]


def _marks(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
