"""Bundles reach the boxes over the broker: real processes, certificates and a real mosquitto."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import system
from brokers import MOSQUITTO
from secured import Secured
from system import Site, wait_until

from fedclip_edge.pki.bundle_signature import load_export_key, sign_bundle
from fedclip_edge.records import ClassTexts
from fedclip_edge.vision.bundle import Bundle, read_bundle, replace_classes

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed"),
    pytest.mark.one_python,
]


@dataclass
class Fleet:
    """An enrolled fleet; its boxes have an archive and a folder of pictures, and no bundle."""

    secured: Secured
    site: Site
    bundle: Path  # the coordinator's

    def sign(self) -> int:
        return sign_bundle(self.bundle, load_export_key(self.secured.site.export_key)).serial

    def write_fleet(self, extra: str = "", devices: int = 1) -> Path:
        here = self.secured.site.coordinator
        path = self.secured.folder / "fleet.toml"
        path.write_text(
            f'fleet = "lab"\nbundle = "{self.bundle}"\nregistry = "{self.secured.site.registry}"\n'
            f"{extra}"
            f'[broker]\nport = {self.secured.port}\nca = "{here}/ca.crt"\n'
            f'certificate = "{here}/coordinator.crt"\nkey = "{here}/coordinator.key"\n'
            f"[rules]\ndevices = {devices}\nquorum = 1.0\ndeadline_s = 60\ngrace_s = 1\n"
            '[plan]\nmethod = "ridge"\nrounds = 1\nvote = "off"\n'
        )
        return path

    def box(self, name: str) -> Path:
        """Unpack an archive and complete its agent.toml with the pictures; return the file."""
        self.secured.box(name)
        folder = self.secured.folder / name
        names = read_bundle(self.bundle).classes.names
        system.write_pictures(folder / "pictures", names, 12, len(name))
        path = folder / "agent.toml"
        text = path.read_text()
        for old, new in (
            ('"/var/lib/fedclip-edge"', '"state"'),
            ('"/srv/pictures"', '"pictures"'),
        ):
            assert old in text
            text = text.replace(old, new)
        assert "\nbundle" not in text
        path.write_text(text)
        return path

    def said(self, log: str, event: str) -> list[dict[str, object]]:
        return [one for one in self.site.events(log) if one["event"] == event]

    def wait_for(self, log: str, event: str, count: int = 1) -> None:
        wait_until(lambda: len(self.said(log, event)) >= count, f"{event} in the log of {log}")


@pytest.fixture
def fleet(tmp_path: Path, random_bundle: Bundle) -> Iterator[Fleet]:
    bundle = tmp_path / "bundle"
    shutil.copytree(random_bundle.folder, bundle)
    with Secured(tmp_path) as secured:
        secured.start()
        with Site(secured.folder, random_bundle, secured.coordinator, "lab") as site:
            yield Fleet(secured, site, bundle)


def with_other_classes(folder: Path, names: tuple[str, ...]) -> None:
    bundle = read_bundle(folder)
    vectors = np.eye(len(names), bundle.manifest.dim, dtype=np.float32)
    replace_classes(bundle, ClassTexts(names, vectors, 100.0, "a {}"))


def test_a_box_with_its_archive_and_a_folder_fetches_the_bundle_and_then_class_texts(
    fleet: Fleet,
) -> None:
    serial = fleet.sign()
    agent = fleet.box("cam-01")
    serve = fleet.site.start("serve", fleet.write_fleet(), "--json", log="serve")
    box = fleet.site.start("agent", agent, "--json", log="cam-01")
    assert serve.wait(system.DEADLINE_S) == 0, fleet.site.text("serve")
    fleet.wait_for("cam-01", "run_done")
    assert fleet.said("serve", "round_closed")
    (fetching,) = fleet.said("cam-01", "bundle_fetching")
    assert fetching["serial"] == serial
    assert "image_encoder.onnx" in str(fetching["files"])
    (switched,) = fleet.said("cam-01", "bundle_switched")
    assert read_bundle(Path(str(switched["folder"]))).classes.digest
    encoded = [one["encoded"] for one in fleet.said("cam-01", "features_ready")]

    # A class more: the next run knows it, and nothing is encoded again.
    names = (*read_bundle(fleet.bundle).classes.names, "hexagon")
    with_other_classes(fleet.bundle, names)
    newer = fleet.sign()
    assert newer > serial
    serve = fleet.site.start("serve", fleet.write_fleet(), "--json", log="serve2")
    assert serve.wait(system.DEADLINE_S) == 0, fleet.site.text("serve2")
    fleet.wait_for("cam-01", "run_done", 2)
    second = fleet.said("cam-01", "bundle_fetching")[1]
    assert (second["serial"], second["files"]) == (newer, "classes.safetensors")
    again = [one["encoded"] for one in fleet.said("cam-01", "features_ready")]
    assert again == [*encoded, 0]
    assert box.poll() is None
    current = Path(str(fleet.said("cam-01", "bundle_switched")[1]["folder"]))
    assert read_bundle(current).classes.names == names


def test_an_older_bundle_and_one_of_another_signer_are_refused_by_name(
    fleet: Fleet, random_bundle: Bundle
) -> None:
    fleet.sign()
    agent = fleet.box("cam-01")
    old = fleet.secured.folder / "old"
    shutil.copytree(fleet.bundle, old)
    with_other_classes(fleet.bundle, ("circle", "square", "triangle", "hexagon"))
    newer = fleet.sign()
    serve = fleet.site.start("serve", fleet.write_fleet(), "--json", log="serve")
    fleet.site.start("agent", agent, "--json", log="cam-01")
    assert serve.wait(system.DEADLINE_S) == 0, fleet.site.text("serve")
    fleet.wait_for("cam-01", "run_done")

    newest, fleet.bundle = fleet.bundle, old
    serve = fleet.site.start("serve", fleet.write_fleet(), "--json", log="serve2")
    fleet.wait_for("cam-01", "bundle_refused")
    (refused,) = fleet.said("cam-01", "bundle_refused")
    assert f"this device has had {newer}" in str(refused["reason"])
    fleet.wait_for("serve2", "device_refused")
    serve.terminate()
    serve.wait(system.DEADLINE_S)

    fleet.bundle = newest  # the box goes on with what it has
    serve = fleet.site.start("serve", fleet.write_fleet(), "--json", log="serve3")
    assert serve.wait(system.DEADLINE_S) == 0, fleet.site.text("serve3")
    assert len(fleet.said("cam-01", "bundle_switched")) == 1
