"""The file of a device's answers: JSON lines, renamed when it is full.

    answers.jsonl      the newest answers
    answers.jsonl.1    the ones before, and so on up to `old_files`

Laws:
- The file holds whole lines only. A line that a power cut or a full disk left incomplete is removed
  before the next one is written. A file without the end of a line in its last _LONGEST_BYTES is
  renamed like one that is full: nobody waits until all of it is read.
- While the file cannot be written, the newest WAITING lines wait in memory. This is reported once,
  and so is the end of it.
- The file may be renamed or deleted by others at any time; the next line makes a new one.
"""

from __future__ import annotations

import math
import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge import log

WAITING = 10_000
_AGAIN_S = 5.0  # between two attempts to write
_BACK_BYTES = 65_536  # read at once, to find the end of the last whole line
_LONGEST_BYTES = 16_000_000  # much longer than a line; a power cut may also leave zeros


@dataclass(eq=False)
class AnswerFile:
    """The open-ended file at `path`, of at most `most_bytes`, and `old_files` earlier ones."""

    path: Path
    most_bytes: int
    old_files: int
    _waiting: deque[bytes] = field(default_factory=lambda: deque(maxlen=WAITING))
    _dropped: int = 0
    _failed: str = ""  # the reason why the last attempt failed
    _next_at: float = -math.inf

    @property
    def waits(self) -> bool:
        """True if there are lines that could not be written yet."""
        return bool(self._waiting)

    def add(self, line: bytes, now: float) -> None:
        """Write a line, which ends with a line feed, or let it wait; `now` is monotonic."""
        self._dropped += len(self._waiting) == WAITING
        self._waiting.append(line)
        self.look(now)

    def look(self, now: float) -> None:
        """Write the lines that wait, if it is time for another attempt."""
        if not self._waiting or (self._failed and now < self._next_at):
            return
        try:
            while self._waiting:
                self._write()
        except OSError as error:
            reason = error.strerror or str(error)
            self._next_at = now + _AGAIN_S
            if not self._failed:
                log.event("answers_not_written", file=self.path, reason=reason, hint=_hint(error))
            self._failed = reason
        else:
            if self._failed:
                log.event("answers_written", file=self.path, lost=self._dropped)
            self._failed, self._dropped = "", 0

    def _write(self) -> None:
        """Write as many of the waiting lines as the file has room for, at least one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = _whole_bytes(handle)
            if size is not None and (lines := self._that_fit(size)):
                _append(handle, b"".join(lines), size)
                for _ in lines:
                    self._waiting.popleft()
                return
        finally:
            os.close(handle)
        self._rotate()

    def _that_fit(self, size: int) -> list[bytes]:
        """The next lines for which a file of `size` bytes has room; an empty one has it for any."""
        lines: list[bytes] = []
        total = size
        for line in self._waiting:
            if total + len(line) > self.most_bytes and total > 0:
                break
            lines.append(line)
            total += len(line)
        return lines

    def _rotate(self) -> None:
        names = [self.path, *(Path(f"{self.path}.{n}") for n in range(1, self.old_files + 1))]
        for older, newer in reversed(list(zip(names[1:], names[:-1], strict=True))):
            if newer.exists():
                newer.replace(older)
        if not self.old_files:
            self.path.unlink()


def _hint(error: OSError) -> str:
    """The next step if lines cannot be written."""
    what = "free or repair the disk"
    if isinstance(error, PermissionError):
        what = f"let this user (uid {os.geteuid()}) write the file"
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        what = "move away what is in its place"
    return f"{what}, or set another `file` under [answers]; the newest answers wait"


def _whole_bytes(handle: int) -> int | None:
    """Cut an incomplete last line off, and return the size of the rest in bytes.

    None, without a change, if there is no end of a line within _LONGEST_BYTES.
    """
    size = end = os.fstat(handle).st_size
    while end > 0:
        if size - end >= _LONGEST_BYTES:
            return None
        begin = max(0, end - _BACK_BYTES)
        found = os.pread(handle, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end != size:
        os.ftruncate(handle, end)
    return end


def _append(handle: int, data: bytes, size: int) -> None:
    """Write all of the data after `size` bytes, or nothing of it; raises OSError."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(handle, left) :]
    except OSError:
        os.ftruncate(handle, size)
        raise
