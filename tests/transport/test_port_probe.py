"""A client with TLS at a port without it, and vice versa: the error names the cause."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import MOSQUITTO, StartMosquitto
from mqtt_client import connected, next_of
from secured import Secured
from system import wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import LinkError
from fedclip_edge.transport.base import Connected, Disconnected
from fedclip_edge.transport.mqtt import PahoTransport
from fedclip_edge.transport.port_probe import mismatch

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
LOOKS_S = 10.0


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    with Secured(tmp_path) as made:
        yield made


def why_no_link(address: BrokerAddress) -> str:
    with pytest.raises(LinkError) as caught:
        PahoTransport(address, "x", ["a"], None).connect(1.0)
    return str(caught.value)


def test_without_ca_at_a_tls_port_the_cause_is_named(secured: Secured) -> None:
    secured.start()
    plain = BrokerAddress(port=secured.port)
    assert mismatch(plain, LOOKS_S).startswith(
        f"127.0.0.1:{secured.port} speaks TLS; set ca under [broker]"
    )
    assert why_no_link(plain) == mismatch(plain, LOOKS_S)
    assert mismatch(secured.coordinator, LOOKS_S) == ""


def test_with_ca_at_a_port_without_tls_the_cause_is_named(
    secured: Secured, start_mosquitto: StartMosquitto
) -> None:
    plain = start_mosquitto().address
    encrypted = replace(secured.coordinator, port=plain.port)
    assert mismatch(encrypted, LOOKS_S).startswith(
        f"127.0.0.1:{plain.port} speaks MQTT without TLS; set port under [broker]"
    )
    assert why_no_link(encrypted) == mismatch(encrypted, LOOKS_S)
    assert mismatch(plain, LOOKS_S) == ""


def test_a_broker_that_comes_back_with_tls_is_named_in_the_log(
    secured: Secured, start_mosquitto: StartMosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = start_mosquitto()
    link = connected(broker.address, "x", ["a"])
    next_of(link, Connected)
    broker.stop()
    next_of(link, Disconnected)
    text = secured.settings.read_text()
    secured.settings.write_text(
        text.replace(f"listener {secured.port}", f"listener {broker.address.port}")
    )
    secured.port = broker.address.port
    secured.start()
    try:
        wait_until(lambda: "speaks TLS" in link._inbox.complaint, "the cause to be named")
    finally:
        link.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400\r\n\r\n", b"\x15\x03\x03\x00\x02\x02\x28"])
def test_what_another_service_says_is_not_mistaken(secured: Secured, said: bytes) -> None:
    """The last one is a TLS alert: that port does speak TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.recv(65536)
                    client.sendall(said)

        threading.Thread(target=serve, daemon=True).start()
        port = server.getsockname()[1]
        assert ("speaks TLS" in mismatch(BrokerAddress(port=port), LOOKS_S)) == (
            said[:1] == b"\x15"
        )
        assert mismatch(replace(secured.coordinator, port=port), LOOKS_S) == ""


def test_where_nothing_listens_there_is_no_mismatch(secured: Secured) -> None:
    assert mismatch(secured.coordinator, LOOKS_S) == ""
    assert mismatch(BrokerAddress(port=secured.port), LOOKS_S) == ""
    assert mismatch(BrokerAddress("no such host."), LOOKS_S) == ""
