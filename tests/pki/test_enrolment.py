"""The operator's folder: created whole and private; devices are enrolled, renewed and revoked."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import system
from cryptography import x509
from signing_request import request

from fedclip_edge.config.agent import load_agent
from fedclip_edge.errors import BrokerError, ConfigError
from fedclip_edge.pki import authority, enrolment, mosquitto, registry
from fedclip_edge.pki.box import Box
from fedclip_edge.pki.bundle_signature import load_export_key
from fedclip_edge.pki.mosquitto import access_list
from fedclip_edge.pki.site import Folder, create_site
from fedclip_edge.protocol import signing


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A new operator's folder; archives go next to it, and `true` replaces the broker's reload."""
    monkeypatch.chdir(tmp_path)
    return create_site(tmp_path / "site", ["edge.example"], fleet="lab", reload="true")


def unpacked(archive: Path) -> Path:
    folder = archive.with_suffix("")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def revoked_serials(site: Folder) -> set[str]:
    """The serials on the revocation list, without the probe (revocation.py)."""
    pem = (site.broker / "crl.pem").read_bytes()
    listed = {f"{entry.serial_number:x}" for entry in x509.load_pem_x509_crl(pem)}
    devices = registry.read(site.registry).devices.values()
    known = {serial for device in devices for serial in (*device.serials, *device.replaced)}
    assert len(listed - known) <= 1
    return listed & known


def test_private_keys_are_their_owners_alone_and_the_rest_can_be_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        site = create_site(tmp_path / "site", ["h"], fleet="lab")
        archive = enrolment.enroll(site, "cam-01", out=tmp_path / "cam-01.tar")
    finally:
        os.umask(before)
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        private = path.suffix in (".key", ".tar")
        is_brokers = path == site.broker / "broker.key"  # mosquitto reads it as another user
        expected = (0o600, 0o640) if is_brokers else (0o600,)
        assert (stat.S_IMODE(path.stat().st_mode) in expected) == private, path
    with tarfile.open(archive) as tar:
        modes = {entry.name: entry.mode for entry in tar}
    assert modes.pop("device.key") == 0o600
    assert set(modes.values()) == {0o644}


def test_a_folder_that_is_there_stays_as_it_is(site: Folder) -> None:
    before = {p: p.read_bytes() for p in site.path.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="already exists and was not changed"):
        create_site(site.path, ["edge.example"], fleet="lab")
    assert {p: p.read_bytes() for p in site.path.rglob("*") if p.is_file()} == before
    assert [p.name for p in site.path.parent.iterdir()] == [
        "site"
    ]  # no half-written folder next to it


def test_an_init_that_cannot_be_leaves_nothing(tmp_path: Path) -> None:
    for hosts, fleet in ((["a b"], "lab"), (["edge"], "LAB")):
        with pytest.raises(ConfigError):
            create_site(tmp_path / "site", hosts, fleet=fleet)
    assert list(tmp_path.iterdir()) == []


def test_the_brokers_files_are_where_its_settings_say(site: Folder, tmp_path: Path) -> None:
    written = (site.broker / "mosquitto.conf").read_text()
    assert written == mosquitto.settings("lab", site.broker)
    for line in written.splitlines():
        if (path := Path(line.rpartition(" ")[2])).is_absolute():
            assert path.is_file(), path
    assert (site.broker / "fleet.acl").read_text() == access_list("lab")
    away = create_site(tmp_path / "away", ["h"], fleet="lab", broker_home=mosquitto.HOME)
    assert (away.broker / "mosquitto.conf").read_text() == mosquitto.settings("lab")


def test_the_brokers_limits_grow_with_the_fleet(tmp_path: Path) -> None:
    limits = []
    for devices in (1, 100, 2000):
        site = create_site(tmp_path / str(devices), ["h"], fleet="lab", devices=devices)
        text = (site.broker / "mosquitto.conf").read_text()
        assert f"for a fleet of {devices} devices" in text
        words = [line.split() for line in text.splitlines()]
        values = {entry[0]: int(entry[1]) for entry in words if entry and entry[-1].isdigit()}
        names = ("max_queued_messages", "max_connections", "memory_limit")
        limits.append([values[name] for name in names])
        assert values["max_connections"] >= 2 * devices + 1
        assert values["memory_limit"] > values["max_queued_bytes"]
    for column in zip(*limits, strict=True):
        assert len(set(column)) == 3
        assert list(column) == sorted(column)


def test_an_archive_is_all_that_a_device_needs(site: Folder) -> None:
    folder = unpacked(enrolment.enroll(site, "cam-01"))
    config = load_agent(folder / "agent.toml")
    enrolled = registry.read(site.registry)
    assert (config.id, config.fleet, config.broker.host) == ("cam-01", "lab", "edge.example")
    assert config.broker.port == mosquitto.PORT
    for path in (config.broker.ca, config.broker.certificate, config.broker.key):
        assert path is not None
        assert path.is_file()
    assert config.broker.key is not None
    me = signing.load(config.broker.key)
    assert me.key == enrolled.devices["cam-01"].key
    assert enrolled.refusal("cam-01", me.key) is None
    coordinator = signing.load(site.coordinator / "coordinator.key")
    assert config.coordinator_key == coordinator.key == enrolled.coordinator


def test_with_a_request_the_key_stays_on_the_box(site: Folder) -> None:
    key = authority.new_key()
    folder = unpacked(enrolment.enroll(site, request=request("cam-01", key)))
    assert sorted(p.name for p in folder.iterdir()) == ["agent.toml", "ca.crt", "device.crt"]
    public = authority.public_hex(key.public_key())
    assert registry.read(site.registry).devices["cam-01"].key == public


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_request_that_the_help_shows_is_taken(site: Folder, tmp_path: Path) -> None:
    said = system.run("enroll", "--help").stdout.replace("\\\n", " ")  # continued lines
    for line in said.splitlines():
        if line.strip().startswith("openssl "):
            subprocess.run(line.split(), check=True, capture_output=True, timeout=system.DEADLINE_S)
    assert system.run("enroll", "--csr", "cam-01.csr").returncode == 0
    assert signing.load(tmp_path / "device.key").key == (
        registry.read(site.registry).devices["cam-01"].key
    )


def test_ids_and_keys_that_cannot_be_had(site: Folder) -> None:
    key = authority.new_key()
    enrolment.enroll(site, request=request("cam-01", key))
    enrolment.enroll(site, "gone")
    enrolment.revoke(site, "gone")
    before = site.registry.read_bytes()
    for name, csr, said in (
        ("coordinator", None, "reserved"),
        ("Cam", None, "is not an id"),
        ("../x", None, "is not an id"),
        ("", None, "is not an id"),
        ("cam-01", None, r"already enrolled; .* renew cam-01`, or, .* enroll --again cam-01`"),
        ("gone", None, "was revoked"),
        ("cam-02", request("cam-03"), "is for 'cam-03', not for 'cam-02'"),
        ("", request("cam-02", key), "key already belongs to cam-01"),
        ("", request("coordinator"), "reserved"),
    ):
        with pytest.raises(ConfigError, match=said):
            enrolment.enroll(site, name, request=csr)
    assert site.registry.read_bytes() == before
    assert {p.name for p in Path().iterdir()} == {"site", "cam-01.tar", "gone.tar"}


def test_an_archive_is_not_overwritten(site: Folder) -> None:
    Path("cam-01.tar").write_text("mine")
    with pytest.raises(ConfigError, match="already exists"):
        enrolment.enroll(site, "cam-01")
    assert Path("cam-01.tar").read_text() == "mine"
    assert registry.read(site.registry).devices == {}


def test_a_renewed_certificate_is_of_the_same_key(site: Folder) -> None:
    folder = unpacked(enrolment.enroll(site, "cam-01", days=10))
    before = registry.read(site.registry).devices["cam-01"]
    fresh = x509.load_pem_x509_certificate(enrolment.renew(site, "cam-01", days=20).read_bytes())
    old = x509.load_pem_x509_certificate((folder / "device.crt").read_bytes())
    assert fresh.public_key() == old.public_key()
    assert fresh.subject == old.subject
    assert fresh.not_valid_after_utc > old.not_valid_after_utc
    after = registry.read(site.registry).devices["cam-01"]
    assert after.key == before.key
    assert after.serials == (*before.serials, f"{fresh.serial_number:x}")
    assert after.expires == fresh.not_valid_after_utc.date().isoformat()


def test_a_revocation_is_of_every_certificate_of_the_device_and_of_no_other(site: Folder) -> None:
    for name in ("cam-01", "cam-02"):
        enrolment.enroll(site, name)
    enrolment.renew(site, "cam-01")
    assert revoked_serials(site) == set()
    enrolment.revoke(site, "cam-01")
    enrolled = registry.read(site.registry)
    assert enrolled.revoked == ("cam-01",)
    assert revoked_serials(site) == set(enrolled.devices["cam-01"].serials)
    assert (site.broker / "fleet.acl").read_text() == access_list("lab", ["cam-01"])
    enrolment.revoke(site, "cam-02")
    assert len(revoked_serials(site)) == 3
    with pytest.raises(ConfigError, match="cam-01 was revoked"):
        enrolment.renew(site, "cam-01")
    for change in (enrolment.renew, enrolment.revoke):
        with pytest.raises(ConfigError, match="'cam-03' is not enrolled in the fleet"):
            change(site, "cam-03")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("", "no mosquitto on this machine was started with"),
        ("false", "'false' did not reload the broker: it ended with code 1; copy"),
        (
            "cat missing/" + 9 * "broker/" + " zzz" * 99,
            "broker/broker/: .*zzz: No such file .*; copy",
        ),
        ("no-such-program", "'no-such-program' did not reload the broker"),
    ],
)
def test_a_broker_that_was_not_reached_is_told_and_done_again(
    tmp_path: Path, command: str, said: str
) -> None:
    site = create_site(tmp_path / "site", ["h"], fleet="lab", reload=command)
    enrolment.enroll(site, "cam-01", out=tmp_path / "a.tar")
    for _ in range(2):
        with pytest.raises(
            BrokerError, match=f"cam-01 is revoked at the coordinator, but .*{said}"
        ):
            enrolment.revoke(site, "cam-01")
        assert registry.read(site.registry).revoked == ("cam-01",)
        assert len(revoked_serials(site)) == 1


def test_domain_and_pictures_are_in_the_agents_file(site: Folder) -> None:
    for name, domain, pictures in (
        ("cam-01", 'Laderampe "Süd" 😀', "/srv/Bilder äö"),
        ("cam-02", "", "C:\\pictures"),
        ("cam-03", "yard", ""),
    ):
        archive = enrolment.enroll(site, name, domain=domain, pictures=pictures)
        config = load_agent(unpacked(archive) / "agent.toml")
        assert config.domain == domain
        expected = Path(pictures or "/srv/pictures")
        assert config.data.folder in (expected, archive.with_suffix("").absolute() / expected)
        known = registry.read(site.registry).devices[name]
        assert (known.domain, known.pictures) == (domain, pictures)
    for domain, pictures, said in (
        ("x" * 65, "", "domain: expected at most 64"),
        ("a\nb", "", "domain: expected"),
        ("", "a\0b", "pictures: expected the path of a folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            enrolment.enroll(site, "cam-04", domain=domain, pictures=pictures)
    assert "cam-04" not in registry.read(site.registry).devices


def test_again_makes_a_new_key_and_revokes_the_old_one(site: Folder) -> None:
    enrolment.enroll(site, "cam-02")
    enrolment.enroll(site, "cam-01", domain="yard", pictures="/data")
    enrolment.renew(site, "cam-01")
    before = registry.read(site.registry).devices["cam-01"]
    made = enrolment.enroll_again(site, "cam-01", out=Path("again.tar"))
    folder = unpacked(made.archive)
    config = load_agent(folder / "agent.toml")
    assert (config.id, config.domain, config.data.folder) == ("cam-01", "yard", Path("/data"))
    after = registry.read(site.registry).devices["cam-01"]
    assert after.key == signing.load(folder / "device.key").key != before.key
    assert after.replaced == before.serials
    assert not after.revoked
    assert revoked_serials(site) == set(before.serials)
    assert (site.broker / "fleet.acl").read_text() == access_list("lab")  # the id stays allowed
    # Later revocations keep all earlier certificates on the list.
    third = enrolment.enroll_again(
        site, request=request("cam-01"), out=Path("third.tar"), domain="hall"
    )
    assert "device.key" not in {p.name for p in unpacked(third.archive).iterdir()}
    assert registry.read(site.registry).devices["cam-01"].domain == "hall"
    assert revoked_serials(site) == {*before.serials, *after.serials}
    enrolment.revoke(site, "cam-01")
    assert len(revoked_serials(site)) == 4


def test_every_new_archive_has_the_fleets_export_key(site: Folder) -> None:
    """With an id, with a request from the box, from a list, and with a new key."""
    key = authority.new_key()
    boxes = [Box("cam-03"), Box("cam-04", "roof", "/data")]
    archives = [
        enrolment.enroll(site, "cam-01"),
        enrolment.enroll(site, request=request("cam-02", key)),
        *enrolment.enroll_all(site, boxes, out=Path("boxes")).archives,
        enrolment.enroll_again(site, "cam-03", out=Path("again.tar")).archive,
    ]
    export_key = load_export_key(site.export_key).key
    assert registry.read(site.registry).export_key == export_key
    assert len(archives) == 5
    for archive in archives:
        config = load_agent(unpacked(archive) / "agent.toml")
        assert (config.export_key, config.bundle) == (export_key, None)


def test_again_is_only_for_a_device_that_is_enrolled_and_for_a_new_key(site: Folder) -> None:
    key = authority.new_key()
    enrolment.enroll(site, request=request("cam-01", key))
    enrolment.enroll(site, "gone")
    enrolment.revoke(site, "gone")
    before = {p: p.read_bytes() for p in site.path.rglob("*") if p.is_file()}
    for name, csr, said in (
        ("gone", None, "gone was revoked, which is permanent also with --again"),
        ("new", None, "'new' is not enrolled in the fleet 'lab'; .* leave out --again"),
        ("cam-01", request("cam-01", key), "renew its certificate"),
        ("gone", request("cam-01"), "is for 'cam-01', not for 'gone'"),
        ("cam-01", None, "cam-01.tar already exists"),
    ):
        with pytest.raises(ConfigError, match=said):
            enrolment.enroll_again(site, name, request=csr)
    assert {p: p.read_bytes() for p in site.path.rglob("*") if p.is_file()} == before


def test_a_list_of_boxes_is_enrolled_once(site: Folder) -> None:
    boxes = [Box("cam-01", "yard", "/data"), Box("cam-02")]
    done = enrolment.enroll_all(site, boxes, out=Path("boxes"))
    assert done.archives == (Path("boxes/cam-01.tar"), Path("boxes/cam-02.tar"))
    assert load_agent(unpacked(done.archives[0]) / "agent.toml").domain == "yard"
    before = site.registry.read_bytes()
    same = enrolment.enroll_all(site, boxes, out=Path("boxes"))
    assert (same.archives, same.known, same.differing) == ((), ("cam-01", "cam-02"), ())
    assert site.registry.read_bytes() == before
    enrolment.revoke(site, "cam-02")
    more = [Box("cam-01", "hall", "/data"), Box("cam-02"), Box("cam-03")]
    done = enrolment.enroll_all(site, more, out=Path("boxes"))
    assert done.archives == (Path("boxes/cam-03.tar"),)
    assert (done.known, done.differing, done.revoked) == (("cam-01",), ("cam-01",), ("cam-02",))
    assert registry.read(site.registry).devices["cam-01"].domain == "yard"
    for path in done.archives:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_of_a_list_all_boxes_are_enrolled_or_none(
    site: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("cam-02.tar").write_text("mine")
    boxes = [Box(f"cam-{n:02}") for n in range(4)]
    with pytest.raises(ConfigError, match=r"cam-02\.tar is not a folder; .* with --out"):
        enrolment.enroll_all(site, boxes, out=Path("cam-02.tar"))
    with pytest.raises(ConfigError, match=r"cam-02\.tar already exists"):
        enrolment.enroll_all(site, boxes)
    real, renamed = Path.rename, list[Path]()

    def fails(self: Path, target: Path) -> Path:
        if len(renamed) == 3:
            raise OSError(28, "No space left on device")
        renamed.append(target)
        return real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="No space left"):
            enrolment.enroll_all(site, boxes, out=Path("boxes"))
    assert len(renamed) == 3
    assert list(Path("boxes").iterdir()) == []
    assert Path("cam-02.tar").read_text() == "mine"
    assert registry.read(site.registry).devices == {}


@pytest.mark.parametrize("command", ["enroll", "again", "all"])
def test_a_disk_that_is_full_before_the_registry_is_written_leaves_no_archive(
    site: Folder, command: str
) -> None:
    enrolment.enroll(site, "cam-00", out=Path("cam-00-first.tar"))
    known = registry.read(site.registry)
    for number in range(1, 90):
        known = known.with_device(f"cam-{number:02}", known.devices["cam-00"])
    registry.write(site.registry, known)
    before, limits = site.registry.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    commands: dict[str, Callable[[], object]] = {
        "enroll": lambda: enrolment.enroll(site, "cam-90", out=Path("boxes/cam-90.tar")),
        "again": lambda: enrolment.enroll_again(site, "cam-00", out=Path("boxes/cam-00.tar")),
        "all": lambda: enrolment.enroll_all(
            site, [Box("cam-90"), Box("cam-91")], out=Path("boxes")
        ),
    }
    # An archive has less than 20,000 bytes, and this registry has more.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            commands[command]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(site.coordinator)
    assert list(Path("boxes").iterdir()) == []
    assert site.registry.read_bytes() == before


def test_two_commands_at_once_lose_no_device(site: Folder) -> None:
    names = [f"cam-{n}" for n in range(6)]
    enrolled = set()
    with contextlib.ExitStack() as ends:
        running = {
            name: ends.enter_context(system.started("enroll", name, stderr=subprocess.PIPE))
            for name in names
        }
        for name, process in running.items():
            _, said = process.communicate()
            if process.returncode == 0:
                enrolled.add(name)
            else:
                assert "is in use by another process" in said
    assert enrolled
    assert set(registry.read(site.registry).devices) == enrolled


@pytest.mark.one_python
def test_the_commands_say_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = system.run("broker", "init", "--host", "edge.example", "--reload", "true").stdout
    for word in ("ca.key", "mosquitto -c", "fedclip-edge enroll cam-01", "registry =", "key ="):
        assert word in said
    assert "cam-01.tar: unpack it on the box" in system.run("enroll", "cam-01").stdout
    assert "cam-01.crt: copy it to the box" in system.run("renew", "cam-01").stdout
    revoked = system.run("revoke", "cam-01")
    assert (revoked.returncode, revoked.stdout.splitlines()[0]) == (0, "cam-01 is revoked")
    assert "broker       not checked: no MQTT broker answers at edge.example:8883" in revoked.stdout
    assert "and logs device_refused" in revoked.stdout
    again = system.run("broker", "init")
    assert (again.returncode, "already exists" in again.stderr) == (10, True)
    nowhere = system.run("enroll", "cam-02", "--site", "elsewhere")
    assert (nowhere.returncode, "`fedclip-edge broker init` creates it" in nowhere.stderr) == (
        10,
        True,
    )
    assert not Path("elsewhere").exists()
    assert system.run("enroll").returncode == 2
    missing = system.run("enroll", "--csr", "none.csr")
    assert (missing.returncode, "none.csr cannot be read" in missing.stderr) == (10, True)


@pytest.mark.one_python
def test_the_commands_for_many_boxes_say_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    system.run("broker", "init", "--host", "localhost", "--reload", "true")
    alone = system.run("enroll", "cam-00", "--domain", "yard", "--pictures", "/data")
    assert alone.returncode == 0, alone.stderr
    assert 'folder = "/data"' in (unpacked(Path("cam-00.tar")) / "agent.toml").read_text()
    rows = ["id;domain", "cam-00;hall", *(f"cam-{n:02};hall" for n in range(1, 4))]
    Path("boxes.csv").write_text("\n".join(rows))
    said = system.run("enroll", "--from", "boxes.csv", "--out", "boxes")
    assert said.returncode == 0, said.stderr
    assert "boxes/cam-03.tar: unpack it on the box" in said.stdout
    assert "cam-00: domain or pictures differ from those it was enrolled with" in said.stdout
    assert "\n3 enrolled, 1 enrolled before, 0 revoked\n" in said.stdout
    assert "copy" in said.stdout
    assert "site/coordinator/devices.json to it" in said.stdout
    system.run("revoke", "cam-02")
    Path("boxes.csv").write_text("\n".join([*rows, "cam-04;hall"]))
    said = system.run("enroll", "--from", "boxes.csv", "--out", "boxes")
    assert "cam-02: was revoked and is not enrolled again" in said.stdout
    assert "\n1 enrolled, 3 enrolled before, 1 revoked\n" in said.stdout
    before = Path("site/coordinator/devices.json").read_bytes()
    Path("boxes.csv").write_text("\n".join([*rows, "cam-05;hall", "CAM-06;hall"]))
    wrong = system.run("enroll", "--from", "boxes.csv", "--out", "boxes")
    assert (wrong.returncode, wrong.stdout) == (10, "")
    assert "nothing was enrolled. line 7: id 'CAM-06' is not an id" in wrong.stderr
    assert Path("site/coordinator/devices.json").read_bytes() == before
    assert not Path("boxes/cam-05.tar").exists()


@pytest.mark.parametrize(
    "more", [["cam-01"], ["--again"], ["--csr", "x"], ["--domain", "x"], ["--pictures", "x"]]
)
def test_a_list_goes_with_no_option_of_one_box(tmp_path: Path, more: list[str]) -> None:
    said = system.run("enroll", "--from", tmp_path / "boxes.csv", *more)
    assert said.returncode == 2
    assert "--from cannot be used together with" in said.stderr
