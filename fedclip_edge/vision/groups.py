"""Groups of pictures of one event, which share a side of the split.

Frames of one event look alike. If some of them train a model and others test it, the measured
accuracy is too high.

Laws:

- A group is never on two sides, and neither are exact copies: groups that have a picture in common
  are one group.
- A group keeps its side when pictures come or go, and across restarts, unless a new picture joins
  two groups. Then both are on the training side if one of them was, otherwise on the validation
  side if one of them was: what a model has seen never moves to the test side.

For "seconds" the second law needs a memory, because the first picture of an event may be deleted,
or may come last: `known` has the key of each picture that was in a group before.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fedclip_edge.config.agent import DataConfig
from fedclip_edge.records import normalized_name
from fedclip_edge.vision.datasets import Picture, side_of

SIDES = ("train", "validation", "test")


def groups_by_name(
    pictures: Sequence[Picture], config: DataConfig, classes: Iterable[str]
) -> dict[str, str]:
    """Return the group's key, in hex digits, by picture hash, for "folder" and "prefix".

    With "folder", a group is the path of the folder below its class folder, so the folder of an
    event may have the same name in several classes. Pictures directly in a class folder, or whose
    name does not match `group_pattern`, are groups of their own.
    """
    names = {normalized_name(name) for name in classes}
    pattern = re.compile(config.group_pattern)
    events: dict[str, set[str]] = defaultdict(set)  # hashes by event
    for picture in pictures:
        name = (
            _folder(picture.path, config.folder, names)
            if config.group_by == "folder"
            else _prefix(picture.path, pattern)
        )
        events[f"{config.group_by} {name}" if name else picture.hash].add(picture.hash)
    keys = {event: _key(event) if " " in event else event for event in events}
    return _joined([(keys[event], members) for event, members in events.items()], config)


def groups_by_time(
    taken: Mapping[str, float], config: DataConfig, known: Mapping[str, str]
) -> dict[str, str]:
    """Return the group's key, in hex digits, by picture hash, for "seconds".

    `taken` has the time of each picture, as Unix time in seconds. The key of a new group comes from
    its first picture.
    """
    order = sorted(taken, key=lambda picture: (taken[picture], picture))
    events: list[list[str]] = []
    for place, picture in enumerate(order):
        if place == 0 or taken[picture] - taken[order[place - 1]] > config.group_seconds:
            events.append([])
        events[-1].append(picture)
    members: list[tuple[str, set[str]]] = []
    for event in events:
        keys = {known[picture] for picture in event if picture in known}
        members += [(key, set(event)) for key in keys or {_key(f"seconds {event[0]}")}]
    # What was in one group stays in one, also if a picture between the others was deleted.
    before: dict[str, set[str]] = defaultdict(set)
    for picture in taken:
        if picture in known:
            before[known[picture]].add(picture)
    return _joined([*members, *before.items()], config)


def largest(groups: Mapping[str, str]) -> float:
    """The share of the pictures that the largest group has; 0 without pictures."""
    counts: dict[str, int] = defaultdict(int)
    for key in groups.values():
        counts[key] += 1
    return max(counts.values(), default=0) / max(1, len(groups))


def _joined(groups: Sequence[tuple[str, set[str]]], config: DataConfig) -> dict[str, str]:
    """Join the groups that have a picture in common; return the key by picture."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    first: dict[str, str] = {}  # key of the first group of each picture
    for key, pictures in groups:
        for picture in pictures:
            one, other = find(first.setdefault(picture, key)), find(key)
            if one != other:
                low, high = sorted((one, other), key=lambda k: (SIDES.index(side_of(k, config)), k))
                root[high] = low
    return {picture: find(key) for picture, key in first.items()}


def _key(event: str) -> str:
    return hashlib.sha256(event.encode(errors="surrogateescape")).hexdigest()


def _folder(path: Path, folder: Path, classes: set[str]) -> str:
    """The folder of the picture below its class folder; empty if it is in none below."""
    if not path.is_relative_to(folder):
        return str(path.parent)
    parts = path.relative_to(folder).parts[:-1]
    if parts and normalized_name(parts[0]) in classes:
        parts = parts[1:]
    return "/".join(parts)


def _prefix(path: Path, pattern: re.Pattern[str]) -> str:
    found = pattern.match(path.stem)
    return (found[1] or "") if found else ""
