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


class Evaluator:
    """A device that evaluates; `evaluated` has each model's round, and if it was the last."""

    def __init__(self) -> None:
        self.queue = EvaluationQueue()
        self.learner = FakeLearner(SHAPES)
        self.evaluated: list[tuple[int, bool]] = []

    def all_due(self, said: Manifest, newest: Held | None) -> list[int]:
        """Evaluate until nothing is due; return the rounds in order."""
        rounds = []
        while (due := self.queue.next_model(said, newest)) is not None:
            is_last = self.queue.is_last(due, said)
            measured = self.learner.evaluate(due.model, said.plan, final=is_last)
            report = self.learner.report(said.run, due.model, due.version, measured, 0.0)
            self.queue.note(report, is_last=is_last)
            self.evaluated.append((report.round, is_last))
            rounds.append(report.round)
        return rounds


@pytest.fixture
def device() -> Evaluator:
    return Evaluator()


def test_nothing_is_due_before_a_model_came(device: Evaluator) -> None:
    assert device.all_due(told(held(0)), None) == []
    assert device.all_due(told(held(0), "final"), None) == []


def test_each_model_is_due_once_the_oldest_first(
    device: Evaluator,
) -> None:
    for closed in range(4):
        device.queue.add(held(closed))
    assert device.all_due(told(held(3)), held(3)) == [0, 1, 2, 3]
    assert device.all_due(told(held(3)), held(3)) == []
    assert device.evaluated == [(float(closed), False) for closed in range(4)]
    assert device.queue.report is not None
    assert device.queue.report.round == 3


def test_the_last_one_is_evaluated_as_the_last_and_those_before_it_are_not(
    device: Evaluator,
) -> None:
    for closed in range(3):
        device.queue.add(held(closed))
    said = told(held(2), "final")
    assert not device.queue.is_over(said)
    assert device.all_due(said, held(2)) == [0, 1, 2]
    assert device.evaluated == [(0.0, False), (1.0, False), (2.0, True)]
    assert device.queue.is_over(said)
    assert device.all_due(told(held(2), "done"), held(2)) == []


def test_what_turns_out_to_be_the_last_is_evaluated_again(
    device: Evaluator,
) -> None:
    device.queue.add(held(1))
    assert device.all_due(told(held(1)), held(1)) == [1]
    assert device.all_due(told(held(1), "final"), held(1)) == [1]
    assert device.evaluated == [(1.0, False), (1.0, True)]


def test_while_the_last_one_is_on_its_way_those_before_it_are_evaluated(
    device: Evaluator,
) -> None:
    device.queue.add(held(1))
    assert device.all_due(told(held(2), "final"), held(1)) == [1]
    assert not device.queue.is_over(told(held(2), "final"))


def test_another_run_begins_with_nothing(device: Evaluator) -> None:
    device.queue.add(held(1))
    assert device.all_due(told(held(1), "final"), held(1)) == [1]
    device.queue.add(held(2))
    device.queue.start_run()
    assert device.queue.report is None
    assert device.all_due(told(held(3)), held(2)) == []
    # A new run may begin with the same bytes. They are not sent again, but must be evaluated.
    assert device.all_due(told(held(1)), held(1)) == [1]
    assert device.evaluated[-1] == (1.0, False)


def test_of_too_many_the_oldest_make_way_and_the_newest_stays(
    device: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_queue, "_WAITING_BYTES", 3 * held(0).size_bytes)
    for closed in range(6):
        device.queue.add(held(closed))
    assert device.all_due(told(held(5)), held(5)) == [3, 4, 5]
    monkeypatch.setattr(evaluation_queue, "_WAITING_BYTES", 10)
    device.queue.add(held(6))
    device.queue.add(held(7))
    assert device.all_due(told(held(7)), held(7)) == [7]


def test_so_many_wait_and_who_makes_way_is_named(
    device: Evaluator, capsys: pytest.CaptureFixture[str]
) -> None:
    for closed in range(evaluation_queue._WAITING + 2):
        device.queue.add(held(closed))
    newest = held(evaluation_queue._WAITING + 1)
    assert device.all_due(told(newest), newest)[0] == 2
    said = capsys.readouterr().out
    assert said.count("model_not_evaluated") == 2
    assert "model_not_evaluated round=0" in said


def test_when_the_run_is_done_only_the_last_one_is_evaluated(
    device: Evaluator,
) -> None:
    for closed in range(3):
        device.queue.add(held(closed))
    assert device.all_due(told(held(2), "done"), held(2)) == [2]
    assert device.evaluated == [(2.0, True)]


def test_rounds_that_were_lost_are_not_evaluated(device: Evaluator) -> None:
    for closed in range(4):
        device.queue.add(held(closed))
    device.queue.go_back(told(held(1)))
    assert device.all_due(told(held(1)), held(3)) == [0, 1]


def test_a_models_size_is_that_of_its_terms() -> None:
    terms = {"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}
    assert Held("v", Model("made-up", 0, terms)).size_bytes == 4 * (12 + 5)
