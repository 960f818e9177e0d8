"""Programs and files of earlier versions, which are taken from the history of the repository.

V1 is the last version with protocol v1. EARLIER is a version of protocol v2 whose journal and state
files have the format before the one of now.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import system
from brokers import MOSQUITTO
from checkout import ROOT
from system import Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import registry
from fedclip_edge.vision.bundle import Bundle

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.slow,
]
V1 = "70e1ef5"
EARLIER = "d5e3b38"


class Fleet:
    """One fleet at a broker, with programs of now and of an earlier version."""

    def __init__(self, site: Site, old: Path) -> None:
        self.site, self.old = site, old
        name = site.fleet
        same = f'fleet = "{name}"\nbundle = "{site.bundle.folder}"\n'
        broker = f"[broker]\nport = {site.broker.port}\n"
        self.fleet = site.folder / "fleet.toml"  # only settings that every version has
        plan = '[rules]\ndevices = 1\n[plan]\nmethod = "ridge"\nrounds = 1\n'
        self.fleet.write_text(same + broker + plan)
        self.agent = site.folder / "agent.toml"
        pictures = '[data]\nfolder = "pictures"\n'
        self.agent.write_text(f'id = "cam-01"\n{same}state_dir = "state"\n{pictures}{broker}')
        system.write_pictures(site.folder / "pictures", site.bundle.classes.names, 12, 0)

    def words(self, *arguments: str | Path) -> list[str]:
        """The command line of the earlier version; Python finds it in the current folder."""
        program = [sys.executable, "-m", "fedclip_edge.cli.main", *map(str, arguments)]
        return ["env", "-C", str(self.old), "-u", "PYTHONPATH", *program]

    def start_old(self, *arguments: str | Path, log: str) -> subprocess.Popen[bytes]:
        return self.site.start_program(self.words(*arguments, "--json"), log)

    def wait_for(self, log: str, words: str) -> None:
        wait_until(lambda: words in self.site.text(log), f"{words!r} in the log of {log}")

    def said(self, log: str, name: str) -> list[str]:
        """The reasons in the events of this name in a log."""
        events = self.site.events(log)
        return [str(event.get("reason")) for event in events if event["event"] == name]

    def run_old_once(self) -> None:
        """Finish a run with both programs of the earlier version."""
        started = [
            self.start_old("serve", self.fleet, log="old-serve"),  # it ends after one run
            self.start_old("agent", "--once", self.agent, log="old-agent"),
        ]
        for process in started:
            assert process.wait(system.DEADLINE_S) == 0, self.site.text("old-serve")


@pytest.fixture(params=[V1, EARLIER])
def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> Iterator[Fleet]:
    old = tmp_path / "old"
    packed = tmp_path / "old.tar"
    words = ["git", "-C", str(ROOT), "archive", "-o", str(packed), request.param, "fedclip_edge"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the history of the repository is not here: {done.stderr}")
    with tarfile.open(packed) as tar:
        tar.extractall(old, filter="data")
    folder = tmp_path / "fleet"
    folder.mkdir()
    name = f"lab-{secrets.token_hex(4)}"
    with Site(folder, random_bundle, mosquitto, name) as site:
        yield Fleet(site, old)


@pytest.mark.parametrize("fleet", [V1], indirect=True)
def test_an_agent_of_protocol_v1_is_refused_in_words(fleet: Fleet) -> None:
    fleet.start_old("agent", fleet.agent, log="agent")
    fleet.site.start("serve", fleet.fleet, "--json", log="serve")
    for log in ("serve", "agent"):
        fleet.wait_for(log, "install the coordinator's version of fedclip-edge on the device")


@pytest.mark.parametrize("fleet", [EARLIER], indirect=True)
def test_an_earlier_agent_of_protocol_v2_is_refused_in_words_on_both_sides(fleet: Fleet) -> None:
    """It stays connected, so it can be upgraded later; one of now then finishes the run."""
    agent = fleet.start_old("agent", fleet.agent, log="agent")
    serve = fleet.site.start("serve", "--once", fleet.fleet, "--json", log="serve")
    reason = "the device has an earlier version of fedclip-edge"
    fleet.wait_for("serve", reason)
    fleet.wait_for("agent", reason)
    assert reason in fleet.said("serve", "device_refused")[0]
    assert reason in fleet.said("agent", "not_in_run")[0]
    assert "cam-01" in fleet.site.text("serve")
    assert not fleet.said("serve", "joined")
    assert agent.poll() is None
    agent.terminate()
    assert agent.wait(system.DEADLINE_S) == 0
    (fleet.site.folder / "state" / "parked.sqlite").unlink()
    again = fleet.site.start("agent", "--once", fleet.agent, "--json", log="again")
    for process in (serve, again):
        assert process.wait(system.DEADLINE_S) == 0, fleet.site.text("serve")


@pytest.mark.parametrize("fleet", [EARLIER], indirect=True)
def test_an_earlier_coordinator_of_protocol_v2_is_refused_in_words(fleet: Fleet) -> None:
    fleet.start_old("serve", fleet.fleet, log="serve")
    agent = fleet.site.start("agent", fleet.agent, "--json", log="agent")
    fleet.wait_for("agent", "the sender has an earlier version of fedclip-edge")
    fleet.wait_for("serve", "message_refused")  # the hello, which has a key more
    assert not fleet.said("serve", "joined")
    assert not fleet.said("agent", "trained")
    assert agent.poll() is None


@pytest.mark.parametrize("fleet", [EARLIER], indirect=True)
def test_serve_does_not_start_beside_an_earlier_one(fleet: Fleet) -> None:
    old = fleet.start_old("serve", fleet.fleet, log="old-serve")
    fleet.wait_for("old-serve", "waiting")
    other = fleet.site.folder / "other.toml"
    other.write_text(f'journal = "other.sqlite"\n{fleet.fleet.read_text()}')
    said = system.run("serve", other)
    assert said.returncode == ConfigError.exit_code
    assert "another coordinator is online for fleet" in said.stderr
    assert old.poll() is None


@pytest.mark.parametrize("fleet", [V1], indirect=True)
def test_an_agent_says_that_its_coordinator_speaks_protocol_v1(fleet: Fleet) -> None:
    fleet.start_old("serve", fleet.fleet, log="serve")
    fleet.site.start("agent", fleet.agent, "--json", log="agent")
    fleet.wait_for("agent", "install the same version of fedclip-edge on both")


def test_files_of_an_earlier_version_are_refused_and_not_changed(fleet: Fleet) -> None:
    fleet.run_old_once()
    journal = fleet.site.folder / "journal.sqlite"
    state = fleet.site.folder / "state" / "parked.sqlite"
    before = [path.read_bytes() for path in (journal, state)]
    said = system.run("serve", fleet.fleet)
    assert said.returncode == ConfigError.exit_code
    assert "has format version" in said.stderr
    said = system.run("agent", fleet.agent)
    assert said.returncode == ConfigError.exit_code
    assert "has format version" in said.stderr
    assert [path.read_bytes() for path in (journal, state)] == before
    # What the messages say to do is enough; the features are made anew without a person.
    journal.rename(journal.with_name("finished.sqlite"))
    state.unlink()
    started = [
        fleet.site.start("serve", "--once", fleet.fleet, "--json", log="serve"),
        fleet.site.start("agent", "--once", fleet.agent, "--json", log="agent"),
    ]
    for process in started:
        assert process.wait(system.DEADLINE_S) == 0, fleet.site.text("serve")
    # The other direction: the earlier programs refuse the files of now.
    for command, config in (("serve", fleet.fleet), ("agent", fleet.agent)):
        done = subprocess.run(
            fleet.words(command, config), capture_output=True, text=True, check=False
        )
        assert done.returncode == ConfigError.exit_code
        assert "format" in done.stderr


def test_the_operators_folder_of_an_earlier_version_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    place = tmp_path / "site"
    for words in (
        ("broker", "init", place, "--host", "127.0.0.1", "--reload", "true"),
        ("enroll", "cam-01", "--site", place, "--out", tmp_path / "cam-01.tar"),
    ):
        done = subprocess.run(fleet.words(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for command in (
        ("enroll", "cam-02", "--site", place, "--out", tmp_path / "cam-02.tar"),
        ("renew", "cam-01", "--site", place, "--out", tmp_path / "cam-01.crt"),
        ("revoke", "cam-02", "--site", place),
        ("broker", "move", place, "--host", "localhost"),
        ("broker", "rotate", place),
        ("broker", "replace-authority", place),
        ("broker", "replace-authority", place, "--finish", "--cut-off"),
    ):
        said = system.run(*command)
        assert said.returncode == 0, f"{command}: {said.stderr}"
    known = registry.read(place / "coordinator" / "devices.json")
    assert set(known.devices) == {"cam-01", "cam-02"}
