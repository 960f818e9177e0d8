"""A device's session while its learner works: it follows the run, and drops what nobody wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from session_scene import DEVICE_KEY, ME, TOPICS, Scene, kept, manifest, model, state

from fedclip_edge.agent.state_db import RunPosition
from fedclip_edge.agent.working import follow
from fedclip_edge.errors import ConfigError, RefusedError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import (
    DeviceState,
    Hello,
    Manifest,
    Message,
    Offer,
    Refused,
    Want,
)
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Model
from fedclip_edge.transport.base import Connected, Received

DOWN = TOPICS.down("cam-01")
REFUSED = Refused("its bundle has other classes", "run", key=DEVICE_KEY.key)


class Busy:
    """A scene whose learner follows the run before it has a result.

    `begun` has the models of the trainings that were interrupted, by their first number.
    """

    def __init__(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scene = scene
        self.begun: list[float] = []
        self._monkeypatch = monkeypatch

    def join(self, meanwhile: Callable[[], object]) -> None:
        """Join the run; `meanwhile` is called once, when the device has begun to train."""
        self.interrupt("fit", meanwhile)
        self.scene.join()

    def interrupt(
        self, method: str, meanwhile: Callable[[], object], *, looks: bool = True
    ) -> None:
        """Call `meanwhile` in the next call of this method of the learner.

        With `looks`, the session then follows the run once more.
        """
        learner = self.scene.learner
        real: Callable[..., Any] = getattr(learner, method)

        def work(model: Model, *arguments: Any, **options: Any) -> Any:
            self.begun.append(float(model.parameters["gate"].flat[0]))
            self._monkeypatch.setattr(learner, method, real)
            meanwhile()
            if looks:
                self.follow()
            return real(model, *arguments, **options)

        self._monkeypatch.setattr(learner, method, work)

    def follow(self, by_s: float = 0.0) -> None:
        self.scene.now += by_s
        follow(self.scene.session, lambda: self.scene.now)

    def say(self, message: Message, topic: str = TOPICS.manifest) -> Callable[[], bytes]:
        """Say this as the coordinator, in `join` or `interrupt`."""
        return lambda: self.scene.say(message, topic)

    @property
    def trained(self) -> list[float]:
        return self.scene.learner.fitted


@pytest.fixture
def busy(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Busy:
    return Busy(scene, monkeypatch)


# Work that is still wanted.


def test_a_coordinator_that_restarts_hears_a_hello_while_the_device_trains(busy: Busy) -> None:
    scene = busy.scene
    heard: list[Hello] = []

    def restart() -> None:
        scene.heard(Hello)
        scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
        busy.follow()
        heard.extend(scene.heard(Hello))
        scene.say(manifest(epoch=6))

    busy.join(restart)
    assert len(heard) == 1
    assert busy.trained == [0.0]
    assert len(scene.heard(Offer)) == 1


def test_a_result_is_on_disk_and_is_offered_once_the_next_coordinator_has_answered(
    busy: Busy,
) -> None:
    scene = busy.scene
    busy.join(busy.say(state("k2", epoch=6), TOPICS.coordinator_state))
    assert busy.trained == [0.0]
    assert scene.session.state_db.pending_update("run-1") is not None
    assert scene.heard(Offer) == []
    scene.say(manifest(epoch=6))
    scene.work()
    assert len(scene.heard(Offer)) == 1
    assert busy.trained == [0.0]


def test_a_hello_without_an_answer_is_repeated_while_the_device_trains(busy: Busy) -> None:
    scene = busy.scene

    def wait() -> None:
        scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
        busy.follow()
        scene.heard(Hello)
        for _ in range(3):
            busy.follow(by_s=5.0)
            assert len(scene.heard(Hello)) == 1

    busy.join(wait)
    assert busy.trained == [0.0]


def test_training_goes_on_while_the_link_is_down(busy: Busy) -> None:
    scene = busy.scene

    def cut() -> None:
        scene.broker.cut("cam-01")
        busy.follow(by_s=100.0)

    busy.join(cut)
    assert busy.trained == [0.0]
    assert scene.session.state_db.pending_update("run-1") is not None
    assert scene.heard(Offer) == []
    scene.session.handle_event(Connected(), scene.now)
    scene.session.handle_event(direct(manifest()), scene.now)
    scene.work()
    assert busy.trained == [0.0]


@pytest.mark.parametrize("phase", ["gathering", "open"])
def test_an_attempt_that_ends_does_not_end_the_training(busy: Busy, phase: str) -> None:
    """The next attempt at the round takes the same contribution."""
    scene = busy.scene
    again = manifest(attempt=1, phase=phase, takes_part=None)
    busy.join(busy.say(again, TOPICS.manifest))
    assert busy.trained == [0.0]
    assert [offer.number for offer in scene.heard(Offer)] == [1]


def test_while_it_evaluates_it_uploads(busy: Busy) -> None:
    scene = busy.scene
    sent: list[int] = []

    def ask() -> None:
        (offer,) = scene.heard(Offer)
        scene.say(Want(offer.blob.sha256, ((0, offer.blob.chunks - 1),)))
        busy.follow()
        sent.append(len(scene.heard(bytes)) - offer.blob.chunks)

    busy.interrupt("evaluate", ask)
    scene.join()
    assert sent == [0]
    assert len(scene.heard(Report)) == 1


def test_while_it_evaluates_it_fetches_the_next_model(busy: Busy) -> None:
    scene = busy.scene
    scene.join()
    kept(scene, scene.heard(Offer)[0])
    newer = manifest(model(1, 1), round=2)

    def close() -> None:
        scene.say(newer)
        busy.follow()
        scene.say_model(model(1, 1))
        busy.follow()
        assert scene.session.download.has(newer)

    busy.interrupt("evaluate", close)
    scene.say(manifest(phase="final"))
    scene.work()
    assert busy.trained == [0.0, 1.0]


def test_the_last_evaluation_goes_on_without_a_coordinator(busy: Busy) -> None:
    scene = busy.scene
    scene.join(phase="gathering")

    def leave() -> None:
        scene.say(state(online=False), topic=TOPICS.coordinator_state)
        busy.follow()
        scene.session.handle_event(Connected(), scene.now)
        for _ in range(6):
            busy.follow(by_s=10.0)
        assert not scene.session.finished

    busy.interrupt("evaluate", leave)
    scene.say(manifest(phase="done"))
    scene.work()
    assert scene.learner.evaluated == [(0.0, True)]
    assert scene.session.finished


# Work that nobody wants any more.


@pytest.mark.parametrize(
    "what",
    [
        manifest(phase="done", takes_part=None),
        manifest(model(1, 1), round=2, takes_part=None),
        manifest(model(1, 1), round=1, phase="final", takes_part=None),
        manifest(model(2), run="run-2", epoch=6, takes_part=None),
    ],
    ids=["done", "closed", "final", "another run"],
)
def test_training_that_nobody_wants_any_more_ends_and_leaves_nothing(
    busy: Busy, what: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = busy.scene
    busy.join(busy.say(what, TOPICS.manifest))
    assert busy.begun[0] == 0.0
    assert 0.0 not in busy.trained
    assert scene.session.state_db.pending_update("run-1") is None
    assert scene.session.state_db.residual("run-1") == {}
    assert scene.heard(Offer) == []
    assert "work_dropped work=training round=1" in capsys.readouterr().out


def test_after_a_round_that_was_closed_it_trains_in_the_next_one(busy: Busy) -> None:
    scene = busy.scene

    def close() -> None:
        scene.say(manifest(model(1, 1), round=2, takes_part=None), topic=TOPICS.manifest)
        scene.say_model(model(1, 1))

    busy.join(close)
    assert busy.trained == [1.0]
    assert [offer.number for offer in scene.heard(Offer)] == [2]


def test_a_run_that_is_abandoned_makes_way_for_the_next_one(busy: Busy) -> None:
    scene = busy.scene
    busy.join(busy.say(manifest(model(0), run="run-2", epoch=6), DOWN))
    assert busy.trained == [0.0], "both runs begin with the same model"
    assert [(offer.run, offer.number) for offer in scene.heard(Offer)] == [("run-2", 1)]


def test_a_device_that_is_refused_in_the_run_stops_its_training(busy: Busy) -> None:
    scene = busy.scene
    busy.join(busy.say(REFUSED, DOWN))
    assert busy.trained == []
    assert scene.session.standby.reason == REFUSED.reason


def test_a_device_that_is_refused_for_good_ends_while_it_trains(busy: Busy) -> None:
    revoked = Refused("it was revoked", "device", key=DEVICE_KEY.key)
    with pytest.raises(RefusedError, match="it was revoked"):
        busy.join(busy.say(revoked, DOWN))


def test_a_run_that_ended_behind_the_device_ends_its_training(busy: Busy) -> None:
    scene = busy.scene

    def end() -> None:
        last = manifest(epoch=4, phase="done", closed=30)
        payload = wire.pack_control(last, "coordinator", TOPICS.manifest, ME)
        scene.broker.deliver(TOPICS.manifest, payload, retain=True)
        for _ in range(6):
            busy.follow(by_s=5)

    busy.join(end)
    assert busy.trained == []
    assert scene.session.finished
    assert scene.session.state_db.position == RunPosition(5, "run-1", 30, over=True)


@pytest.mark.parametrize(
    "newer",
    [
        manifest(model(0), epoch=6, kept="", takes_part=False),
        manifest(model(2, 2), phase="done", takes_part=None),
    ],
    ids=["the run lost its round", "the run is done with a later one"],
)
def test_an_evaluation_that_no_report_needs_is_dropped(busy: Busy, newer: Manifest) -> None:
    scene = busy.scene
    scene.join(takes_part=False)
    assert [report.round for report in scene.heard(Report)] == [0]
    busy.interrupt("evaluate", busy.say(newer, DOWN))
    scene.say(manifest(model(1, 1), round=2, takes_part=False))
    scene.flow()
    scene.say_model(model(1, 1))
    scene.work()
    assert busy.begun == [1.0]
    assert 1 not in [report.round for report in scene.heard(Report)]


def test_an_evaluation_of_another_run_is_dropped(
    busy: Busy, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = busy.scene
    scene.join(phase="gathering")
    other = manifest(model(0), run="run-2", epoch=6, takes_part=False)
    busy.interrupt("evaluate", busy.say(other, DOWN))
    scene.say(manifest(takes_part=False))
    scene.work()
    assert [report.run for report in scene.heard(Report)] == ["run-2"]
    assert "work_dropped work=evaluation round=0" in capsys.readouterr().out


def test_a_failure_in_a_run_that_is_over_does_not_keep_the_device_from_the_next(
    busy: Busy,
) -> None:
    scene = busy.scene

    def fail() -> None:
        scene.say(manifest(model(0), run="run-2", epoch=6))
        scene.flow()
        raise ConfigError("training diverged")

    busy.join(fail)
    assert not scene.session.standby.reason
    assert scene.heard(DeviceState)[-1] == DeviceState("b1", online=True)
    assert [offer.run for offer in scene.heard(Offer)] == ["run-2"]


def test_a_result_that_comes_with_the_end_of_the_run_is_not_used(busy: Busy) -> None:
    """The learner may be done before the session has looked again."""
    scene = busy.scene

    def end() -> None:
        scene.say(manifest(phase="done", takes_part=None), topic=TOPICS.manifest)
        scene.flow()

    busy.interrupt("fit", end, looks=False)
    scene.join()
    assert busy.trained == [0.0]
    assert scene.heard(Offer) == []
    assert scene.session.state_db.pending_update("run-1") is None


def test_work_that_a_pause_ended_is_asked_for_again(busy: Busy) -> None:
    scene = busy.scene

    def give_up() -> None:
        raise PausedError("the work of the trainer process is paused")

    busy.join(give_up)
    assert busy.trained == [0.0]
    assert len(scene.heard(Offer)) == 1


def direct(message: Message) -> Received:
    return Received(DOWN, wire.pack_control(message, "coordinator", DOWN, ME))
