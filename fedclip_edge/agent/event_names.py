"""The event of each new picture, by the same rule as the groups of the split (vision/groups.py).

With `group_by = "seconds"`, an event is named after the time of its first picture. A picture
belongs to the last event if it was taken within `group_seconds` of a picture of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from fedclip_edge.agent.answers import utc
from fedclip_edge.config.agent import DataConfig
from fedclip_edge.records import normalized_name
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.groups import event_of
from fedclip_edge.vision.taken import taken_at


@dataclass(eq=False)
class EventNames:
    """The names of events; `classes` are those of the bundle."""

    config: DataConfig
    classes: Iterable[str]
    _last: str = ""  # the last event in time
    _first_s: float = 0.0  # Unix time of its earliest picture
    _last_s: float = 0.0  # Unix time of its latest picture
    _names: frozenset[str] = field(init=False)
    _pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        self._names = frozenset(map(normalized_name, self.classes))
        self._pattern = re.compile(self.config.group_pattern)

    def __call__(self, picture: Picture) -> str:
        """Return the event of a picture, or an empty name if it belongs to none."""
        if self.config.group_by == "none":
            return ""
        if self.config.group_by != "seconds":
            return event_of(picture.path, self.config, self._names, self._pattern)
        taken_s, gap_s = taken_at(picture.path), self.config.group_seconds
        if self._last and self._first_s - gap_s <= taken_s <= self._last_s + gap_s:
            self._first_s = min(self._first_s, taken_s)
            self._last_s = max(self._last_s, taken_s)
        else:
            self._last, self._first_s, self._last_s = utc(taken_s), taken_s, taken_s
        return self._last
