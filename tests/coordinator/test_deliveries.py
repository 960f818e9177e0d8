"""Deliveries of a bundle: one copy for all, after everything else, at a limited rate."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.bundle_choice import (
    choose_bundle,
    publish_classes,
    published_folder,
)
from fedclip_edge.coordinator.deliveries import Deliveries, open_release
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.run_report import bundle_of
from fedclip_edge.coordinator.server import read_basis
from fedclip_edge.errors import ConfigError
from fedclip_edge.pki.bundle_description import read_description
from fedclip_edge.pki.bundle_signature import sign_bundle
from fedclip_edge.protocol import signing
from fedclip_edge.protocol.chunks import HEADER_BYTES, Incoming
from fedclip_edge.protocol.messages import Want
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import ClassTexts, Plan
from fedclip_edge.transport.base import Transport
from fedclip_edge.vision.bundle import Bundle, read_bundle, replace_classes
from fedclip_edge.vision.manifest import ENCODER

EXPORTER, TOPICS = signing.create_identity(), Topics("lab")


@dataclass
class Link:
    """A link that takes down what is published; `waiting` other messages wait on it."""

    waiting: int = 0
    sent: list[tuple[str, bytes]] = field(default_factory=list)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert not retain
        self.sent.append((topic, payload))

    def backlog(self) -> int:
        return self.waiting

    def packet_bytes(self) -> int:
        return 2048


@pytest.fixture
def folder(tmp_path: Path, random_bundle: Bundle) -> Path:
    shutil.copytree(random_bundle.folder, tmp_path / "bundle")
    sign_bundle(tmp_path / "bundle", EXPORTER)
    return tmp_path / "bundle"


@dataclass
class Desk:
    """The deliveries of a bundle over `link`."""

    folder: Path
    rate: float = 5_000_000
    link: Link = field(default_factory=Link)

    def __post_init__(self) -> None:
        release = open_release(self.folder, EXPORTER.key)
        assert release is not None
        self.deliveries = Deliveries(release, self.rate, TOPICS, cast("Transport", self.link))
        blob = self.deliveries.blob
        described = read_description(release.description, EXPORTER.key)
        self.encoder = described.blobs(blob.chunk_bytes)[ENCODER]
        self.all = Want(self.encoder.sha256, ((0, self.encoder.chunks - 1),))

    def poll(self, begin: float, seconds: float) -> None:
        for tick in range(int(seconds * 5) + 1):
            self.deliveries.poll(begin + tick / 5)


def test_all_that_ask_together_get_one_copy_of_the_right_bytes(folder: Path) -> None:
    desk = Desk(folder)
    for _ in range(10):
        assert desk.deliveries.add(desk.all)
    shutil.rmtree(folder)  # the run goes on with the bundle that it began with
    desk.poll(0.0, 2.0)
    assert len(desk.link.sent) == desk.encoder.chunks
    arriving = Incoming(desk.encoder)
    for topic, chunk in desk.link.sent:
        assert topic == TOPICS.blob(desk.encoder.sha256)
        assert len(chunk) <= 2048
        arriving.add_chunk(chunk)
    assert len(arriving.assemble()) == desk.encoder.size_bytes
    desk.poll(2.0, 2.0)
    assert len(desk.link.sent) == desk.encoder.chunks


def test_who_asks_in_the_middle_shares_the_rest(folder: Path) -> None:
    desk = Desk(folder, rate=4_000)
    desk.deliveries.add(desk.all)
    desk.poll(0.0, 2.0)
    half = len(desk.link.sent)
    assert 1 < half < desk.encoder.chunks
    desk.deliveries.add(desk.all)
    desk.poll(2.0, 60.0)
    assert len(desk.link.sent) == desk.encoder.chunks + half


def test_the_rate_is_kept(folder: Path) -> None:
    desk = Desk(folder, rate=5_000)
    desk.deliveries.add(desk.all)
    desk.poll(0.0, 1.0)
    part = HEADER_BYTES + desk.encoder.chunk_bytes
    assert 5_000 - part <= sum(len(chunk) for _, chunk in desk.link.sent) <= 5_000 + part


def test_other_messages_go_first_but_not_for_ever(folder: Path) -> None:
    desk = Desk(folder)
    desk.link.waiting = 1
    desk.deliveries.add(desk.all)
    desk.poll(100.0, 14.9)
    assert 1 <= len(desk.link.sent) <= 3
    desk.link.waiting = 0
    desk.poll(115.0, 2.0)
    assert len(desk.link.sent) == desk.encoder.chunks


def test_a_blob_of_another_bundle_is_not_known(folder: Path) -> None:
    assert not Desk(folder).deliveries.add(Want("a" * 64, ((0, 0),)))


def test_a_bundle_is_offered_only_with_the_right_signature(
    folder: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_release(random_bundle.folder, "") is None
    assert capsys.readouterr().out == ""
    assert open_release(random_bundle.folder, EXPORTER.key) is None
    assert "is not signed; sign it with `fedclip-edge bundle sign`" in capsys.readouterr().out
    assert open_release(folder, signing.create_identity().key) is None
    assert "not with the fleet's export key" in capsys.readouterr().out
    for key in (EXPORTER.key, ""):
        release = open_release(folder, key)
        assert release is not None
        release.close()


def with_classes(bundle: Path, *names: str, above: int = 0) -> Path:
    copy = bundle.with_name("-".join(names))
    shutil.copytree(bundle, copy)
    vectors = read_bundle(copy).classes.vectors[:1].repeat(len(names), axis=0)
    replace_classes(read_bundle(copy), ClassTexts(names, vectors, 100.0, "a {}"))
    sign_bundle(copy, EXPORTER, above=above)
    return copy


def run_of(bundle: Bundle) -> Run:
    return Run("run-1", Plan(), bundle.manifest.encoder_id, bundle.classes.digest)


def test_the_next_run_has_the_published_classes_and_an_unfinished_one_its_own(
    folder: Path, tmp_path: Path
) -> None:
    config = FleetConfig("lab", folder, journal=tmp_path / "journal.sqlite")
    first = choose_bundle(config, None)
    assert first.folder == folder
    second = with_classes(folder, "circle", "hexagon", above=2**35)
    done = publish_classes(config, second, first, EXPORTER.key)
    assert (done.added, done.removed) == (("hexagon",), ("square", "triangle"))
    shutil.rmtree(second)
    now = choose_bundle(config, None)
    assert now.classes.names == ("circle", "hexagon")
    assert choose_bundle(config, run_of(first)).folder == folder
    third = with_classes(folder, "star", "moon", above=2**36)
    publish_classes(config, third, now, EXPORTER.key)
    assert choose_bundle(config, run_of(now)).folder == now.folder
    assert choose_bundle(config, None).classes.names == ("star", "moon")
    assert len(list(published_folder(config.journal).iterdir())) == 2
    # What a command or a report says of the run that is over is in its own classes.
    assert read_basis(config, run_of(first)).classes.names == first.classes.names
    named = bundle_of(config, run_of(now))
    assert named is not None
    assert named.classes.names == now.classes.names


def test_the_classes_of_the_last_run_that_is_done_stay_for_the_next_to_start_from(
    folder: Path, tmp_path: Path
) -> None:
    config = FleetConfig("lab", folder, journal=tmp_path / "journal.sqlite")
    done, abandoned, following = (
        with_classes(folder, *names, above=2**35 + place)
        for place, names in enumerate((("a", "b"), ("c", "d"), ("e", "f")))
    )
    publish_classes(config, done, choose_bundle(config, None), EXPORTER.key)
    of_done = choose_bundle(config, None)
    publish_classes(config, abandoned, of_done, EXPORTER.key)
    of_abandoned, keeps = choose_bundle(config, None), [of_done.folder]
    publish_classes(config, following, of_abandoned, EXPORTER.key, keeps)
    assert choose_bundle(config, run_of(of_done)).classes.names == ("a", "b")
    assert choose_bundle(config, None).classes.names == ("e", "f")


def test_only_a_newer_signed_bundle_with_the_same_encoder_is_published(
    folder: Path, tmp_path: Path
) -> None:
    config = FleetConfig("lab", folder, journal=tmp_path / "journal.sqlite")
    used = choose_bundle(config, None)
    with pytest.raises(ConfigError, match="sign it again with `fedclip-edge bundle sign`"):
        publish_classes(config, folder, used, EXPORTER.key)
    other = with_classes(folder, "a", "b", above=2**35)
    with pytest.raises(ConfigError, match="not with the fleet's export key"):
        publish_classes(config, other, used, signing.create_identity().key)
    with pytest.raises(ConfigError, match="is not a folder; name the folder"):
        publish_classes(config, tmp_path / "none", used, EXPORTER.key)
    (other / "signature.json").unlink()
    with pytest.raises(ConfigError, match="is not signed, so no box would accept it"):
        publish_classes(config, other, used, EXPORTER.key)
    assert choose_bundle(config, None).folder == folder
