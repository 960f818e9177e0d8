"""From new pictures to the file: the model of the moment, tries, and models of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_scene import CLASSES, ENCODER, D, fleet_model
from session_scene import Scene, manifest, model

from fedclip_edge.agent.answer_events import Events
from fedclip_edge.agent.answer_file import AnswerFile
from fedclip_edge.agent.answering import TRIES, Answering, Outlets
from fedclip_edge.agent.model_in_use import ModelChoice
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.answers import AnswersConfig
from fedclip_edge.errors import DataError, DiskError
from fedclip_edge.records import F32
from fedclip_edge.vision.datasets import Picture


class Desk:
    """The answering of one device, with features that the test gives."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.folder = folder
        self.failure: Exception | None = None
        self.is_busy = False
        self.damaged: set[str] = set()
        self.absent: set[Path] = set()
        self.asked: list[int] = []
        answers = AnswersConfig(**rules)
        self.config = AgentConfig(
            "cam-07", "lab", DataConfig(folder), folder, bundle=folder, answers=answers
        )
        self.choice = ModelChoice(folder, ENCODER, D, CLASSES, wants_own=True)
        file = AnswerFile(folder / "answers.jsonl", answers.file_bytes, answers.old_files)
        self.answering = Answering(
            self.config,
            self.choice,
            Outlets(self.config, file, None),
            self.features,
            lambda picture: picture.path.name.partition("-")[0],
            Events(answers),
            lambda path: path in self.absent,
        )

    def features(self, pictures: Sequence[Picture]) -> Mapping[str, F32] | None:
        self.asked.append(len(pictures))
        if self.failure is not None:
            raise self.failure
        if self.is_busy:
            return None
        rng = np.random.default_rng(0)
        made = {one.hash: rng.normal(size=D).astype(np.float32) for one in pictures}
        return {its: vector for its, vector in made.items() if its not in self.damaged}

    def lines(self) -> list[dict[str, Any]]:
        path = self.folder / "answers.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def some(*names: str) -> list[Picture]:
    return [Picture(Path("/inbox") / name, -1, f"{abs(hash(name)):064x}") for name in names]


def test_each_new_picture_has_one_line(desk: Desk) -> None:
    desk.answering.look(None, 0.0)
    assert desk.lines() == []
    desk.answering.add(some("a-1.jpg", "a-2.jpg"))
    for now in (0.0, 0.2, 0.4):
        desk.answering.look(None, now)
    assert [line["picture"] for line in desk.lines()] == ["/inbox/a-1.jpg", "/inbox/a-2.jpg"]
    assert {line["model"] for line in desk.lines()} == {"zero-shot"}


def test_a_new_model_answers_the_next_picture(desk: Desk) -> None:
    desk.answering.add(some("a-1.jpg"))
    desk.answering.look(None, 0.0)
    desk.choice.adopt(fleet_model(0.1, "run-2"))
    desk.answering.add(some("a-2.jpg"))
    desk.answering.look(None, 0.2)
    assert [line.get("run") for line in desk.lines()] == [None, "run-2"]


def test_the_event_of_the_pictures_is_answered_after_it(desk: Desk) -> None:
    desk.answering.add(some("door-1.jpg", "door-2.jpg", "door-3.jpg"))
    desk.answering.look(None, 0.0)
    desk.answering.look(None, 9.9)
    assert len(desk.lines()) == 3
    desk.answering.look(None, 10.1)
    *single, common = desk.lines()
    assert [line["event"] for line in single] == ["door"] * 3
    assert (common["event"], common["pictures"]) == ("door", 3)
    assert "picture" not in common


def test_open_events_are_answered_at_the_end(desk: Desk) -> None:
    desk.answering.add(some("door-1.jpg"))
    desk.answering.look(None, 0.0)
    desk.answering.end(0.1)
    assert desk.lines()[-1]["pictures"] == 1


def test_pictures_wait_while_the_encoder_is_at_work(desk: Desk) -> None:
    desk.is_busy = True
    desk.answering.add(some("a-1.jpg"))
    for now in range(10):
        desk.answering.look(None, float(now))
    assert desk.lines() == []
    desk.is_busy = False
    desk.answering.look(None, 10.0)
    assert len(desk.lines()) == 1


def test_a_damaged_picture_has_no_line_and_holds_nothing_up(desk: Desk) -> None:
    one, two = some("a-1.jpg", "a-2.jpg")
    desk.damaged = {one.hash}
    desk.answering.add([one, two])
    desk.answering.look(None, 0.0)
    desk.answering.look(None, 0.2)
    assert [line["picture"] for line in desk.lines()] == ["/inbox/a-2.jpg"]
    assert desk.asked == [2]


def test_a_fault_of_the_encoder_is_tried_again_and_then_left(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.failure = DataError("the encoder died")
    desk.answering.add(some("a-1.jpg"))
    for now in range(100):
        desk.answering.look(None, float(now))
    assert len(desk.asked) == TRIES
    assert 'pictures_not_answered count=1 reason="the encoder died"' in capsys.readouterr().out
    desk.failure = None
    desk.answering.add(some("a-2.jpg"))
    desk.answering.look(None, 200.0)
    assert len(desk.lines()) == 1


def test_a_picture_is_settled_once_its_line_is_on_disk_or_it_is_damaged(desk: Desk) -> None:
    one, two, three = some("a-1.jpg", "a-2.jpg", "a-3.jpg")
    desk.damaged = {one.hash}
    desk.is_busy = True
    desk.answering.add([one, two])
    desk.answering.look(None, 0.0)
    assert desk.answering.take_settled() == []
    desk.is_busy = False
    (desk.folder / "answers.jsonl").mkdir()  # it cannot be written
    desk.answering.look(None, 0.2)
    assert desk.answering.take_settled() == []
    (desk.folder / "answers.jsonl").rmdir()
    desk.answering.look(None, 10.0)
    assert sorted(desk.answering.take_settled()) == sorted([one.hash, two.hash])
    desk.failure = DataError("the encoder died")
    desk.answering.add([three])
    for now in range(20, 100):
        desk.answering.look(None, float(now))
    assert desk.answering.take_settled() == []  # it is tried again after the next start


def test_sigterm_between_two_answers_settles_the_first_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, count = desk.answering.outlets.put, 0

    def ended(_outlets: Outlets, made: Any, now: float) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise SystemExit
        put(made, now)

    monkeypatch.setattr(Outlets, "put", ended)
    pictures = some("a-1.jpg", "a-2.jpg")
    desk.answering.add(pictures)
    with pytest.raises(SystemExit):
        desk.answering.look(None, 0.0)
    assert desk.answering.take_settled() == [pictures[0].hash]


def test_pictures_whose_folder_is_away_wait_and_others_do_not(desk: Desk) -> None:
    one, two, *others = pictures = some(*(f"a-{number}.jpg" for number in range(40)))
    desk.absent = {one.path}
    desk.answering.add(pictures)
    for now in range(4):
        desk.answering.look(None, float(now))
    assert len([line for line in desk.lines() if "picture" in line]) == 39
    desk.answering.look(None, 4.0)
    assert desk.asked == [16, 16, 7]  # nothing else is asked for
    desk.absent = set()
    desk.answering.look(None, 5.0)
    assert len(desk.answering.take_settled()) == len({one, two, *others}) == 40


def test_a_picture_whose_folder_goes_away_while_it_is_encoded_waits(desk: Desk) -> None:
    one, two = some("a-1.jpg", "a-2.jpg")
    desk.damaged = {one.hash, two.hash}
    desk.absent = {one.path}
    desk.answering.is_absent = lambda path: path in desk.absent and desk.asked != []
    desk.answering.add([one, two])
    desk.answering.look(None, 0.0)
    assert desk.answering.take_settled() == [two.hash]
    desk.absent, desk.damaged = set(), set()
    desk.answering.look(None, 1.0)
    assert [line["picture"] for line in desk.lines()] == [str(one.path)]


def test_a_fault_that_passes_loses_no_picture(desk: Desk) -> None:
    desk.failure = DataError("the encoder died")
    desk.answering.add(some("a-1.jpg"))
    desk.answering.look(None, 0.0)
    desk.failure = None
    desk.answering.look(None, 0.2)
    assert desk.lines() == []
    desk.answering.look(None, 10.0)
    assert len(desk.lines()) == 1


def test_while_the_disk_is_full_pictures_wait(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.failure = DiskError("the disk is full")
    desk.answering.add(some("a-1.jpg"))
    for now in range(100):
        desk.answering.look(None, float(now))
    assert capsys.readouterr().out.count("answers_delayed") == 1
    desk.failure = None
    desk.answering.look(None, 200.0)
    assert len(desk.lines()) == 1


def test_many_pictures_at_once_are_answered_in_parts(desk: Desk) -> None:
    desk.answering.add(some(*(f"a-{number}.jpg" for number in range(100))))
    for now in range(8):
        desk.answering.look(None, float(now))
    assert max(desk.asked) < 100
    assert len([line for line in desk.lines() if "picture" in line]) == 100


def test_while_it_waits_for_features_nothing_is_answered_twice(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder process is free for others between two parts of a long request."""
    given = desk.answering.features

    def features(pictures: Sequence[Picture]) -> Mapping[str, F32] | None:
        desk.answering.look(None, 0.1)
        return given(pictures)

    monkeypatch.setattr(desk.answering, "features", features)
    desk.answering.add(some(*(f"a-{number}.jpg" for number in range(40))))
    for now in range(4):
        desk.answering.look(None, float(now))
    assert len({line["picture"] for line in desk.lines()}) == len(desk.lines()) == 40


def joined(tmp_path: Path, desk: Desk, **changes: Any) -> Scene:
    """A session with a model of one round of 30, or with these changes to its manifest."""
    scene = Scene(tmp_path, ("train",))
    scene.join()
    made = model(0.5, closed=changes.get("closed", 1))
    scene.say(manifest(made, **changes))
    scene.say_model(made)
    scene.work()
    assert scene.session.download.held is not None
    desk.answering.look(scene.session, scene.now)
    return scene


def test_a_model_within_a_run_does_not_answer_but_its_last_one_does(
    tmp_path: Path, desk: Desk
) -> None:
    scene = joined(tmp_path, desk, round=2)
    assert desk.choice.fleet_version == ""
    made = model(0.5, closed=1)
    scene.say(manifest(made, round=1, phase="final"))  # the run was ended early
    scene.work()
    desk.answering.look(scene.session, scene.now)
    assert scene.session.download.held is not None
    assert desk.choice.fleet_version == scene.session.download.held.version
    assert desk.choice.current.run == "run-1"


def test_the_same_model_of_a_later_run_answers_under_its_name(tmp_path: Path, desk: Desk) -> None:
    scene = joined(tmp_path, desk, round=1, phase="final")
    assert desk.choice.current.run == "run-1"
    scene.say(manifest(model(0.5, closed=1), phase="final", run="run-2", epoch=6))
    scene.work()
    desk.answering.look(scene.session, scene.now)
    assert desk.choice.current.run == "run-2"


@pytest.mark.parametrize(("closed", "is_whole"), [(30, True), (1, False)])
def test_of_runs_that_are_over_only_a_whole_one_gives_a_model(
    tmp_path: Path, desk: Desk, closed: int, is_whole: bool
) -> None:
    """The other one may have been abandoned."""
    joined(tmp_path, desk, phase="done", closed=closed, round=30)
    assert (desk.choice.fleet_version != "") == is_whole


def test_the_model_of_a_run_with_another_bundle_does_not_answer(tmp_path: Path, desk: Desk) -> None:
    scene = joined(tmp_path, desk, round=2)
    made = model(0.5, closed=1)
    scene.say(manifest(made, phase="final", run="run-2", epoch=6, classes_digest="d" * 64))
    scene.work()
    desk.answering.look(scene.session, scene.now)
    assert desk.choice.fleet_version == ""
