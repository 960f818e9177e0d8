"""A program's certificate and its configuration: both must name the same device and fleet."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
import system

from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import authority, enrolment
from fedclip_edge.pki.own_certificate import check_own_certificate
from fedclip_edge.pki.site import Folder, create_site


def certificate(folder: Path, ca: authority.Authority, name: str) -> Path:
    path = folder / "device.crt"
    path.write_bytes(authority.certify_device(ca, authority.new_key().public_key(), name, 9).pem)
    return path


def test_another_device_and_another_fleet_are_named(tmp_path: Path) -> None:
    path = certificate(tmp_path, authority.create_authority("lab"), "cam-01")
    check_own_certificate(path, "cam-01", "lab")
    for name, fleet, said in (
        ("cam-02", "lab", "was issued to 'cam-01', not to 'cam-02'"),
        ("cam-01", "lap", "was issued for the fleet 'lab', not for 'lap'; correct 'fleet'"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            check_own_certificate(path, name, fleet)
        assert str(path) in str(caught.value)


def test_what_says_nothing_of_a_fleet_is_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = certificate(tmp_path, authority.create_authority(""), "cam-01")
    check_own_certificate(path, "cam-01", "any")
    monkeypatch.setattr(authority, "AUTHORITY_NAME", "Other authority")
    path = certificate(tmp_path, authority.create_authority("lab"), "serial-4711")
    check_own_certificate(path, "cam-01", "any")
    path.write_text("no certificate")
    check_own_certificate(path, "cam-01", "lab")
    check_own_certificate(tmp_path / "none.crt", "cam-01", "lab")
    check_own_certificate(None, "cam-01", "lab")


@pytest.fixture
def site(tmp_path: Path) -> Folder:
    return create_site(tmp_path / "site", ["127.0.0.1"], fleet="lab", reload="true")


def test_an_agent_with_a_wrong_fleet_or_id_ends_before_it_connects(
    site: Folder, tmp_path: Path
) -> None:
    system.run("enroll", "cam-01", "--site", site.path, "--out", tmp_path / "cam-01.tar")
    with tarfile.open(tmp_path / "cam-01.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    path = tmp_path / "agent.toml"
    text = path.read_text()
    for old, new, said in (
        ('fleet = "lab"', 'fleet = "lap"', "was issued for the fleet 'lab', not for 'lap'"),
        ('id = "cam-01"', 'id = "cam-02"', "was issued to 'cam-01', not to 'cam-02'"),
    ):
        path.write_text(re.sub(f"^{old}", new, text, flags=re.MULTILINE))
        ended = system.run("agent", path, "--once")
        assert (ended.returncode, said in ended.stderr) == (10, True), ended.stderr


def test_serve_with_a_wrong_fleet_ends_before_it_connects(site: Folder, tmp_path: Path) -> None:
    here = site.coordinator
    broker = (
        f'[broker]\nca = "{here}/ca.crt"\ncertificate = "{here}/coordinator.crt"\n'
        f'key = "{here}/coordinator.key"\n'
    )
    path = tmp_path / "fleet.toml"
    for settings, said in (
        (f'registry = "{site.registry}"\n', "is the registry of the fleet 'lab', not of 'lap'"),
        (broker, "was issued for the fleet 'lab', not for 'lap'"),
    ):
        path.write_text(f'fleet = "lap"\nbundle = "none"\n{settings}')
        ended = system.run("serve", path)
        assert (ended.returncode, said in ended.stderr) == (10, True), ended.stderr


def test_the_certificates_of_an_enrolment_fit_their_files(site: Folder, tmp_path: Path) -> None:
    enrolment.enroll(site, "cam-01", out=tmp_path / "cam-01.tar")
    path = enrolment.renew(site, "cam-01", out=tmp_path / "device.crt")
    check_own_certificate(path, "cam-01", "lab")
    check_own_certificate(site.coordinator / "coordinator.crt", "coordinator", "lab")
