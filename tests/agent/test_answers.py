"""A device's answers: those of `fedclip-edge predict`, as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from answer_scene import CLASSES, PLAN, fleet_model, pictures

from fedclip_edge.agent.answers import NewPicture, answer, line_of
from fedclip_edge.agent.model_in_use import ModelInUse
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.learning import methods
from fedclip_edge.learning.unknown import Rule
from fedclip_edge.model_file import TrainedModel
from fedclip_edge.prediction import Prediction, find_pictures, predict_pictures
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.encoder import open_encoder
from fedclip_edge.vision.pictures import load, picture_hash


@pytest.mark.parametrize("has_model", [True, False])
def test_an_answer_is_that_of_predict(
    random_bundle: Bundle, pictures: Path, trained: TrainedModel, has_model: bool
) -> None:
    encoder, preprocessing = (
        open_encoder(random_bundle, EncoderConfig()),
        (random_bundle.manifest.preprocessing),
    )
    classes = random_bundle.classes
    asked, _ = find_pictures([pictures], classes.names)
    model = trained.model if has_model else None
    said = list(predict_pictures(asked, encoder, preprocessing, classes, model, EncoderConfig()))
    new = [
        NewPicture(
            one.path,
            picture_hash(one.path.read_bytes()),
            encoder.embed(load(one.path, preprocessing)[None])[0],
        )
        for one in asked
    ]
    in_use = (
        ModelInUse("fleet", classes, trained) if has_model else ModelInUse("zero-shot", classes)
    )
    answers = answer(new, in_use, "cam-07", 3, 0.0)
    for prediction, got in zip(said, answers, strict=True):
        assert isinstance(prediction, Prediction)
        values = prediction.zero_shot if prediction.adapted is None else prediction.adapted
        assert got.path == prediction.asked.path
        assert got.label == classes.names[int(values.argmax())]
        assert got.probability == pytest.approx(float(values.max()), abs=1e-5)
        assert got.score == pytest.approx(prediction.score, abs=1e-5)
        assert [name for name, _ in got.likeliest] == [
            classes.names[i] for i in np.argsort(-values, kind="stable")
        ]


def test_a_picture_below_the_models_threshold_is_unknown() -> None:
    new = pictures(40)
    scores = methods.scores_of(
        fleet_model(0.3).model, np.stack([one.vector for one in new]), CLASSES
    )
    between = float(np.median(scores))
    trained = fleet_model(0.3, rule=Rule(between, 1.0))
    found = answer(new, ModelInUse("fleet", CLASSES, trained), "cam-07", 1, 0.0)
    assert [one.is_unknown for one in found] == [bool(s < np.float32(between)) for s in scores]
    assert 0 < sum(one.is_unknown for one in found) < 40
    never = answer(new, ModelInUse("fleet", CLASSES, fleet_model(0.3)), "cam-07", 1, 0.0)
    assert not any(one.is_unknown for one in never)


def test_the_json_says_what_when_where_and_by_which_model() -> None:
    trained = fleet_model(0.3, run="run-ab12")
    model = ModelInUse("fleet", CLASSES, trained, trained.run, trained.version)
    (found,) = answer(pictures(1, event="door"), model, "cam-07", 2, 1_800_000_000.25)
    said = json.loads(line_of(found.to_json()))
    (first, second) = said["top"].items()
    assert said == {
        "time": "2027-01-15T08:00:00.250+00:00",
        "device": "cam-07",
        "picture": "/inbox/0-0.jpg",
        "hash": "0" * 64,
        "label": first[0],
        "probability": first[1],
        "unknown": False,
        "score": said["score"],
        "top": dict([first, second]),
        "model": "fleet",
        "run": "run-ab12",
        "round": 1,
        "version": trained.version,
        "event": "door",
    }
    assert first[1] > second[1]
    assert trained.plan == PLAN


def test_more_classes_than_there_are_is_all_of_them() -> None:
    (found,) = answer(pictures(1), ModelInUse("zero-shot", CLASSES), "cam-07", 50, 0.0)
    assert len(found.likeliest) == 3
    assert "run" not in found.to_json()
    assert found.to_json()["model"] == "zero-shot"


def test_a_file_name_that_is_not_text_stays_one_line_of_json() -> None:
    path = Path("/inbox/\udcff\n.jpg")  # the byte 0xff, and a line feed
    new = NewPicture(path, "0" * 64, pictures(1)[0].vector)
    (found,) = answer([new], ModelInUse("zero-shot", CLASSES), "cam-07", 1, 0.0)
    line = line_of(found.to_json())
    assert line.count(b"\n") == 1
    assert json.loads(line)["picture"] == str(path)


def test_no_picture_has_no_answer() -> None:
    assert answer([], ModelInUse("zero-shot", CLASSES), "cam-07", 3, 0.0) == []
