"""A new authority for a fleet: both are valid for a time, at a real mosquitto."""

from __future__ import annotations

import contextlib
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import system
from brokers import MOSQUITTO
from cryptography import x509
from secured import Secured

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.errors import ConfigError, RefusedError
from fedclip_edge.pki import authority, enrolment, registry, replacement, rotation, site
from fedclip_edge.pki.relocation import move_broker
from fedclip_edge.pki.site import Folder
from fedclip_edge.storage import atomic
from fedclip_edge.transport import tls

WAIT_S = 1.0  # a broker that sends no alert for so long has accepted the certificate


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = site.create_site(tmp_path / "site", ["127.0.0.1"], fleet="lab", reload="true")
    for name in ("cam-01", "cam-02"):
        enrolment.enroll(made, name, out=tmp_path / f"{name}.tar")
    return made


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[Secured]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed; the test needs a real broker")
    with Secured(tmp_path) as made:
        made.start()
        yield made


def restart(secured: Secured) -> None:
    secured.stop()
    secured.start()


def renewed(secured: Secured, box: BrokerAddress, id: str) -> None:
    """Do for one box what the operator does."""
    assert box.ca is not None
    enrolment.renew(secured.site, id, out=box.certificate)
    shutil.copy(secured.site.path / "ca.crt", box.ca)


def refused(box: BrokerAddress, words: str) -> None:
    with pytest.raises((RefusedError, ConfigError), match=words):
        tls.examine(box, WAIT_S)


def test_boxes_change_one_after_the_other_and_only_the_earlier_files_end(secured: Secured) -> None:
    stays, moves, gone, late = (secured.box(f"cam-0{number}") for number in range(1, 5))
    before = (secured.site.path / "ca.crt").read_bytes()
    server = secured.coordinator
    replacement.begin(secured.site)
    restart(secured)
    new = secured.box("cam-05")
    renewed(secured, moves, "cam-02")
    half = moves.ca
    assert half is not None
    for one in (stays, moves, gone, late, new, server):
        tls.examine(one, WAIT_S)
    # A box that has its new certificate and not yet the authority's, and the other way round.
    half.write_bytes(before)
    tls.examine(moves, WAIT_S)
    shutil.copy(secured.site.path / "ca.crt", half)
    assert late.ca is not None
    shutil.copy(secured.site.path / "ca.crt", late.ca)
    tls.examine(late, WAIT_S)
    # Certificates of either authority can be revoked meanwhile.
    enrolment.revoke(secured.site, "cam-03")
    enrolment.revoke(secured.site, "cam-05")
    system.wait_until(lambda: is_revoked(gone) and is_revoked(new), "the revocations")
    tls.examine(stays, WAIT_S)

    with pytest.raises(ConfigError, match="cam-01, cam-04: no certificate of the new authority"):
        replacement.finish(secured.site)
    enrolment.renew(secured.site, "cam-04", out=late.certificate)
    assert replacement.finish(secured.site, cut_off=True).cut_off == ("cam-01",)
    assert not secured.site.earlier.exists()
    restart(secured)
    for one in (moves, late, server):
        tls.examine(one, WAIT_S)
    refused(stays, "does not show a certificate of the authority in")
    refused(replace(stays, ca=moves.ca), "issued by another authority")
    refused(new, "revoked")


def is_revoked(box: BrokerAddress) -> bool:
    with contextlib.suppress(RefusedError):
        tls.examine(box, WAIT_S)
        return False
    return True


def test_who_has_the_earlier_key_deceives_no_box_that_has_the_new_files(secured: Secured) -> None:
    box = secured.box("cam-01")
    old = site.read_authority(secured.site)
    replacement.begin(secured.site)
    renewed(secured, box, "cam-01")
    key = authority.new_key()
    forged = authority.certify_broker(old, key.public_key(), ["127.0.0.1"]).pem
    (secured.site.broker / "broker.crt").write_bytes(forged)
    (secured.site.broker / "broker.key").write_bytes(authority.private_pem(key))
    restart(secured)
    refused(box, "does not show a certificate of the authority in")


def test_every_other_command_works_in_the_overlap(secured: Secured, tmp_path: Path) -> None:
    """All of them issue certificates that boxes with the earlier files, and others, accept."""
    stays, again = secured.box("cam-01"), secured.box("cam-02")
    replacement.begin(secured.site)
    enrolment.enroll_again(secured.site, "cam-02", out=tmp_path / "again.tar")
    assert registry.read(secured.site.registry).to_renew == ("cam-01",)
    move_broker(secured.site, "localhost", None)
    rotation.rotate_coordinator(secured.site)
    restart(secured)
    tls.examine(secured.coordinator, WAIT_S)
    tls.examine(stays, WAIT_S)
    refused(again, "revoked")


@pytest.mark.parametrize("step", ["begin", "finish"])
@pytest.mark.parametrize(
    "fails_at",
    ["ca.key", "ca.crt", "devices.json", "broker.crt", "crl.pem", "coordinator.crt"],
)
def test_a_step_that_was_interrupted_is_completed_by_the_next(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, step: str, fails_at: str
) -> None:
    if step == "finish":
        replacement.begin(folder)
        for name in ("cam-01", "cam-02"):
            enrolment.renew(folder, name, out=folder.path.parent / f"{name}.crt")
    write = atomic.write_file

    def fail(path: Path, data: bytes, *, private: bool = False) -> None:
        if path.name == fails_at:
            raise OSError(28, "No space left on device", str(path))
        write(path, data, private=private)

    run = getattr(replacement, step)
    monkeypatch.setattr(atomic, "write_file", fail)
    if (step, fails_at) == ("finish", "ca.key"):  # it writes none
        run(folder)
    else:
        with pytest.raises(OSError, match="No space left"):
            run(folder)
        monkeypatch.undo()
        run(folder)
    ca = site.read_authority(folder)
    assert (folder.earlier.exists()) == (step == "begin")
    assert not (folder.path / ".earlier").exists()
    if step == "finish":
        for name in ("broker/ca.crt", "coordinator/ca.crt"):
            assert (folder.path / name).read_bytes() == ca.pem
    else:
        earlier = site.read_earlier_authority(folder)
        assert earlier is not None
        assert (folder.broker / "ca.crt").read_bytes() == ca.pem + earlier.pem
        assert sorted(path.name for path in folder.earlier.iterdir()) == ["ca.crt", "ca.key"]
        assert registry.read(folder.registry).to_renew == ("cam-01", "cam-02")
    assert chain_length(folder) == (2 if step == "begin" else 1)


def chain_length(folder: Folder) -> int:
    return len(x509.load_pem_x509_certificates((folder.broker / "broker.crt").read_bytes()))


def test_python_follows_from_the_earlier_authority_to_the_broker(folder: Folder) -> None:
    """Without a broker: the chain alone."""
    old = site.read_authority(folder)
    replacement.begin(folder)
    trusts = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusts.load_verify_locations(cadata=old.pem.decode())
    shows = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shows.load_cert_chain(folder.broker / "broker.crt", folder.broker / "broker.key")
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusts.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = shows.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for one in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                one.do_handshake()
    found = client.getpeercert()
    assert found is not None
    assert found["subject"] == ((("commonName", "broker"),),)


def test_steps_out_of_order_are_refused(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"there is no new authority in .* to finish with"):
        replacement.finish(folder)
    replacement.begin(folder)
    before = folder.registry.read_bytes()
    with pytest.raises(ConfigError, match="is being replaced already; renew the devices, then"):
        replacement.begin(folder)
    assert folder.registry.read_bytes() == before


def test_the_commands_say_what_is_next(folder: Folder, tmp_path: Path) -> None:
    wrong = system.run("broker", "replace-authority", folder.path, "--cut-off")
    assert wrong.returncode == 2
    assert "--cut-off needs --finish." in wrong.stderr
    said = system.run("broker", "replace-authority", folder.path)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("lab has a new authority; the broker accepts both until --finish")
    assert "run `fedclip-edge renew ID` for each device (there are 2)" in said.stdout
    assert f"fedclip-edge broker replace-authority {folder.path} --finish" in said.stdout
    out = tmp_path / "new.crt"
    said = system.run("renew", "cam-01", "--site", folder.path, "--out", out)
    assert said.stdout == (
        f"{out}: copy it to the box as device.crt, also {folder.path}/ca.crt as ca.crt, and "
        "restart the agent\n"
    )
    said = system.run("broker", "replace-authority", folder.path, "--finish")
    assert said.returncode == ConfigError.exit_code
    assert "cam-02: no certificate of the new authority yet" in said.stderr
    said = system.run("broker", "replace-authority", folder.path, "--finish", "--cut-off")
    assert said.returncode == 0, said.stderr
    assert "the earlier authority of lab is deleted" in said.stdout
    assert said.stdout.endswith("refused then: cam-02\n")
