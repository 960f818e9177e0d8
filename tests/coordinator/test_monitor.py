"""Metrics of a coordinator: what a scrape of a real `serve` shows, and what stays bounded."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import log_event_reference
import pytest
import system
from brokers import free_port
from coordinated_fleet import PLAN, RULES, final, joined, state, undisturbed, until
from cryptography.hazmat.primitives.serialization import Encoding
from in_memory import Fleet
from opened import opened
from system import Site, wait_until

from fedclip_edge import log
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import FleetConfig, MetricsEndpoint
from fedclip_edge.coordinator import monitor as monitoring
from fedclip_edge.coordinator.monitor import Monitor
from fedclip_edge.errors import ConfigError
from fedclip_edge.monitoring.definitions import COORDINATOR, DEVICES_MAX, OTHER
from fedclip_edge.pki import authority
from fedclip_edge.pki.registry import Device, Registry


def scraped(port: int) -> dict[str, float]:
    """Every sample of one scrape, by its name with labels; empty if nothing answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except urllib.error.URLError:
        return {}
    samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def names(samples: dict[str, float]) -> set[str]:
    return {name.partition("{")[0] for name in samples}


def values(monitor: Monitor, name: str) -> dict[tuple[str, ...], float]:
    (found,) = (its for metric, its in monitor.metrics.all() if metric.name == name)
    return found


@pytest.mark.one_python
def test_a_scrape_of_a_real_fleet_shows_its_rounds_and_devices(site: Site) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is in the extra [serve]")
    port = free_port()
    extra = f'[metrics]\nlisten = "127.0.0.1:{port}"\n[trainer]\nconfig = "judge/agent.toml"\n'
    fleet = site.write_fleet(devices=2, rounds=400, extra=extra)
    site.write_agent("judge", extra='roles = ["evaluate"]')
    serve = site.start("serve", fleet, "--json", log="serve")
    for name in ("north", "south"):
        site.start("agent", site.write_agent(name), "--once", log=name)
    of_fleet = f'fleet="{site.fleet}"'
    online = f'fedclip_edge_device_online{{device="north",{of_fleet}}}'
    accuracy = f'{{device="judge",{of_fleet},model="zero_shot"}}'
    is_open = f'fedclip_edge_phase{{{of_fleet},phase="open"}}'
    all_in = f'fedclip_edge_round_closes_total{{by="all",{of_fleet}}}'
    found: dict[str, float] = {}

    def is_complete() -> bool:
        found.update(scraped(port))
        running = found.get(online) == found.get(is_open) == 1 and found[all_in] >= 1
        return running and f"fedclip_edge_accuracy{accuracy}" in found

    wait_until(is_complete, "a scrape with a closed round, an open one and both devices")
    events = site.events("serve")
    assert found[f"fedclip_edge_rounds{{{of_fleet}}}"] == 400
    assert found[all_in] <= sum(event["event"] == "round_closed" for event in events)
    norms = [e["norm"] for e in events if e["event"] == "kept" and e["device"] == "north"]
    assert norms
    assert found[f'fedclip_edge_update_norm{{device="north",{of_fleet}}}'] > 0
    zero = {e["zero_shot"] for e in events if e["event"] == "report" and e["device"] == "judge"}
    assert found[f"fedclip_edge_accuracy{accuracy}"] in zero
    assert found[f"fedclip_edge_journal_bytes{{{of_fleet}}}"] > 0
    # The trainer's own events do not count: only an agent writes this one.
    assert not [name for name in found if "features_ready" in name]
    without_enrolment = {
        "fedclip_edge_certificate_end_timestamp_seconds",
        "fedclip_edge_device_certificate_end_timestamp_seconds",
    }
    seldom = {
        "fedclip_edge_vote_accuracy",
        "fedclip_edge_vote_pictures",
        "fedclip_edge_deadlines_missed_total",
        "fedclip_edge_messages_refused_total",
        "fedclip_edge_messages_dropped_total",
    }
    defined = {metric.name for metric in COORDINATOR}
    assert defined - names(found) <= without_enrolment | seldom
    assert names(found) <= defined
    serve.terminate()
    assert serve.wait(system.DEADLINE_S) == 0
    assert scraped(port) == {}


def test_without_the_table_nothing_listens_and_the_library_is_not_loaded(tmp_path: Path) -> None:
    config = FleetConfig(fleet="lab", bundle=tmp_path)
    with monitoring.monitored(config) as monitor:
        assert monitor is None
    code = (
        "import sys, fedclip_edge.coordinator.process, fedclip_edge.agent.process\n"
        "print('prometheus_client' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_missing_library_and_a_taken_port_are_one_sentence(site: Site) -> None:
    fleet = site.write_fleet(1, 1, extra=f'[metrics]\nlisten = "127.0.0.1:{site.broker.port}"\n')
    without = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        f"sys.argv[1:] = ['serve', {str(fleet)!r}]\n"
        "from fedclip_edge.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", without], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ConfigError.exit_code
    assert done.stderr == (
        "fedclip-edge: prometheus_client is not installed; install it with pip install "
        "'fedclip-edge[serve]'\n"
    )
    pytest.importorskip("prometheus_client", reason="prometheus-client is in the extra [serve]")
    taken = system.run("serve", fleet)
    assert taken.returncode == ConfigError.exit_code
    assert taken.stderr == (
        f"fedclip-edge: [metrics] listen: 127.0.0.1:{site.broker.port} cannot be opened (Address "
        "already in use); choose another port, or an address of this machine\n"
    )
    assert "Traceback" not in taken.stderr


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("monitor.example:1", ("monitor.example", 1)),
    ],
)
def test_the_address_is_a_host_and_a_port(listen: str, address: tuple[str, int]) -> None:
    assert MetricsEndpoint(listen).address == address


def watched(monitor: Monitor, event: str, **fields: object) -> None:
    with log.observed(monitor.note):
        log.event(event, **fields)


@pytest.fixture
def monitor(tmp_path: Path) -> Monitor:
    return Monitor(FleetConfig(fleet="lab", bundle=tmp_path, journal=tmp_path / "journal.sqlite"))


def test_a_round_that_closes_without_a_device_is_counted_apart(monitor: Monitor) -> None:
    counts = "fedclip_edge_round_closes_total"
    assert values(monitor, counts) == {("all",): 0, ("quorum",): 0}
    before = values(monitor, "fedclip_edge_progress_timestamp_seconds")[()]
    rest = {"round": 1, "rounds": 3, "updates_bytes": 10, "model_bytes": 5, "seconds": 0.5}
    watched(monitor, "round_closed", contributions=4, cohort=4, **rest)
    watched(monitor, "round_closed", contributions=3, cohort=4, **rest)
    assert values(monitor, counts) == {("all",): 1, ("quorum",): 1}
    assert values(monitor, "fedclip_edge_updates_bytes_total")[()] == 20
    assert values(monitor, "fedclip_edge_progress_timestamp_seconds")[()] >= before


def test_refused_messages_are_added_up_with_those_that_the_log_leaves_out(monitor: Monitor) -> None:
    refused = {"topic": "t", "reason": "r"}
    watched(monitor, "message_refused", device="cam-1", **refused)
    watched(monitor, "message_refused", device="cam-1", count=41, **refused)
    watched(monitor, "message_refused", **refused)  # of another coordinator: without a device
    watched(monitor, "messages_dropped", device=None, count=7)
    assert values(monitor, "fedclip_edge_messages_refused_total") == {("cam-1",): 42, (OTHER,): 1}
    assert values(monitor, "fedclip_edge_messages_dropped_total") == {(OTHER,): 7}


def test_a_flood_of_names_makes_no_flood_of_series(monitor: Monitor) -> None:
    for number in range(DEVICES_MAX + 50):
        watched(monitor, "kept", device=f"cam-{number}", round=1, norm=1.0, weight=1)
    norms, kept = (
        values(monitor, f"fedclip_edge_{name}") for name in ("update_norm", "contributions_total")
    )
    assert len(norms) == DEVICES_MAX
    assert (len(kept), kept[OTHER,]) == (DEVICES_MAX + 1, 50)


def test_an_accuracy_name_that_a_device_made_up_makes_no_series(monitor: Monitor) -> None:
    fields = {"federated": 0.5, "made_up": 1.0, "federated_f1": 0.4}
    watched(monitor, "report", device="cam-1", round=2, **fields)
    assert values(monitor, "fedclip_edge_accuracy") == {("cam-1", "federated"): 0.5}


def test_the_look_shows_the_phase_and_who_is_away(tmp_path: Path) -> None:
    fleet = joined(tmp_path / "fleet", 3)
    until(fleet, lambda: state(fleet).phase == "open")
    made = Monitor(fleet.config)
    made.look(fleet.coordinator, 100.0)
    phases = values(made, "fedclip_edge_phase")
    assert {name for name, value in phases.items() if value} == {("open",)}
    assert values(made, "fedclip_edge_contributions_needed")[()] == 3
    assert values(made, "fedclip_edge_devices")["online",] == 3
    fleet.coordinator.devices.set_offline("cam-1")
    made.look(fleet.coordinator, 101.0)  # too early
    assert values(made, "fedclip_edge_device_online")["cam-1",] == 1
    made.look(fleet.coordinator, 100.0 + monitoring.LOOK_S)
    assert values(made, "fedclip_edge_device_online")["cam-1",] == 0
    assert values(made, "fedclip_edge_devices")["online",] == 2


def test_the_registry_decides_which_devices_have_series(tmp_path: Path) -> None:
    days = {"cam-0": "2030-01-01", "cam-1": "2031-01-01", "cam-2": "2032-01-01"}
    devices = {name: Device("1" * 64, (), day) for name, day in days.items()}
    devices["cam-2"] = replace(devices["cam-2"], revoked=True)
    registry = Registry("lab", "edge", 8883, "c" * 64, devices=devices)
    fleet = opened(Fleet(tmp_path, PLAN, RULES, registry=registry))
    made = Monitor(fleet.config)
    made.look(fleet.coordinator, 0.0)
    watched(made, "message_refused", device="mallory", topic="t", reason="r")
    assert values(made, "fedclip_edge_device_online") == {("cam-0",): 0, ("cam-1",): 0}
    ends = values(made, "fedclip_edge_device_certificate_end_timestamp_seconds")
    assert ends == {("cam-0",): 1893456000, ("cam-1",): 1924992000}
    assert values(made, "fedclip_edge_devices")["enrolled",] == 2
    assert values(made, "fedclip_edge_messages_refused_total") == {(OTHER,): 1}


def test_the_certificates_of_the_coordinator_and_of_its_authority_have_an_end(
    tmp_path: Path,
) -> None:
    made = authority.create_authority("lab")
    (tmp_path / "ca.crt").write_bytes(made.certificate.public_bytes(Encoding.PEM))
    key = authority.new_key().public_key()
    (tmp_path / "own.crt").write_bytes(authority.certify_device(made, key, "coordinator", 20).pem)
    broker = BrokerAddress(
        ca=tmp_path / "ca.crt", certificate=tmp_path / "own.crt", key=tmp_path / "own.key"
    )
    fleet = joined(tmp_path / "fleet", 2)
    monitor = Monitor(replace(fleet.config, broker=broker))
    monitor.look(fleet.coordinator, 0.0)
    ends = values(monitor, "fedclip_edge_certificate_end_timestamp_seconds")
    assert ends["coordinator",] == pytest.approx(time.time() + 20 * 86400, abs=3600)
    assert ends["authority",] == made.certificate.not_valid_after_utc.timestamp()


def test_a_pause_and_the_end_are_no_standstill_and_progress_begins_anew_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = joined(tmp_path, 2)
    until(fleet, lambda: state(fleet).phase == "open")
    monitor = Monitor(fleet.config)
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])

    def looked() -> tuple[float, float]:
        clock[0] += 100
        monitor.look(fleet.coordinator, clock[0])
        return (
            values(monitor, "fedclip_edge_run_active")[()],
            values(monitor, "fedclip_edge_progress_timestamp_seconds")[()],
        )

    assert looked() == (1, 1100)
    assert looked() == (1, 1100)  # nothing has happened since
    fleet.coordinator.driver.pause(fleet.now, paused=True)
    assert looked() == (0, 1300)
    fleet.coordinator.driver.pause(fleet.now, paused=False)
    assert looked() == (1, 1400)
    fleet.run()
    assert looked()[0] == 0


def test_a_run_that_is_watched_has_the_same_bytes(tmp_path: Path) -> None:
    fleet = joined(tmp_path, 2)
    monitor = Monitor(fleet.config)
    with log.observed(monitor.note):
        while not fleet.coordinator.finished:
            fleet.step()
            monitor.look(fleet.coordinator, fleet.now)
    assert sum(values(monitor, "fedclip_edge_round_closes_total").values()) == PLAN.rounds
    assert final(fleet) == undisturbed(2)


def test_every_event_that_a_metric_comes_from_is_written_by_the_coordinator() -> None:
    written = {event for program, event in log_event_reference.found() if program != "Agent"}
    assert set(monitoring._FROM_EVENTS) <= written
