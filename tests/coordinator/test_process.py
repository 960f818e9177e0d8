"""Coordinator and agents as separate processes, connected to a real broker."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import system
from system import Site, wait_until

from fedclip_edge import model_file
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.model_lookup import find_model
from fedclip_edge.errors import ConfigError, JournalError, RefusedError
from fedclip_edge.vision.bundle import write_bundle
from fedclip_edge.vision.manifest import RANDOM


def closed_rounds(site: Site) -> int:
    return sum(event["event"] == "round_closed" for event in site.events("serve"))


@pytest.mark.one_python
def test_a_run_ends_with_every_round_closed_and_a_second_one_encodes_nothing(site: Site) -> None:
    fleet = site.write_fleet(devices=2, rounds=3, extra='[trainer]\nconfig = "judge/agent.toml"\n')
    agents = {name: site.write_agent(name) for name in ("north", "south-west")}
    site.write_agent("judge", extra='roles = ["evaluate"]\ndomain = "held out"')
    for attempt in ("first", "second"):
        serve = site.start("serve", "--once", fleet, "--json", log=f"serve-{attempt}")
        running = [
            site.start("agent", path, "--once", "--json", log=f"{name}-{attempt}")
            for name, path in agents.items()
        ]
        for process in (serve, *running):
            assert process.wait(system.DEADLINE_S) == 0, site.text(f"serve-{attempt}")
        for name in agents:
            ready = [e for e in site.events(f"{name}-{attempt}") if e["event"] == "features_ready"]
            assert ready[0]["encoded"] == (36 if attempt == "first" else 0)
    with contextlib.closing(open_journal(site.folder / "journal.sqlite")) as journal:
        run = journal.runs.last()
        assert run is not None
        assert journal.rounds.closed(run.id) == 3
        runs = [run.id for run in journal.runs.all()]
        final = {r.device: r for r in journal.reports.all(run.id) if r.round == 3}
    for attempt, identifier in zip(("first", "second"), runs, strict=True):
        trainers = [e for e in site.events(f"serve-{attempt}") if "trainer" in e]
        assert {e["trainer"] for e in trainers} == {"judge"}
        assert {e["event"] for e in trainers} >= {"features_ready", "connected", "evaluated"}
        assert {"joined", "kept", "serving"}.isdisjoint(e["event"] for e in trainers)
        written = [e for e in site.events(f"serve-{attempt}") if e["event"] == "model_written"]
        assert [Path(e["path"]).name for e in written] == [f"{identifier}.safetensors"]
        model = find_model(written[0]["path"], site.folder / "none", site.bundle)
        assert (model.run, model.model.round) == (identifier, 3)
    assert set(final) == {"north", "south-west", "judge"}
    names = {
        f"{of}{what}" for of in ("zero_shot", "federated", "local") for what in ("", "_f1", "_ece")
    }
    assert set(final["north"].accuracy) == {*names, "zero_shot_all"}
    assert "local" not in final["judge"].accuracy
    assert final["judge"].train_pictures == 0
    bytes_up = final["north"].bytes_up
    assert bytes_up is not None
    assert bytes_up > 3 * 2 * (16 * 16) * 4  # at least three updates of two 16 x 16 matrices


@pytest.mark.one_python
def test_an_agent_that_waits_for_a_round_has_loaded_no_torch(site: Site) -> None:
    """Tested without a coordinator, and with a coordinator that waits for more devices."""
    agent = site.write_agent("north")
    first = site.start("agent", agent, "--json", log="first")
    wait_until(lambda: "connected" in site.text("first"), "the first start to connect")
    first.terminate()
    first.wait(system.DEADLINE_S)
    running = site.start("agent", agent, "--json", log="north")
    wait_until(lambda: "connected" in site.text("north"), "the agent to connect")
    assert loaded_by(running.pid) == set()
    site.start("serve", "--once", site.write_fleet(devices=2, rounds=1), "--json", log="serve")
    wait_until(lambda: "joined" in site.text("serve"), "the coordinator to know it")
    assert loaded_by(running.pid) == set()
    other = site.start("agent", site.write_agent("south"), "--once", "--json", log="south")
    assert other.wait(system.DEADLINE_S) == 0
    assert loaded_by(running.pid) == set()  # a child of it has trained
    assert "trained" in site.text("north")
    assert running.poll() is None


FAILS = """
import sys

from fedclip_edge.cli.main import main
from fedclip_edge.transport import mqtt


def fails(*_):
    raise MemoryError("no room for a message")


mqtt.PahoTransport._on_message = fails
main()
"""


@pytest.mark.parametrize(("command", "other"), [("agent", "serve"), ("serve", "agent")])
def test_a_thread_that_dies_ends_its_process(site: Site, command: str, other: str) -> None:
    """A process without that thread would look alive; one that ends is started again."""
    configs = {"agent": site.write_agent("north"), "serve": site.write_fleet(1, rounds=1)}
    words = [sys.executable, "-c", FAILS, command, str(configs[command])]
    with system.running(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as broken:
        site.start(other, configs[other], log=other)
        _, said = broken.communicate(timeout=system.DEADLINE_S)
    assert broken.returncode == 1
    assert b"no room for a message" in said


def loaded_by(process: int) -> set[str]:
    """The names of `torch` and `onnxruntime` that the process has mapped into memory."""
    maps = Path(f"/proc/{process}/maps").read_text()
    return {name for name in ("torch", "onnxruntime") if f"/{name}/" in maps}


def test_a_box_without_torch_hears_it_at_once(site: Site) -> None:
    without = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.argv[1:] = ['agent', {str(site.write_agent('north'))!r}]\n"
        "from fedclip_edge.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", without], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == ConfigError.exit_code
    assert "torch is not installed;" in done.stderr
    assert "features_ready" not in done.stdout  # it stopped before the slow steps


@pytest.mark.one_python
def test_unreadable_pictures_are_skipped_counted_and_named(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=1)
    agent = site.write_agent("north")
    pictures = agent.parent / "pictures" / "circle"
    (pictures / "letter.jpg").write_text("this is no picture")
    whole = (pictures / "000.png").read_bytes()
    (pictures / "cut.png").write_bytes(whole[: len(whole) // 2])
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    running = site.start("agent", agent, "--once", "--json", log="north")
    assert serve.wait(system.DEADLINE_S) == 0
    assert running.wait(system.DEADLINE_S) == 0
    named = {
        Path(event["picture"]).name
        for event in site.events("north")
        if event["event"] == "picture_skipped"
    }
    assert named == {"letter.jpg", "cut.png"}
    with contextlib.closing(open_journal(site.folder / "journal.sqlite")) as journal:
        run = journal.runs.last()
        assert run is not None
        assert {report.skipped for report in journal.reports.all(run.id)} == {2}


@pytest.mark.one_python
def test_both_say_that_a_bundles_weights_are_random(site: Site, tmp_path: Path) -> None:
    theirs = site.bundle
    site.bundle = write_bundle(
        tmp_path / "random",
        dataclasses.replace(theirs.manifest, pretrained=RANDOM, files={}),
        theirs.encoder_path.read_bytes(),
        theirs.classes,
        theirs.golden(),
    )
    fleet = site.write_fleet(devices=1, rounds=1)
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    agent = site.start("agent", site.write_agent("north"), "--once", "--json", log="north")
    for process in (serve, agent):
        assert process.wait(system.DEADLINE_S) == 0
    for log in ("serve", "north"):
        (said,) = (e for e in site.events(log) if e["event"] == "bundle_caution")
        assert "weights are random" in said["caution"]
        assert said["bundle"] == str(site.bundle.folder)


@pytest.mark.one_python
def test_a_killed_coordinator_goes_on_where_its_journal_stands(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=40)
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    agent = site.start("agent", site.write_agent("north"), "--once", "--json", log="north")
    wait_until(lambda: closed_rounds(site) >= 5, "five closed rounds")
    serve.send_signal(signal.SIGKILL)
    serve.wait()
    again = site.start("serve", "--once", fleet, "--json", log="serve")
    assert again.wait(system.DEADLINE_S) == 0, site.text("serve")
    assert agent.wait(system.DEADLINE_S) == 0
    rounds = [e["round"] for e in site.events("serve") if e["event"] == "round_closed"]
    assert len(rounds) == len(set(rounds)), "a closed round was closed again"
    (written,) = (e for e in site.events("serve") if e["event"] == "model_written")
    assert model_file.read(Path(written["path"])).model.round == 40
    with contextlib.closing(open_journal(site.folder / "journal.sqlite")) as journal:
        run = journal.runs.last()
        assert run is not None
        assert journal.rounds.closed(run.id) == 40


@pytest.mark.one_python
def test_a_damaged_journal_is_said_and_the_run_goes_back_to_a_whole_model(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=20)
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    agent = site.start("agent", site.write_agent("north"), "--once", "--json", log="north")
    wait_until(lambda: closed_rounds(site) >= 5, "five closed rounds")
    serve.send_signal(signal.SIGKILL)
    serve.wait()
    with contextlib.closing(sqlite3.connect(site.folder / "journal.sqlite")) as database, database:
        newest = "round = (SELECT MAX(round) FROM model)"
        database.execute(
            "UPDATE model SET master = CAST(substr(master, 1, 200) || x'ff' || "  # noqa: S608
            f"substr(master, 202) AS BLOB) WHERE {newest}"
        )
    refused = system.run("serve", fleet)
    assert refused.returncode == JournalError.exit_code
    (whole,) = re.findall(r"add --from-round (\d+) to `serve`", refused.stderr)
    again = site.start("serve", "--once", fleet, "--from-round", whole, "--json", log="again")
    assert again.wait(system.DEADLINE_S) == 0, site.text("again")
    assert agent.wait(system.DEADLINE_S) == 0
    rounds = [e["round"] for e in site.events("again") if e["event"] == "round_closed"]
    assert rounds == list(range(int(whole) + 1, 21))


@pytest.mark.one_python
def test_a_killed_agent_comes_back_into_the_same_run(site: Site) -> None:
    fleet = site.write_fleet(devices=2, rounds=40)
    config = site.write_agent("south")
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    north = site.start("agent", site.write_agent("north"), "--once", "--json", log="north")
    south = site.start("agent", config, "--once", "--json", log="south")
    wait_until(lambda: closed_rounds(site) >= 3, "three closed rounds")
    south.send_signal(signal.SIGKILL)
    south.wait()
    south = site.start("agent", config, "--once", "--json", log="south")
    for process in (serve, north, south):
        assert process.wait(system.DEADLINE_S) == 0, site.text("serve")
    assert closed_rounds(site) == 40
    assert all(e["contributions"] == e["cohort"] for e in site.events("serve") if "cohort" in e)


@pytest.mark.one_python
def test_a_second_coordinator_is_refused_until_it_is_told_to_take_over(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=1)
    first = site.start("serve", "--once", fleet, "--json", log="serve")
    wait_until(lambda: "serving" in site.text("serve"), "the first coordinator to serve")
    second = site.folder / "second.toml"
    second.write_text(fleet.read_text().replace("fleet =", 'journal = "second.sqlite"\nfleet =', 1))
    refused = system.run("serve", second)
    assert refused.returncode == ConfigError.exit_code
    assert "--take-over" in refused.stderr
    site.start("serve", "--once", second, "--take-over", "--json", log="second")
    first.wait(system.DEADLINE_S)
    assert "another coordinator took over" in site.text("serve")


def test_a_device_with_another_encoder_is_refused_for_good(site: Site, tmp_path: Path) -> None:
    fleet = site.write_fleet(devices=1, rounds=1)
    site.start("serve", "--once", fleet, "--json", log="serve")
    config = site.write_agent("north")
    theirs = site.bundle
    mean = theirs.manifest.preprocessing.mean
    shifted = dataclasses.replace(theirs.manifest.preprocessing, mean=(mean[0] + 0.1, *mean[1:]))
    other = write_bundle(
        tmp_path / "other",
        dataclasses.replace(theirs.manifest, preprocessing=shifted, files={}),
        theirs.encoder_path.read_bytes(),
        theirs.classes,
        theirs.golden(),
    )
    config.write_text(config.read_text().replace(str(theirs.folder), str(other.folder)))
    refused = system.run("agent", config, "--once")
    assert refused.returncode == RefusedError.exit_code
    assert "another encoder" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_coordinator_and_its_trainer(site: Site, number: signal.Signals) -> None:
    fleet = site.write_fleet(devices=2, rounds=3, extra='[trainer]\nconfig = "judge/agent.toml"\n')
    site.write_agent("judge", extra='roles = ["evaluate"]')
    serve = site.start("serve", "--once", fleet, "--json", log="serve")
    wait_until(lambda: "joined" in site.text("serve"), "the trainer to join")
    serve.send_signal(number)
    assert serve.wait(system.DEADLINE_S) == 0
    assert "Traceback" not in site.text("serve")
    left = [line for line in system.commands().values() if str(site.folder) in line]
    assert left == []
