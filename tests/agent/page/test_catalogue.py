from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filled_box import FilledBox

from fedclip_edge.agent.label_store import confirm_labels, set_labels
from fedclip_edge.agent.page import catalogue as catalogue_module
from fedclip_edge.agent.page.catalogue import PERSON, Catalogue, Entry
from fedclip_edge.vision import picture_bytes
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import Dataset, side_of
from fedclip_edge.vision.device_pictures import read_device
from fedclip_edge.vision.labels import Labels


@pytest.fixture
def scene(tmp_path: Path, random_bundle: Bundle) -> FilledBox:
    return FilledBox(tmp_path, random_bundle, labelled=9, unlabelled=12).write()


def opened(scene: FilledBox) -> Catalogue:
    return Catalogue(scene.config, lambda: scene.bundle)


def numbers(entries: tuple[Entry, ...]) -> list[int]:
    return [int(entry.path.stem.partition("-")[2]) for entry in entries]


def test_every_picture_has_its_answer_label_side_and_feature(
    scene: FilledBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("a picture was opened")

    monkeypatch.setattr(picture_bytes, "open_file", refused)
    config, found = scene.config, opened(scene).refresh()
    assert found.trouble == ""
    assert found.classes == scene.classes
    assert numbers(found.entries) == list(reversed(range(21)))  # the newest first
    for entry, number in zip(found.entries, reversed(range(21)), strict=True):
        assert entry.path == scene.path(number)
        assert entry.at == scene.at(number)
        assert entry.label == (scene.classes[number % 3] if number < 9 else "")
        assert entry.by == ("the folder" if number < 9 else "")
        assert entry.side == side_of(entry.hash, config.data)
        assert entry.has_feature
        assert entry.answer is not None
        assert entry.answer.label == scene.classes[number % 3]
        assert found.by_id[entry.hash[:20]] is entry
    assert found.entries[-1].likely == scene.classes[0]  # its answer is unknown, its label counts
    assert found.entries[9].likely == ""  # number 11 is unknown, and has no label
    assert found.entries[8].likely == scene.classes[0]  # number 12


def test_what_has_changed_is_read_and_nothing_else(
    scene: FilledBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[Path] = []

    def searched(labels: Labels, inbox: Path | None, hash_of: Callable[[Path], str]) -> Dataset:
        searches.append(labels.folder)
        return read_device(labels, inbox, hash_of)

    monkeypatch.setattr(catalogue_module, "read_device", searched)
    catalogue = opened(scene)
    first = catalogue.refresh()
    assert catalogue.refresh() is first
    (one, two) = first.entries[:2]
    set_labels(scene.state, {one.hash: "circle", two.hash: "no such class"})
    second = catalogue.refresh()
    assert (second.entries[0].label, second.entries[0].by) == ("circle", PERSON)
    assert (second.entries[1].label, second.entries[1].by) == ("", "")
    assert second.entries[2:] == first.entries[2:]
    assert not second.entries[0].is_confirmed
    other = first.entries[-1]  # a circle
    confirm_labels(scene.state, {one.hash: "circle", two.hash: "circle", other.hash: "square"})
    confirmed = [entry for entry in catalogue.refresh().entries if entry.is_confirmed]
    assert [entry.hash for entry in confirmed] == [one.hash]
    assert len(searches) == 1
    scene.add([21, 22])
    assert numbers(catalogue.refresh().entries)[:3] == [22, 21, 20]
    assert len(searches) == 2


def test_an_answer_comes_before_the_index_is_saved(scene: FilledBox) -> None:
    catalogue = opened(scene)
    catalogue.refresh()
    (index,) = scene.state.glob("pictures.sqlite")
    before, state = index.read_bytes(), index.stat()
    scene.add([21])
    index.write_bytes(before)
    os.utime(index, ns=(state.st_atime_ns, state.st_mtime_ns))
    found = catalogue.refresh()
    assert (numbers(found.entries)[0], found.unread) == (21, 0)


def test_files_that_the_agent_has_not_read_are_counted(scene: FilledBox) -> None:
    catalogue = opened(scene)
    (scene.folder / "inbox" / "new.jpg").write_bytes(b"x")
    found = catalogue.refresh()
    assert (len(found.entries), found.unread) == (21, 1)
    for name in ("pictures.sqlite", "answers.jsonl"):
        (scene.state / name).unlink()
    found = opened(scene).refresh()
    assert (len(found.entries), found.unread, found.trouble) == (0, 22, "")


def test_copies_are_one_entry_with_the_label_of_any_of_them(scene: FilledBox) -> None:
    copy = scene.path(20).with_name("a-copy.jpg")
    labelled = scene.path(0).with_name("z-copy.jpg")
    shutil.copyfile(scene.path(20), copy)
    shutil.copyfile(scene.path(20), labelled)
    scene.learn([copy, labelled])
    found = opened(scene).refresh()
    assert len(found.entries) == 21
    assert (found.entries[0].label, found.entries[0].path) == (scene.classes[0], labelled)


def test_a_folder_that_is_away_keeps_the_last_pictures_and_says_so(scene: FilledBox) -> None:
    catalogue = opened(scene)
    first = catalogue.refresh()
    away = scene.folder / "away"
    (scene.folder / "pictures").rename(away)
    scene.add([21])
    found = catalogue.refresh()
    assert found.entries == first.entries
    assert "does not exist" in found.trouble
    away.rename(scene.folder / "pictures")
    found = catalogue.refresh()
    assert (len(found.entries), found.trouble) == (22, "")


def test_without_a_bundle_there_is_no_class_and_no_picture(scene: FilledBox) -> None:
    bundles: list[Bundle | None] = [None]
    catalogue = Catalogue(scene.config, lambda: bundles[-1])
    assert catalogue.refresh().entries == ()
    assert "no bundle yet" in catalogue.refresh().trouble
    bundles.append(scene.bundle)
    assert len(catalogue.refresh().entries) == 21
    bundles.append(None)
    assert catalogue.refresh().entries == ()


def test_a_picture_without_a_feature_is_known_as_such(scene: FilledBox) -> None:
    (scene.state / "features.sqlite").unlink()
    assert not any(entry.has_feature for entry in opened(scene).refresh().entries)


def test_soon_gives_what_was_read_a_moment_ago(scene: FilledBox) -> None:
    catalogue = opened(scene)
    first = catalogue.refresh()  # it took a while, so it is not read again at once
    os.utime(scene.state / "pictures.sqlite")
    assert catalogue.refresh(soon=True) is first
    assert catalogue.refresh() is not first
