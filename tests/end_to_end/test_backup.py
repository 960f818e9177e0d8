"""The loss of a coordinator's folder in the middle of a run, and its return from a backup."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
import system
from brokers import MOSQUITTO
from secured import Secured, write_agent, write_fleet
from system import Site, wait_until

from fedclip_edge.config.fleet import load_fleet
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]
ROUNDS = 60


def test_a_run_goes_on_after_its_coordinator_is_lost(tmp_path: Path, random_bundle: Bundle) -> None:
    with (
        Secured(tmp_path) as secured,
        Site(tmp_path, random_bundle, secured.coordinator, "lab") as site,
    ):
        secured.start()
        agents = [write_agent(secured, random_bundle, name) for name in ("cam-01", "cam-02")]
        fleet = write_fleet(secured, random_bundle, ROUNDS)
        serve = site.start("serve", "--once", fleet, "--json", log="serve")
        running = [
            site.start("agent", path, "--once", "--json", log=path.parent.name) for path in agents
        ]

        def closed(log: str) -> int:
            return sum(event["event"] == "round_closed" for event in site.events(log))

        wait_until(lambda: closed("serve") > 2, "rounds before the backup")
        said = system.run("backup", fleet, tmp_path / "fleet.tar")
        assert said.returncode == 0, said.stderr
        at_backup = closed("serve")
        wait_until(lambda: closed("serve") > at_backup + 2, "rounds after the backup")
        serve.kill()  # it may have acknowledged updates that the backup does not know
        serve.wait()
        for path in tmp_path.glob("journal.sqlite*"):
            path.unlink()
        fleet.unlink()
        shutil.rmtree(secured.site.coordinator)
        said = system.run("restore", tmp_path / "fleet.tar", tmp_path / "new")
        assert said.returncode == 0, said.stderr
        again = site.start(
            "serve", "--once", tmp_path / "new" / "fleet.toml", "--json", log="again"
        )
        for process in (again, *running):
            assert process.wait(system.DEADLINE_S) == 0, site.text("again")
        (serving,) = (e for e in site.events("again") if e["event"] == "serving")
        assert serving["rounds_closed"] <= at_backup + 1
        (before,) = (e for e in site.events("serve") if e["event"] == "serving")
        assert serving["run"] == before["run"]
        assert serving["epoch"] > before["epoch"]
        config = load_fleet(tmp_path / "new" / "fleet.toml")
        with contextlib.closing(open_journal(config.journal)) as journal:
            run = journal.runs.last()
            assert run is not None
            assert run.id == before["run"]
            assert journal.rounds.closed(run.id) == ROUNDS
