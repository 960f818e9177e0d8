"""A device's session in a run, with a scripted coordinator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from capable import CAPABLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from session_scene import (
    DEVICE_KEY,
    FORGER,
    ME,
    PLAN,
    TOPICS,
    Scene,
    kept,
    manifest,
    model,
    small,
    state,
)

from fedclip_edge.agent.download import REPAIR_S
from fedclip_edge.agent.state_db import RunPosition, StateDb
from fedclip_edge.agent.upload import REPEAT_S
from fedclip_edge.errors import ConfigError, DiskError, RefusedError, WorkerError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.cohort import cohort_hash
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import (
    DeviceState,
    Hello,
    Kept,
    Message,
    Offer,
    Refused,
    Want,
)
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Model, Plan, Role, Update
from fedclip_edge.transport.base import Connected, Received
from fedclip_edge.transport.in_memory import InMemoryTransport

# Pauses.


def paused(reason: str) -> DeviceState:
    return DeviceState("b1", online=False, activity="paused", reason=reason)


def test_a_device_that_pauses_is_offline_for_the_coordinator_and_follows_the_run(
    scene: Scene,
) -> None:
    scene.flow()
    scene.heard(DeviceState)
    scene.heard(Hello)
    scene.session.pause("too hot", scene.now)
    scene.session.pause("still too hot", scene.now)
    assert scene.heard(DeviceState) == [paused("too hot")]
    scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
    scene.say(manifest(epoch=6))
    scene.flow()
    scene.say_model(model(0))
    scene.work(by_s=3600.0)
    assert scene.learner.fitted == []
    assert scene.heard(Hello) == [], "a hello would make it online"
    scene.session.pause("", scene.now)
    scene.flow()
    assert scene.heard(DeviceState) == [DeviceState("b1", online=True)]
    assert len(scene.heard(Hello)) == 1
    scene.say(manifest(epoch=6))
    scene.work()
    assert scene.learner.fitted == [0.0]


def test_a_device_that_connects_while_it_pauses_stays_offline(scene: Scene) -> None:
    scene.session.pause("on battery", scene.now)
    scene.heard(DeviceState)
    scene.flow()
    assert scene.heard(DeviceState) == [paused("on battery")]
    assert scene.heard(Hello) == []
    scene.session.say_goodbye()
    assert scene.heard(DeviceState) == [DeviceState("b1", online=False)]


def test_work_that_was_given_up_in_a_pause_is_done_afterwards(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = scene.learner.fit

    def give_up(_model: Model, _plan: Plan) -> NoReturn:
        monkeypatch.setattr(scene.learner, "fit", fit)
        scene.session.pause("too hot", scene.now)
        raise PausedError("the work of the trainer process is paused")

    monkeypatch.setattr(scene.learner, "fit", give_up)
    scene.join()
    assert not scene.session.standby.reason, "the plan works on this device"
    assert scene.learner.fitted == []
    scene.session.pause("", scene.now)
    scene.flow()
    scene.say(manifest())
    scene.work()
    assert scene.learner.fitted == [0.0]


# Hello.


def test_on_connecting_it_says_that_it_is_there_and_who_it_is(scene: Scene) -> None:
    scene.flow()
    assert scene.heard(DeviceState) == [DeviceState("b1", online=True)]
    assert scene.heard(Hello) == [Hello("b1", DEVICE_KEY.key, "photo", "e" * 64, "c" * 64, CAPABLE)]


def test_unanswered_it_says_hello_again(scene: Scene) -> None:
    scene.work()
    assert len(scene.heard(Hello)) == 1
    scene.work(REPEAT_S - 0.1)
    assert scene.heard(Hello) == []
    scene.say(state())
    for _ in range(3):
        scene.work(REPEAT_S)
        assert len(scene.heard(Hello)) == 1
    scene.say(manifest())
    scene.work(REPEAT_S)
    assert scene.heard(Hello) == []


def test_where_nobody_coordinates_hellos_become_rare_until_somebody_does(scene: Scene) -> None:
    scene.work()
    hellos = []
    for _ in range(2 * 720):  # two hours
        scene.work(REPEAT_S)
        hellos.append(len(scene.heard(Hello)))
    assert sum(hellos[:12]) >= 3  # in the first minute
    assert 10 <= sum(hellos[720:]) <= 12  # in the second hour
    scene.say(state())
    scene.work(0)
    assert len(scene.heard(Hello)) == 1
    scene.work(REPEAT_S)
    assert len(scene.heard(Hello)) == 1


def test_an_answer_to_an_earlier_process_is_no_answer(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest(answers="b0"))
    scene.work()
    assert scene.session.refused_messages == 1
    assert scene.heard(Want) == []
    scene.say(manifest())
    scene.work()
    assert len(scene.heard(Want)) == 1


def test_it_knows_how_many_may_come_back_with_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[int] = []
    monkeypatch.setattr(scene.link, "expect", expected.append)
    scene.join(devices=700)
    assert expected == [700]


def test_a_coordinator_that_enrolment_did_not_pin_is_not_believed(scene: Scene) -> None:
    scene.session.trust.coordinator_key = signing.create_identity().key
    scene.flow()
    scene.say(manifest())
    scene.say(state(), topic=TOPICS.coordinator_state)
    scene.work()
    assert scene.session.refused_messages == 2
    scene.session.trust.coordinator_key = ME.key
    scene.say(manifest())
    scene.work()
    assert len(scene.heard(Want)) == 1


def test_a_broadcast_is_no_answer(scene: Scene) -> None:
    """Only the direct answer tells a device that joins late whether it is in the cohort."""
    scene.flow()
    scene.say(manifest(takes_part=None), topic=TOPICS.manifest)
    scene.flow()
    scene.say_model(model(0))
    scene.work()
    assert scene.learner.fitted == []
    scene.say(manifest(takes_part=False))
    scene.work()
    assert scene.learner.fitted == []
    scene.say(manifest(takes_part=True))
    scene.work()
    assert scene.learner.fitted == [0.0]


def test_a_new_coordinator_is_greeted_anew(scene: Scene) -> None:
    scene.join()
    scene.heard(Hello)
    scene.say(state("k1"), topic=TOPICS.coordinator_state)
    scene.work()
    assert len(scene.heard(Hello)) == 1
    scene.say(manifest())
    scene.say(state("k1"), topic=TOPICS.coordinator_state)  # the same state again
    scene.work()
    assert scene.heard(Hello) == []
    scene.heard(Report)
    scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
    scene.work()
    assert len(scene.heard(Hello)) == 1
    # The coordinator may have been away when the report was sent.
    assert len(scene.heard(Report)) == 1
    scene.say(manifest(epoch=6))
    scene.say(state("k2", epoch=6, online=False), topic=TOPICS.coordinator_state)
    scene.work()
    assert scene.heard(Hello) == []  # no coordinator is there
    scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
    scene.work()
    assert len(scene.heard(Hello)) == 1


def test_a_lost_link_stops_work_and_a_new_one_begins_with_hello(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest())
    scene.flow()
    scene.say_model(model(0))
    scene.flow()
    scene.broker.cut("cam-01")
    scene.work(REPEAT_S)
    assert scene.learner.fitted == []
    scene.heard(Hello)
    link = scene.broker.client("cam-01", TOPICS.for_device("cam-01"), scene.link.will)
    scene.link = scene.session.transport = scene.session.publisher.transport = link
    scene.work()
    assert len(scene.heard(Hello)) == 1
    scene.heard(Want)
    scene.say(manifest())
    scene.work()
    assert scene.heard(Want) == []  # the model is already here
    assert scene.learner.fitted == [0.0]


def test_its_will_says_that_it_is_gone(scene: Scene) -> None:
    scene.flow()
    scene.heard(DeviceState)
    scene.broker.cut("cam-01")
    assert scene.heard(DeviceState) == [DeviceState("b1", online=False)]


def test_it_leaves_with_a_good_bye(scene: Scene) -> None:
    scene.flow()
    scene.session.say_goodbye()
    assert scene.heard(DeviceState)[-1] == DeviceState("b1", online=False)


def test_asked_who_it_is_it_says_hello_and_waits_for_the_answer(scene: Scene) -> None:
    scene.join(phase="gathering")
    scene.say(state(), topic=TOPICS.coordinator_state)
    scene.work()
    scene.say(manifest(phase="gathering"))
    scene.work()
    scene.heard(Hello)
    scene.say(state(), topic=TOPICS.coordinator_state)
    scene.work()
    assert scene.heard(Hello) == [], (
        "this state message is for all devices, and the coordinator is known"
    )
    scene.say(state())
    scene.work()
    assert len(scene.heard(Hello)) == 1
    scene.say(manifest(takes_part=None), topic=TOPICS.manifest)
    scene.work()
    assert scene.learner.fitted == []
    scene.say(manifest())
    scene.work()
    assert len(scene.learner.fitted) == 1


def test_greeted_anew_it_asks_at_once_for_all_that_is_missing(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest())
    last = manifest().model.chunks - 1
    for _ in range(6):
        scene.work(by_s=60)
    scene.heard(Want)
    scene.say(state())
    scene.work()
    scene.say(manifest())
    scene.work()
    assert [want.missing for want in scene.heard(Want)] == [((0, last),)]


# Messages that the session believes.


def refused_once(scene: Scene) -> None:
    before = scene.session.refused_messages
    scene.work()
    assert scene.session.refused_messages == before + 1


def test_a_forged_manifest_is_dropped_and_counted(scene: Scene) -> None:
    scene.join(phase="gathering")
    for forged in (manifest(), manifest(key=FORGER.key), manifest(epoch=99, key=FORGER.key)):
        scene.say(forged, topic=TOPICS.manifest, key=FORGER)
        refused_once(scene)
    assert scene.learner.fitted == []
    scene.say(manifest(takes_part=None), topic=TOPICS.manifest)
    scene.work()
    assert scene.learner.fitted == [0.0]


def test_a_manifest_replayed_on_another_topic_is_dropped(scene: Scene) -> None:
    scene.join(phase="gathering")
    payload = scene.say(manifest(), topic=TOPICS.down("cam-02"))
    for topic in (TOPICS.down("cam-01"), TOPICS.manifest):
        scene.script.publish(topic, payload)
        refused_once(scene)
    assert scene.learner.fitted == []


def test_a_replayed_manifest_of_an_older_round_or_epoch_is_dropped(scene: Scene) -> None:
    scene.join(round=2, closed=1, phase="gathering")
    for older in (
        manifest(),
        manifest(round=2, closed=1, epoch=4),
        manifest(round=9, epoch=4),
    ):
        scene.say(older)
        refused_once(scene)
    scene.say(manifest(round=9, epoch=4, run="run-0"))  # of an older run
    refused_once(scene)
    assert scene.learner.fitted == []


def test_an_older_coordinator_is_dropped(scene: Scene) -> None:
    scene.join()
    scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
    scene.work()
    scene.heard(Hello)
    scene.say(state("k1", epoch=5), topic=TOPICS.coordinator_state)
    refused_once(scene)
    assert scene.heard(Hello) == []


@pytest.mark.parametrize("sender", ["cam-02", "", "Coordinator"])
def test_nobody_but_the_coordinator_may_speak(scene: Scene, sender: str) -> None:
    scene.join(phase="gathering")
    scene.say(manifest(), sender=sender)
    refused_once(scene)


@pytest.mark.parametrize(
    "message", [Kept("run-1", 1, "a" * 64), Refused("no", "device"), Want("a" * 64, ((0, 1),))]
)
def test_before_anything_is_known_of_the_run_nothing_else_is_believed(
    scene: Scene, message: Message
) -> None:
    scene.flow()
    scene.say(message)
    refused_once(scene)


def test_a_forged_refusal_does_not_end_it(scene: Scene) -> None:
    scene.join()
    scene.say(Refused("go away", "device"), key=FORGER)
    refused_once(scene)


@pytest.mark.parametrize(
    "message", [DeviceState("b", online=True), Offer("run-1", 1, chunks.blob_of(b"x", "model"))]
)
def test_what_a_coordinator_does_not_say_is_dropped(scene: Scene, message: Message) -> None:
    scene.join()
    scene.say(message)
    refused_once(scene)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.sampled_from(TOPICS.for_device("cam-01")))
def test_no_bytes_stop_it(scene: Scene, payload: bytes, topic: str) -> None:
    scene.flow()
    for candidate in (payload, b"\xfc\x1e\x01\x00" + payload, b"{" + payload):
        scene.session.handle_event(Received(topic, candidate), scene.now)
        scene.session.act(scene.now)


# Download of the model.


def test_who_is_greeted_asks_for_the_model_at_once(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest())
    scene.work()
    blob = manifest().model
    assert scene.heard(Want) == [Want(blob.sha256, ((0, blob.chunks - 1),))]


def test_who_hears_the_broadcast_waits_for_the_chunks_that_follow(scene: Scene) -> None:
    scene.join(phase="gathering")
    scene.heard(Want)
    scene.say(manifest(model(1, 1), round=2), topic=TOPICS.manifest)
    scene.work(REPAIR_S - 0.1)
    assert scene.heard(Want) == []
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.heard(Want) == []
    assert scene.learner.fitted == [1.0]


def test_what_is_missing_is_asked_for_again_until_it_is_here(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest())
    scene.work()
    scene.heard(Want)
    last = manifest().model.chunks - 1
    assert last > 3
    scene.say_model(model(0), only=((0, 0), (2, last - 1)))
    scene.flow()
    for pause_s in (REPAIR_S, 2 * REPAIR_S, 4 * REPAIR_S):  # a slow link does not mean a lost chunk
        scene.work(pause_s + 0.1)
        assert scene.heard(Want) == [Want(manifest().model.sha256, ((1, 1), (last, last)))]
    assert scene.learner.fitted == []
    scene.say_model(model(0))
    scene.work()
    assert scene.learner.fitted == [0.0]


def test_asked_again_for_a_lot_it_asks_for_a_little(scene: Scene) -> None:
    """A link slower than one chunk in REPAIR_S must not carry the whole model repeatedly."""
    scene.flow()
    scene.say(manifest())
    scene.work()
    last = manifest().model.chunks - 1
    assert scene.heard(Want) == [Want(manifest().model.sha256, ((0, last),))]
    scene.work(REPAIR_S + 0.1)
    assert scene.heard(Want) == [Want(manifest().model.sha256, ((0, 3),))]


def test_while_chunks_are_on_their_way_it_sends_none_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    want = Want(offer.blob.sha256, ((0, offer.blob.chunks - 1),))
    monkeypatch.setattr(InMemoryTransport, "backlog", lambda link: 1)
    scene.say(want)
    scene.work()
    assert len(scene.heard(bytes)) == offer.blob.chunks, (
        "the first request is answered even if other messages are queued"
    )
    scene.say(want)
    scene.work(2 * REPEAT_S)
    assert scene.heard(bytes) == []
    assert scene.heard(Offer) == []
    monkeypatch.setattr(InMemoryTransport, "backlog", lambda link: 0)
    scene.say(want)
    scene.work()
    assert len(scene.heard(bytes)) == offer.blob.chunks


def test_a_model_with_another_hash_is_fetched_again(scene: Scene) -> None:
    scene.flow()
    right = manifest().model
    # The chunks are valid; only the hash of the whole is wrong.
    forged = replace(right, sha256=right.sha256[:16] + "0" * 48)
    scene.say(manifest(model=forged))
    scene.flow()
    scene.heard(Want)
    scene.say_model(model(0))
    refused_once(scene)
    assert scene.learner.fitted == []
    scene.work()
    scene.work(REPAIR_S)
    assert scene.heard(Want)[-1] == Want(forged.sha256, ((0, right.chunks - 1),))


def test_a_model_of_other_terms_is_refused(scene: Scene) -> None:
    other = Model("made-up", 0, {"gate": np.zeros((4, 4), np.float32)})
    scene.flow()
    scene.say(manifest(other))
    scene.flow()
    scene.say_model(other)
    refused_once(scene)
    assert scene.learner.fitted == []


def test_damaged_chunks_are_counted_and_do_no_harm(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest())
    scene.work()
    first = next(chunks.split(data := wire.pack_model(model(0), "fp32"), small(data)))
    scene.script.publish(TOPICS.model, first[:-1] + bytes([first[-1] ^ 1]))
    refused_once(scene)
    scene.say_model(model(0))
    scene.work()
    assert scene.learner.fitted == [0.0]


# Rounds.


def test_training_and_evaluation_never_happen_while_a_message_is_taken_in(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest())
    scene.flow()
    scene.say_model(model(0))
    scene.flow()
    assert (scene.learner.fitted, scene.learner.evaluated) == ([], [])
    assert scene.act()
    assert (scene.learner.fitted, scene.learner.evaluated) == ([0.0], [])  # one task at a time
    assert scene.act()
    assert scene.learner.evaluated == [(0.0, False)]
    assert not scene.act()


def test_it_contributes_once_a_round(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    assert (offer.run, offer.number) == ("run-1", 1)
    scene.say(manifest(attempt=1))
    scene.work()
    assert scene.learner.fitted == [0.0]
    scene.say(Kept("run-1", 1, offer.blob.sha256))
    scene.say(manifest(model(1, 1), round=2, takes_part=None), topic=TOPICS.manifest)
    scene.flow()
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.learner.fitted == [0.0, 1.0]
    assert scene.session.state_db.kept_round("run-1") == 1
    assert [offer.number for offer in scene.heard(Offer)] == [2]


@pytest.mark.parametrize("phase", ["gathering", "final", "done"])
def test_it_trains_only_while_a_round_is_open(scene: Scene, phase: str) -> None:
    scene.join(phase=phase)
    assert scene.learner.fitted == []


@pytest.mark.parametrize(("above", "trains"), [(True, True), (False, False)])
def test_it_works_out_for_itself_whether_it_is_drawn(
    scene: Scene, above: bool, trains: bool
) -> None:
    scene.join(phase="gathering")
    drawn = cohort_hash("run-1", 1, "cam-01")
    below = f"{int(drawn, 16) - 1:064x}"
    cohort = drawn if above else below
    scene.say(manifest(takes_part=None, cohort=cohort), topic=TOPICS.manifest)
    scene.work()
    assert bool(scene.learner.fitted) == trains


def test_what_was_offered_is_sent_chunk_by_chunk_as_asked(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    assert scene.heard(bytes) == []
    scene.say(Want(offer.blob.sha256, ((0, 10**6),)))
    scene.work()
    incoming = chunks.Incoming(offer.blob)
    for chunk in scene.heard(bytes):
        incoming.add_chunk(chunk)
    found = wire.unpack_contribution(incoming.assemble(), "fp32", {"gate": (40, 10)})
    assert (found.run, found.round, found.device) == ("run-1", 1, "cam-01")
    assert found.exchange == manifest().exchange.sha256
    assert found.update.delta["gate"][0, 0] == 0.5
    scene.say(Want("a" * 64, ((0, 1),)))  # a blob that was not offered
    scene.work()
    assert scene.heard(bytes) == []


def test_it_offers_again_until_it_is_kept(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    for _ in range(3):
        scene.work(REPEAT_S - 0.1)
        assert scene.heard(Offer) == []
        scene.work(0.1)
        assert scene.heard(Offer) == [offer]
    scene.say(Kept("run-1", 1, "a" * 64))  # another contribution
    scene.work(REPEAT_S)
    assert scene.heard(Offer) == [offer]
    for _ in range(2):
        scene.say(Kept("run-1", 1, offer.blob.sha256))
        scene.work()
    scene.work(10 * REPEAT_S)
    assert scene.heard(Offer) == []
    scene.say(Want(offer.blob.sha256, ((0, 9),)))
    scene.work()
    assert scene.heard(bytes) == []  # the contribution is gone


def test_while_it_uploads_it_does_not_offer(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    for _ in range(5):
        scene.say(Want(offer.blob.sha256, ((0, 0),)))
        scene.work(REPEAT_S - 0.1)
    assert scene.heard(Offer) == []


def test_after_a_new_coordinator_it_offers_at_once(scene: Scene) -> None:
    scene.join()
    scene.heard(Offer)
    scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
    scene.work()
    assert scene.heard(Offer) == []  # not before the new coordinator has answered the hello
    scene.say(manifest(epoch=6))
    scene.work()
    assert len(scene.heard(Offer)) == 1
    assert scene.learner.fitted == [0.0]


def test_what_is_refused_is_not_offered_again(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    scene.say(Refused("too large", "contribution", sha256=offer.blob.sha256))
    scene.work(10 * REPEAT_S)
    assert scene.heard(Offer) == []
    assert scene.learner.fitted == [0.0]


def test_a_refusal_for_good_ends_it(scene: Scene) -> None:
    scene.join()
    scene.say(Refused("joined under another key", "device", key=FORGER.key))
    scene.work()  # sent to another device with the same id
    scene.say(Refused("not enrolled", "device", key=DEVICE_KEY.key))
    with pytest.raises(RefusedError, match="refused cam-01: not enrolled"):
        scene.work()


def test_a_device_that_is_refused_in_a_run_says_hello_again_later(scene: Scene) -> None:
    refused = Refused("its bundle has other classes", "run", key=DEVICE_KEY.key)
    scene.flow()
    scene.say(manifest(classes_digest="d" * 64, model=Blob("a" * 64, 2**31, "model")))
    scene.say(refused)
    scene.work()
    assert len(scene.heard(Hello)) == 1
    assert scene.session.standby.reason == "its bundle has other classes"
    assert not scene.session.handshake.is_answered
    scene.say(replace(refused, key=FORGER.key, reason="meant for another device"))
    scene.work(299.0)
    assert scene.session.standby.reason == "its bundle has other classes"
    assert (scene.heard(Hello), scene.heard(Want)) == ([], [])
    scene.work(1.0)
    assert len(scene.heard(Hello)) == 1
    scene.say(state("k2", epoch=6))  # the next coordinator may have another run
    scene.work()
    assert len(scene.heard(Hello)) == 1
    scene.say(manifest(epoch=6, run="run-2"))
    scene.say_model(model(0))
    scene.work()
    assert scene.session.standby.reason == ""
    assert len(scene.heard(Offer)) == 1


def test_a_refused_device_hears_of_another_run_and_says_hello_at_once(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest(classes_digest="d" * 64))
    scene.say(Refused("its bundle has other classes", "run", key=DEVICE_KEY.key))
    scene.work()
    scene.heard(Hello)
    again = manifest(classes_digest="d" * 64, answers="", takes_part=None)
    scene.say(again, TOPICS.manifest)  # of the same run and epoch
    scene.work()
    assert scene.heard(Hello) == []
    # The state of the next coordinator was lost.
    scene.say(manifest(run="run-2", epoch=6, answers="", takes_part=None), TOPICS.manifest)
    scene.work(0.1)
    assert len(scene.heard(Hello)) == 1
    scene.join(run="run-2", epoch=6)
    assert scene.session.standby.reason == ""
    assert len(scene.heard(Offer)) == 1


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ("shapes", ConfigError("unknown option 'lrr'; did you mean 'lr'?")),
        ("fit", ConfigError("unknown option 'lrr'; did you mean 'lr'?")),
        ("evaluate", ConfigError("unknown option 'lrr'; did you mean 'lr'?")),
        ("fit", WorkerError("the trainer process ran out of memory, twice in a row")),
        ("evaluate", WorkerError("the trainer process ran out of memory, twice in a row")),
    ],
)
def test_a_plan_that_does_not_work_here_ends_no_device(
    scene: Scene, broken: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> NoReturn:
        raise error

    works = getattr(scene.learner, broken)
    monkeypatch.setattr(scene.learner, broken, fails)
    scene.join()
    reason = f"its plan does not work on this device: {error}"
    assert scene.session.standby.reason.startswith(reason)
    (told,) = [state for state in scene.heard(DeviceState) if not state.online]
    assert (told.activity, told.reason[: len(reason)]) == ("waiting", reason[:128])
    scene.heard(Offer)  # made before the evaluation
    scene.say(manifest(model(1, 1), round=2))
    scene.work(60.0)
    scene.say(manifest(model(2, 2), round=3, answers="", takes_part=None), TOPICS.manifest)
    scene.work(60.0)
    assert scene.heard(Offer) == []
    assert scene.heard(DeviceState) != []  # no round waits for it after its next hello either
    monkeypatch.setattr(scene.learner, broken, works)
    scene.say(state("k2", epoch=6))
    scene.work()
    assert len(scene.heard(Hello)) >= 1
    scene.join(run="run-2", epoch=6)
    assert scene.session.standby.reason == ""
    assert len(scene.heard(Offer)) == 1


def test_a_device_of_another_bundle_asks_for_no_model(scene: Scene) -> None:
    scene.flow()
    scene.say(manifest(encoder_id="d" * 64))
    scene.work(REPEAT_S)
    assert scene.heard(Want) == []
    assert scene.learner.fitted == []


def test_a_coordinator_of_the_earlier_protocol_is_refused_in_words(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    old = TOPICS.earlier.coordinator_state
    line = b'{"kind":"coordinator","from":"coordinator","body":{"online":true}}\n'
    scene.script.publish(old, line.replace(b"true", b"false"))
    scene.script.publish(old, b"\xff")
    scene.work()
    assert scene.session.refused_messages == 0
    scene.script.publish(old, line)
    scene.work()
    assert scene.session.refused_messages == 1
    assert "a coordinator of this fleet speaks protocol v1" in capsys.readouterr().out


def test_it_listens_to_a_blob_only_while_it_needs_it(scene: Scene) -> None:
    fixed = TOPICS.for_device("cam-01")
    scene.flow()
    assert scene.link.topics == fixed
    scene.say(manifest())
    scene.work()
    (want,) = scene.heard(Want)
    assert scene.link.topics == (*fixed, TOPICS.blob(want.sha256))
    payload = wire.pack_model(model(0), PLAN.codec_down)
    for chunk in chunks.split(payload, small(payload), want.missing):
        scene.script.publish(TOPICS.blob(want.sha256), chunk)
    scene.work()
    assert scene.link.topics == fixed
    assert len(scene.heard(Offer)) == 1


def test_who_only_evaluates_never_trains(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("evaluate",))
    scene.join()
    assert (scene.learner.fitted, scene.learner.evaluated) == ([], [(0.0, False)])


def test_who_only_trains_never_evaluates(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("train",))
    scene.join()
    assert (scene.learner.fitted, scene.learner.evaluated) == ([0.0], [])
    scene.say(manifest(phase="done", round=1))
    scene.work()
    assert scene.session.finished


def test_each_model_is_evaluated_once_and_the_last_one_as_the_last(scene: Scene) -> None:
    scene.join(phase="gathering")
    scene.work(1.0)
    assert scene.learner.evaluated == []  # waiting must not load torch
    scene.join(takes_part=False)
    scene.work(1.0)
    last = manifest(model(1, 1), round=2, phase="final", takes_part=None)
    scene.say(manifest(model(1, 1), round=2, takes_part=False))
    scene.flow()
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.learner.evaluated == [(0.0, False), (1.0, False)]
    scene.say(last, topic=TOPICS.manifest)
    scene.work()
    scene.work(1.0)
    assert scene.learner.evaluated == [(0.0, False), (1.0, False), (1.0, True)]
    assert [report.round for report in scene.heard(Report)] == [0, 1, 1]
    assert not scene.session.finished
    scene.say(replace(last, phase="done"), topic=TOPICS.manifest)
    scene.work()
    assert scene.session.finished


def test_another_run_that_begins_with_the_same_bytes_is_evaluated_as_well(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("evaluate",))
    scene.join()
    scene.say(manifest(run="run-2", epoch=6))
    scene.work()
    assert [(said.run, said.round) for said in scene.heard(Report)] == [("run-1", 0), ("run-2", 0)]


def test_rounds_that_went_by_while_it_was_busy_are_evaluated_all_the_same(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("evaluate",))
    scene.join()
    for closed in (1, 2, 3):  # all these messages are still in the inbox
        published = model(closed, closed)
        scene.say(
            manifest(published, round=closed + 1, takes_part=None, answers=""),
            topic=TOPICS.manifest,
        )
        scene.say_model(published)
    scene.work()
    assert scene.learner.evaluated == [(closed, False) for closed in (0.0, 1.0, 2.0, 3.0)]
    assert [report.round for report in scene.heard(Report)] == [0, 1, 2, 3]


def test_what_waits_is_evaluated_when_somebody_is_there_to_hear_of_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("evaluate",))
    scene.join()
    published = model(1, 1)
    scene.say(manifest(published, round=2, takes_part=None, answers=""), topic=TOPICS.manifest)
    scene.say_model(published)
    scene.say(state(online=False))
    scene.work()
    assert scene.learner.evaluated == [(0.0, False)]
    scene.say(state("k2", epoch=6))
    scene.work()
    scene.say(manifest(published, round=2, epoch=6, takes_part=None))
    scene.work()
    assert scene.learner.evaluated == [(0.0, False), (1.0, False)]


def test_it_trains_from_the_newest_model_before_it_evaluates_what_went_by(scene: Scene) -> None:
    scene.join(takes_part=False)
    scene.learner.evaluated.clear()
    for closed in (1, 2):
        published = model(closed, closed)
        scene.say(
            manifest(published, round=closed + 1, takes_part=None, answers=""),
            topic=TOPICS.manifest,
        )
        scene.say_model(published)
    scene.flow()
    assert scene.act()
    assert (scene.learner.fitted, scene.learner.evaluated) == ([2.0], [])
    scene.work()
    assert scene.learner.evaluated == [(1.0, False), (2.0, False)]


def test_it_evaluates_the_last_model_even_when_the_run_is_done(scene: Scene) -> None:
    scene.join()
    done = manifest(model(1, 1), phase="done", takes_part=None)
    scene.say(done, topic=TOPICS.manifest)
    scene.flow()
    assert not scene.session.finished
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.learner.evaluated[-1] == (1.0, True)
    assert scene.session.finished


def test_a_run_that_was_done_before_it_came_is_not_its_own(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("train",))
    scene.join(phase="done")
    assert not scene.session.finished
    scene.say(manifest(run="run-2", epoch=6))
    scene.work()
    assert scene.learner.fitted == [0.0]  # the device waited for the next run


def test_time_spent_waiting_is_what_was_not_spent_working(scene: Scene) -> None:
    scene.flow()
    scene.learner.busy_s = 4.0
    scene.say(manifest(takes_part=False))
    scene.flow()
    scene.say_model(model(0))
    scene.work(10.0)
    assert [report.wait_s for report in scene.heard(Report)] == [6.0]


# Lost messages.


def test_a_manifest_that_was_lost_is_asked_for(scene: Scene) -> None:
    """A hello asks for a lost manifest: soon after the last model, otherwise after the deadline."""
    scene.join(deadline_s=60.0)
    scene.heard(Hello)
    scene.work(59.0)
    assert scene.heard(Hello) == []
    scene.work(1.0)
    assert len(scene.heard(Hello)) == 1
    scene.say(manifest(phase="final", deadline_s=60.0))
    scene.work()
    for _ in range(2):
        scene.work(REPEAT_S)
        assert len(scene.heard(Hello)) == 1
    scene.say(manifest(phase="done", deadline_s=60.0))
    scene.work()
    assert scene.session.finished


def test_what_one_attempt_refused_the_next_may_want(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    scene.say(Refused("not in the cohort", "contribution", sha256=offer.blob.sha256))
    scene.work()
    scene.say(manifest(attempt=1, takes_part=None), topic=TOPICS.manifest)
    scene.work()
    assert scene.heard(Offer) == [offer], "training again from the same seed gives the same bytes"


def test_what_is_kept_is_not_trained_again_in_another_attempt(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    scene.say(Kept("run-1", 1, offer.blob.sha256))
    scene.work()
    scene.say(manifest(attempt=1, takes_part=None), topic=TOPICS.manifest)
    scene.work()
    assert scene.heard(Offer) == []


def test_a_run_that_ended_while_it_was_away_ends_for_it_too(scene: Scene) -> None:
    scene.join()
    scene.broker.cut("cam-01")
    scene.work()
    scene.session.handle_event(Connected(), scene.now)

    def comes(message: Message, topic: str) -> None:
        payload = wire.pack_control(message, "coordinator", topic, ME)
        scene.session.handle_event(Received(topic, payload), scene.now)
        scene.session.act(scene.now)

    comes(manifest(model(1), phase="done", takes_part=None), TOPICS.manifest)
    assert not scene.session.finished, "the coordinator may still send the last model"
    comes(state(online=False), TOPICS.coordinator_state)
    assert scene.session.finished


def end_of_run(scene: Scene, *, gone: bool = True) -> None:
    """Publish the messages that the broker retains at the end of a run."""
    done = manifest(model(1, 1), phase="done", takes_part=None, answers="")
    for topic, message in (
        (TOPICS.manifest, done),
        (TOPICS.coordinator_state, state(online=not gone)),
    ):
        payload = wire.pack_control(message, "coordinator", topic, ME)
        scene.script.publish(topic, payload, retain=True)


@pytest.mark.parametrize("roles", [("train",), ("train", "evaluate")])
def test_killed_before_the_end_it_hears_it_of_what_is_retained(
    tmp_path: Path, roles: tuple[Role, ...]
) -> None:
    scene = Scene(tmp_path, roles)
    scene.join()
    scene.broker.cut("cam-01")
    end_of_run(scene)
    scene.start()
    scene.work()
    assert scene.session.finished
    scene.start()  # for the next run: this one has ended for the device
    scene.work(100.0)
    assert not scene.session.finished


def test_an_end_that_was_lost_on_a_standing_link_is_asked_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, ("train",))
    scene.join(deadline_s=60.0)
    end_of_run(scene)
    scene.link.inbox.clear()
    scene.work(60.0)
    scene.work()
    assert scene.session.finished


def test_where_the_good_bye_was_lost_a_few_hellos_tell(scene: Scene) -> None:
    scene.join(deadline_s=60.0)
    end_of_run(scene, gone=False)
    scene.work()
    for _ in range(4):
        assert not scene.session.finished, "the coordinator may still send the last model"
        scene.work(REPEAT_S)
        scene.work()
    assert scene.session.finished


# A coordinator that restarted from an old copy of its journal, with a higher epoch.


def test_its_hello_says_up_to_where_it_has_heard(scene: Scene) -> None:
    scene.join(round=2, closed=1)
    scene.session.handle_event(Connected(), scene.now)
    said = scene.heard(Hello)[-1]
    assert (said.epoch, said.run, said.closed) == (5, "run-1", 1)


def test_refused_messages_are_told_once_and_then_counted_each_minute(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.join()
    for _ in range(20):
        scene.session.handle_event(Received(TOPICS.manifest, b"garbage"), scene.now)
    scene.session.act(scene.now + 59)
    lines = [line for line in capsys.readouterr().out.splitlines() if "message_refused" in line]
    assert len(lines) == 1
    scene.session.act(scene.now + 61)
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "message_refused" in x)
    assert line.endswith("count=19")


def test_an_open_round_that_is_heard_after_the_end_is_dropped(scene: Scene) -> None:
    """A message that was delayed or replayed would start the run again, with no coordinator."""
    scene.join()
    trained = list(scene.learner.fitted)
    end_of_run(scene)
    scene.work()
    before = scene.session.refused_messages
    for late in (manifest(), manifest(model(0, 1), phase="final")):
        scene.say(late)
        scene.work()
    assert scene.session.refused_messages == before + 2
    assert scene.learner.fitted == trained


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_not_kept_any_more_is_made_again(scene: Scene, *, killed: bool) -> None:
    scene.join()
    kept(scene, scene.heard(Offer)[0])
    if killed:
        restart(scene)
    scene.say(manifest(epoch=6, kept="a" * 64))
    scene.flow()
    scene.say_model(model(0))
    scene.work()
    assert scene.heard(Offer) == []
    scene.say(manifest(epoch=7, kept=""))
    scene.work()
    assert len(scene.heard(Offer)) == 1


@pytest.mark.parametrize(("closed", "value"), [(0, 0.0), (1, 2.0)])
def test_an_update_of_a_round_that_was_lost_makes_way(
    scene: Scene, closed: int, value: float
) -> None:
    scene.join(round=2)
    scene.heard(Offer)
    scene.say(manifest(model(value, closed), epoch=6, round=closed + 1, kept=""))
    scene.flow()
    scene.say_model(model(value, closed))
    scene.work()
    assert scene.learner.fitted == [0.0, value]
    assert [offer.number for offer in scene.heard(Offer)] == [closed + 1]


# State that survives a kill.


def restart(scene: Scene) -> None:
    scene.broker.cut("cam-01")
    for kind in (Offer, Hello, Want, Report, bytes):
        scene.heard(kind)
    scene.start()
    scene.flow()


def uploaded(scene: Scene, offer: Offer) -> bytes:
    scene.say(Want(offer.blob.sha256, ((0, offer.blob.chunks - 1),)))
    scene.work()
    incoming = chunks.Incoming(offer.blob)
    for chunk in scene.heard(bytes):
        incoming.add_chunk(chunk)
    return incoming.assemble()


def test_after_a_kill_it_offers_the_very_same_bytes_without_training(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    body = uploaded(scene, offer)
    restart(scene)
    scene.say(manifest())
    scene.work()
    assert scene.heard(Offer) == [offer], "the offer does not wait for the model"
    assert uploaded(scene, offer) == body
    scene.say_model(model(0))
    scene.work()
    kept(scene, offer)
    scene.work(10 * REPEAT_S)
    assert scene.learner.fitted == []
    assert scene.heard(Offer) == []


def test_after_a_kill_it_does_not_train_again_what_is_kept(scene: Scene) -> None:
    scene.join()
    kept(scene, scene.heard(Offer)[0])
    restart(scene)
    scene.say(manifest(attempt=1))
    scene.flow()
    scene.say_model(model(0))
    scene.work()
    assert scene.learner.fitted == []
    scene.say(manifest(model(1, 1), round=2))
    scene.flow()
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.learner.fitted == [1.0]
    assert scene.session.state_db.kept_round("run-1") == 1


@pytest.mark.parametrize("answer", ["kept", "refused"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_round_that_went_on_waits_for_the_answer_to_the_one_before(
    scene: Scene, answer: str, killed: bool
) -> None:
    """Otherwise the residual of the update would be lost, or would count twice."""
    scene.join()
    (offer,) = scene.heard(Offer)
    if killed:
        restart(scene)
    scene.say(manifest(model(1, 1), round=2))
    scene.flow()
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.heard(Offer) == [offer], "offered at once"
    assert 1.0 not in scene.learner.fitted
    scene.work(REPEAT_S)
    assert scene.heard(Offer) == [offer], "offered again until it is answered"
    if answer == "kept":
        scene.say(Kept("run-1", 1, offer.blob.sha256))
    else:
        scene.say(Refused("not open", "contribution", sha256=offer.blob.sha256, closed=1))
    scene.work()
    assert scene.learner.fitted[-1] == 1.0
    assert scene.session.state_db.kept_round("run-1") == (answer == "kept")
    assert [offer.number for offer in scene.heard(Offer)] == [2]


@pytest.mark.parametrize("answer", ["kept", "refused"])
def test_a_refusal_is_believed_once_its_round_is_closed(scene: Scene, answer: str) -> None:
    """An earlier refusal may be late: the same contribution may have been kept since."""
    scene.join()
    (offer,) = scene.heard(Offer)
    early = Refused("not in the cohort", "contribution", sha256=offer.blob.sha256, closed=0)
    scene.say(early)
    scene.work(10 * REPEAT_S)
    assert scene.heard(Offer) == []
    scene.say(manifest(model(1, 1), round=2))
    scene.flow()
    scene.say_model(model(1, 1))
    scene.work()
    assert scene.heard(Offer) == [offer]
    scene.say(early)
    scene.work()
    assert 1.0 not in scene.learner.fitted
    if answer == "kept":
        scene.say(Kept("run-1", 1, offer.blob.sha256))
    else:
        scene.say(replace(early, closed=1))
    scene.work()
    assert scene.learner.fitted[-1] == 1.0
    assert scene.session.state_db.kept_round("run-1") == (answer == "kept")


def test_in_an_unknown_run_it_parks_its_update_until_its_own_comes_back(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    scene.say(manifest(model(5), run="run-2", epoch=6))
    scene.flow()
    scene.say_model(model(5))
    scene.work()
    assert [offer.run for offer in scene.heard(Offer)] == ["run-2"]
    for epoch in (7, 9):  # each epoch belongs to one run
        if epoch == 9:
            restart(scene)
        scene.say(manifest(epoch=epoch))
        scene.work()
        assert scene.heard(Offer) == [offer]
        scene.say(manifest(model(5), run="run-2", epoch=epoch + 1))
        scene.work()
        assert [offer.run for offer in scene.heard(Offer)] == ["run-2"]


def test_when_a_run_is_done_nothing_of_it_stays(scene: Scene) -> None:
    scene.join()
    (offer,) = scene.heard(Offer)
    assert scene.session.state_db.pending_update("run-1") is not None
    scene.say(manifest(phase="done"))
    scene.work()
    assert scene.session.state_db.pending_update("run-1") is None
    scene.work(10 * REPEAT_S)
    assert offer not in scene.heard(Offer)


def test_after_a_kill_it_refuses_an_older_epoch_and_an_older_round(scene: Scene) -> None:
    scene.join(round=3, closed=2, epoch=5, phase="gathering")
    restart(scene)
    (hello,) = [*scene.heard(Hello)]
    assert hello.epoch == 5, (
        "the coordinator needs it to choose a higher epoch if its journal is lost"
    )
    for older in (
        manifest(round=2, closed=1, epoch=5),
        manifest(round=9, closed=8, epoch=4),
        manifest(run="run-2", epoch=4),
    ):
        scene.say(older)
        refused_once(scene)
    scene.say(state("k0", epoch=4), topic=TOPICS.coordinator_state)
    refused_once(scene)
    scene.say(manifest(run="run-2", epoch=6))
    scene.flow()
    scene.say_model(model(0))
    scene.work()
    assert scene.learner.fitted == [0.0]


def test_a_coordinator_that_rose_is_known_by_its_boot(scene: Scene) -> None:
    """Its will, which the broker holds, still has the first epoch."""
    scene.join()
    scene.say(state("k2", epoch=9), topic=TOPICS.coordinator_state)
    scene.say(manifest(epoch=9))
    scene.work()
    scene.say(state("k2", epoch=3, online=False), topic=TOPICS.coordinator_state)
    scene.work()
    assert scene.session.refused_messages == 0
    scene.say(state("k1", epoch=3), topic=TOPICS.coordinator_state)
    refused_once(scene)


# Loss of a codec.


def test_what_a_lossy_codec_lost_goes_into_the_next_update(scene: Scene) -> None:
    """One int8 step is too coarse for 0.001 next to 1; the residual sends it in later rounds."""
    plan = Plan("fedclip", rounds=30, vote="off", codec_up="int8", codec_down="fp32")
    scene.flow()
    arrived = np.zeros((40, 10))
    true = np.full((40, 10), 1e-3)
    true[:, 0] = 1.0

    def make_update(model: Model) -> Update:
        return Update("sum", 1, {"gate": true.astype(np.float32)})

    rounds = 30
    for number in range(1, rounds + 1):
        scene.learner.make_update = make_update  # also needed after a restart
        scene.say(manifest(plan=plan, round=number))
        scene.flow()
        scene.say_model(model(0))
        scene.work()
        (offer,) = scene.heard(Offer)
        found = wire.unpack_contribution(uploaded(scene, offer), "int8", {"gate": (40, 10)})
        if number % 7 == 3:  # refused: the previous residual stays
            scene.say(Refused("no", "contribution", sha256=offer.blob.sha256, closed=number))
            scene.work()
            rounds -= 1
        else:
            arrived += found.update.delta["gate"]
            kept(scene, offer)
        if number % 5 == 4:
            restart(scene)
    residual = scene.session.state_db.residual("run-1")["gate"]
    np.testing.assert_allclose(arrived + residual, rounds * true, rtol=0, atol=1e-4)
    assert (arrived[:, 1:] > 0).any()


def test_a_full_disk_ends_it_before_anything_is_offered(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise DiskError("parked.sqlite cannot be written")

    monkeypatch.setattr(StateDb, "keep_update", full)
    with pytest.raises(DiskError):
        scene.join()
    assert scene.heard(Offer) == []


def test_a_coordinator_behind_the_device_hears_a_hello_at_once(scene: Scene) -> None:
    scene.join()
    scene.heard(Hello)
    scene.say(state("k2", epoch=4), TOPICS.coordinator_state)
    scene.work(by_s=10)
    assert [hello.epoch for hello in scene.heard(Hello)] == [5]
    scene.say(manifest(epoch=6, answers="b1"))
    scene.work(by_s=60)
    assert not scene.heard(Hello)


def test_a_run_that_ended_behind_the_device_is_over_once_nobody_answers(scene: Scene) -> None:
    scene.join()
    offer = scene.heard(Offer)[0]
    end = manifest(epoch=4, phase="done", closed=30)
    scene.broker.deliver(
        TOPICS.manifest, wire.pack_control(end, "coordinator", TOPICS.manifest, ME), retain=True
    )
    over = []
    for _ in range(6):
        scene.work(by_s=5)
        over.append(scene.session.finished)
    assert over == [False, False, False, False, True, True]
    assert scene.session.state_db.position == RunPosition(5, "run-1", 30, over=True)
    pending = scene.session.state_db.pending_update("run-1")
    assert pending is not None
    assert pending.sha256 == offer.blob.sha256, "the run may go on with another journal"
    scene.session.finished = False
    scene.work(by_s=600)
    assert not scene.session.finished
