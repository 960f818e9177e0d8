"""A learner whose work is done in the test's process, on features that the test gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fedclip_edge.agent.features import DeviceFeatures, DevicePictures, Sides
from fedclip_edge.agent.trainer import LocalTrainer
from fedclip_edge.agent.training import Training
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.records import ClassTexts, Features
from fedclip_edge.transport.base import Traffic
from fedclip_edge.vision.datasets import Picture


class Here(Training):
    """The work of a test's learner; its pictures never change."""

    def use(self, sides: Sides) -> None:
        raise AssertionError(sides)


def nobody_counts() -> Traffic | None:
    """No bytes are counted."""
    return None


def local_trainer(
    config: AgentConfig,
    classes: ClassTexts,
    data: DeviceFeatures,
    traffic: Callable[[], Traffic | None] = nobody_counts,
    load: Callable[[], None] = lambda: None,
) -> LocalTrainer:
    """A learner on these features; `load` takes the place of loading torch."""
    dim = classes.vectors.shape[1]
    work = Here(config, classes, dim, data, load)
    return LocalTrainer(config, classes, dim, pictures_of(data), traffic, work)


def pictures_of(data: DeviceFeatures) -> DevicePictures:
    """Pictures with the labels of these features."""
    sides = Sides(_pictures(data.train), _pictures(data.validation), _pictures(data.test))
    return DevicePictures(sides, encoded=55, skipped=2, encode_s=1.5)


def use(trainer: LocalTrainer, data: DeviceFeatures) -> None:
    """Let a learner of `local_trainer` work on other features."""
    assert isinstance(trainer.work, Here)
    trainer.work.data = data
    trainer.data = replace(pictures_of(data), encoded=trainer.data.encoded)


def work_of(trainer: LocalTrainer) -> Here:
    """The work of a learner of `local_trainer`."""
    assert isinstance(trainer.work, Here)
    return trainer.work


def _pictures(features: Features) -> tuple[Picture, ...]:
    labels: Sequence[int] = features.labels.tolist()
    return tuple(Picture(Path(f"{i}.png"), label, f"{i:064x}") for i, label in enumerate(labels))
