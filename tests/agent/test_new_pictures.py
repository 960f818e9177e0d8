"""The way of a new picture to its answer: its features, kills, and a folder that is away."""

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
from fedclip_edge.errors import DataError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture

KEY = "k" * 64
PICTURES = [Picture(Path(f"/inbox/{name}.jpg"), -1, name * 64) for name in "abc"]


class Encoder:
    """An encoder process that stores a feature for each picture but the damaged ones.

    It is also the watch of their folder.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.damaged: set[str] = set()
        self.asked = 0
        self.stores = True
        self.error: Exception | None = None
        self.is_there, self.was_seen = True, True  # the folder
        self.worker = SimpleNamespace(is_busy=False, is_paused=lambda: False)

    def is_away(self) -> bool:
        self.was_seen = self.is_there
        return not self.is_there

    def is_absent(self, _path: Path) -> bool:
        return not self.was_seen

    def encode(self, pictures: Sequence[Picture], progress: Any = None) -> Encoded:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if not self.is_there:
            return Encoded(0, {one.hash: "cannot be read: No such file" for one in pictures})
        new = {one.hash: np.ones(4, np.float32) for one in pictures if one.hash not in self.damaged}
        if self.stores:
            with FeatureCache(self.cache) as cache:
                cache.put(new, KEY)
        return Encoded(len(new), dict.fromkeys(self.damaged, "it is damaged"))


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder(tmp_path / "features.sqlite")


@pytest.fixture
def features(encoder: Encoder) -> EncodedFeatures:
    return EncodedFeatures(
        cast("EncoderProcess", encoder), encoder.cache, KEY, cast("FolderWatch", encoder)
    )


def test_a_picture_that_cannot_be_decoded_is_named_and_left_out(
    encoder: Encoder, features: EncodedFeatures, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.damaged = {PICTURES[1].hash}
    found = features(PICTURES)
    assert found is not None
    assert found.keys() == {PICTURES[0].hash, PICTURES[2].hash}
    assert "picture_skipped picture=/inbox/b.jpg" in capsys.readouterr().out


def test_features_that_are_lost_in_between_are_asked_for_again(
    encoder: Encoder, features: EncodedFeatures
) -> None:
    """Another process may have found the cache damaged; no picture may be left out for that."""
    encoder.stores = False
    with pytest.raises(DataError, match="was made anew after the pictures were encoded"):
        features(PICTURES)
    encoder.stores = True
    found = features(PICTURES)
    assert found is not None
    assert len(found) == 3


def test_while_the_encoder_is_at_work_for_others_there_are_none(
    encoder: Encoder, features: EncodedFeatures
) -> None:
    encoder.worker.is_busy = True
    assert features(PICTURES) is None
    encoder.worker.is_busy, encoder.worker.is_paused = False, lambda: True
    assert features(PICTURES) is None
    assert encoder.asked == 0
    encoder.worker.is_paused, encoder.error = lambda: False, PausedError("paused")
    assert features(PICTURES) is None


def test_pictures_of_a_folder_that_went_away_are_no_damaged_pictures(
    encoder: Encoder, features: EncodedFeatures, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.is_there = False
    assert features(PICTURES) == {}
    assert encoder.is_absent(PICTURES[0].path)
    assert "picture_skipped" not in capsys.readouterr().out
    encoder.is_there = True
    found = features(PICTURES)
    assert found is not None
    assert len(found) == 3


class Scene:
    """The new pictures of one process, with a watch and an answering that the test plays."""

    def __init__(self, site: Path) -> None:
        self.answered = AnsweredPictures(site / ANSWERED)
        self.answered.open()
        self.settled = self.answered.settled()
        self.changes, self.done = Changes(), list[str]()
        self.added: list[Picture] = []
        self.has_read_old = False
        self.loaded = 0
        self.watch = SimpleNamespace(
            changes=lambda _now: self.changes,
            has_read_old=lambda: self.has_read_old,
            has_unknown_files=False,
        )
        answering: Any = SimpleNamespace(
            add=self.added.extend,
            look=lambda _session, _now: None,
            end=lambda _now: None,
            take_settled=self.take,
        )
        self.way = NewPictures(
            cast("FolderWatch", self.watch), cast("Answering", answering), self.answered, self.load
        )

    def load(self) -> None:
        self.loaded += 1

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
    one, two = PICTURES[:2]
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


def test_the_encoder_is_loaded_once_for_the_files_that_come(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for has_files, loaded in ((False, 0), (True, 1), (True, 1), (False, 1), (True, 2)):
        scene.watch.has_unknown_files = has_files
        scene.look(0.0, Changes())
        assert scene.loaded == loaded
    scene.answered.close()
