"""Fixtures for the transport tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from brokers import StartMosquitto
from system import DEADLINE_S

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.pki.mosquitto import access_list


@pytest.fixture
def guarded(start_mosquitto: StartMosquitto, tmp_path: Path) -> BrokerAddress:
    """A broker with passwords and our access list; each user's password is the user's name."""
    for number, user in enumerate(("coordinator", "cam-01", "cam-02", "auditor")):
        new = ["-c"] if number == 0 else []
        command = ["mosquitto_passwd", *new, "-b", str(tmp_path / "passwords"), user, user]
        subprocess.run(command, check=True, capture_output=True, timeout=DEADLINE_S)
    # The auditor may read everything that anybody could retain.
    audit = "\nuser auditor\ntopic readwrite #\n"
    (tmp_path / "acl").write_text(access_list("lab") + audit)
    for name in ("passwords", "acl"):
        (tmp_path / name).chmod(0o600)
    settings = f"password_file {tmp_path}/passwords\nacl_file {tmp_path}/acl"
    return start_mosquitto(settings=settings).address
