"""Refusals of a broker: each comes with the remedy for its own reason."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
from brokers import MOSQUITTO
from mqtt_client import connected, login, next_of
from system import DEADLINE_S, wait_until

from fedclip_edge import log
from fedclip_edge.config.answers import AnswersBroker
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import RefusedError
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport import reason_codes
from fedclip_edge.transport.base import Connected
from fedclip_edge.transport.mqtt import PahoTransport


def test_the_end_of_a_link_is_told_in_plain_words() -> None:
    broker, taken = BrokerAddress(), "Session taken over"
    assert reason_codes.of_lost_link("Unspecified error", broker).startswith("the connection broke")
    assert reason_codes.of_lost_link(taken, broker) == reason_codes.advised(taken, broker)


def test_a_denied_topic_of_answers_names_the_command_that_prints_the_access_list() -> None:
    for broker, advice in (
        (BrokerAddress(), "compare 'fleet' with the fleet in the access list"),
        (AnswersBroker(), "`fedclip-edge agent --access-list`"),
    ):
        assert advice in reason_codes.advised("Not authorized", broker)


@pytest.mark.parametrize(
    ("code", "remedy", "wrong"),
    [
        (0x85, "must accept client ids with '.'", "password"),
        (0x86, "correct username and password", "client ids"),
        (0x87, "the user name is the name in the certificate", "client ids"),
    ],
)
def test_a_refusal_comes_with_the_remedy_for_its_reason(code: int, remedy: str, wrong: str) -> None:
    """Reason codes of MQTT 5: client identifier not valid, bad login, not authorized."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(bytes((0x20, 3, 0, code, 0)))
                client.recv(65536)

        threading.Thread(target=serve, daemon=True).start()
        link = PahoTransport(BrokerAddress(port=server.getsockname()[1]), "lab.x.1", ["a"], None)
        with pytest.raises(RefusedError, match=r"refused 'lab\.x\.1'") as caught:
            link.connect(DEADLINE_S)
    assert remedy in str(caught.value)
    assert wrong not in str(caught.value)


@pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
def test_a_device_with_a_wrong_fleet_is_told_to_compare_it(
    guarded: BrokerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(log, "event", lambda name, **fields: said.append({"event": name, **fields}))
    link = connected(login(guarded, "cam-01", "cam-01"), "lap.cam-01.1", ["a"])
    try:
        next_of(link, Connected)
        link.publish(Topics("lap").up("cam-01"), b"hello")

        def refused() -> bool:
            link.next_event(0.1)
            return bool(said)

        wait_until(refused, "the broker to refuse the message")
    finally:
        link.close()
    assert (said[0]["event"], said[0]["topic"]) == ("message_not_taken", Topics("lap").up("cam-01"))
    assert "compare 'fleet' with the fleet in the access list" in said[0]["reason"]
