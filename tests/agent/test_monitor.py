"""The agent's metrics file: complete, at most every 15 seconds, and never a reason to stop."""

from __future__ import annotations

import itertools
from pathlib import Path

import log_event_reference
import pytest
import system
from session_scene import ME, TOPICS, Scene, state
from system import Site, wait_until

from fedclip_edge.agent import monitor as monitoring
from fedclip_edge.agent.monitor import WRITE_S, Monitor
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.monitoring.definitions import AGENT
from fedclip_edge.monitoring.metrics import Metrics


def shown(metrics: Metrics) -> bytes:
    """A stand-in for the text format, with all names and values."""
    samples = [(m.name, key, value) for m, its in metrics.all() for key, value in its.items()]
    return "\n".join(f"{name} {' '.join(key)} {value:g}" for name, key, value in samples).encode()


def made(tmp_path: Path, file: Path) -> Monitor:
    config = AgentConfig("cam-01", "lab", DataConfig(tmp_path), tmp_path / "state", bundle=tmp_path)
    return Monitor(config, file, shown)


@pytest.mark.one_python
def test_a_real_agent_writes_a_file_for_node_exporter(site: Site) -> None:
    pytest.importorskip("prometheus_client", reason="prometheus-client is in the extra [agent]")
    from prometheus_client.parser import text_string_to_metric_families

    file = site.folder / "collector" / "fedclip_edge.prom"
    agent = site.write_agent("north", extra=f'metrics_file = "{file}"')
    site.start("serve", site.write_fleet(devices=1, rounds=5000), log="serve")
    running = site.start("agent", agent, "--json", log="north")
    wanted = ("fedclip_edge_agent_last_round{", "fedclip_edge_agent_accuracy{")
    wait_until(
        lambda: file.exists() and all(name in file.read_text() for name in wanted),
        "a file with a round and an accuracy",
    )
    families = {f.name: f for f in text_string_to_metric_families(file.read_text())}
    for family in families.values():
        assert family.documentation
        for sample in family.samples:
            assert sample.labels["device"] == "north"
            assert sample.labels["fleet"] == site.fleet
    value = {name: family.samples[0].value for name, family in families.items() if family.samples}
    assert value["fedclip_edge_agent_broker_connected"] == 1
    assert value["fedclip_edge_agent_coordinator_online"] == 1
    assert value["fedclip_edge_agent_in_run"] == 1
    assert value["fedclip_edge_agent_pictures_to_encode"] == 0
    sides = {s.labels["side"]: s.value for s in families["fedclip_edge_agent_pictures"].samples}
    assert sum(sides.values()) == 36
    (ready,) = (e for e in site.events("north") if e.get("encoded"))
    per_s = value["fedclip_edge_agent_encoded_pictures_per_second"]
    assert per_s == pytest.approx(ready["encoded"] / ready["seconds"])
    assert value["fedclip_edge_agent_cache_bytes"] > 36 * 16 * 4
    assert value["fedclip_edge_agent_memory_bytes"] > 10**7
    defined = {metric.name.removesuffix("_total") for metric in AGENT}
    assert set(families) == defined
    without = {"fedclip_edge_agent_certificate_end_timestamp_seconds"}
    assert defined - without <= set(value)
    assert file.stat().st_mode & 0o444 == 0o444  # another user's node_exporter reads it
    running.terminate()
    assert running.wait(system.DEADLINE_S) == 0
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_the_file_is_written_while_pictures_are_encoded(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.prom"
    monitor = made(tmp_path, file)
    monitor.tell(8, 100)
    assert b"fedclip_edge_agent_pictures_to_encode  92\n" in file.read_bytes()


def test_the_file_is_written_every_15_seconds_and_is_never_half_there(
    scene: Scene, tmp_path: Path
) -> None:
    file = tmp_path / "a.prom"
    monitor = made(tmp_path, file)
    scene.flow()
    inodes = []
    for now in (0.0, WRITE_S - 0.1, WRITE_S, WRITE_S + 1):
        monitor.look(scene.session, 100 + now)
        inodes.append(file.stat().st_ino)
    assert [one == other for one, other in itertools.pairwise(inodes)] == [True, False, True]
    assert file.read_bytes() == shown(monitor.metrics)


def test_contact_is_a_message_that_the_device_trusts(scene: Scene, tmp_path: Path) -> None:
    monitor = made(tmp_path, tmp_path / "a.prom")
    contact = b"fedclip_edge_agent_last_contact_timestamp_seconds"

    def looked(by_s: float) -> bytes:
        scene.now += by_s
        scene.flow()
        monitor.look(scene.session, scene.now)
        return (tmp_path / "a.prom").read_bytes()

    scene.flow()
    scene.script.publish(TOPICS.down("cam-01"), b"garbage")
    scene.say(state(), key=ME, sender="cam-02")
    first = looked(0)
    assert contact not in first
    assert b"fedclip_edge_agent_broker_connected  1\n" in first
    assert b"fedclip_edge_agent_coordinator_online  0\n" in first
    scene.join()
    second = looked(WRITE_S)
    assert contact in second
    assert b"fedclip_edge_agent_coordinator_online  1\n" in second
    scene.say(state(online=False), topic=TOPICS.coordinator_state)
    assert b"fedclip_edge_agent_coordinator_online  0\n" in looked(WRITE_S)


def test_a_file_that_cannot_be_written_is_reported_once_and_stops_nothing(
    scene: Scene, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file in place of the folder")
    file = tmp_path / "taken" / "a.prom"
    monitor = made(tmp_path, file)
    for number in range(3):
        monitor.look(scene.session, 100 + number * WRITE_S)
    said = capsys.readouterr().out
    assert said.count("metrics_not_written") == 1
    assert 'reason="Not a directory"' in said or 'reason="File exists"' in said
    (tmp_path / "taken").unlink()
    monitor.look(scene.session, 100 + 3 * WRITE_S)
    monitor.look(scene.session, 100 + 4 * WRITE_S)
    assert capsys.readouterr().out.count("metrics_written") == 1
    assert file.exists()


def test_every_event_that_a_metric_comes_from_is_written_by_the_agent() -> None:
    written = {event for program, event in log_event_reference.found() if program != "Coordinator"}
    assert set(monitoring._FROM_EVENTS) <= written
