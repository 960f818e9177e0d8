"""Encoding of a device's pictures: one feature per picture, and clear errors."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from trained_run import write_mixed

from fedclip_edge.agent.encoding import Encoded, Encoding
from fedclip_edge.agent.features import (
    CACHE,
    DevicePictures,
    prepare_pictures,
    read_features,
)
from fedclip_edge.config.agent import AgentConfig, DataConfig, EncoderConfig
from fedclip_edge.errors import DataError
from fedclip_edge.records import Features, Role
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import Picture, Split, read_folder, split
from fedclip_edge.vision.embedding import Progress
from fedclip_edge.vision.encoder import open_encoder
from fedclip_edge.vision.picture_index import PictureIndex
from fedclip_edge.vision.pictures import load

BOTH: tuple[Role, ...] = ("train", "evaluate")


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle) -> Path:
    """A device's folder with its pictures."""
    write_mixed(tmp_path / "pictures", random_bundle.classes.names, per_class=8)
    return tmp_path


def config(
    site: Path,
    roles: tuple[Role, ...] = BOTH,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
) -> AgentConfig:
    data = DataConfig(site / "pictures", *shares)
    return AgentConfig("cam-a", "lab", data, site / "state", roles=roles, bundle=site)


def sides(site: Path, bundle: Bundle) -> Split:
    dataset = read_folder(site / "pictures", bundle.classes.names)
    return split(dataset, config(site).data)


@dataclass(frozen=True)
class Made:
    """A device's features, and the counts of its pictures."""

    train: Features
    validation: Features
    test: Features
    test_pictures: tuple[Picture, ...]
    encoded: int
    skipped: int


def prepare(config: AgentConfig, bundle: Bundle, progress: Progress | None = None) -> Made:
    """Prepare the pictures, with the encoder in this process, and read their features."""
    encoding = Encoding(bundle, config.encoder, config.state_dir / CACHE)
    pictures = prepare_pictures(config, bundle, encoding.encode, progress)
    its = read_features(config, bundle, pictures.sides)
    assert its.test_pictures == pictures.sides.test
    for side in ("train", "validation", "test"):
        assert pictures.labels(side).tolist() == getattr(its, side).labels.tolist()
    counts = (pictures.encoded, pictures.skipped)
    return Made(its.train, its.validation, its.test, its.test_pictures, *counts)


def all_of(made: Made) -> tuple[Features, ...]:
    return made.train, made.validation, made.test


def rows(features: Features) -> set[tuple[int, bytes]]:
    """Label and vector of each picture, without order."""
    pairs = zip(features.labels, features.vectors, strict=True)
    return {(int(label), vector.tobytes()) for label, vector in pairs}


def is_of(features: Features, pictures: tuple[Picture, ...], bundle: Bundle) -> bool:
    """Check that `features` are the raw features of `pictures`, in the same order."""
    encoder = open_encoder(bundle, EncoderConfig())
    pixels = [load(picture.path, bundle.manifest.preprocessing) for picture in pictures]
    vectors = np.concatenate([encoder.embed(one[None]) for one in pixels])
    return (
        np.array_equal(features.vectors, vectors)
        and features.labels.tolist() == [picture.label for picture in pictures]
        and features.encoder_id == bundle.manifest.encoder_id
    )


def test_each_side_has_the_features_of_its_pictures(site: Path, random_bundle: Bundle) -> None:
    made, expected = prepare(config(site), random_bundle), sides(site, random_bundle)
    assert is_of(made.train, expected.train, random_bundle)
    assert is_of(made.validation, expected.validation, random_bundle)
    assert is_of(made.test, expected.test, random_bundle)
    assert made.test_pictures == expected.test
    assert (made.encoded, made.skipped) == (24, 0)


def test_pictures_that_vanish_before_they_are_encoded_are_tried_again(
    site: Path, random_bundle: Bundle
) -> None:
    settings = config(site)
    encoding = Encoding(random_bundle, settings.encoder, settings.state_dir / CACHE)

    def encode_too_late(pictures: Sequence[Picture], progress: Progress | None) -> Encoded:
        away = site.parent / "away"
        settings.data.folder.rename(away)
        made = encoding.encode(pictures, progress)
        settings.data.folder.mkdir()
        return made

    index = PictureIndex()
    first = prepare_pictures(settings, random_bundle, encode_too_late, None, index)
    assert (first.encoded, first.is_whole) == (0, False)
    settings.data.folder.rmdir()
    (site.parent / "away").rename(settings.data.folder)
    again = prepare_pictures(settings, random_bundle, encoding.encode, None, index, first)
    assert (again.encoded, again.skipped, again.is_whole) == (24, 0, True)
    third = prepare_pictures(settings, random_bundle, encoding.encode, None, index, again)
    assert third is again


def test_a_restart_encodes_nothing_and_has_the_same(site: Path, random_bundle: Bundle) -> None:
    first = prepare(config(site), random_bundle)
    again = prepare(config(site), random_bundle)
    assert again.encoded == 0
    for before, after in zip(all_of(first), all_of(again), strict=True):
        assert before.vectors.tobytes() == after.vectors.tobytes()
        assert before.labels.tolist() == after.labels.tolist()


def test_a_damaged_feature_is_computed_again_and_counted(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepare(config(site), random_bundle)
    assert "damaged" not in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect(config(site).state_dir / "features.sqlite")) as db, db:
        (block, pictures) = db.execute("SELECT id, pictures FROM block LIMIT 1").fetchone()
        damaged = len(pictures.split())
        changed = "x'00000000' || substr(vectors, 5)"
        db.execute(
            f"UPDATE block SET vectors = CAST({changed} AS BLOB) WHERE id = ?",  # noqa: S608 - a constant
            (block,),
        )
    again = prepare(config(site), random_bundle)
    said = f"encoded={damaged} cached={24 - damaged} damaged={damaged} skipped=0"
    assert said in capsys.readouterr().out
    assert 0 < damaged < 24
    for before, after in zip(all_of(first), all_of(again), strict=True):
        np.testing.assert_allclose(before.vectors, after.vectors, rtol=1e-5, atol=1e-6)


def test_under_another_name_a_picture_is_on_the_same_side(
    site: Path, random_bundle: Bundle
) -> None:
    first = prepare(config(site), random_bundle)
    for number, path in enumerate(sorted((site / "pictures").rglob("*.*"), reverse=True)):
        path.rename(path.with_stem(f"renamed-{number}"))
    again = prepare(config(site), random_bundle)
    assert again.encoded == 0
    assert list(map(rows, all_of(again))) == list(map(rows, all_of(first)))


@pytest.mark.parametrize("roles", [("train",), ("evaluate",), BOTH], ids=str)
def test_only_the_sides_that_its_roles_need_are_encoded(
    site: Path, random_bundle: Bundle, roles: tuple[Role, ...]
) -> None:
    made, all_sides = (
        prepare(config(site, roles), random_bundle),
        sides(site, random_bundle),
    )
    train = len(all_sides.train) if "train" in roles else 0
    test = len(all_sides.test) if "evaluate" in roles else 0
    assert list(map(len, all_of(made))) == [train, len(all_sides.validation), test]
    assert made.encoded == train + len(all_sides.validation) + test


def test_a_picture_that_cannot_be_read_is_skipped_counted_and_named(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = site / "pictures" / "circle" / "broken.jpg"
    broken.write_text("this is no picture")
    made = prepare(config(site), random_bundle)
    assert (made.encoded, made.skipped) == (24, 1)
    assert f"picture_skipped picture={broken} reason=" in capsys.readouterr().out


def test_what_will_not_count_is_said(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "pictures" / "circle" / "notes.TXT").write_text("bought in May")
    shares = (0.5, 0.44, 0.06)
    dataset = read_folder(site / "pictures", random_bundle.classes.names)
    untested = split(dataset, config(site, BOTH, shares).data).classes_without_test
    assert 0 < len(untested) < len(random_bundle.classes.names)
    prepare(config(site, BOTH, shares), random_bundle)
    said = capsys.readouterr().out
    assert "files_ignored count=1 kinds=.txt" in said
    for name in random_bundle.classes.names:
        is_said = f"class_without_test_pictures class_name={name}" in said
        assert is_said == (name in untested)


def test_what_is_not_used_is_logged_and_the_agent_goes_on(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = site / "pictures"
    for name in ("lost+found", "@eaDir", "Circle", "other"):
        (pictures / name).mkdir()
    for picture in (pictures / "square").iterdir():
        picture.unlink()
    (pictures / "circle" / "usb").symlink_to(site / "unplugged")
    made = prepare(config(site), random_bundle)
    assert (made.encoded, made.skipped) == (16, 1)
    said = capsys.readouterr().out
    no_class = "it is not named after a class of the bundle"
    events = [
        f"not_used path={pictures / 'Circle'} reason=\"{no_class}; did you mean 'circle'?\"",
        f'not_used path={pictures / "other"} reason="{no_class}"',
        f'not_used path={pictures / "square"} reason="it has no picture (',
        f'picture_skipped picture={pictures / "circle" / "usb"} reason="it is a link to ',
    ]
    for event in events:
        assert said.count(event) == 1
    assert said.count(" not_used ") == 3
    assert said.count(" picture_skipped ") == 1


def test_a_folder_full_of_broken_pictures_does_not_flood_the_log(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(40):
        (site / "pictures" / "circle" / f"x{number}.png").write_text(f"no picture {number}")
        (site / "pictures" / f"unknown {number}").mkdir()
    made = prepare(config(site), random_bundle)
    assert made.skipped == 40
    lines = capsys.readouterr().out.splitlines()
    for name in ("picture_skipped", "not_used"):
        named = [line for line in lines if f" {name} " in line]
        assert len(named) == 10
        assert [line.rpartition(" more=")[2] for line in named if " more=" in line] == ["30"]
        assert " more=" in named[-1]
    (ready,) = (line for line in lines if " features_ready " in line)
    assert "skipped=40" in ready


def test_who_evaluates_nothing_misses_no_test_pictures(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(config(site, ("train",), (1.0, 0.0, 0.0)), random_bundle)
    assert "class_without_test_pictures" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("role", "shares", "side"),
    [("train", (1e-9, 0.0, 1 - 1e-9), "train"), ("evaluate", (0.8, 0.2, 0.0), "test")],
)
def test_a_role_may_have_no_picture(
    site: Path, random_bundle: Bundle, role: Role, shares: tuple[float, float, float], side: str
) -> None:
    made = prepare(config(site, (role,), shares), random_bundle)
    assert len(getattr(made, side)) == 0


def test_a_device_may_have_no_picture_or_only_unlabelled_ones(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    some = next((site / "pictures").rglob("*.png")).read_bytes()
    shutil.rmtree(site / "pictures")
    (site / "pictures" / random_bundle.classes.names[0]).mkdir(parents=True)
    assert [len(side) for side in all_of(prepare(config(site), random_bundle))] == [0, 0, 0]
    (site / "pictures" / "new.png").write_bytes(some)
    assert [len(side) for side in all_of(prepare(config(site), random_bundle))] == [0, 0, 0]
    assert "train=0 test=0 encoded=0 cached=0 skipped=0 unlabelled=1" in capsys.readouterr().out


def test_pictures_that_can_only_be_there_by_mistake_are_named(
    site: Path, random_bundle: Bundle
) -> None:
    first = random_bundle.classes.names[0]
    for folder in (site / "pictures").iterdir():
        folder.rename(folder.with_name(f"{folder.name}x"))
    with pytest.raises(DataError, match=f"did you mean '{first}'"):
        prepare(config(site), random_bundle)


def test_progress_counts_the_pictures_of_all_sides(site: Path, random_bundle: Bundle) -> None:
    said: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        said.append((done, total))

    train_only = config(site, ("train",), (0.6, 0.2, 0.2))
    first = prepare(train_only, random_bundle, tell)
    total = len(first.train) + len(first.validation)
    assert {of for _, of in said} == {total}
    assert said[-1] == (total, total)
    assert said == sorted(set(said))
    said.clear()
    made = prepare(config(site), random_bundle, tell)
    total = sum(map(len, all_of(made)))
    assert {of for _, of in said} == {total}
    # What is in the cache counts as done.
    assert len(first.train) + len(first.validation) < said[0][0] <= said[-1][0] == total
    said.clear()
    prepare(config(site), random_bundle, tell)
    assert said == []


def test_progress_ends_also_if_the_last_side_is_in_the_cache(
    site: Path, random_bundle: Bundle
) -> None:
    made = prepare(config(site), random_bundle)
    (site / "state" / "features.sqlite").unlink()
    evaluates = config(site, ("evaluate",))
    prepare(evaluates, random_bundle)
    said: list[tuple[int, int]] = []
    prepare(config(site), random_bundle, lambda done, of: said.append((done, of)))
    total = sum(map(len, all_of(made)))
    assert said[-1] == (total, total)
    assert said.count((total, total)) == 1


@pytest.mark.parametrize("how", ["no database", "cut in half", "overwritten", "older"])
def test_a_cache_that_cannot_be_used_is_made_anew(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    before = prepare(config(site), random_bundle)
    file = config(site).state_dir / CACHE
    content = file.read_bytes()
    damaged = {
        "no database": b"by mistake\n" * 1000,
        "cut in half": content[: len(content) // 2],
        "overwritten": content[:4096] + b"\x55" * (len(content) - 4096),
    }
    if how == "older":
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute("PRAGMA user_version = 2")
    else:
        file.write_bytes(damaged[how])
    again = prepare(config(site), random_bundle)
    assert again.encoded == before.encoded > 0
    assert [rows(side) for side in all_of(again)] == [rows(side) for side in all_of(before)]
    assert capsys.readouterr().out.count("feature_cache_rebuilt") == 1


@pytest.mark.parametrize("reader", ["trainer", "encoder"])
def test_one_that_is_damaged_later_is_made_anew_by_whoever_finds_it(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str], reader: str
) -> None:
    before = prepare(config(site), random_bundle)
    encoding = Encoding(random_bundle, config(site).encoder, config(site).state_dir / CACHE)
    pictures = prepare_pictures(config(site), random_bundle, encoding.encode, None)
    (config(site).state_dir / CACHE).write_bytes(b"by mistake\n" * 1000)
    if reader == "encoder":
        assert encoding.encode(pictures.found).encoded == len(pictures.found)
    its = read_features(config(site), random_bundle, pictures.sides)
    assert [rows(side) for side in (its.train, its.validation, its.test)] == [
        rows(side) for side in all_of(before)
    ]
    assert capsys.readouterr().out.count("feature_cache_rebuilt") == 1


def test_a_side_car_that_cannot_be_read_is_said_once_also_if_it_comes_later(
    site: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    encoding = Encoding(random_bundle, config(site).encoder, config(site).state_dir / CACHE)

    def again(before: DevicePictures | None) -> DevicePictures:
        return prepare_pictures(config(site), random_bundle, encoding.encode, None, before=before)

    first = again(None)
    assert again(first) is first
    picture = first.found[0].path
    picture.with_suffix(".txt").write_bytes("caf\xe9".encode("latin-1"))
    second = again(first)
    assert second.found == first.found
    said = capsys.readouterr().out
    assert said.count("Save the file as UTF-8") == 1
    assert picture.with_suffix(".txt").name in said
    assert again(second) is second
    assert "UTF-8" not in capsys.readouterr().out


def test_other_duties_go_on_while_many_files_are_read(
    site: Path, random_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock for which a file takes longer than a turn."""
    encoding = Encoding(random_bundle, config(site).encoder, config(site).state_dir / CACHE)
    index, clock, turns = PictureIndex(), [0.0], list[int]()
    read = index.hash_of

    def slowly(path: Path) -> str:
        clock[0] += 0.11
        return read(path)

    monkeypatch.setattr(index, "hash_of", slowly)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    prepare_pictures(
        config(site), random_bundle, encoding.encode, None, index, meanwhile=lambda: turns.append(1)
    )
    assert len(turns) == 5  # between the last of 24 files, after two seconds
