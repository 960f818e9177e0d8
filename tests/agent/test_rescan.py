"""Pictures that come and go while an agent runs, with real files and the real encoder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import system

from fedclip_edge.agent.answered_pictures import ANSWERED, AnsweredPictures
from fedclip_edge.agent.encoding import Encoded, Encoding
from fedclip_edge.agent.features import CACHE, prepare_pictures
from fedclip_edge.agent.label_store import set_labels
from fedclip_edge.agent.rescan import RESCAN_S, Rescan, watched
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.agent.training import CachedTraining
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.embedding import Progress
from fedclip_edge.vision.picture_index import hash_file


@dataclass
class Box:
    """A device, with a session that only records what the rescan asks of it."""

    folder: Path
    bundle: Bundle
    hellos: list[int] = field(default_factory=list)
    manifest: Any = None
    parts: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        system.write_pictures(self.folder, self.bundle.classes.names, 6, seed=1)
        state = self.folder.parent / "state"
        config = AgentConfig("cam-a", "lab", DataConfig(self.folder), state, bundle=self.folder)
        config.state_dir.mkdir()
        answered = AnsweredPictures(state / ANSWERED)
        answered.open()
        self.parts.callback(answered.close)
        self.watch = self.parts.enter_context(watched(config, self.bundle, answered))
        encode = Encoding(self.bundle, config.encoder, config.state_dir / CACHE).encode
        data = prepare_pictures(config, self.bundle, encode, None, self.watch.index)
        self.trainer = LocalTrainer(
            config,
            self.bundle.classes,
            self.bundle.manifest.dim,
            data,
            lambda: None,
            CachedTraining(config, self.bundle, data.sides),
        )
        self.rescan = Rescan(config, self.bundle, encode, self.trainer, self.watch, 0.0)

    @property
    def pictures(self) -> int:
        return self.trainer.capabilities().pictures.labelled

    @property
    def usable(self) -> int:
        """Labelled pictures with features."""
        sides = self.trainer.data.sides
        return len(sides.train) + len(sides.validation) + len(sides.test)

    def look(self, now: float, run: str, phase: str) -> None:
        self.manifest = SimpleNamespace(run=run, phase=phase)
        session = SimpleNamespace(
            trust=SimpleNamespace(manifest=self.manifest),
            renew_capabilities=lambda _: self.hellos.append(self.pictures),
        )
        self.rescan.look(cast("Session", session), now)

    def add(self, count: int) -> None:
        more = self.folder.parent / "more"
        system.write_pictures(more, self.bundle.classes.names[:1], count, seed=7)
        for path in (more / self.bundle.classes.names[0]).iterdir():
            shutil.copy(path, self.folder / self.bundle.classes.names[0] / f"new-{path.name}")


@pytest.fixture
def box(tmp_path: Path, random_bundle: Bundle) -> Iterator[Box]:
    made = Box(tmp_path / "pictures", random_bundle)
    with made.parts:
        yield made


def test_pictures_are_read_again_when_a_run_opens(box: Box) -> None:
    before = box.pictures
    box.look(1, "run-1", "open")
    assert box.hellos == []  # nothing has changed
    box.add(4)
    box.look(2 * RESCAN_S, "run-1", "open")
    assert box.pictures == before  # not while a round is open
    box.look(2 * RESCAN_S + 1, "run-2", "gathering")
    assert box.hellos == [before + 4]


def test_pictures_are_read_again_between_runs_after_a_while(box: Box) -> None:
    box.look(1, "run-1", "done")
    box.add(2)
    before = box.pictures
    box.look(RESCAN_S / 2, "run-1", "done")
    assert box.hellos == []
    box.look(RESCAN_S + 1, "run-1", "done")
    assert box.hellos == [before + 2]


def test_deleted_pictures_leave_the_training(box: Box) -> None:
    before = box.pictures
    next((box.folder / box.bundle.classes.names[0]).iterdir()).unlink()
    box.look(1, "run-1", "open")
    assert box.hellos == [before - 1]
    deleted = {p.path for p in box.trainer.data.sides.test if not p.path.exists()}
    assert not deleted


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_a_share_that_is_not_mounted_keeps_the_pictures_and_is_said_once(
    box: Box, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = box.pictures
    away = box.folder.rename(box.folder.with_name("away"))
    if how == "empty":
        box.folder.mkdir()
    for number in (1, 2):
        box.look(number, f"run-{number}", "open")
    assert (box.pictures, box.hellos) == (before, [])
    assert capsys.readouterr().out.count("folder_away") == 1
    shutil.rmtree(box.folder, ignore_errors=True)
    away.rename(box.folder)
    box.add(1)
    box.look(3, "run-3", "open")
    assert box.hellos == [before + 1]


def test_pictures_that_vanished_while_they_were_encoded_count_once_they_are_back(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, encode = box.usable, box.rescan.encode
    away = box.folder.with_name("away")

    def encode_too_late(pictures: Sequence[Picture], progress: Progress | None) -> Encoded:
        box.folder.rename(away)
        return encode(pictures, progress)

    box.add(3)
    monkeypatch.setattr(box.rescan, "encode", encode_too_late)
    box.look(1, "run-1", "done")
    assert box.usable == before
    said = len(box.hellos)
    away.rename(box.folder)
    monkeypatch.setattr(box.rescan, "encode", encode)
    box.look(RESCAN_S + 1, "run-1", "done")
    assert (box.usable, len(box.hellos)) == (before + 3, said + 1)
    box.look(2 * RESCAN_S + 2, "run-1", "done")
    assert len(box.hellos) == said + 1


def test_a_label_that_a_person_gives_makes_an_unlabelled_picture_count(box: Box) -> None:
    box.add(1)
    new = next(box.folder.rglob("new-*"))
    beside = new.rename(box.folder / new.name)
    before = box.pictures
    box.look(1, "run-1", "open")
    assert box.pictures == before
    name = hash_file(beside)
    set_labels(box.folder.parent / "state", {name: box.bundle.classes.names[2]})
    box.look(2, "run-2", "open")
    assert box.pictures == before + 1
    (picture,) = (one for one in box.trainer.data.found if one.hash == name)
    assert picture.label == 2
    set_labels(box.folder.parent / "state", {name: None})
    box.look(3, "run-3", "open")
    assert box.pictures == before


def test_the_features_of_a_deleted_picture_leave_the_cache(box: Box) -> None:
    box.look(1, "run-1", "open")
    path = next((box.folder / box.bundle.classes.names[0]).iterdir())
    with FeatureCache(box.folder.parent / "state" / CACHE) as cache:
        before = len(cache)
    box.watch.changes()  # it notes the pictures that are there
    path.unlink()
    deadline = time.monotonic() + 30
    removed: list[str] = []
    while not removed:
        assert time.monotonic() < deadline
        removed += box.watch.changes().removed
        time.sleep(0.05)
    with FeatureCache(box.folder.parent / "state" / CACHE) as cache:
        assert len(cache) == before - 1
