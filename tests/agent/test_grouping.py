"""Groups of a device's pictures: with real files, and over restarts of the agent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedclip_edge.agent.grouping import groups_of, known_sides, warn_of_near_copies
from fedclip_edge.config.agent import DataConfig
from fedclip_edge.vision.datasets import Dataset, Split, read_folder, side_of, split
from fedclip_edge.vision.groups import SIDES
from fedclip_edge.vision.picture_index import PictureIndex, hash_file
from fedclip_edge.vision.taken import taken_at


def shot(path: Path, number: int, at: str | float) -> Path:
    """A picture with a time, in EXIF if it is a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if isinstance(at, str):
        exif.get_ifd(0x8769)[0x9003] = at
    Image.new("RGB", (8, 8), (number % 256, number // 256, 7)).save(path, exif=exif)
    if not isinstance(at, str):
        os.utime(path, (at, at))
    return path


def divided(folder: Path, data: DataConfig, index: PictureIndex) -> tuple[Dataset, Split]:
    dataset = read_folder(folder, ("cat", "dog"), index.hash_of)
    return dataset, split(dataset, data, groups_of(data, dataset, index))


def sides_of(parts: Split) -> dict[str, str]:
    """Side by file name."""
    return {picture.path.name: side for side in SIDES for picture in getattr(parts, side)}


def test_the_time_is_that_of_exif_or_else_of_the_file(tmp_path: Path) -> None:
    one = shot(tmp_path / "1.jpg", 1, "2026:05:04 03:02:01")
    two = shot(tmp_path / "2.jpg", 2, "2026:05:04 03:02:11")
    assert taken_at(two) - taken_at(one) == 10
    assert taken_at(shot(tmp_path / "3.png", 3, 1e9)) == 1e9
    assert taken_at(shot(tmp_path / "4.jpg", 4, "0000:00:00 00:00:00")) > 1e9
    broken = tmp_path / "5.jpg"
    broken.write_bytes(b"no picture")
    assert taken_at(broken) == broken.stat().st_mtime


def test_an_event_stays_on_its_side_over_restarts_without_its_first_frame(tmp_path: Path) -> None:
    data = DataConfig(tmp_path / "p", group_by="seconds")
    for event in range(30):
        for frame in range(4):
            at = 1e9 + 100 * event + 5 * frame
            shot(tmp_path / "p" / "dog" / f"{event:02}-{frame}.png", 10 * event + frame, at)

    def read() -> dict[str, str]:
        index = PictureIndex(file=tmp_path / "index")
        index.open()
        _, parts = divided(tmp_path / "p", data, index)
        index.close()
        return sides_of(parts)

    before = read()
    assert set(before.values()) == set(SIDES)
    assert all(
        before[f"{e:02}-0.png"] == before[f"{e:02}-{f}.png"] for e in range(30) for f in range(4)
    )
    for event in range(30):
        (tmp_path / "p" / "dog" / f"{event:02}-0.png").unlink()
        shot(tmp_path / "p" / "dog" / f"{event:02}-9.png", 5000 + event, 1e9 + 100 * event - 3)
    after = read()
    assert {name: after[name] for name in before if name in after} == {
        name: side for name, side in before.items() if name in after
    }
    assert all(after[f"{e:02}-9.png"] == after[f"{e:02}-1.png"] for e in range(30))


def test_without_the_setting_each_picture_is_a_group(tmp_path: Path) -> None:
    for number in range(20):
        shot(tmp_path / "dog" / f"{number}.png", number, 1e9)
    data = DataConfig(tmp_path)
    dataset, parts = divided(tmp_path, data, PictureIndex())
    for picture in dataset.pictures:
        assert sides_of(parts)[picture.path.name] == side_of(hash_file(picture.path), data)


def test_a_group_of_almost_all_pictures_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(25):
        shot(tmp_path / "dog" / f"IMG_{number}.png", number, 1e9)
    divided(tmp_path, DataConfig(tmp_path, group_by="prefix"), PictureIndex())
    assert "group_too_large share=1 group_by=prefix" in capsys.readouterr().out


def test_near_copies_are_said_with_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    train = np.random.default_rng(1).normal(size=(100, 64)).astype(np.float32)
    warn_of_near_copies(train, train[:40] + 100)
    assert capsys.readouterr().out == ""
    warn_of_near_copies(train, np.concatenate([train[:12] * 2, -train[:28]]))
    assert "near_copies test_pictures=12 of=40" in capsys.readouterr().out


@pytest.mark.parametrize("group_by", ["none", "folder", "prefix", "seconds"])
def test_the_known_sides_are_those_of_the_runs_and_no_file_is_read(
    tmp_path: Path, group_by: str
) -> None:
    data = DataConfig(tmp_path / "p", group_by=group_by)  # type: ignore[arg-type]
    for event in range(12):
        for frame in range(3):
            at = 1e9 + 100 * event + frame
            shot(tmp_path / f"p/dog/{event}/{event:02}-{frame}.png", 10 * event + frame, at)
    index = PictureIndex()
    dataset, parts = divided(tmp_path / "p", data, index)
    for picture in dataset.pictures:
        picture.path.unlink()
    sides = known_sides(data, dataset, index)
    assert {one.path.name: sides[one.hash] for one in dataset.pictures} == sides_of(parts)
    if group_by == "seconds":
        assert known_sides(data, dataset, PictureIndex()) == {}
