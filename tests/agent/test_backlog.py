"""Unlabelled pictures that were there before: real files, real encoder, in one process."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import system

from fedclip_edge.agent.backlog import Backlog
from fedclip_edge.agent.encoder_process import EncoderProcess
from fedclip_edge.agent.encoding import Encoded, Encoding
from fedclip_edge.agent.features import CACHE, prepare_pictures
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import DiskError
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture


@dataclass
class Encoder:
    """The encoder in this process; it notes what it was asked for."""

    encoding: Encoding
    worker: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(is_busy=False))
    asked: list[int] = field(default_factory=list)
    error: DiskError | None = None

    def encode(self, pictures: Sequence[Picture]) -> Encoded:
        if self.error is not None:
            raise self.error
        self.asked.append(len(pictures))
        return self.encoding.encode(pictures)


@dataclass
class Box:
    """A device with labelled pictures and 20 unlabelled ones, two of them broken."""

    folder: Path
    bundle: Bundle

    def __post_init__(self) -> None:
        names = self.bundle.classes.names
        system.write_pictures(self.folder / "pictures", names, 3, seed=1)
        system.write_pictures(self.folder / "more", names[:1], 20, seed=2)
        for path in sorted((self.folder / "more" / names[0]).iterdir()):
            shutil.copy(path, self.folder / "pictures" / f"new-{path.name}")
        for number in (0, 1):
            path = self.folder / "pictures" / f"new-00{number}.png"
            path.write_bytes(path.read_bytes()[: 50 + number])
        data = DataConfig(self.folder / "pictures")
        self.config = AgentConfig(
            "cam-a", "lab", data, self.folder / "state", bundle=self.bundle.folder
        )
        self.config.state_dir.mkdir()
        self.encoder = Encoder(
            Encoding(self.bundle, self.config.encoder, self.config.state_dir / CACHE)
        )
        self.trainer = SimpleNamespace()
        self.read()
        self.backlog = Backlog(
            self.config,
            self.bundle,
            cast("LocalTrainer", self.trainer),
            cast("EncoderProcess", self.encoder),
        )

    def read(self) -> None:
        """Read the folder again."""
        self.trainer.data = prepare_pictures(
            self.config, self.bundle, self.encoder.encoding.encode, None
        )

    @property
    def features(self) -> int:
        with FeatureCache(self.config.state_dir / CACHE) as cache:
            return len(cache)


@pytest.fixture
def box(tmp_path: Path, random_bundle: Bundle) -> Box:
    return Box(tmp_path, random_bundle)


def test_they_are_encoded_a_few_at_a_time_and_once(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = box.features
    now = 0.0
    while box.backlog.look(now):
        now += 1
    assert (box.encoder.asked, box.features) == ([8, 8, 4], labelled + 18)
    said = capsys.readouterr().out
    assert said.count("picture_skipped") == 2
    assert said.count("unlabelled_encoded") == 1
    assert "unlabelled_encoded done=20 total=20" in said
    box.read()
    assert not box.backlog.look(now)
    assert "unlabelled_encoded" not in capsys.readouterr().out


def test_progress_is_said_every_half_minute(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    for now in (0, 31, 32):
        box.backlog.look(now)
    lines = [one for one in capsys.readouterr().out.splitlines() if "unlabelled_encoded" in one]
    assert [one.partition("unlabelled_encoded ")[2] for one in lines] == [
        "done=16 total=20",
        "done=20 total=20",
    ]


def test_other_requests_come_first(box: Box) -> None:
    box.encoder.worker.is_busy = True
    assert not box.backlog.look(0)
    box.encoder.worker.is_busy = False
    assert box.backlog.look(1)


def test_after_an_error_it_is_tried_again_and_said_once(
    box: Box, capsys: pytest.CaptureFixture[str]
) -> None:
    box.encoder.error = DiskError("the disk is full")
    for now in (0, 1, 61, 122):
        assert not box.backlog.look(now)
    assert capsys.readouterr().out.count("unlabelled_not_encoded") == 1
    box.encoder.error = None
    assert not box.backlog.look(123)
    assert box.backlog.look(183)


def test_pictures_that_come_later_are_found(box: Box) -> None:
    while box.backlog.look(0):
        pass
    before = box.features
    source = next((box.folder / "pictures").glob("new-019.png"))
    (box.folder / "pictures" / "later.png").write_bytes(source.read_bytes() + b"\0")
    kept = box.trainer.data.sides
    box.read()
    assert box.backlog.look(1)
    assert box.features == before + 1
    assert box.trainer.data.sides == kept
