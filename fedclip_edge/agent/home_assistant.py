"""The topics of a device's answers, and its announcement to Home Assistant.

    TOPIC/DEVICE/answer         the last answer, retained
    TOPIC/DEVICE/event          the last common answer for an event, retained
    TOPIC/DEVICE/availability   `online` or `offline`, retained

Home Assistant reads the announcement from `homeassistant/device/NAME/config`, retained: its MQTT
discovery in the form that has all entities of a device in one message (Home Assistant, "MQTT",
section "Device discovery payload").
"""

from __future__ import annotations

from typing import Any

from fedclip_edge import __version__
from fedclip_edge.config.answers import AnswersBroker

ONLINE, OFFLINE = b"online", b"offline"
_ANSWER, _EVENT, _AVAILABILITY = "answer", "event", "availability"
_LABEL = "{{ 'unknown' if value_json.unknown else value_json.label }}"
_PROBABILITY = "{{ (100 * (value_json.probability or 0)) | round(1) }}"


def answer_topic(broker: AnswersBroker, device: str) -> str:
    """Topic of the answers for single pictures."""
    return f"{broker.topic}/{device}/{_ANSWER}"


def event_topic(broker: AnswersBroker, device: str) -> str:
    """Topic of the answers for events."""
    return f"{broker.topic}/{device}/{_EVENT}"


def availability_topic(broker: AnswersBroker, device: str) -> str:
    """Topic that tells whether the device is online."""
    return f"{broker.topic}/{device}/{_AVAILABILITY}"


def discovery_topic(broker: AnswersBroker, device: str) -> str:
    """Topic of the announcement to Home Assistant."""
    return f"{broker.discovery_topic}/device/{_name(device)}/config"


def announcement(broker: AnswersBroker, device: str) -> dict[str, Any]:
    """Return the announcement, a JSON object: sensors for the last picture and the last event."""
    answers, events = answer_topic(broker, device), event_topic(broker, device)
    return {
        "device": {
            "identifiers": [_name(device)],
            "name": device,
            "manufacturer": "fedclip-edge",
            "sw_version": __version__,
        },
        "origin": {"name": "fedclip-edge", "sw_version": __version__},
        "availability_topic": availability_topic(broker, device),
        "payload_available": ONLINE.decode(),
        "payload_not_available": OFFLINE.decode(),
        "qos": 1,
        "components": {
            "answer": _sensor(device, "answer", "Last picture", answers, _LABEL)
            | {"icon": "mdi:image-search", "json_attributes_topic": answers},
            "probability": _sensor(device, "probability", "Probability", answers, _PROBABILITY)
            | {"icon": "mdi:percent", "unit_of_measurement": "%"},
            "event": _sensor(device, "event", "Last event", events, _LABEL)
            | {"icon": "mdi:image-multiple", "json_attributes_topic": events},
        },
    }


def access_list(broker: AnswersBroker, device: str) -> str:
    """The lines of a mosquitto ACL file that let the device publish its answers at this broker.

    A login with a certificate has the certificate's name, which is the device's id.
    """
    user = broker.username or (device if broker.certificate is not None else "")
    topics = [f"{broker.topic}/{device}/#"]
    if broker.home_assistant:
        topics.append(discovery_topic(broker, device))
    who = [f"user {user}"] if user else ["# For clients without a login, before the first `user`:"]
    return "\n".join([*who, *(f"topic write {topic}" for topic in topics)]) + "\n"


def _name(device: str) -> str:
    return f"fedclip-edge-{device}"


def _sensor(device: str, key: str, name: str, topic: str, template: str) -> dict[str, Any]:
    return {
        "platform": "sensor",
        "unique_id": f"{_name(device)}-{key}",
        "name": name,
        "state_topic": topic,
        "value_template": template,
    }
