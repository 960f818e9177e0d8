"""The evaluation queue: order, limits, and the report on the final model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fake_learner import FakeLearner
from session_scene import SHAPES, manifest, model

from fedclip_edge.agent import evaluation_queue
from fedclip_edge.agent.evaluation_queue import EvaluationQueue
from fedclip_edge.agent.model_download import Held
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.chunks import blob_of
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Model


def held(closed: int) -> Held:
    made = model(closed, closed)
    return Held(blob_of(wire.pack_model(made, "fp32"), "model").sha256, made)


def told(newest: Held, phase: str = "open") -> Manifest:
    """The manifest that announces the model `newest`."""
    announced = manifest(newest.model, phase=phase, round=newest.model.round + 1)
    return replace(announced, model=replace(announced.model, sha256=newest.version))


def all_due(mine: EvaluationQueue, said: Manifest, newest: Held | None) -> list[int]:
    """Evaluate until nothing is due; return the rounds in order."""
    rounds = []
    while (due := mine.next_model(said, newest)) is not None:
        rounds.append(mine.evaluate(due, said, 0.0).round)
    return rounds


@pytest.fixture
def learner() -> FakeLearner:
    return FakeLearner(SHAPES)


@pytest.fixture
def mine(learner: FakeLearner) -> EvaluationQueue:
    return EvaluationQueue(learner)


def test_nothing_is_due_before_a_model_came(mine: EvaluationQueue) -> None:
    assert all_due(mine, told(held(0)), None) == []
    assert all_due(mine, told(held(0), "final"), None) == []


def test_each_model_is_due_once_the_oldest_first(
    mine: EvaluationQueue, learner: FakeLearner
) -> None:
    for closed in range(4):
        mine.add(held(closed))
    assert all_due(mine, told(held(3)), held(3)) == [0, 1, 2, 3]
    assert all_due(mine, told(held(3)), held(3)) == []
    assert learner.evaluated == [(float(closed), False) for closed in range(4)]
    assert mine.report is not None
    assert mine.report.round == 3


def test_the_last_one_is_evaluated_as_the_last_and_those_before_it_are_not(
    mine: EvaluationQueue, learner: FakeLearner
) -> None:
    for closed in range(3):
        mine.add(held(closed))
    said = told(held(2), "final")
    assert not mine.is_over(said)
    assert all_due(mine, said, held(2)) == [0, 1, 2]
    assert learner.evaluated == [(0.0, False), (1.0, False), (2.0, True)]
    assert mine.is_over(said)
    assert all_due(mine, told(held(2), "done"), held(2)) == []


def test_what_turns_out_to_be_the_last_is_evaluated_again(
    mine: EvaluationQueue, learner: FakeLearner
) -> None:
    mine.add(held(1))
    assert all_due(mine, told(held(1)), held(1)) == [1]
    assert all_due(mine, told(held(1), "final"), held(1)) == [1]
    assert learner.evaluated == [(1.0, False), (1.0, True)]


def test_while_the_last_one_is_on_its_way_those_before_it_are_evaluated(
    mine: EvaluationQueue,
) -> None:
    mine.add(held(1))
    assert all_due(mine, told(held(2), "final"), held(1)) == [1]
    assert not mine.is_over(told(held(2), "final"))


def test_another_run_begins_with_nothing(mine: EvaluationQueue, learner: FakeLearner) -> None:
    mine.add(held(1))
    assert all_due(mine, told(held(1), "final"), held(1)) == [1]
    mine.add(held(2))
    mine.start_run()
    assert mine.report is None
    assert all_due(mine, told(held(3)), held(2)) == []
    # A new run may begin with the same bytes. They are not sent again, but must be evaluated.
    assert all_due(mine, told(held(1)), held(1)) == [1]
    assert learner.evaluated[-1] == (1.0, False)


def test_of_too_many_the_oldest_make_way_and_the_newest_stays(
    mine: EvaluationQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_queue, "_WAITING_BYTES", 3 * held(0).size_bytes)
    for closed in range(6):
        mine.add(held(closed))
    assert all_due(mine, told(held(5)), held(5)) == [3, 4, 5]
    monkeypatch.setattr(evaluation_queue, "_WAITING_BYTES", 10)
    mine.add(held(6))
    mine.add(held(7))
    assert all_due(mine, told(held(7)), held(7)) == [7]


def test_so_many_wait_and_who_makes_way_is_named(
    mine: EvaluationQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    for closed in range(evaluation_queue._WAITING + 2):
        mine.add(held(closed))
    newest = held(evaluation_queue._WAITING + 1)
    assert all_due(mine, told(newest), newest)[0] == 2
    said = capsys.readouterr().out
    assert said.count("model_not_evaluated") == 2
    assert "model_not_evaluated round=0" in said


def test_when_the_run_is_done_only_the_last_one_is_evaluated(
    mine: EvaluationQueue, learner: FakeLearner
) -> None:
    for closed in range(3):
        mine.add(held(closed))
    assert all_due(mine, told(held(2), "done"), held(2)) == [2]
    assert learner.evaluated == [(2.0, True)]


def test_rounds_that_were_lost_are_not_evaluated(mine: EvaluationQueue) -> None:
    for closed in range(4):
        mine.add(held(closed))
    mine.go_back(told(held(1)))
    assert all_due(mine, told(held(1)), held(3)) == [0, 1]


def test_a_models_size_is_that_of_its_terms() -> None:
    terms = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}
    assert Held("v", Model("made-up", 0, terms)).size_bytes == 4 * (12 + 5)
