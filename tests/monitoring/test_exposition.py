"""Metrics over HTTP and as text: what promtool and a real socket make of them."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from brokers import free_port

from fedclip_edge.errors import ConfigError
from fedclip_edge.monitoring.definitions import AGENT, COORDINATOR
from fedclip_edge.monitoring.metrics import Metrics

pytest.importorskip("prometheus_client", reason="prometheus-client is in the extra [serve]")
from fedclip_edge.monitoring import exposition

PROMTOOL = shutil.which("promtool")


def filled(definitions: tuple[object, ...] = COORDINATOR) -> Metrics:
    """Every metric with a value for each listed label, and odd text for each open one."""
    metrics = Metrics(COORDINATOR if definitions is COORDINATOR else AGENT, {"fleet": "lab"})
    for metric, _ in metrics.all():
        labels = {
            name: listed[0] if listed else 'a "b"\n\\c' for name, listed in metric.labels.items()
        }
        (metrics.add if metric.kind == "counter" else metrics.set)(metric.name, 2.5, **labels)
    return metrics


@pytest.fixture
def port() -> Iterator[int]:
    chosen = free_port()
    with exposition.served(filled(), "127.0.0.1", chosen):
        yield chosen


def scraped(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        found: bytes = answer.read()
    return found


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is in Debian's package prometheus")
@pytest.mark.parametrize("definitions", [COORDINATOR, AGENT], ids=["coordinator", "agent"])
def test_promtool_has_nothing_to_say_about_the_text(definitions: tuple[object, ...]) -> None:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=exposition.text(filled(definitions)),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_scrape_is_the_text_with_help_and_type(port: int) -> None:
    found = scraped(port)
    assert found == exposition.text(filled())
    assert b"# TYPE fedclip_edge_round_closes_total counter\n" in found
    assert b'fedclip_edge_round_closes_total{by="all",fleet="lab"} 2.5\n' in found


def test_garbage_and_clients_that_go_away_leave_no_trace(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    address = ("127.0.0.1", port)
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(b"\x00\xff garbage\r\n\r\n")
        client.recv(1000)
    for _ in range(5):
        with socket.create_connection(address, timeout=30) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", data=b"x", timeout=30)
    assert scraped(port)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_silent_connection_is_closed_and_delays_no_scrape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposition._Handler, "timeout", 0.2)
    chosen = free_port()
    with (
        exposition.served(filled(), "127.0.0.1", chosen),
        socket.create_connection(("127.0.0.1", chosen), timeout=30) as silent,
    ):
        assert scraped(chosen)
        assert silent.recv(1) == b""


def test_the_end_closes_the_port_although_a_client_is_connected() -> None:
    chosen = free_port()
    with exposition.served(filled(), "127.0.0.1", chosen):
        client = socket.create_connection(("127.0.0.1", chosen), timeout=30)
    client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", chosen), timeout=30)


def test_an_ipv6_address_is_served() -> None:
    chosen = free_port()
    try:
        socket.create_server(("::1", chosen), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    with exposition.served(filled(), "::1", chosen):
        socket.create_connection(("::1", chosen), timeout=30).close()


def test_an_address_that_is_not_of_this_machine_is_one_sentence() -> None:
    chosen = free_port()
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with (
            pytest.raises(ConfigError, match="cannot be opened"),
            exposition.served(filled(), host, chosen),
        ):
            pass
