"""Counts of refused messages by sender and kind, so that a flood of them cannot fill the log.

The kind of a refusal is its reason without numbers and quoted words.

Laws:
- The first refusal of each sender and kind is written at once, in full. Further ones are counted,
  and the count is written once per REPORT_S. After a minute without one, the next is a first again.
- The memory and the lines at once are bounded, also against made-up names and reasons: beyond
  _KINDS kinds of one sender, and beyond _SENDERS senders, further ones share a kind or a name.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

REPORT_S = 60.0  # the least time between two counts of one sender and kind
_SENDERS = 1_000
_KINDS = 16
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
_KIND_CHARS = 80


@dataclass(frozen=True)
class Line:
    """One line for the log; `count` is None for a first refusal, written in full."""

    sender: str
    topic: str
    reason: str
    count: int | None = None


@dataclass(eq=False)
class _Seen:
    """The refusals of one sender and kind since the last line about them."""

    topic: str
    reason: str
    due_at: float
    count: int = 0


@dataclass(eq=False)
class Refusals:
    """The refused messages of one process."""

    _seen: dict[tuple[str, str], _Seen] = field(default_factory=dict)
    _kinds: Counter[str] = field(default_factory=Counter)  # number of kinds by sender

    def add(self, sender: str, topic: str, reason: str, now: float) -> Line | None:
        """Count a refusal; returns the line to write now, if any. `now` is monotonic, in seconds.

        `sender` is the device's id, or empty.
        """
        known = sender in self._kinds or len(self._kinds) < _SENDERS
        name = sender if known else ""
        kind = _VARIABLE.sub("_", reason)[:_KIND_CHARS]
        if (name, kind) not in self._seen and self._kinds[name] >= _KINDS:
            kind = ""
        seen = self._seen.get((name, kind))
        if seen is None:
            self._kinds[name] += 1
            self._seen[name, kind] = _Seen(topic, reason, now + REPORT_S)
            return Line(name, topic, reason)
        seen.topic, seen.reason = topic, reason
        seen.count += 1
        return None

    def poll(self, now: float) -> list[Line]:
        """The counts that are due, each with the topic and reason of its last refusal."""
        lines = []
        for (sender, kind), seen in list(self._seen.items()):
            if now < seen.due_at:
                continue
            if seen.count:
                lines.append(Line(sender, seen.topic, seen.reason, seen.count))
                seen.count, seen.due_at = 0, now + REPORT_S
                continue
            del self._seen[sender, kind]
            self._kinds[sender] -= 1
            if not self._kinds[sender]:
                del self._kinds[sender]
        return lines
