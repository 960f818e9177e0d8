"""`agent` and `serve`, stopped by a signal in each of their states."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import system
from brokers import Mosquitto, StartMosquitto, free_port
from mqtt_client import connected
from system import Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.transport.base import Received
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python
STOPS_S = 15.0  # a few seconds, and as many for a busy machine
BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def broker(start_mosquitto: StartMosquitto) -> Mosquitto:
    return start_mosquitto()


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, broker: Mosquitto) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, broker.address, "lab") as made:
        yield made


def stop(site: Site, process: subprocess.Popen[bytes], log: str, number: signal.Signals) -> int:
    """The exit code after the signal; checks that the last line of the log names it."""
    process.send_signal(number)
    code = process.wait(STOPS_S)
    assert "Traceback" not in site.text(log)
    last = site.events(log)[-1]
    assert (last["event"], last["signal"]) == ("stopped", number.name), site.text(log)
    return code


def said(site: Site, log: str, event: str) -> None:
    wait_until(lambda: any(e["event"] == event for e in site.events(log)), event)


def retained(address: BrokerAddress, topic: str) -> Any:
    """The last message that is retained on a topic."""
    link = connected(address, "listener", [topic])
    while True:
        event = link.next_event(system.DEADLINE_S)
        assert event is not None
        if isinstance(event, Received):
            link.close()
            return wire.unpack_control(event.topic, event.payload).message


@BOTH
def test_an_idle_agent_says_goodbye(site: Site, number: signal.Signals) -> None:
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    said(site, "north", "connected")
    topic = Topics("lab").state("north")
    wait_until(lambda: retained(site.broker, topic).online, "the device to be online")
    assert stop(site, agent, "north", number) == 0
    assert not retained(site.broker, topic).online


@BOTH
def test_serve_says_goodbye_and_continues_later(site: Site, number: signal.Signals) -> None:
    fleet = site.write_fleet(devices=1, rounds=10_000)
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    said(site, "serve", "round_closed")
    assert stop(site, serve, "serve", number) == 0
    assert not retained(site.broker, Topics("lab").coordinator_state).online
    closed = sum(e["event"] == "round_closed" for e in site.events("serve"))
    again = site.start("serve", "--once", fleet, "--json", log="again")
    said(site, "again", "round_closed")
    first = next(e for e in site.events("again") if e["event"] == "serving")
    # The signal may come after a round is in the journal and before it is in the log.
    assert first["rounds_closed"] in (closed, closed + 1)
    assert stop(site, again, "again", number) == 0
    assert stop(site, agent, "north", number) == 0


def test_an_agent_that_trains_stops(site: Site) -> None:
    options = "[plan.options]\nepochs = 1000000\n"
    fleet = site.write_fleet(devices=1, rounds=1, extra=options)
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    said(site, "north", "torch_loaded")
    assert stop(site, agent, "north", signal.SIGTERM) == 0
    said(site, "serve", "left")  # it said goodbye
    assert stop(site, serve, "serve", signal.SIGTERM) == 0


def features_in(cache: Path) -> int:
    """The number of features in a cache that an agent may be making."""
    if not cache.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as database:
        try:
            return int(database.execute("SELECT count(*) FROM feature").fetchone()[0])
        except sqlite3.OperationalError:  # no table yet
            return 0


def test_an_agent_that_encodes_keeps_what_is_done(site: Site) -> None:
    config = site.write_agent("north", per_class=700)
    agent = site.start("agent", config, "--json", log="north")
    cache = site.folder / "north" / "state" / "features.sqlite"
    wait_until(lambda: features_in(cache) > 0, "the first features")
    assert stop(site, agent, "north", signal.SIGTERM) == 0
    assert not any(e["event"] == "features_ready" for e in site.events("north"))
    again = site.start("agent", config, "--json", log="again")
    said(site, "again", "features_ready")
    ready = next(e for e in site.events("again") if e["event"] == "features_ready")
    assert ready["cached"] > 0
    assert stop(site, again, "again", signal.SIGTERM) == 0


@pytest.mark.parametrize("role", ["agent", "serve"])
def test_without_a_broker_it_stops(
    site: Site, broker: Mosquitto, start_mosquitto: StartMosquitto, role: str
) -> None:
    """The broker is gone: the process tries to connect again and again."""
    config = site.write_agent("north") if role == "agent" else site.write_fleet(1, 1)
    process = site.start(role, config, "--json", log=role)
    said(site, role, "connected" if role == "agent" else "serving")
    broker.stop()
    said(site, role, "link_lost")
    assert stop(site, process, role, signal.SIGTERM) == 0


@pytest.mark.parametrize("role", ["agent", "serve"])
@pytest.mark.parametrize("answers", [False, True], ids=["nothing listens", "no answer"])
def test_while_it_connects_for_the_first_time_it_stops(
    site: Site, role: str, answers: bool
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:
            silent.listen()
        site.broker = BrokerAddress(port=silent.getsockname()[1] if answers else free_port())
        config = site.write_agent("north") if role == "agent" else site.write_fleet(1, 1)
        process = site.start(role, config, "--json", log=role)
        if role == "agent":
            said(site, role, "features_ready")
        else:
            wait_until((site.folder / "journal.sqlite").exists, "the journal")
        assert stop(site, process, role, signal.SIGTERM) == 0


@BOTH
def test_with_once_the_code_says_that_the_run_is_not_over(
    site: Site, number: signal.Signals
) -> None:
    agent = site.start("agent", site.write_agent("north"), "--once", "--json", log="north")
    said(site, "north", "connected")
    assert stop(site, agent, "north", number) == 128 + number
