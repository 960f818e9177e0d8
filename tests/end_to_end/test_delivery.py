"""Bundles reach the boxes over the broker: real processes, certificates and a real mosquitto."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import system
from brokers import MOSQUITTO
from mqtt_client import Proxy
from secured import Secured
from system import Site, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.coordinator.journal import open_journal_to_read
from fedclip_edge.coordinator.run_state import master_model
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.pki.bundle_signature import load_export_key, sign_bundle
from fedclip_edge.protocol import signing
from fedclip_edge.records import Arrays, ClassTexts
from fedclip_edge.vision.bundle import Bundle, read_bundle, replace_classes, write_bundle

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

    def write_fleet(
        self, extra: str = "", devices: int = 1, plan: str = 'method = "ridge"\nrounds = 1'
    ) -> Path:
        here = self.secured.site.coordinator
        path = self.secured.folder / "fleet.toml"
        path.write_text(
            f'fleet = "lab"\nbundle = "{self.bundle}"\nregistry = "{self.secured.site.registry}"\n'
            f"{extra}"
            f'[broker]\nport = {self.secured.port}\nca = "{here}/ca.crt"\n'
            f'certificate = "{here}/coordinator.crt"\nkey = "{here}/coordinator.key"\n'
            f"[rules]\ndevices = {devices}\nquorum = 1.0\ndeadline_s = 60\ngrace_s = 1\n"
            f'[plan]\n{plan}\nvote = "off"\n'
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


def in_use(fleet: Fleet, log: str) -> Bundle:
    """The bundle that the box fetched last."""
    return read_bundle(Path(str(fleet.said(log, "bundle_switched")[-1]["bundle"])))


def test_a_box_with_its_archive_and_a_folder_fetches_the_bundle_and_later_class_texts(
    fleet: Fleet,
) -> None:
    serial, agent, config = fleet.sign(), fleet.box("cam-01"), fleet.write_fleet()
    fleet.site.start("serve", config, "--json", log="serve")
    box = fleet.site.start("agent", agent, "--json", log="cam-01")
    fleet.wait_for("serve", "run_done")
    fleet.wait_for("cam-01", "run_done")
    (fetching,) = fleet.said("cam-01", "bundle_fetching")
    assert fetching["serial"] == serial
    assert "image_encoder.onnx" in str(fetching["files"])
    before = in_use(fleet, "cam-01")
    assert before.classes.digest == read_bundle(fleet.bundle).classes.digest

    # A class more: the next run knows it, and the box fetches its text alone.
    names = (*before.classes.names, "hexagon")
    newer = fleet.secured.folder / "newer"
    shutil.copytree(fleet.bundle, newer)
    with_other_classes(newer, names)
    unsigned = system.run("classes", "publish", newer, config)
    assert unsigned.returncode == ConfigError.exit_code
    assert "is not signed, so no box would accept it" in unsigned.stderr
    key = fleet.secured.site.export_key
    assert system.run("bundle", "sign", newer, "--key", key).returncode == 0
    said = system.run("classes", "publish", newer, config)
    assert said.returncode == 0, said.stderr
    assert "published 4 classes" in said.stdout
    assert "added hexagon" in said.stdout
    again = system.run("classes", "publish", newer, config)
    assert "sign it again with `fedclip-edge bundle sign`" in again.stderr
    started = system.run("run", "start", config)
    assert started.returncode == 0, started.stderr
    fleet.wait_for("serve", "run_done", 2)
    fleet.wait_for("cam-01", "run_done", 2)
    assert fleet.said("cam-01", "bundle_fetching")[1]["files"] == "classes.safetensors"
    assert [one["encoded"] for one in fleet.said("cam-01", "features_ready")] == [36, 0]
    assert in_use(fleet, "cam-01").classes.names == names
    assert read_bundle(fleet.bundle).classes.names == before.classes.names

    # The box goes back to the bundle before, while it runs, and does not fetch the same one again.
    done = system.run("bundle", "rollback", agent)
    assert done.returncode == 0, done.stderr
    assert str(before.folder) in done.stdout
    fleet.wait_for("cam-01", "bundle_refused")
    used = fleet.said("cam-01", "bundle_in_use")[-1]
    assert used["bundle"] == str(before.folder)
    (refused,) = fleet.said("cam-01", "bundle_refused")
    assert "sign that one again with" in str(refused["reason"])
    assert box.poll() is None


@pytest.mark.parametrize("method", ["fedclip", "linear"])
def test_after_new_classes_a_run_goes_on_from_the_last_model(fleet: Fleet, method: str) -> None:
    fleet.sign()
    agent = fleet.box("cam-01")
    config = fleet.write_fleet(plan=f'method = "{method}"\nrounds = 1')
    fleet.site.start("serve", config, "--json", log="serve")
    box = fleet.site.start("agent", agent, "--json", log="cam-01")
    fleet.wait_for("serve", "run_done")
    fleet.wait_for("cam-01", "run_done")
    box.terminate()
    box.wait(system.DEADLINE_S)

    # A class more, one less, and another order.
    old = read_bundle(fleet.bundle).classes
    names = (old.names[2], "hexagon", old.names[0])
    added = np.eye(1, old.vectors.shape[1], 3, dtype=np.float32)
    vectors = np.concatenate([old.vectors[2:3], added, old.vectors[:1]])
    newer = fleet.secured.folder / "newer"
    shutil.copytree(fleet.bundle, newer)
    replace_classes(read_bundle(newer), replace(old, names=names, vectors=vectors))
    key = fleet.secured.site.export_key
    assert system.run("bundle", "sign", newer, "--key", key).returncode == 0
    assert system.run("classes", "publish", newer, config).returncode == 0
    said = system.run("run", "start", config, "--from", "last")
    assert said.returncode == 0, said.stderr
    first, second = (str(one["run"]) for one in fleet.said("serve", "serving"))
    assert f"started {second} from {first}" in said.stdout
    done = safetensors.numpy.load_file(config.parent / "models" / f"{first}.safetensors")
    begun = model_in(config.with_name("journal.sqlite"), second, read_bundle(newer))
    for name, term in begun.items():
        if method == "fedclip":  # the adapter does not depend on the classes
            assert np.array_equal(term, done[name])
        else:
            assert np.array_equal(term[[0, 2]], done[name][[2, 0]])
            assert np.array_equal(term[1:2], added)

    shutil.rmtree(agent.parent / "pictures" / old.names[1])
    fleet.site.start("agent", agent, "--json", log="cam-01-again")
    fleet.wait_for("serve", "run_done", 2)
    fleet.wait_for("cam-01-again", "run_done")
    assert {one["encoded"] for one in fleet.said("cam-01-again", "features_ready")} == {0}


def model_in(journal: Path, run: str, bundle: Bundle) -> Arrays:
    """The float32 parameters of the newest model of a run with the classes of the bundle."""
    with contextlib.closing(open_journal_to_read(journal)) as opened:
        stored = opened.rounds.newest_model(run)
        (its,) = (one for one in opened.runs.all() if one.id == run)
    schedule = Schedule(its.plan, bundle.classes, bundle.manifest.dim)
    return master_model(stored, schedule.layout(stored.round).parameters).parameters


def test_an_older_bundle_and_one_of_another_signer_are_refused_by_name(fleet: Fleet) -> None:
    fleet.sign()
    agent = fleet.box("cam-01")
    old, forged = (fleet.secured.folder / name for name in ("old", "forged"))
    shutil.copytree(fleet.bundle, old)
    with_other_classes(fleet.bundle, ("circle", "square", "triangle", "hexagon"))
    shutil.copytree(fleet.bundle, forged)
    newer, newest = fleet.sign(), fleet.bundle
    sign_bundle(forged, signing.create_identity())
    serve = fleet.site.start("serve", fleet.write_fleet(), "--once", "--json", log="serve")
    fleet.site.start("agent", agent, "--json", log="cam-01")
    assert serve.wait(system.DEADLINE_S) == 0, fleet.site.text("serve")
    fleet.wait_for("cam-01", "run_done")

    fleet.bundle = old
    serve = fleet.site.start("serve", fleet.write_fleet(), "--once", "--json", log="serve2")
    fleet.wait_for("cam-01", "bundle_refused")
    (refused,) = fleet.said("cam-01", "bundle_refused")
    assert f"this device has had {newer}" in str(refused["reason"])
    serve.terminate()
    serve.wait(system.DEADLINE_S)

    fleet.bundle = forged  # `serve` does not even offer it
    serve = fleet.site.start("serve", fleet.write_fleet(), "--new-run", "--json", log="serve3")
    fleet.wait_for("serve3", "bundle_not_offered")
    assert "not with the fleet's export key" in fleet.site.text("serve3")
    serve.terminate()
    serve.wait(system.DEADLINE_S)

    fleet.bundle = newest  # the box goes on with what it has
    words = ("--once", "--new-run", "--json")
    serve = fleet.site.start("serve", fleet.write_fleet(), *words, log="serve4")
    assert serve.wait(system.DEADLINE_S) == 0, fleet.site.text("serve4")
    assert len(fleet.said("cam-01", "bundle_switched")) == 1


MANY, MEGABYTES = 4, 3


def enlarged(folder: Path) -> int:
    """Add weights that change no feature to the encoder; return the size of the bundle in bytes."""
    bundle = read_bundle(folder)
    model = onnx.load_model_from_string(bundle.encoder_path.read_bytes())
    ballast = np.random.default_rng(0).normal(size=(MEGABYTES * 250_000,)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(ballast, "ballast"))
    write_bundle(
        folder,
        replace(bundle.manifest, files={}),
        model.SerializeToString(),
        bundle.classes,
        bundle.golden(),
        replace_existing=True,
    )
    return sum(file.stat().st_size for file in folder.iterdir())


def test_boxes_that_ask_together_cost_one_copy_and_a_cut_box_goes_on_where_it_was(
    tmp_path: Path, random_bundle: Bundle, mosquitto: BrokerAddress
) -> None:
    folder, exporter = tmp_path / "bundle", signing.create_identity()
    shutil.copytree(random_bundle.folder, folder)
    size_bytes = enlarged(folder)
    sign_bundle(folder, exporter)
    bundle = read_bundle(folder)
    serving, cut = Proxy(mosquitto), Proxy(mosquitto)
    with (
        contextlib.closing(serving),
        contextlib.closing(cut),
        Site(tmp_path, bundle, serving.address, f"lab-{secrets.token_hex(4)}") as site,
    ):
        for number in range(MANY):
            name = f"cam-{number}"
            path = site.write_agent(name, extra=f'export_key = "{exporter.key}"')
            text = path.read_text().replace(f'bundle = "{folder}"\n', "")
            port = cut.address.port if number == 0 else mosquitto.port
            path.write_text(text.replace(f"port = {serving.address.port}", f"port = {port}"))
            site.start("agent", path, "--json", log=name)

        def said(log: str, event: str) -> list[dict[str, object]]:
            return [one for one in site.events(log) if one["event"] == event]

        names = [f"cam-{number}" for number in range(MANY)]
        wait_until(lambda: all(said(name, "connected") for name in names), "the links")
        config = site.write_fleet(MANY, 1, method="ridge")
        slow = "delivery_bytes_per_s = 1_000_000\n"
        config.write_text(config.read_text().replace("[broker]", f"{slow}[broker]", 1))
        site.start("serve", config, "--json", log="serve")
        wait_until(lambda: cut.down_bytes > size_bytes / 2, "half of the bundle")
        cut.cut()
        wait_until(lambda: all(said(name, "bundle_switched") for name in names), "all to switch")
        assert serving.up_bytes < 1.1 * size_bytes + size_bytes / 2  # what the cut box missed
        assert cut.down_bytes < 1.6 * size_bytes
        wait_until(lambda: bool(said("serve", "run_done")), "the run")
