"""The activity of a device, as it tells the coordinator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from session_scene import TOPICS, Scene, kept, manifest, model, state

from fedclip_edge.agent.activity import TELL_S
from fedclip_edge.agent.working import follow
from fedclip_edge.protocol.message_parts import Activity
from fedclip_edge.protocol.messages import DeviceState, Offer
from fedclip_edge.records import Model, Plan, Update


def told(scene: Scene) -> list[Activity]:
    states = scene.heard(DeviceState)
    assert all(state.online for state in states)
    return [state.activity for state in states]


def while_it_trains(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]
) -> None:
    """Call `meanwhile` in the next training."""
    fit = scene.learner.fit

    def slow(model: Model, plan: Plan) -> Update:
        monkeypatch.setattr(scene.learner, "fit", fit)
        meanwhile()
        return fit(model, plan)

    monkeypatch.setattr(scene.learner, "fit", slow)


def after(scene: Scene, by_s: float) -> list[Activity]:
    """Move the clock in the training, and return what the device tells."""
    scene.now += by_s
    follow(scene.session, lambda: scene.now)
    return told(scene)


def test_short_work_is_not_told(scene: Scene) -> None:
    scene.join()
    kept(scene, scene.heard(Offer)[0])
    assert told(scene) == ["waiting"], "the state on connecting"
    scene.work(by_s=TELL_S)
    assert told(scene) == []


def test_a_download_and_a_training_that_last_are_told_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Activity]] = []
    while_it_trains(
        scene, monkeypatch, lambda: seen.extend(after(scene, by_s) for by_s in (0.0, TELL_S, 9.0))
    )
    scene.flow()
    scene.say(manifest())
    scene.work()
    assert told(scene) == ["waiting"]
    scene.work(by_s=TELL_S)
    assert told(scene) == ["downloading"]
    scene.work(by_s=9.0)
    assert told(scene) == []
    scene.say_model(model(0))
    scene.work()
    assert seen == [[], ["training"], []]
    kept(scene, scene.heard(Offer)[0])
    scene.work(by_s=TELL_S)
    assert told(scene) == ["waiting"]


def test_after_a_hello_the_activity_is_told_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that restarted knows nothing of the device."""
    seen: list[list[Activity]] = []

    def restart() -> None:
        seen.append(after(scene, 0.0) + after(scene, TELL_S))
        scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
        seen.append(after(scene, 1.0))
        scene.say(manifest(epoch=6))
        seen.append(after(scene, 1.0))

    while_it_trains(scene, monkeypatch, restart)
    scene.join()
    assert seen == [["waiting", "training"], [], ["training"]]


def test_a_device_that_pauses_tells_nothing_else(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[DeviceState]] = []

    def pause() -> None:
        scene.session.pause("too hot", scene.now)
        scene.heard(DeviceState)
        scene.now += 2 * TELL_S
        follow(scene.session, lambda: scene.now)
        seen.append(scene.heard(DeviceState))
        scene.session.pause("", scene.now)

    while_it_trains(scene, monkeypatch, pause)
    scene.join()
    assert seen == [[]]
