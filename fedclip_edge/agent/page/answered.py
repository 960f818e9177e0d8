"""The newest answer for each picture, from the file of answers and the renamed ones before it.

Laws:
- A line is read once, also if its file is renamed in between (agent/answer_file.py).
- A line that is incomplete is read when it is complete; one of another form is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

_HEAD_BYTES = 200  # they begin with the time of the first answer, so each file has others
_SPARE = 1000  # answers for pictures that are not known yet


class Answered(NamedTuple):
    """The answer for one picture."""

    at: float  # Unix time
    likeliest: tuple[tuple[str, float], ...]  # classes and their probabilities, the best first
    is_unknown: bool
    model: str  # "zero-shot", "fleet" or "own"
    run: str  # empty for zero-shot

    @property
    def label(self) -> str:
        """The likeliest class, also of a picture that is unknown."""
        return self.likeliest[0][0]

    @property
    def probability(self) -> float:
        """The probability of `label`, 0 to 1."""
        return self.likeliest[0][1]


class AnswersRead:
    """The answers in the file at `path` and the `old_files` before it; `refresh` reads new ones."""

    def __init__(self, path: Path, old_files: int) -> None:
        # The oldest file first, so that later answers replace earlier ones.
        self._files = [*(Path(f"{path}.{n}") for n in range(old_files, 0, -1)), path]
        self._read: dict[int, tuple[bytes, int]] = {}  # by inode: first bytes, and bytes read
        self.newest: dict[str, Answered] = {}  # by picture hash
        self.hashes: dict[str, str] = {}  # by path of the picture

    def refresh(self) -> set[str]:
        """Read what was added since the last call; return the hashes of the pictures in it."""
        found, new = dict[int, tuple[bytes, int]](), set[str]()
        for file in self._files:
            try:
                handle = file.open("rb")
            except OSError:
                continue
            with handle:
                state = os.fstat(handle.fileno())
                head = handle.read(_HEAD_BYTES)
                before, done = self._read.get(state.st_ino, (b"", 0))
                if not head.startswith(before) or state.st_size < done:
                    done = 0  # another file, or one that a person has cut
                if state.st_size > done:
                    handle.seek(done)
                    lines, _, _ = handle.read().rpartition(b"\n")
                    for picture, path, answer in _answers(lines):
                        self.newest[picture], self.hashes[path] = answer, picture
                        new.add(picture)
                    done += len(lines) + bool(lines)
                found[state.st_ino] = (head[:done], done)
        self._read = found
        return new

    def forget_others(self, pictures: Collection[str]) -> None:
        """Forget answers for other pictures, if there are many; `pictures` are hashes."""
        if len(self.newest) > 2 * len(pictures) + _SPARE:
            self.newest = {one: its for one, its in self.newest.items() if one in pictures}
            self.hashes = {path: one for path, one in self.hashes.items() if one in pictures}


def _answers(lines: bytes) -> Iterator[tuple[str, str, Answered]]:
    """Yield hash, path and answer of each line about one picture."""
    for line in lines.splitlines():
        try:
            fields: Any = json.loads(line)
            top: dict[str, float] = fields["top"]
            answer = Answered(
                datetime.fromisoformat(fields["time"]).timestamp(),
                tuple((str(label), float(share)) for label, share in top.items()),
                bool(fields["unknown"]),
                str(fields["model"]),
                str(fields.get("run", "")),
            )
            picture, path = str(fields["hash"]), str(fields["picture"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # an answer for an event, or a damaged line
        if answer.likeliest:
            yield picture, path, answer
