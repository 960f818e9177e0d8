"""A coordinator that serves run after run, with real processes and a real broker."""

from __future__ import annotations

import contextlib
import getpass
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import system
from system import Site, wait_until

from fedclip_edge import model_file
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.errors import ConfigError

pytestmark = pytest.mark.one_python


def events(site: Site, name: str, log: str = "serve") -> list[dict[str, Any]]:
    return [event for event in site.events(log) if event["event"] == name]


def done_runs(site: Site, log: str = "serve") -> list[str]:
    return [event["run"] for event in events(site, "run_done", log)]


def wait_for_runs(site: Site, count: int, log: str = "serve") -> list[str]:
    wait_until(lambda: len(done_runs(site, log)) >= count, f"{count} runs that are done")
    return done_runs(site, log)


@contextlib.contextmanager
def journal_of(site: Site) -> Iterator[Journal]:
    with contextlib.closing(open_journal(site.folder / "journal.sqlite")) as journal:
        yield journal


def rounds_of(site: Site, run: str) -> int:
    """The number of rounds behind the model in a run's file."""
    path = model_file.path_of(site.folder / "journal.sqlite", run)
    return model_file.read(path).model.round


def said(*arguments: str | Path) -> str:
    done = system.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path) -> str:
    done = system.run(*arguments)
    assert done.returncode == ConfigError.exit_code, done.stdout + done.stderr
    return done.stderr


def test_one_process_serves_run_after_run_and_a_restart_starts_none(site: Site) -> None:
    fleet = site.write_fleet(devices=1, rounds=2)
    serve = site.start("serve", fleet, "--json", log="serve")
    agent = site.start("agent", site.write_agent("north"), "--json", log="north")
    (first,) = wait_for_runs(site, 1)
    wait_until(lambda: bool(events(site, "between_runs")), "the hint")
    assert "fedclip-edge run start" in events(site, "between_runs")[0]["hint"]
    assert "has no closed round" not in refused("run", "close", fleet)
    started = said("run", "start", fleet, "--from", "last")
    _, second = wait_for_runs(site, 2)
    assert started == f"started {second} from {first}\n"
    wait_until(lambda: len(events(site, "run_done", "north")) == 2, "the device to be done twice")
    serve.send_signal(signal.SIGTERM)
    assert serve.wait(system.DEADLINE_S) == 0
    again = site.start("serve", fleet, "--json", log="again")
    wait_until(lambda: bool(events(site, "joined", "again")), "the device to join again")
    (serving,) = events(site, "serving", "again")
    assert (serving["run"], serving["over"], serving["started_from"]) == (second, True, first)
    with journal_of(site) as journal:
        assert [run.id for run in journal.runs.all()] == [first, second]
        courses = [journal.runs.course(run) for run in (first, second)]
        assert [course.state for course in courses] == ["done", "done"]
        assert [course.started_from for course in courses] == ["zero-shot", first]
        (action,) = journal.actions.all()
        assert (action.user, action.command) == (getpass.getuser(), "start")
        assert json.loads(action.arguments) == {"start": "last"}
        assert (
            journal.rounds.newest_model(first).round
            == journal.rounds.newest_model(second).round
            == 2
        )
    for run in (first, second):
        assert rounds_of(site, run) == 2
    assert (agent.poll(), again.poll()) == (None, None)


def test_a_manual_start_waits_for_the_operator_who_pauses_extends_and_ends_runs(
    site: Site,
) -> None:
    fleet = site.write_fleet(devices=1, rounds=1, extra='[schedule]\nstart = "manual"\n')
    site.start("serve", fleet, "--json", log="serve")
    site.start("agent", site.write_agent("north"), "--json", log="north")
    wait_until(lambda: bool(events(site, "joined")), "the device to join")
    assert "has not been started; start the next run" in refused("run", "pause", fleet)
    fleet.write_text(fleet.read_text().replace("rounds = 1", "rounds = 2000"))
    said("run", "start", fleet)
    wait_until(lambda: len(events(site, "round_closed")) > 1, "rounds of the changed plan")
    assert "is under way" in refused("run", "start", fleet)
    assert "paused run-" in said("run", "pause", fleet)
    assert "is paused; `fedclip-edge run resume`" in refused("run", "pause", fleet)
    assert "give at least so many rounds" in refused("run", "extend", fleet, "--rounds", "1")
    rounds = len(events(site, "round_closed")) + 5
    assert f"of {rounds} rounds closed" in said("run", "extend", fleet, "--rounds", str(rounds))
    assert "resumed run-" in said("run", "resume", fleet)
    wait_for_runs(site, 1)
    assert len(events(site, "round_closed")) == rounds
    said("run", "start", fleet)
    wait_until(lambda: len(events(site, "round_closed")) > rounds, "rounds of the second run")
    assert "ending run-" in said("run", "close", fleet, "--now")
    _, second = wait_for_runs(site, 2)
    assert 1 <= rounds_of(site, second) < 2000
    said("run", "start", fleet, "--from", second)
    wait_until(lambda: len(events(site, "serving")) == 4, "the third run")
    said("run", "abandon", fleet)
    assert "is abandoned; start the next run" in refused("run", "abandon", fleet)
    with journal_of(site) as journal:
        states = [journal.runs.course(run.id).state for run in journal.runs.all()]
        assert states == ["done", "done", "abandoned"]
        commands = [action.command for action in journal.actions.all()]
    expected = ["start", "pause", "extend", "resume", "start", "close", "start", "abandon"]
    assert commands == expected
    assert "has no run 'run-none'" in refused("run", "start", fleet, "--from", "run-none")
    fleet.write_text(fleet.read_text().replace('"fedclip"', '"fedklip"'))
    assert "did you mean 'fedclip'" in refused("run", "start", fleet)


# An agent that reads its folder again after a second, not after a minute.
SOON = """
from fedclip_edge.agent import rescan
from fedclip_edge.cli.main import main

rescan.RESCAN_S = 1.0
main()
"""


def test_new_pictures_start_a_run_that_uses_them(site: Site) -> None:
    extra = '[schedule]\nnew_pictures = 4\nmodel = "last"\n'
    fleet = site.write_fleet(devices=1, rounds=1, extra=extra)
    site.start("serve", fleet, "--json", log="serve")
    words = [sys.executable, "-c", SOON, "agent", str(site.write_agent("north")), "--json"]
    site.start_program(words, "north")
    (first,) = wait_for_runs(site, 1)
    folder = site.folder / "north" / "pictures"
    name = site.bundle.classes.names[0]
    system.write_pictures(site.folder / "more", (name,), 5, seed=99)
    for path in (site.folder / "more" / name).iterdir():
        shutil.copy(path, folder / name / f"new-{path.name}")
    _, second = wait_for_runs(site, 2)
    with journal_of(site) as journal:
        course = journal.runs.course(second)
        assert (course.started_by, course.started_from) == ("schedule: 5 new pictures", first)
        (before,) = {r.train_pictures for r in journal.reports.all(first)}
        (after,) = {r.train_pictures for r in journal.reports.all(second)}
    assert after > before


DIES = """
import os, signal, sys

from fedclip_edge.cli.main import main
from fedclip_edge.coordinator import (
    journal_actions, journal_runs, round_driver, run_state, server
)


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def after(cls, name, when=lambda self: True):
    original = getattr(cls, name)

    def replaced(self, *arguments, **settings):
        result = original(self, *arguments, **settings)
        if when(self):
            die()
        return result

    setattr(cls, name, replaced)


def before(cls, name):
    setattr(cls, name, die)


step = sys.argv.pop(1)
if step == "model file":
    journal_runs.Runs.finish = die
elif step == "run done":
    after(journal_runs.Runs, "finish")
elif step == "action":
    after(journal_actions.Actions, "add")
elif step == "new run":
    after(journal_runs.Runs, "add", lambda self: len(self.all()) > 1)
elif step == "epoch":
    server.coordinate = (
        lambda make: lambda config, run, book, *a, **k: die()
        if len(book.runs.all()) > 1 else make(config, run, book, *a, **k)
    )(server.coordinate)
    from fedclip_edge.coordinator import process
elif step == "goodbye":
    after(server.Coordinator, "say_goodbye")
elif step == "announced":
    after(server.Server, "open", lambda self: len(self.journal.runs.all()) > 1)
main()
"""


@pytest.mark.parametrize(
    "step", ["model file", "run done", "action", "new run", "epoch", "goodbye", "announced"]
)
def test_a_kill_between_two_runs_loses_nothing(site: Site, step: str) -> None:
    fleet = site.write_fleet(devices=1, rounds=1)
    words = [sys.executable, "-c", DIES, step, "serve", str(fleet), "--json"]
    serve = site.start_program(words, "serve")
    site.start("agent", site.write_agent("north"), "--json", log="north")
    if step not in ("model file", "run done"):
        wait_for_runs(site, 1)
        killed = system.run("run", "start", fleet)
        assert killed.returncode != 0
    assert serve.wait(system.DEADLINE_S) == -signal.SIGKILL
    again = site.start("serve", fleet, "--json", log="again")
    wait_until(lambda: bool(events(site, "serving", "again")), "the second process")
    is_open = step in ("new run", "epoch", "goodbye", "announced")
    if is_open or step == "model file":
        wait_for_runs(site, 1, "again")
    if not is_open:
        wait_until(lambda: bool(events(site, "joined", "again")), "the device to join")
        said("run", "start", fleet)
        wait_for_runs(site, 2 if step == "model file" else 1, "again")
    again.send_signal(signal.SIGTERM)
    assert again.wait(system.DEADLINE_S) == 0
    with journal_of(site) as journal:
        runs = [run.id for run in journal.runs.all()]
        assert [journal.runs.course(run).state for run in runs] == ["done", "done"]
    for run in runs:
        assert rounds_of(site, run) == 1
