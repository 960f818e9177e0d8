"""A new key for the coordinator, in an operator's folder with real files."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from fedclip_edge.errors import BrokerError, ConfigError
from fedclip_edge.pki import enrolment, registry, site
from fedclip_edge.pki.rotation import rotate_coordinator
from fedclip_edge.pki.site import Folder
from fedclip_edge.protocol.hand_over import MAX_HAND_OVERS, newest_key
from fedclip_edge.protocol.signing import load
from fedclip_edge.storage import atomic


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return site.create_site(tmp_path / "site", ["127.0.0.1"], fleet="lab", reload="true")


def serial(folder: Folder) -> str:
    pem = (folder.coordinator / "coordinator.crt").read_bytes()
    return f"{x509.load_pem_x509_certificate(pem).serial_number:x}"


def key(folder: Folder) -> str:
    return load(folder.coordinator / "coordinator.key").key


def revoked(folder: Folder) -> set[str]:
    found = x509.load_pem_x509_crl((folder.broker / "crl.pem").read_bytes())
    return {f"{one.serial_number:x}" for one in found}


def test_the_earlier_key_names_the_new_one_and_is_revoked(folder: Folder) -> None:
    first, certificate = key(folder), serial(folder)
    made = rotate_coordinator(folder)
    known = registry.read(folder.registry)
    assert made.key == key(folder) == known.coordinator != first
    assert newest_key(first, known.hand_overs) == made.key
    assert certificate in revoked(folder)
    assert serial(folder) not in revoked(folder)
    assert ((folder.coordinator / "coordinator.key").stat().st_mode & 0o777) == 0o600
    assert sorted(path.name for path in folder.coordinator.iterdir()) == [
        "ca.crt",
        "coordinator.crt",
        "coordinator.key",
        "devices.json",
    ]
    # A box that was enrolled first, and one that is enrolled now, lead to the same key.
    rotate_coordinator(folder)
    known = registry.read(folder.registry)
    for start in (first, made.key):
        assert newest_key(start, known.hand_overs) == key(folder)
    # Both stay revoked when a later command writes the lists.
    enrolment.enroll(folder, "cam-01", out=folder.path.parent / "cam-01.tar")
    enrolment.revoke(folder, "cam-01")
    assert certificate in revoked(folder)


@pytest.mark.parametrize("fails_at", ["devices.json", "coordinator.crt", "coordinator.key"])
def test_a_command_that_was_interrupted_is_completed_by_the_next(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    first, write = key(folder), atomic.write_file

    def fail(path: Path, data: bytes, *, private: bool = False) -> None:
        if path.name == fails_at:
            raise OSError(28, "No space left on device", str(path))
        write(path, data, private=private)

    monkeypatch.setattr(atomic, "write_file", fail)
    with pytest.raises(OSError, match="No space left"):
        rotate_coordinator(folder)
    monkeypatch.undo()
    announced = registry.read(folder.registry).coordinator
    made = rotate_coordinator(folder)
    known = registry.read(folder.registry)
    assert made.key == key(folder) == known.coordinator
    if fails_at != "devices.json":
        assert made.key == announced
    assert len(known.hand_overs) == 1
    assert newest_key(first, known.hand_overs) == made.key
    assert not (folder.coordinator / "next.key").exists()


def test_a_broker_that_cannot_be_told_is_reported_and_told_the_next_time(tmp_path: Path) -> None:
    folder = site.create_site(tmp_path / "site", ["127.0.0.1"], fleet="lab", reload="false")
    with pytest.raises(BrokerError, match="the coordinator has a new key, but not yet at the br"):
        rotate_coordinator(folder)
    assert key(folder) == registry.read(folder.registry).coordinator


def test_a_key_of_another_folder_is_refused(folder: Folder, tmp_path: Path) -> None:
    other = site.create_site(tmp_path / "other", ["127.0.0.1"], fleet="lab")
    pem = (other.coordinator / "coordinator.key").read_bytes()
    (folder.coordinator / "coordinator.key").write_bytes(pem)
    before = folder.registry.read_bytes()
    with pytest.raises(ConfigError, match="is not the key that the registry names"):
        rotate_coordinator(folder)
    assert folder.registry.read_bytes() == before


def test_there_is_a_largest_number_of_keys(folder: Folder) -> None:
    for _ in range(MAX_HAND_OVERS):
        rotate_coordinator(folder)
    with pytest.raises(ConfigError, match=f"was replaced {MAX_HAND_OVERS} times"):
        rotate_coordinator(folder)
