"""A new address for the broker, in an operator's folder with real files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from cryptography import x509

from fedclip_edge.config.agent import load_agent
from fedclip_edge.errors import ConfigError
from fedclip_edge.pki import enrolment, registry, site
from fedclip_edge.pki.relocation import move_broker
from fedclip_edge.pki.site import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return site.create_site(tmp_path / "site", ["old.example"], fleet="lab")


def names(folder: Folder) -> list[str]:
    pem = (folder.broker / "broker.crt").read_bytes()
    found = x509.load_pem_x509_certificate(pem).extensions
    alternative = found.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in alternative]


def test_files_and_new_boxes_have_the_new_address(folder: Folder, tmp_path: Path) -> None:
    key = (folder.broker / "broker.key").read_bytes()
    move_broker(folder, "new.example", 9883)
    assert names(folder) == ["new.example", "old.example", "localhost", "127.0.0.1"]
    assert (folder.broker / "broker.key").read_bytes() == key
    settings = (folder.broker / "mosquitto.conf").read_text()
    assert settings.count("listener 9883\n") == settings.count("listener") == 1
    known = registry.read(folder.registry)
    assert (known.host, known.port, known.moved) == ("new.example", 9883, True)
    with tarfile.open(enrolment.enroll(folder, "cam-01", out=tmp_path / "cam-01.tar")) as tar:
        tar.extractall(tmp_path / "box", filter="data")
    broker = load_agent(tmp_path / "box" / "agent.toml").broker
    assert (broker.host, broker.port) == ("new.example", 9883)
    # Once more, to an IP address: the port stays.
    assert move_broker(folder, "10.0.0.7", None).port == 9883
    assert names(folder)[:2] == ["10.0.0.7", "new.example"]


def test_a_wrong_address_changes_nothing(folder: Folder) -> None:
    def files() -> dict[Path, bytes]:
        found = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
        return {path: data for path, data in found.items() if path.name != ".lock"}

    before = files()
    with pytest.raises(ConfigError, match=r"is at old\.example:8883 already"):
        move_broker(folder, "old.example", None)
    with pytest.raises(ConfigError):
        move_broker(folder, "no host", None)
    (folder.broker / "broker.crt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not the certificate of a broker"):
        move_broker(folder, "new.example", None)
    (folder.broker / "broker.crt").write_bytes(before[folder.broker / "broker.crt"])
    assert files() == before
