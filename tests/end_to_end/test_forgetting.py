"""Devices that are away, and devices that are forgotten, between real processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from system import DEADLINE_S, Site, run, started, wait_until

from fedclip_edge import model_file
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.coordinator import control
from fedclip_edge.records import Model
from fedclip_edge.vision.bundle import Bundle

pytestmark = pytest.mark.one_python
NORTH, SOUTH, HARBOUR = "north", "south-2", "harbour-3"  # names of other lengths: other pictures
FLEETS = itertools.count()


@contextlib.contextmanager
def a_site(folder: Path, bundle: Bundle, broker: BrokerAddress, *names: str) -> Iterator[Site]:
    with Site(folder, bundle, broker, f"forget-{next(FLEETS)}") as site:
        for name in names:
            site.write_agent(name, per_class=40)
        yield site


def start_agents(site: Site, *names: str) -> list[subprocess.Popen[bytes]]:
    return [
        site.start("agent", site.folder / name / "agent.toml", "--json", log=name) for name in names
    ]


def write_fleet(site: Site, devices: int, rules: str = "", method: str = "gda") -> Path:
    path = site.write_fleet(devices, 1, method=method)
    text = path.read_text().replace('vote = "off"\nlocal_baseline = true\n', "")
    path.write_text(text.replace("grace_s = 20", f"grace_s = 2\n{rules}"))
    return path


def serve(site: Site, *options: str) -> subprocess.Popen[bytes]:
    return site.start("serve", site.folder / "fleet.toml", "--json", *options, log="serve")


def ends(site: Site, process: subprocess.Popen[bytes]) -> Model:
    """Wait for the end of the run; return the model in its newest file."""
    wait_until(lambda: process.poll() is not None, "the run to end", 2 * DEADLINE_S)
    assert process.returncode == 0, site.text("serve")
    written = [e for e in site.events("serve") if e["event"] == "model_written"]
    return model_file.read(Path(written[-1]["path"])).model


def written(site: Site, process: subprocess.Popen[bytes], count: int) -> Model:
    """Wait until `serve`, which may go on, has written this many model files; return the last."""

    def files() -> list[str]:
        return [e["path"] for e in site.events("serve") if e["event"] == "model_written"]

    wait_until(lambda: len(files()) >= count or process.poll() not in (None, 0), "the model")
    assert len(files()) == count, site.text("serve")
    wait_until(
        lambda: len([e for e in site.events("serve") if e["event"] == "run_done"]) == count, ""
    )
    return model_file.read(Path(files()[-1])).model


def content(model: Model) -> dict[str, bytes]:
    return {name: term.tobytes() for name, term in model.parameters.items()}


def payload_of(site: Site, device: str) -> bytes:
    database = sqlite3.connect(site.folder / "journal.sqlite")
    query = "SELECT body FROM payload JOIN contribution ON id = contribution WHERE device = ?"
    (body,) = database.execute(f"{query} AND round = 1", (device,)).fetchone()
    database.close()
    return bytes(body)


def bytes_on_disk(site: Site) -> bytes:
    return b"".join(path.read_bytes() for path in site.folder.glob("journal.sqlite*"))


@pytest.mark.parametrize("serving", [False, True], ids=["stopped", "serving"])
def test_a_fleet_that_forgets_a_device_ends_with_the_model_of_one_that_never_had_it(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress, serving: bool
) -> None:
    (tmp_path / "never").mkdir()
    with a_site(tmp_path / "never", random_bundle, mosquitto, NORTH, SOUTH) as never:
        write_fleet(never, 2)
        process = serve(never, "--once")
        start_agents(never, NORTH, SOUTH)
        expected = ends(never, process)
    with a_site(tmp_path, random_bundle, mosquitto, NORTH, SOUTH, HARBOUR) as site:
        path = write_fleet(site, 3)
        process = serve(site, *(() if serving else ("--once",)))
        start_agents(site, NORTH, SOUTH, HARBOUR)
        before = written(site, process, 1)
        assert content(before) != content(expected)
        body = payload_of(site, HARBOUR)
        sample = body[len(body) // 2 :][:64]
        assert sample in bytes_on_disk(site)
        said = run("forget", path, HARBOUR)
        assert said.returncode == 0, said.stderr
        assert "the devices vote again" in said.stdout
        assert sample not in bytes_on_disk(site)
        if not serving:
            assert list((site.folder / "models").iterdir()) == []
            write_fleet(site, 2)
            process = serve(site, "--once")
        assert content(written(site, process, 2)) == content(expected)
        refused = [e for e in site.events("serve") if e["event"] == "device_refused"]
        assert {e["device"] for e in refused} == {HARBOUR}
        assert "fedclip-edge forget" in refused[0]["reason"]
        again = run("forget", path, HARBOUR, "--json")
        assert json.loads(again.stdout)["contributions"] == 0


def test_a_device_that_is_away_counts_with_its_last_contribution(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    with a_site(tmp_path, random_bundle, mosquitto, NORTH, SOUTH, HARBOUR) as site:
        path = write_fleet(site, 3)
        text = path.read_text().replace("[plan]\n", '[plan]\nvote = "off"\n')
        path.write_text(text)
        process = serve(site, "--once")
        *_, harbour = start_agents(site, NORTH, SOUTH, HARBOUR)
        of_all = ends(site, process)
        harbour.terminate()
        harbour.wait()
        path.write_text(text.replace("devices = 3", 'devices = 2\nabsent = "last"'))
        assert content(ends(site, serve(site, "--once"))) == content(of_all)
        (counted,) = (e for e in site.events("serve") if e["event"] == "last_counted")
        assert counted["absent"] == HARBOUR
        # Without `absent`, and after `forget`, it does not count.
        path.write_text(text.replace("devices = 3", "devices = 2"))
        of_two = ends(site, serve(site, "--once"))
        assert content(of_two) != content(of_all)
        path.write_text(text.replace("devices = 3", 'devices = 2\nabsent = "last"'))
        assert content(ends(site, serve(site, "--once"))) == content(of_all)
        said = run("forget", path, HARBOUR)
        assert said.returncode == 0, said.stderr
        newest = max((site.folder / "models").iterdir(), key=lambda file: file.stat().st_mtime_ns)
        assert content(model_file.read(newest).model) == content(of_two), "computed at once"
        assert content(ends(site, serve(site, "--once"))) == content(of_two)


BALLAST, MEGABYTE = 100, 2**20


def fill(journal: Path) -> None:
    """Give the journal an older run with 100 MB of sums of a device that is not forgotten."""
    with contextlib.closing(sqlite3.connect(journal)) as database, database:
        columns = "plan, encoder_id, classes_digest, state, started_at, started_by, started_from"
        database.execute(
            f"INSERT INTO run (rowid, id, {columns}) SELECT 0, 'run-0', {columns} FROM run"  # noqa: S608
        )
        database.execute(
            "INSERT INTO model SELECT 'run-0', 0, sha256, body, server_state, master, rest_sha256 "
            "FROM model"
        )
        for number in range(BALLAST):
            added = database.execute(
                "INSERT INTO contribution VALUES (NULL, 'run-0', 1, ?, ?, ?, 0.0, 1)",
                (f"old-{number}", "0" * 64, MEGABYTE),
            )
            database.execute(
                "INSERT INTO payload VALUES (?, randomblob(?))", (added.lastrowid, MEGABYTE)
            )
            database.execute(
                "INSERT INTO last_contribution SELECT ?, encoder_id, classes_digest, ? FROM run "
                "WHERE id = 'run-0'",
                (f"old-{number}", added.lastrowid),
            )


def written_bytes(process: subprocess.Popen[bytes]) -> int:
    """Bytes that a process has given to the kernel to write so far (proc(5))."""
    lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


def test_status_answers_and_a_run_goes_on_while_a_device_is_forgotten_in_a_large_journal(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    with a_site(tmp_path, random_bundle, mosquitto, NORTH, SOUTH, HARBOUR) as site:
        path = write_fleet(site, 3)
        process = serve(site, "--once")
        start_agents(site, NORTH, SOUTH, HARBOUR)
        ends(site, process)
        journal = site.folder / "journal.sqlite"
        fill(journal)
        body = payload_of(site, HARBOUR)
        sample = body[len(body) // 2 :][:64]
        process = serve(site)
        wait_until(lambda: control.is_served(control.socket_path(journal)), "the socket")
        wait_until(
            lambda: json.loads(run("status", path, "--json").stdout)["counts"]["online"] == 3, ""
        )
        before, answers_s = written_bytes(process), []
        with started("forget", path, HARBOUR) as forgets:
            while forgets.poll() is None:
                asked = time.monotonic()
                control.ask(control.socket_path(journal), "status")
                answers_s.append(time.monotonic() - asked)
            assert forgets.stdout is not None
            said = forgets.stdout.read()
        assert forgets.returncode == 0, said
        assert "the devices vote again" in said
        assert "until `serve` is started again" in said
        assert max(answers_s) < 1.0, answers_s
        # A file of 100 MB that is rewritten is written two times, with the write-ahead log.
        assert written_bytes(process) - before < 20 * MEGABYTE
        assert sample not in bytes_on_disk(site)
        written(site, process, 2)  # the vote without the device
        process.terminate()
        process.wait(DEADLINE_S)
        again = serve(site)
        wait_until(lambda: control.is_served(control.socket_path(journal)), "the socket", 60)
        assert [e["event"] for e in site.events("serve")].count("journal_rewritten") == 1
        again.terminate()
        again.wait(DEADLINE_S)
