"""The pictures that exist in a device's folders, by the bytes of their files.

Laws:

- A picture is new when no file had its bytes before: a renamed or copied one is not new.
- It is gone when no file has had its bytes for GONE_S: a renamed one is not gone.

Nothing here reads a file or the clock. `now` is monotonic, in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

GONE_S = 2.0


@dataclass(eq=False)
class KnownPictures:
    """The files of a device by name, and their pictures by hash."""

    _paths: dict[str, str] = field(default_factory=dict)  # hash by file name
    _copies: Counter[str] = field(default_factory=Counter)  # number of files by hash
    _gone: dict[str, float] = field(default_factory=dict)  # by hash, the time when it went
    _known: set[str] = field(default_factory=set)  # hashes that are not new

    def begin(self, settled: Iterable[str], others: Iterable[str], now: float) -> None:
        """Begin with the pictures of an earlier time, of which no file has been found yet.

        If a file has the bytes of `others`, these are new all the same.
        """
        self._known = set(settled)
        self._gone = dict.fromkeys(self._known.union(others), now)

    @property
    def names(self) -> Collection[str]:
        """The names of the files."""
        return self._paths.keys()

    def has(self, name: str, picture: str) -> bool:
        """True if the file is known, with these bytes."""
        return self._paths.get(name) == picture

    def add(self, name: str, picture: str, now: float) -> bool:
        """Note that a file has the bytes of this hash; True if the picture is new."""
        self._gone.pop(picture, None)
        if not self.has(name, picture):
            if name in self._paths:
                self.remove(name, None, now)
            self._paths[name] = picture
            self._copies[picture] += 1
        is_new = picture not in self._known
        self._known.add(picture)
        return is_new

    def remove(self, name: str, last: str | None, now: float) -> None:
        """Note that a file is gone, or has other bytes; `last` is its hash if it is not known."""
        gone = self._paths.pop(name, None)
        if gone is None:
            gone = last
        else:
            self._copies[gone] -= 1
        if gone is not None and self._copies[gone] <= 0:
            del self._copies[gone]
            self._gone[gone] = now

    def gone(self, now: float) -> tuple[str, ...]:
        """The hashes of the pictures that are gone, until `forget` is called for them."""
        return tuple(picture for picture, since in self._gone.items() if now - since >= GONE_S)

    def forget(self, pictures: Iterable[str]) -> None:
        """Forget pictures that are gone: if they come again, they are new."""
        for picture in pictures:
            del self._gone[picture]
            self._known.discard(picture)
