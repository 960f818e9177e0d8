"""The way of a new picture to its answer, over a kill and while its folder is away."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedclip_edge.agent.answered_pictures import ANSWERED, AnsweredPictures
from fedclip_edge.agent.answering import Answering
from fedclip_edge.agent.encoder_process import EncoderProcess
from fedclip_edge.agent.encoding import Encoded
from fedclip_edge.agent.folder_watch import Changes, FolderWatch
from fedclip_edge.agent.new_pictures import EncodedFeatures, NewPictures
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture

D = 4


def pictures(*names: str) -> list[Picture]:
    return [Picture(Path("/inbox") / name, -1, f"{ord(name[0]):064x}") for name in names]


class Folder:
    """A folder with pictures, and an encoder that reads them from it."""

    def __init__(self, site: Path) -> None:
        self.cache = site / "features.sqlite"
        self.is_there = True
        self.is_seen_away = False
        worker = SimpleNamespace(is_busy=False, is_paused=lambda: False)
        encoder = SimpleNamespace(worker=worker, encode=self.encode)
        self.features = EncodedFeatures(
            cast("EncoderProcess", encoder), self.cache, "key", cast("FolderWatch", self)
        )

    def is_away(self) -> bool:
        self.is_seen_away = not self.is_there
        return self.is_seen_away

    def is_absent(self, _path: Path) -> bool:
        return self.is_seen_away

    def encode(self, some: Sequence[Picture]) -> Encoded:
        if not self.is_there:
            return Encoded(0, {one.hash: "cannot be read: No such file" for one in some})
        with FeatureCache(self.cache) as cache:
            cache.put({one.hash: np.ones(D, np.float32) for one in some}, "key")
        return Encoded(len(some), {})


def test_pictures_of_a_folder_that_went_away_are_no_damaged_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, some = Folder(tmp_path), pictures("a", "b")
    folder.is_there = False
    assert folder.features(some) == {}
    assert folder.is_absent(some[0].path)
    assert "picture_skipped" not in capsys.readouterr().out
    folder.is_there = True
    found = folder.features(some)
    assert found is not None
    assert found.keys() == {one.hash for one in some}


class Scene:
    """The new pictures of one process, with a watch and an answering that the test plays."""

    def __init__(self, site: Path) -> None:
        self.answered = AnsweredPictures(site / ANSWERED)
        self.answered.open()
        self.settled = self.answered.settled()
        self.changes, self.done = Changes(), list[str]()
        self.added: list[Picture] = []
        self.has_read_old = False
        watch: Any = SimpleNamespace(
            changes=lambda _now: self.changes, has_read_old=lambda: self.has_read_old
        )
        answering: Any = SimpleNamespace(
            add=self.added.extend,
            look=lambda _session, _now: None,
            end=lambda _now: None,
            take_settled=self.take,
        )
        self.way = NewPictures(
            cast("FolderWatch", watch), cast("Answering", answering), self.answered
        )

    def take(self) -> list[str]:
        done, self.done = self.done, []
        return done

    def look(self, now: float, changes: Changes, done: Sequence[str] = ()) -> None:
        self.changes, self.done = changes, list(done)
        self.way.look(None, now)

    def killed(self, site: Path) -> Scene:
        self.answered.close()
        return Scene(site)


def test_after_a_kill_only_what_was_answered_is_settled(tmp_path: Path) -> None:
    one, two = pictures("a", "b")
    scene = Scene(tmp_path)
    assert scene.settled is None
    scene.look(0.0, Changes(old=("old",)))
    scene = scene.killed(tmp_path)
    assert scene.settled is None  # not all of the old ones were read
    scene.has_read_old = True
    scene.look(0.0, Changes(old=("old", "older")))
    scene.look(1.0, Changes(new=(one, two)))
    scene.look(2.0, Changes(), [one.hash])
    assert scene.added == [one, two]
    scene = scene.killed(tmp_path)
    assert scene.settled == frozenset({"old", "older", one.hash})
    scene.look(0.0, Changes(removed=("older",)))
    scene.done = [two.hash]
    scene.way.end(1.0)
    scene = scene.killed(tmp_path)
    assert scene.settled == frozenset({"old", one.hash, two.hash})
    scene.answered.close()
