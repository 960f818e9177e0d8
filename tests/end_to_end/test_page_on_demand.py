"""The page of a box that waits: before it has a bundle, and before it has reached a broker."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from brokers import StartMosquitto, free_port
from page_client import PageClient
from system import Site, commands, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python


def test_a_box_that_waits_serves_its_page_when_somebody_asks(
    tmp_path: Path, random_bundle: Bundle, start_mosquitto: StartMosquitto
) -> None:
    broker = BrokerAddress(port=free_port())
    port, folder = free_port(), tmp_path / "box"
    folder.mkdir()
    config = folder / "agent.toml"
    config.write_text(
        f'id = "cam-01"\nfleet = "lab"\nstate_dir = "state"\nexport_key = "{"0" * 64}"\n'
        f'[data]\nfolder = "pictures"\n[broker]\nport = {broker.port}\n'
        f'[page]\nlisten = "127.0.0.1:{port}"\n'
    )
    page = f"main page {config}"

    def of_page() -> list[str]:
        return [line for line in commands().values() if page in line]

    with Site(folder, random_bundle, broker, "lab") as site:
        agent = site.start("agent", config, "--json", log="agent")

        def said(event: str) -> bool:
            return any(one["event"] == event for one in site.events("agent"))

        wait_until(lambda: said("page_served"), "the page")
        assert of_page() == []
        browser = PageClient(f"http://127.0.0.1:{port}")
        assert "The token is in a file" in browser.get("/login")
        assert len(of_page()) == 1
        browser.log_in(folder / "state" / "page.token")
        assert "Not connected" in browser.get("/health")
        wait_until(lambda: said("connection_awaited"), "the end of the first attempts")
        assert agent.poll() is None
        start_mosquitto(broker.port)
        wait_until(lambda: said("connected"), "the connection")
        wait_until(lambda: "the coordinator does not answer" in browser.get("/health"), "its state")
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
        assert of_page() == []
        assert "Traceback" not in site.text("agent")
