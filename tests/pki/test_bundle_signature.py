"""Signatures of bundles: valid for one content and one signer, with serial numbers that grow."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import system

from fedclip_edge.config.agent import load_agent
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.pki import bundle_signature, enrolment, registry
from fedclip_edge.pki.bundle_signature import (
    SIGNATURE,
    load_export_key,
    read_signature,
    serial_in,
    sign_bundle,
)
from fedclip_edge.pki.site import create_site
from fedclip_edge.protocol import signing
from fedclip_edge.records import ClassTexts
from fedclip_edge.vision.bundle import Bundle, read_bundle, replace_classes
from fedclip_edge.vision.manifest import MANIFEST

ME = signing.create_identity()


@pytest.fixture
def folder(tmp_path: Path, random_bundle: Bundle) -> Path:
    shutil.copytree(random_bundle.folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_signature_is_read_back_and_names_its_signer(folder: Path) -> None:
    assert read_signature(folder) is None
    before = int(time.time())
    made = sign_bundle(folder, ME)
    assert read_signature(folder) == made
    assert made.key == ME.key
    assert before <= made.serial <= time.time()
    made.check_signer(ME.key, "here")
    with pytest.raises(BundleError, match=r"here is signed with the key .*, not with the fleet's"):
        made.check_signer("a" * 64, "here")
    read_bundle(folder)  # the bundle may contain it


def test_serial_numbers_grow_also_if_the_clock_is_behind(folder: Path) -> None:
    far = sign_bundle(folder, ME, serial=2**40)
    assert sign_bundle(folder, ME).serial == far.serial + 1
    (folder / SIGNATURE).unlink()
    assert sign_bundle(folder, ME, above=2**41).serial == 2**41 + 1
    with pytest.raises(ConfigError, match="serial: expected 1 to"):
        sign_bundle(folder, ME, serial=0)


def test_other_class_texts_are_no_longer_signed(folder: Path) -> None:
    sign_bundle(folder, ME)
    replace_classes(
        read_bundle(folder), ClassTexts(("a", "b"), np.eye(2, 16, dtype=np.float32), 1.0, "a {}")
    )
    assert read_signature(folder) is None


@pytest.mark.parametrize("field", ["serial", "sizes", "key", "manifest", "signature"])
def test_a_signature_with_another_word_is_refused(folder: Path, field: str) -> None:
    made = sign_bundle(folder, ME)
    other: dict[str, Any] = {
        "serial": made.serial + 1,
        "sizes": {name: size + 1 for name, size in made.sizes.items()},
        "key": signing.create_identity().key,
        "manifest": "a" * 64,
        "signature": "0" * 128,
    }
    forged = replace(made, **{field: other[field]})
    (folder / SIGNATURE).write_bytes(bundle_signature.pack(forged))
    with pytest.raises(BundleError, match=r"signature\.json (is not a valid|signs another)"):
        read_signature(folder)
    assert serial_in(folder) == 0


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"serial": 1}', "{" * 99, "\x00"])
def test_a_damaged_signature_is_an_error_with_the_next_step(folder: Path, text: str) -> None:
    (folder / SIGNATURE).write_text(text)
    with pytest.raises(BundleError, match=r"signature\.json.*sign it with `fedclip-edge bundle"):
        read_signature(folder)


def test_a_manifest_that_was_changed_is_found(folder: Path) -> None:
    sign_bundle(folder, ME)
    table = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**table, "model": "another"}))
    with pytest.raises(BundleError, match=r"signs another manifest\.json"):
        read_signature(folder)


@pytest.mark.one_python
def test_the_operators_key_signs_and_enrolment_pins_it(tmp_path: Path, folder: Path) -> None:
    site = create_site(tmp_path / "site", ["h"], fleet="lab")
    said = system.run("bundle", "sign", folder, "--key", site.export_key)
    assert said.returncode == 0, said.stderr
    signed = read_signature(folder)
    assert signed is not None
    assert signed.key == registry.read(site.registry).export_key
    archive = enrolment.enroll(site, "cam-01", out=tmp_path / "cam-01.tar")
    shutil.unpack_archive(archive, tmp_path / "box", filter="data")
    config = load_agent(tmp_path / "box" / "agent.toml")
    assert (config.export_key, config.bundle) == (signed.key, None)
    shown = system.run("bundle", "verify", folder)
    assert f"export key {signed.key[:16]}, serial {signed.serial}" in shown.stdout
    told = json.loads(system.run("bundle", "verify", folder, "--json").stdout)
    assert (told["signer"], told["serial"]) == (signed.key, signed.serial)


def test_a_key_file_that_is_none_says_which_one_to_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*; name the file export/export\.key"):
        load_export_key(tmp_path / "none.key")
    (tmp_path / "none.key").write_text("no key")
    with pytest.raises(ConfigError, match=r"not a private key in PEM .*export/export\.key"):
        load_export_key(tmp_path / "none.key")


def test_export_signs_a_bundle_with_new_classes_and_says_if_the_signature_is_gone(
    tmp_path: Path, folder: Path
) -> None:
    site = create_site(tmp_path / "site", ["h"], fleet="lab")
    (tmp_path / "new.txt").write_text("cat\ndog\n")
    np.save(tmp_path / "new.npy", np.eye(2, 16, dtype=np.float32))
    words = ("export", "--bundle", folder, "--classes", tmp_path / "new.txt")
    texts = ("--class-texts", tmp_path / "new.npy")
    far = sign_bundle(folder, ME, serial=2**40)
    said = system.run(*words, *texts, "--sign", site.export_key)
    assert said.returncode == 0, said.stderr
    signed = read_signature(folder)
    assert signed is not None
    assert signed.key == registry.read(site.registry).export_key
    assert signed.serial == far.serial + 1
    assert f"serial number {signed.serial}" in said.stdout
    again = system.run(*words, *texts)
    assert "was signed, and is not any more" in again.stdout
    wrong = system.run(*words, *texts, "--sign", tmp_path / "new.txt")
    assert wrong.returncode == ConfigError.exit_code
    assert "export/export.key" in wrong.stderr
