"""The limits that the owner of a device sets: its session keeps them against any coordinator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from session_scene import PLAN, Scene, kept, manifest, model

from fedclip_edge.agent.upload import REPEAT_S
from fedclip_edge.protocol.messages import Hello, Offer, Want
from fedclip_edge.protocol.report import Report
from fedclip_edge.transport.base import Connected


def test_a_plan_with_another_method_is_neither_trained_nor_fetched(tmp_path: Path) -> None:
    scene = Scene(tmp_path, allowed=("linear", "lowrank"))
    scene.join()
    scene.work(REPEAT_S)
    assert (scene.learner.fitted, scene.learner.evaluated) == ([], [])
    assert (scene.heard(Offer), scene.heard(Want)) == ([], [])


def test_after_a_refused_plan_the_device_joins_a_run_with_an_allowed_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path, allowed=("fedclip",))
    scene.join(plan=replace(PLAN, method="linear"))
    assert scene.learner.fitted == []
    scene.join(run="run-2", epoch=6)
    assert scene.learner.fitted == [0.0]
    assert len(scene.heard(Offer)) == 1


def test_during_a_run_a_plan_with_another_method_changes_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path, allowed=("fedclip",))
    scene.join()
    (offer,) = scene.heard(Offer)
    kept(scene, offer)
    scene.say(manifest(round=2, plan=replace(PLAN, method="ridge")))
    scene.work()
    assert len(scene.learner.fitted) == 1


def test_without_reports_it_evaluates_for_itself_only(tmp_path: Path) -> None:
    scene = Scene(tmp_path, declared=("train",), reports=False)
    scene.flow()
    assert [hello.capabilities.roles for hello in scene.heard(Hello)] == [("train",)]
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
    assert [hello.capabilities.roles for hello in scene.heard(Hello)] == [("evaluate",)]
    assert (scene.learner.fitted, scene.learner.evaluated) == ([], [(0.0, False)])
    assert len(scene.heard(Report)) == 1


def test_a_device_with_nothing_to_send_still_gets_models_and_evaluates(tmp_path: Path) -> None:
    scene = Scene(tmp_path, declared=(), reports=False)
    scene.join()
    assert [hello.capabilities.roles for hello in scene.heard(Hello)] == [()]
    assert (scene.learner.fitted, scene.learner.evaluated) == ([], [(0.0, False)])
    assert (scene.heard(Offer), scene.heard(Report)) == ([], [])
