"""The feature cache that one user's commands share.

Laws:

- A cache that cannot be used costs time, never the command: it is named once, and every picture is
  encoded.
- In its default place, a cache that is damaged or of another version of this program is deleted. A
  file that the user has named is never deleted: it may be something else.
- The file does not grow without end: features that were not used for longest are deleted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import numpy as np

from fedclip_edge.errors import ConfigError, DataError, DiskError, FedclipError
from fedclip_edge.records import F32
from fedclip_edge.storage.lock import locked_folder
from fedclip_edge.storage.user_cache import cache_folder
from fedclip_edge.vision.cache import FeatureCache, Rows
from fedclip_edge.vision.cache_file import UnusableCacheError, delete_cache_file

MOST_BYTES = 2 * 10**9  # some 400,000 pictures with features of width 512
_DAY_S = 24 * 60 * 60
_UNUSABLE = (ConfigError, DataError, DiskError)


def default_path() -> Path:
    """Return the path of the file in the user's cache folder."""
    return cache_folder() / "features.sqlite"


class SharedCache:
    """Features in one file; several processes may use it at once, in each only one thread."""

    def __init__(
        self, path: Path, warn: Callable[[str], None], most_bytes: int = MOST_BYTES
    ) -> None:
        """Open the file, or create it; `warn` is called with a sentence if that is not possible."""
        self.path = path
        self.found = 0  # pictures whose feature `get` returned; copies count
        self._warn = warn
        self._most_bytes = most_bytes
        self._file: FeatureCache | None = None
        try:
            # Features tell something about the pictures, so they are for the user alone.
            path.parent.parent.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600, exist_ok=False)  # the folder may be an older, open one
        except OSError:
            pass  # the file exists, or the next line says what is wrong
        try:
            self._file = self._opened()
        except _UNUSABLE as error:
            self._give_up(error)

    def read(self, hashes: Sequence[str], feature_key: str) -> Rows:
        """Return the cached raw features of these distinct picture hashes as one array."""
        nothing = Rows(np.zeros((len(hashes), 0), np.float32), np.zeros(len(hashes), np.bool_))
        if self._file is None:
            return nothing
        try:
            rows = self._file.read(hashes, feature_key)
            if rows.found.any():
                used = list(rows.named(hashes))
                self._file.note_use(used, feature_key, int(time.time() // _DAY_S))
        except _UNUSABLE as error:
            self._give_up(error)
            return nothing
        self.found += int(rows.found.sum())
        return rows

    def get(self, hashes: Sequence[str], feature_key: str) -> dict[str, F32]:
        """Return the cached raw features, float32 (D,) each, by picture hash."""
        distinct = list(dict.fromkeys(hashes))
        known = self.read(distinct, feature_key).named(distinct)
        self.found += sum(picture in known for picture in hashes) - len(known)  # copies
        return known

    def put(self, features: Mapping[str, F32], feature_key: str) -> None:
        """Store raw features, float32 (D,) each, by picture hash."""
        if self._file is None:
            return
        try:
            self._file.put(features, feature_key)
            self._file.note_use(list(features), feature_key, int(time.time() // _DAY_S))
        except _UNUSABLE as error:
            self._give_up(error)

    def close(self) -> None:
        """Delete what is too much and close the file."""
        if self._file is None:
            return
        try:
            self._file.trim(self._most_bytes)
        except _UNUSABLE as error:
            self._give_up(error)
        else:
            self._file.close()
            self._file = None

    def _opened(self) -> FeatureCache:
        """Open the file; in the default place, make one anew that cannot be used."""
        try:
            return FeatureCache(self.path)
        except UnusableCacheError as error:
            if self.path != default_path():
                raise
            reason = str(error.__cause__ or error).partition(";")[0]
        self._warn(f"makes the feature cache {self.path} anew, which only costs time: {reason}")
        try:
            with locked_folder(self.path.parent):  # several commands may begin at the same time
                with suppress(UnusableCacheError):
                    return FeatureCache(self.path)
                delete_cache_file(self.path)
                return FeatureCache(self.path)
        except OSError as error:
            raise DiskError(f"{self.path.parent} cannot be locked: {error.strerror}") from error

    def _give_up(self, error: FedclipError) -> None:
        self._warn(f"goes on without the feature cache, which only costs time: {error}")
        if self._file is not None:
            self._file.close()
            self._file = None
            if isinstance(error, UnusableCacheError) and self.path == default_path():
                with suppress(DiskError):
                    delete_cache_file(self.path)

    def __enter__(self) -> SharedCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
