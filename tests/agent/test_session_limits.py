"""The limits that the owner of a device sets: its session keeps them against any coordinator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from session_scene import PLAN, Scene, kept, manifest, model

from fedclip_edge.agent.upload import REPEAT_S
from fedclip_edge.protocol.messages import Hello, Offer
from fedclip_edge.protocol.report import Report
from fedclip_edge.transport.base import Connected


def test_a_plan_with_another_method_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(tmp_path, allowed=("linear", "lowrank"))
    scene.join()
    assert scene.session.trust.manifest is None
    assert (scene.learner.fitted, scene.learner.evaluated) == ([], [])
    assert scene.heard(Offer) == []
    said = capsys.readouterr().out
    assert "takes no part in the run run-1: its plan has the method 'fedclip'" in said
    assert "`methods` in agent.toml allows only: linear, lowrank" in said


def test_after_a_refused_plan_the_device_joins_a_run_with_an_allowed_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path, allowed=("fedclip",))
    scene.join(plan=replace(PLAN, method="linear"))
    assert scene.session.trust.manifest is None
    scene.work(REPEAT_S)
    assert scene.heard(Hello), "it stays in the fleet"
    scene.join(run="run-2", epoch=6)
    assert scene.learner.fitted == [0.0]
    assert len(scene.heard(Offer)) == 1


def test_during_a_run_a_plan_with_another_method_changes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, allowed=("fedclip",))
    scene.join()
    (offer,) = scene.heard(Offer)
    kept(scene, offer)
    before = scene.session.trust.manifest
    scene.say(manifest(round=2, plan=replace(PLAN, method="ridge")))
    scene.work()
    assert scene.session.trust.manifest is before
    assert len(scene.learner.fitted) == 1


def test_without_reports_it_evaluates_for_itself_only(tmp_path: Path) -> None:
    scene = Scene(tmp_path, declared=("train",), reports=False)
    scene.flow()
    assert [hello.roles for hello in scene.heard(Hello)] == [("train",)]
    scene.join()
    (offer,) = scene.heard(Offer)
    kept(scene, offer)
    scene.say(manifest(model(1, 1), phase="done", round=1))
    scene.flow()
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.learner.evaluated == [(0.0, False), (1.0, True)]
    assert scene.session.finished
    scene.session.handle_event(Connected(), scene.now)  # a hello repeats the last report
    assert scene.heard(Report) == []


def test_a_device_that_withholds_every_class_evaluates_and_does_not_train(tmp_path: Path) -> None:
    scene = Scene(tmp_path, declared=("evaluate",))
    scene.join()
    assert [hello.roles for hello in scene.heard(Hello)] == [("evaluate",)]
    assert (scene.learner.fitted, scene.learner.evaluated) == ([], [(0.0, False)])
    assert len(scene.heard(Report)) == 1


def test_a_device_with_nothing_to_send_stays_and_says_no_hello(tmp_path: Path) -> None:
    scene = Scene(tmp_path, declared=(), reports=False)
    for _ in range(3):
        scene.work(REPEAT_S)
    assert scene.heard(Hello) == []
    assert scene.session.refused_messages == 0
