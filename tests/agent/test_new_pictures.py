"""The features of new pictures, from the encoder process through the device's cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedclip_edge.agent.encoder_process import EncoderProcess
from fedclip_edge.agent.encoding import Encoded
from fedclip_edge.agent.new_pictures import EncodedFeatures
from fedclip_edge.errors import DataError
from fedclip_edge.processes.worker import PausedError
from fedclip_edge.vision.cache import FeatureCache
from fedclip_edge.vision.datasets import Picture

KEY = "k" * 64
PICTURES = [Picture(Path(f"/inbox/{name}.jpg"), -1, name * 64) for name in "abc"]


class Encoder:
    """An encoder process that stores a feature for each picture but the damaged ones."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.damaged: set[str] = set()
        self.asked = 0
        self.stores = True
        self.error: Exception | None = None
        self.worker = SimpleNamespace(is_busy=False, is_paused=lambda: False)

    def encode(self, pictures: Sequence[Picture], progress: Any = None) -> Encoded:
        self.asked += 1
        if self.error is not None:
            raise self.error
        new = {one.hash: np.ones(4, np.float32) for one in pictures if one.hash not in self.damaged}
        if self.stores:
            with FeatureCache(self.cache) as cache:
                cache.put(new, KEY)
        return Encoded(len(new), dict.fromkeys(self.damaged, "it is damaged"))


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder(tmp_path / "features.sqlite")


@pytest.fixture
def features(encoder: Encoder) -> EncodedFeatures:
    return EncodedFeatures(cast("EncoderProcess", encoder), encoder.cache, KEY)


def test_a_picture_that_cannot_be_decoded_is_named_and_left_out(
    encoder: Encoder, features: EncodedFeatures, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder.damaged = {PICTURES[1].hash}
    found = features(PICTURES)
    assert found is not None
    assert found.keys() == {PICTURES[0].hash, PICTURES[2].hash}
    assert "picture_skipped picture=/inbox/b.jpg" in capsys.readouterr().out


def test_features_that_are_lost_in_between_are_asked_for_again(
    encoder: Encoder, features: EncodedFeatures
) -> None:
    """Another process may have found the cache damaged; no picture may be left out for that."""
    encoder.stores = False
    with pytest.raises(DataError, match="was made anew after the pictures were encoded"):
        features(PICTURES)
    encoder.stores = True
    found = features(PICTURES)
    assert found is not None
    assert len(found) == 3


def test_while_the_encoder_is_at_work_for_others_there_are_none(
    encoder: Encoder, features: EncodedFeatures
) -> None:
    encoder.worker.is_busy = True
    assert features(PICTURES) is None
    encoder.worker.is_busy, encoder.worker.is_paused = False, lambda: True
    assert features(PICTURES) is None
    assert encoder.asked == 0
    encoder.worker.is_paused, encoder.error = lambda: False, PausedError("paused")
    assert features(PICTURES) is None
