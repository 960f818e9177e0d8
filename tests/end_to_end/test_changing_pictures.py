"""An agent whose pictures change while it runs, and while it is stopped."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Mosquitto, StartMosquitto
from PIL import Image
from system import Site, wait_until

from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.picture_index import RECENT_S

pytestmark = pytest.mark.one_python
STOPS_S = 15.0
# The agent, with a list of all pictures that it opens.
COUNTING = """
import sys
listed = open(sys.argv.pop(1), "a", buffering=1)
def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".png"):
        listed.write(str(arguments[0]) + "\\n")
sys.addaudithook(note)
from fedclip_edge.cli.main import main
main()
"""


@pytest.fixture
def broker(start_mosquitto: StartMosquitto) -> Mosquitto:
    return start_mosquitto()


@pytest.fixture
def site(tmp_path: Path, random_bundle: Bundle, broker: Mosquitto) -> Iterator[Site]:
    with Site(tmp_path, random_bundle, broker.address, "lab") as made:
        yield made


def named(site: Site, log: str, event: str) -> list[dict[str, object]]:
    return [one for one in site.events(log) if one["event"] == event]


def stopped(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(STOPS_S)


def test_a_restart_opens_no_unchanged_picture(site: Site) -> None:
    agent = site.write_agent("north")
    folder = agent.parent / "pictures"
    opened = site.folder / "opened"

    def start(log: str) -> subprocess.Popen[bytes]:
        opened.write_text("")
        words = [sys.executable, "-c", COUNTING, str(opened), "agent", str(agent), "--json"]
        process = site.start_program(words, log)
        wait_until(lambda: bool(named(site, log, "connected")), "connected")
        return process

    newest = max(path.stat().st_ctime for path in folder.rglob("*.png"))
    wait_until(lambda: time.time() > newest + RECENT_S + 1, "the pictures are old enough")
    stopped(start("first"))
    assert len(set(opened.read_text().split())) == 36
    process = start("second")
    assert opened.read_text() == ""
    stopped(process)
    (ready,) = named(site, "second", "features_ready")
    assert (ready["encoded"], ready["cached"]) == (0, 36)


def test_pictures_that_come_and_go_between_runs_change_what_the_device_says(site: Site) -> None:
    """The coordinator runs again and again; each run uses the pictures that exist then."""
    agent = site.write_agent("north")
    folder = agent.parent / "pictures"
    fleet = site.write_fleet(1, 1, method="ridge", extra='[schedule]\nevery = "1s"\n')
    site.start("serve", fleet, "--json", log="serve")
    site.start("agent", agent, "--json", log="agent")
    wait_until(lambda: bool(named(site, "agent", "run_done")), "a run")
    Image.new("RGB", (40, 40), (200, 10, 10)).save(folder / "circle" / "new.png")
    wait_until(
        lambda: any(one["added"] == 1 for one in named(site, "agent", "pictures_changed")), "added"
    )
    away = folder.rename(folder.with_name("away"))
    wait_until(lambda: bool(named(site, "agent", "folder_away")), "away")
    count = len(named(site, "agent", "run_done"))
    wait_until(lambda: len(named(site, "agent", "run_done")) > count + 1, "runs without the share")
    away.rename(folder)
    wait_until(lambda: bool(named(site, "agent", "folder_back")), "back")
    (folder / "circle" / "new.png").unlink()
    wait_until(
        lambda: any(one["removed"] == 1 for one in named(site, "agent", "pictures_changed")), "gone"
    )
    assert len(named(site, "agent", "pictures_changed")) == 2
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
