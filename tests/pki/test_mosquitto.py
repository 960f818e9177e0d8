"""A real mosquitto with the files of `broker init`: who may read them, and what a reload does."""

from __future__ import annotations

import grp
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import brokers
import pytest
import system
from brokers import MOSQUITTO, free_port, wait_until_served
from secured import Secured
from system import wait_until

from fedclip_edge.cli.broker import _how_to_run
from fedclip_edge.config.agent import load_agent
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import RefusedError
from fedclip_edge.pki import mosquitto, site
from fedclip_edge.transport import tls

pytestmark = pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")
LOOKS_S = 3.0


def daemon_group() -> int | None:
    try:
        return grp.getgrnam("mosquitto").gr_gid
    except KeyError:
        return None


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or daemon_group() is None,
    reason="only root can start mosquitto as the user mosquitto",
)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp(prefix="fedclip-edge-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    with Secured(tmp_path) as made:
        yield made


def is_revoked(address: BrokerAddress) -> bool:
    try:
        tls.examine(address, LOOKS_S)
    except RefusedError as error:
        return "revoked" in str(error)
    return False


@pytest.mark.one_python
@needs_root
def test_started_by_root_mosquitto_can_read_its_files_now_and_after_a_revocation(
    reachable: Path,
) -> None:
    port, before = free_port(), os.umask(0o077)  # the strictest usual setting
    try:
        said = system.run(
            "broker", "init", reachable / "site", "--host", "127.0.0.1", "--port", str(port)
        )
        assert said.returncode == 0, said.stderr
        settings = reachable / "site/broker/mosquitto.conf"
        assert f"run the broker  mosquitto -c {settings}\nadd a device" in said.stdout
        process = brokers.start(["-c", settings], reachable / "log")
        try:
            assert wait_until_served(process, port), (reachable / "log").read_text()
            status = system.of_process(process.pid, "status")
            assert "\nUid:\t0\t" not in status  # it is not root any more
            boxes = {}
            for name in ("cam-01", "cam-02"):
                archive = reachable / f"{name}.tar"
                system.run("enroll", name, "--site", reachable / "site", "--out", archive)
                with tarfile.open(archive) as tar:
                    tar.extractall(reachable / name, filter="data")
                boxes[name] = load_agent(reachable / name / "agent.toml").broker
            for _ in range(2):  # the second list replaces one that `revoke` wrote
                said = system.run("revoke", "cam-01", "--site", reachable / "site")
                assert said.returncode == 0, said.stderr
                assert f"127.0.0.1:{port} refuses its certificates from now on (checked)" in (
                    said.stdout
                )
            wait_until(lambda: is_revoked(boxes["cam-01"]), "the broker to refuse it")
            assert not is_revoked(boxes["cam-02"])
            assert "Permission denied" not in (reachable / "log").read_text()
        finally:
            brokers.stop(process)
    finally:
        os.umask(before)
    others = [p for p in (reachable / "site").rglob("*") if p.stat().st_mode & 0o007]
    assert others == []
    assert stat.S_IMODE((reachable / "site/ca.key").stat().st_mode) == 0o600


@needs_root
def test_a_folder_that_mosquitto_cannot_enter_is_named(reachable: Path) -> None:
    (reachable / "private").mkdir(mode=0o700)
    said = system.run("broker", "init", reachable / "private/site", "--host", "h")
    assert said.returncode == 0
    assert "as root this fails: mosquitto changes to the user mosquitto" in said.stdout
    assert f"{reachable}/private. Start it as another user" in said.stdout


def test_the_lines_that_let_mosquitto_read_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    made = site.create_site(tmp_path / "site", ["h"], fleet="lab")
    assert mosquitto.closed_to_daemon(made.broker) is None  # only root can tell
    assert (made.broker / "broker.key").stat().st_mode & 0o077 == 0
    here = _how_to_run(made.broker, None).splitlines()
    assert here[0] == f"run the broker  mosquitto -c {made.broker}/mosquitto.conf"
    assert here[1].startswith("as root, first  chgrp -R mosquitto ")
    there = _how_to_run(made.broker, Path("/etc/mosquitto/fleet")).splitlines()
    assert there[-1] == "run the broker  mosquitto -c /etc/mosquitto/fleet/mosquitto.conf"
    assert str(made.broker) in there[0]
    assert not any(str(made.broker) in line for line in there[1:])


@needs_root
def test_the_printed_lines_do_let_mosquitto_read(
    reachable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder made by another user on another machine, copied to the broker's host."""
    port, home = free_port(), reachable / "home"
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: 1000)
        made = site.create_site(
            reachable / "site", ["127.0.0.1"], fleet="lab", port=port, broker_home=home
        )
        lines = _how_to_run(made.broker, home).splitlines()
    commands = [line.strip() for line in lines[1:-1]]
    assert len(commands) == 3
    for command in commands:
        subprocess.run(command.split(), check=True, cwd=made.path, timeout=system.DEADLINE_S)
    run = lines[-1].removeprefix("run the broker  mosquitto ").split()
    process = brokers.start(run, reachable / "log")
    try:
        assert wait_until_served(process, port), (reachable / "log").read_text()
    finally:
        brokers.stop(process)


def test_a_revocation_that_the_broker_did_not_read_is_not_called_done(secured: Secured) -> None:
    box = secured.box("cam-01")
    secured.start()
    assert secured.process is not None
    path = secured.site.registry
    path.write_text(path.read_text().replace('"reload": ""', '"reload": "true"'))
    said = system.run("revoke", "cam-01", "--site", secured.site.path)
    where = f"127.0.0.1:{secured.port}"
    assert (said.returncode, said.stdout) == (16, "")
    assert f"not yet at the broker: {where} still accepts certificates" in said.stderr
    assert "sudo systemctl reload mosquitto" in said.stderr
    os.kill(secured.process.pid, signal.SIGHUP)
    wait_until(lambda: is_revoked(box), "the broker to read its lists")


def test_a_broker_that_cannot_be_asked_is_not_called_checked(secured: Secured) -> None:
    secured.box("cam-01")
    path = secured.site.registry
    path.write_text(path.read_text().replace('"reload": ""', '"reload": "true"'))
    said = system.run("revoke", "cam-01", "--site", secured.site.path)
    assert said.returncode == 0
    assert f"not checked: no MQTT broker answers at 127.0.0.1:{secured.port}" in said.stdout
    assert "(checked)" not in said.stdout
