"""The announcement to Home Assistant, in the form of its device discovery, and the access list."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jinja2
from answer_scene import made

from fedclip_edge.agent.answer_events import Events
from fedclip_edge.agent.home_assistant import (
    access_list,
    announcement,
    answer_topic,
    availability_topic,
    discovery_topic,
    event_topic,
)
from fedclip_edge.config.answers import AnswersBroker, AnswersConfig

BROKER = AnswersBroker(topic="site/north", home_assistant=True, discovery_topic="ha")
# What Home Assistant's schema of a device's discovery takes, and its own keys of a sensor.
AT_THE_TOP = {
    *("device", "origin", "components", "availability_topic"),
    *("payload_available", "payload_not_available", "qos"),
}
OF_A_SENSOR = {
    *("platform", "unique_id", "name", "state_topic", "value_template", "icon"),
    *("json_attributes_topic", "unit_of_measurement"),
}


def shown(entity: str, message: dict[str, object]) -> str:
    """The state that Home Assistant shows for a message; its templates are Jinja2's."""
    template = announcement(BROKER, "cam-07")["components"][entity]["value_template"]
    return jinja2.Environment(autoescape=False).from_string(template).render(value_json=message)  # noqa: S701


def test_the_announcement_has_the_form_of_a_device_discovery() -> None:
    said = json.loads(json.dumps(announcement(BROKER, "cam-07")))
    assert set(said) == AT_THE_TOP
    assert said["device"]["identifiers"] == ["fedclip-edge-cam-07"]
    assert said["origin"]["name"]
    assert said["availability_topic"] == availability_topic(BROKER, "cam-07")
    ids = [entity["unique_id"] for entity in said["components"].values()]
    assert len(set(ids)) == len(ids)
    for entity in said["components"].values():
        assert set(entity) <= OF_A_SENSOR
        assert entity["platform"] == "sensor"
        assert entity["state_topic"] in (
            answer_topic(BROKER, "cam-07"),
            event_topic(BROKER, "cam-07"),
        )


def test_the_topic_is_one_for_each_device_as_home_assistant_reads_it() -> None:
    topic = discovery_topic(BROKER, "cam-07")
    assert re.fullmatch(r"ha/device/[a-zA-Z0-9_-]+/config", topic)
    assert topic != discovery_topic(BROKER, "cam-08")


def test_it_shows_the_label_the_probability_and_unknown() -> None:
    known, unknown = made("circle", 0.875).to_json(), made("circle", is_unknown=True).to_json()
    assert (shown("answer", known), shown("probability", known)) == ("circle", "87.5")
    assert shown("answer", unknown) == "unknown"
    events = Events(AnswersConfig(event_pictures=1))
    events.add(made("square"), 0.0)
    (agreed,) = events.ended(1e3, 0.0)
    assert shown("event", agreed.to_json()) == "square"
    events = Events(AnswersConfig())
    events.add(made("square"), 0.0)
    (too_few,) = events.ended(1e3, 0.0)
    assert shown("event", too_few.to_json()) == "unknown"


def test_the_access_list_is_for_the_login_that_the_device_has() -> None:
    named = AnswersBroker(username="box")
    assert access_list(named, "cam-07") == "user box\ntopic write fedclip-edge/cam-07/#\n"
    certified = AnswersBroker(ca=Path("c"), certificate=Path("d"), key=Path("k"))
    assert access_list(certified, "cam-07").startswith("user cam-07\n")
    nobody = access_list(BROKER, "cam-07").splitlines()
    assert nobody[0].startswith("#")
    assert nobody[1:] == [
        "topic write site/north/cam-07/#",
        "topic write ha/device/fedclip-edge-cam-07/config",
    ]
