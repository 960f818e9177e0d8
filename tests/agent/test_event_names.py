"""The event of a new picture, by the rule of the split."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedclip_edge.agent.event_names import EventNames
from fedclip_edge.config.agent import DataConfig
from fedclip_edge.vision.datasets import Picture

CLASSES = ("circle", "square")


def picture(path: Path, taken_s: float | None = None) -> Picture:
    if taken_s is not None:
        path.touch()
        os.utime(path, (taken_s, taken_s))
    return Picture(path, -1, path.name)


@pytest.mark.parametrize("name", ["a.jpg", "0815-1.jpg"])
def test_without_groups_there_is_no_event(name: str) -> None:
    assert EventNames(DataConfig(Path("/p")), CLASSES)(picture(Path("/p") / name)) == ""


def test_an_event_is_a_prefix_or_a_folder() -> None:
    by_prefix = EventNames(DataConfig(Path("/p"), group_by="prefix"), CLASSES)
    names = ("0815-1.jpg", "0815-2.jpg", "0816_1.jpg", "alone.jpg")
    assert [by_prefix(picture(Path("/inbox") / name)) for name in names] == [
        *("0815", "0815", "0816", "")
    ]
    by_folder = EventNames(DataConfig(Path("/p"), group_by="folder"), CLASSES)
    paths = ("/p/circle/door/1.jpg", "/p/square/door/2.jpg", "/p/circle/3.jpg")
    assert [by_folder(picture(Path(path))) for path in paths] == ["door", "door", ""]


def test_an_event_is_what_was_taken_within_some_seconds(tmp_path: Path) -> None:
    names = EventNames(DataConfig(tmp_path, group_by="seconds", group_seconds=10), CLASSES)
    found = [
        names(picture(tmp_path / f"{place}.jpg", 1_800_000_000 + at))
        for place, at in enumerate((0, 9, 18, 100, 95, 50))
    ]
    assert found[0] == found[1] == found[2] == "2027-01-15T08:00:00.000+00:00"
    assert found[3] == found[4] == "2027-01-15T08:01:40.000+00:00"
    assert len(set(found)) == 3
