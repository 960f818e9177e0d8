"""Backups of a coordinator, with real files."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import system

from fedclip_edge.config.fleet import FleetConfig, load_fleet
from fedclip_edge.coordinator.backup import make_backup
from fedclip_edge.coordinator.bundle_choice import (
    choose_bundle,
    publish_classes,
    published_folder,
)
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.restore import restore_backup
from fedclip_edge.coordinator.run_state import stored_model
from fedclip_edge.errors import ConfigError, JournalError
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.pki import enrolment, registry, site
from fedclip_edge.pki.bundle_signature import sign_bundle
from fedclip_edge.protocol.signing import create_identity, load, load_or_create
from fedclip_edge.records import ClassTexts, Plan
from fedclip_edge.vision.bundle import Bundle, read_bundle, replace_classes, write_bundle

PLAN = Plan("fedclip", rounds=3, vote="off", options={"lr": 0.01, "batch_size": 8})
EXPORTER = create_identity()


def begin(path: Path, bundle: Bundle) -> Journal:
    journal = open_journal(path)
    run = Run("run-1", PLAN, bundle.manifest.encoder_id, bundle.classes.digest)
    initial = Schedule(PLAN, bundle.classes, bundle.manifest.dim).initial()
    journal.runs.add(run, stored_model(initial, {}, PLAN))
    journal.next_epoch(above=41)
    return journal


@pytest.fixture
def plain(tmp_path: Path, random_bundle: Bundle) -> Path:
    """fleet.toml of a fleet without enrolment, with a journal."""
    folder = tmp_path / "plain"
    folder.mkdir()
    path = folder / "fleet.toml"
    path.write_text(f'fleet = "lab"  # ours\nbundle = "{random_bundle.folder}"\n')
    begin(folder / "journal.sqlite", random_bundle).close()
    load_or_create(folder / "journal.key")
    (folder / "models").mkdir()
    (folder / "models" / "run-0.safetensors").write_bytes(b"a model")
    return path


@pytest.fixture
def enrolled(tmp_path: Path, random_bundle: Bundle) -> Path:
    """fleet.toml of a fleet with the operator's folder, and paths in many forms."""
    made = site.create_site(tmp_path / "site", ["127.0.0.1"], fleet="lab")
    enrolment.enroll(made, "cam-01", out=made.path / "cam-01.tar")
    (tmp_path / "far").mkdir()
    begin(tmp_path / "far" / "runs.db", random_bundle).close()
    path = tmp_path / "fleet.toml"
    path.write_text(
        f"# the lab's fleet\nfleet = \"lab\"\nbundle = '{random_bundle.folder}'\n"
        f'journal = "{tmp_path}/far/runs.db" # on the second disk\n'
        'registry = "site/coordinator/devices.json"\n\n[broker]\nhost = "broker.example"\n'
        "ca = 'site/coordinator/ca.crt'\n"
        'certificate="site/coordinator/coordinator.crt"\n'
        f'  key = "{tmp_path}/site/coordinator/coordinator.key"\n'
        '[trainer]\nconfig = "judge/agent.toml"\n'
    )
    return path


def test_a_backup_of_a_plain_fleet_comes_back(plain: Path, tmp_path: Path) -> None:
    made = make_backup(plain, tmp_path / "b.tar")
    assert ((tmp_path / "b.tar").stat().st_mode & 0o777) == 0o600
    assert set(made.files) == {
        "fleet.toml",
        "journal.sqlite",
        "journal.key",
        "models/run-0.safetensors",
    }
    assert (made.run, made.closed, made.rounds) == ("run-1", 0, 3)
    key = load_or_create(plain.parent / "journal.key").key
    text = plain.read_text()
    shutil.rmtree(plain.parent)
    folder = tmp_path / "back"
    assert restore_backup(tmp_path / "b.tar", folder) == made
    assert (folder / "fleet.toml").read_text() == text
    assert (folder / "models" / "run-0.safetensors").read_bytes() == b"a model"
    assert ((folder / "journal.key").stat().st_mode & 0o777) == 0o600
    assert load_or_create(folder / "journal.key").key == key
    config = load_fleet(folder / "fleet.toml")
    assert config.journal == folder / "journal.sqlite"
    with contextlib.closing(open_journal(config.journal)) as journal:
        journal.check()
        assert journal.epoch == 42
        run = journal.runs.unfinished()
        assert run is not None
        assert journal.rounds.newest_model(run.id).round == 0


def test_the_operators_folder_comes_back_and_works_elsewhere(
    enrolled: Path, tmp_path: Path
) -> None:
    before = load_fleet(enrolled)
    made = make_backup(enrolled, tmp_path / "b.tar")
    assert made.site == str(tmp_path / "site")
    assert not any(name.endswith((".tar", ".lock")) for name in made.files)  # cam-01's archive
    folder = tmp_path / "new" / "place"
    restore_backup(tmp_path / "b.tar", folder)
    after = load_fleet(folder / "fleet.toml")
    assert after.registry == folder / "site" / "coordinator" / "devices.json"
    assert after.broker.key == folder / "site" / "coordinator" / "coordinator.key"
    assert after.broker.ca == folder / "site" / "coordinator" / "ca.crt"
    assert after.journal == folder / "journal.sqlite"
    assert (after.bundle, after.trainer) == (before.bundle, before.trainer)
    assert after.broker.key is not None
    assert load(after.broker.key).key == registry.read(after.registry).coordinator
    text = (folder / "fleet.toml").read_text()
    for comment in ("# the lab's fleet", "# on the second disk"):
        assert comment in text
    # Its authority enrols further devices, and its broker finds its files.
    back = site.Folder(folder / "site")
    enrolment.enroll(back, "cam-02", out=tmp_path / "cam-02.tar")
    assert set(registry.read(back.registry).devices) == {"cam-01", "cam-02"}
    settings = (back.broker / "mosquitto.conf").read_text()
    assert f"cafile {folder}/site/broker/ca.crt" in settings
    assert f"{tmp_path}/site/" not in settings
    for name in ("ca.key", "broker/broker.key", "coordinator/coordinator.key"):
        old, new = tmp_path / "site" / name, folder / "site" / name
        assert new.read_bytes() == old.read_bytes()
        assert new.stat().st_mode == old.stat().st_mode


def test_a_copy_of_the_coordinators_folder_alone_has_no_authority(
    enrolled: Path, tmp_path: Path
) -> None:
    (tmp_path / "site" / "ca.key").unlink()
    made = make_backup(enrolled, tmp_path / "b.tar")
    assert made.site == ""
    assert {name for name in made.files if name.startswith("coordinator/")} == {
        f"coordinator/{name}"
        for name in ("ca.crt", "coordinator.crt", "coordinator.key", "devices.json")
    }
    restore_backup(tmp_path / "b.tar", tmp_path / "new")
    config = load_fleet(tmp_path / "new" / "fleet.toml")
    assert config.registry == tmp_path / "new" / "coordinator" / "devices.json"
    assert registry.read(config.registry).fleet == "lab"


def test_a_journal_that_is_being_written_is_copied_in_one_state(
    plain: Path, tmp_path: Path
) -> None:
    path = plain.parent / "journal.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE epoch SET value = 77")
        make_backup(plain, tmp_path / "b.tar")  # neither waits nor sees half a transaction
        other.rollback()
    restore_backup(tmp_path / "b.tar", tmp_path / "new")
    with contextlib.closing(open_journal(tmp_path / "new" / "journal.sqlite")) as journal:
        assert journal.epoch == 42


def test_an_earlier_backup_is_replaced_and_nothing_else(plain: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.tar"
    first = make_backup(plain, target)
    assert make_backup(plain, target).files.keys() == first.files.keys()
    text = plain.read_text()
    for wrong in (plain, plain.parent / "journal.sqlite", plain.parent):
        with pytest.raises(ConfigError, match="not a backup of the fleet 'lab'; it was not chang"):
            make_backup(plain, wrong)
    assert plain.read_text() == text
    plain.write_text(text.replace('"lab"', '"other"'))
    with pytest.raises(ConfigError, match="not a backup of the fleet 'other'"):
        make_backup(plain, target)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_damaged_journal_gives_no_backup(plain: Path, tmp_path: Path) -> None:
    path = plain.parent / "journal.sqlite"
    data = bytearray(path.read_bytes())
    data[-40_000:-30_000] = bytes(10_000)
    path.write_bytes(data)
    with pytest.raises(JournalError):
        make_backup(plain, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_what_is_missing_is_named(plain: Path, enrolled: Path, tmp_path: Path) -> None:
    (plain.parent / "journal.sqlite").unlink()
    with pytest.raises(ConfigError, match=r"there is no journal .* to back up"):
        make_backup(plain, tmp_path / "b.tar")
    (tmp_path / "site" / "coordinator" / "coordinator.crt").unlink()
    with pytest.raises(ConfigError, match=r"coordinator\.crt cannot be read.*correct its path"):
        make_backup(enrolled, tmp_path / "b.tar")
    assert not (tmp_path / "b.tar").exists()


def test_a_path_in_an_unusual_form_is_refused(plain: Path, tmp_path: Path) -> None:
    registry_ = site.create_site(tmp_path / "s", ["h"], fleet="lab").registry
    plain.write_text(f'{plain.read_text()}registry = """\n{registry_}"""\n')
    with pytest.raises(ConfigError, match="write it on a line of its own: registry = "):
        make_backup(plain, tmp_path / "b.tar")


def test_a_restore_overwrites_nothing(plain: Path, tmp_path: Path) -> None:
    make_backup(plain, tmp_path / "b.tar")
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine")
    for folder in (full, full / "mine"):
        with pytest.raises(ConfigError, match="already exists and was not changed"):
            restore_backup(tmp_path / "b.tar", folder)
    assert [path.name for path in full.iterdir()] == ["mine"]
    empty = tmp_path / "empty"
    empty.mkdir()
    restore_backup(tmp_path / "b.tar", empty)
    assert (empty / "fleet.toml").is_file()


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        found = {one.name: tar.extractfile(one) for one in tar.getmembers()}
        return {name: file.read() for name, file in found.items() if file is not None}


def write(path: Path, contents: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda all_: all_ | {"fleet.toml": b"x = 1"}, "fleet.toml is not the file"),
        (lambda all_: {n: b for n, b in all_.items() if n != "journal.key"}, "journal.key is not"),
        (lambda all_: all_ | {"backup.json": b"{"}, "it has no readable backup.json"),
        (lambda all_: {"else": b""}, "it has no readable backup.json"),
    ],
)
def test_a_damaged_backup_restores_nothing(
    plain: Path, tmp_path: Path, change: object, says: str
) -> None:
    make_backup(plain, tmp_path / "b.tar")
    assert callable(change)
    write(tmp_path / "c.tar", change(members(tmp_path / "b.tar")))
    with pytest.raises(ConfigError, match=f"is not a whole backup: {says}"):
        restore_backup(tmp_path / "c.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("size", [0, 100, 5000, 60_000])
def test_a_cut_backup_restores_nothing(plain: Path, tmp_path: Path, size: int) -> None:
    make_backup(plain, tmp_path / "b.tar")
    (tmp_path / "c.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:size])
    with pytest.raises(ConfigError, match="is not a whole backup"):
        restore_backup(tmp_path / "c.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", ""])
def test_a_backup_writes_nowhere_else(plain: Path, tmp_path: Path, name: str) -> None:
    made = make_backup(plain, tmp_path / "b.tar")
    forged = replace(made, files={"x": ""})
    table = {**vars(forged), "files": {name: "0" * 64}}
    write(tmp_path / "c.tar", {"backup.json": json.dumps(table).encode(), name or "x": b"data"})
    with pytest.raises(ConfigError, match="is not a name in a folder"):
        restore_backup(tmp_path / "c.tar", tmp_path / "inner" / "new")
    assert not (tmp_path / "outside").exists()


def test_a_backup_of_another_version_says_what_to_do(plain: Path, tmp_path: Path) -> None:
    make_backup(plain, tmp_path / "b.tar")
    all_ = members(tmp_path / "b.tar")
    for key, value, says in (
        ("journal", 3, "was written by fedclip-edge .* restore it with that version, finish"),
        ("format", 2, "is a backup of format 2, this version .* reads 1"),
    ):
        table = json.loads(all_["backup.json"]) | {key: value}
        write(tmp_path / "c.tar", all_ | {"backup.json": json.dumps(table).encode()})
        with pytest.raises(ConfigError, match=says):
            restore_backup(tmp_path / "c.tar", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_commands_say_what_is_next(enrolled: Path, tmp_path: Path) -> None:
    said = system.run("backup", enrolled, tmp_path / "b.tar")
    assert said.returncode == 0, said.stderr
    bundle = load_fleet(enrolled).bundle
    assert said.stdout.splitlines()[1:] == [
        "it contains the authority's key: with it, anyone can enroll devices",
        f"not in it: the bundle {bundle}; keep a copy of that folder too",
    ]
    assert said.stdout.startswith(f"wrote {tmp_path}/b.tar: run-1, 0 of 3 rounds closed, ")
    said = system.run("restore", tmp_path / "b.tar", tmp_path / "new")
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    assert lines[0].startswith("restored the fleet lab as of 2"), lines
    assert "replace" in lines[1]
    assert lines[2:] == [f"then   fedclip-edge serve {tmp_path}/new/fleet.toml"]
    again = system.run("restore", tmp_path / "b.tar", tmp_path / "new")
    assert (again.returncode, again.stdout) == (ConfigError.exit_code, "")
    assert "already exists and was not changed; restore into a new folder" in again.stderr


def publish(config: FleetConfig, folder: Path, classes: tuple[str, ...], above: int) -> Bundle:
    """Publish a copy of the fleet's bundle with other classes; return what the next run uses."""
    used = choose_bundle(config, None)
    shutil.copytree(used.folder, folder)
    vectors = used.classes.vectors[:1].repeat(len(classes), axis=0)
    replace_classes(read_bundle(folder), ClassTexts(classes, vectors, 100.0, "a {}"))
    sign_bundle(folder, EXPORTER, above=above)
    publish_classes(config, folder, used, EXPORTER.key)
    return choose_bundle(config, None)


def test_published_classes_come_back_without_the_encoder(
    plain: Path, random_bundle: Bundle, tmp_path: Path
) -> None:
    config = load_fleet(plain)
    first = publish(config, tmp_path / "one", ("circle", "hexagon"), 2**35)
    second = publish(config, tmp_path / "two", ("star", "moon"), 2**36)
    made = make_backup(plain, tmp_path / "b.tar")
    published = sorted(name for name in made.files if name.startswith("journal.bundles/"))
    assert published == [
        f"journal.bundles/{one.folder.name}/{name}"
        for one in (first, second)
        for name in ("classes.safetensors", "manifest.json", "signature.json")
    ]
    shutil.rmtree(plain.parent)
    said = system.run("restore", tmp_path / "b.tar", tmp_path / "back")
    assert said.returncode == 0, said.stderr
    back = load_fleet(tmp_path / "back" / "fleet.toml")
    # A bundle with another encoder in the place of the right one spoils nothing.
    wrong = shutil.copytree(random_bundle.folder, tmp_path / "wrong")
    encoder = random_bundle.encoder_path.read_bytes()
    other = replace(random_bundle.manifest, weights_sha256="1" * 64, files={})
    write_bundle(
        wrong,
        other,
        encoder + b"\x82\x01\x00",  # an empty field, so that the bytes differ
        random_bundle.classes,
        random_bundle.golden(),
        replace_existing=True,
    )
    assert choose_bundle(replace(back, bundle=wrong), None).folder == wrong
    found = choose_bundle(back, None)
    assert found.classes.names == ("star", "moon")
    assert found.folder == published_folder(back.journal) / second.folder.name
    run = Run("run-2", PLAN, first.manifest.encoder_id, first.classes.digest)
    assert choose_bundle(back, run).classes.names == ("circle", "hexagon")


def test_published_classes_in_the_operators_folder_are_in_the_backup_once(
    enrolled: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "site" / "runs.db"
    (tmp_path / "far" / "runs.db").rename(inside)
    enrolled.write_text(enrolled.read_text().replace("/far/", "/site/"))
    publish(load_fleet(enrolled), tmp_path / "one", ("circle", "hexagon"), 2**35)
    made = make_backup(enrolled, tmp_path / "b.tar")
    assert not [name for name in made.files if name.endswith("image_encoder.onnx")]
    assert len([name for name in made.files if name.endswith("classes.safetensors")]) == 1
