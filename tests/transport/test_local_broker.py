"""The local broker: mosquitto, amqtt as a fallback, or an error message."""

from __future__ import annotations

import importlib.util
import signal
import socket
from pathlib import Path

import pytest
import system
from system import wait_until
from without_mosquitto import no_mosquitto

from fedclip_edge.errors import BrokerError
from fedclip_edge.processes.children import Children
from fedclip_edge.transport import local_broker
from fedclip_edge.transport.base import Connected, Received, Will
from fedclip_edge.transport.mqtt import PahoTransport


@pytest.mark.parametrize("name", ["mosquitto", "amqtt"])
def test_a_broker_carries_a_message_and_ends_with_its_children(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "amqtt":
        no_mosquitto(monkeypatch)
    with Children() as children:
        broker = local_broker.start(children, tmp_path)
        assert broker.name == name
        link = PahoTransport(broker.address, "tester", ["greeting"], Will("gone", b"gone"))
        link.connect(system.DEADLINE_S)
        try:
            assert link.next_event(system.DEADLINE_S) == Connected()
            link.publish("greeting", b"hello")
            assert link.next_event(system.DEADLINE_S) == Received("greeting", b"hello")
        finally:
            link.close()
    assert broker.process.poll() is not None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((broker.address.host, broker.address.port), timeout=5)


def test_it_is_reached_from_this_machine_alone(tmp_path: Path) -> None:
    with Children() as children:
        broker = local_broker.start(children, tmp_path)
        settings = (tmp_path / "broker.conf").read_text()
    assert f"listener {broker.address.port} 127.0.0.1" in settings


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken, Children() as children:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BrokerError, match="is in use"):
            local_broker.start(children, tmp_path, taken.getsockname()[1])


def test_without_any_broker_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_mosquitto(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Children() as children, pytest.raises(BrokerError, match="apt-get install mosquitto"):
        local_broker.start(children, tmp_path)


def test_a_broker_that_dies_at_once_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_broker, "_MOSQUITTO", "no such setting\n")
    with Children() as children, pytest.raises(BrokerError, match=r"broker\.log"):
        local_broker.start(children, tmp_path)


def test_the_command_runs_until_it_is_ended() -> None:
    with system.started("broker", "start", "--port", "0") as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert "listens on 127.0.0.1:" in line
        port = int(line.split(":")[1].split(";")[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        running.send_signal(signal.SIGINT)
        assert running.wait(system.DEADLINE_S) == 130

    def is_gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    wait_until(is_gone, "the port to be free")
