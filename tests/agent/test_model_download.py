"""The model download: size limits, requests for missing chunks, and checks of the whole model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from in_memory import class_texts, nothing
from local_trainer import local_trainer
from session_scene import Scene, manifest

from fedclip_edge.agent.download import REPAIR_S
from fedclip_edge.agent.features import DeviceFeatures
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import methods
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import Want
from fedclip_edge.records import Codec, Model, Plan

CLASSES, D = class_texts(), 8
PLAN = Plan("fedclip", rounds=3, vote="off", codec_down="fp32")
CHUNK = 64


def model(closed: int = 0) -> bytes:
    made = methods.initial(PLAN, CLASSES, D)
    return wire.pack_model(replace(made, round=closed), PLAN.codec_down)


def blob(body: bytes) -> Blob:
    return chunks.blob_of(body, "model", CHUNK)


def everything(announced: Blob) -> Want:
    return Want(announced.sha256, ((0, announced.chunks - 1),))


def send(
    to: ModelDownload, body: bytes, only: chunks.Ranges | None = None, now: float = 0.0
) -> None:
    for chunk in chunks.split(body, blob(body), only):
        to.receive_chunk(chunk, now)


@pytest.fixture
def fetching() -> ModelDownload:
    """Download of a device that has no model yet."""
    config = AgentConfig("cam-a", "lab", DataConfig(Path()), Path(), bundle=Path())
    data = DeviceFeatures(nothing(), nothing(), nothing(), ())
    return ModelDownload(local_trainer(config, CLASSES, data))


def test_a_model_is_held_once_its_last_chunk_is_here(fetching: ModelDownload) -> None:
    body = model()
    told, last = manifest(model=blob(body), plan=PLAN), blob(body).chunks - 1
    fetching.expect(told, 0.0, missed=False)
    send(fetching, body, ((0, last - 1),))
    assert fetching.complete(told) is None
    assert (fetching.has(told), fetching.held) == (False, None)
    send(fetching, body, ((last, last),))
    held = fetching.complete(told)
    assert fetching.has(told)
    assert fetching.held is held
    assert held is not None
    assert wire.pack_model(held.model, PLAN.codec_down) == body
    assert fetching.complete(told) is None  # returned only once


@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
def test_a_model_is_as_large_as_its_plans_can_be_and_no_larger(
    fetching: ModelDownload, codec: Codec
) -> None:
    plan = replace(PLAN, codec_down=codec)
    limit = wire.payload_limit_bytes(methods.shapes(plan, CLASSES, D), codec)
    fetching.check_size(manifest(model=Blob("a" * 64, limit, "model"), plan=plan))
    with pytest.raises(PeerError, match=f"a model of {limit + 1} bytes, limit {limit}"):
        fetching.check_size(manifest(model=Blob("a" * 64, limit + 1, "model"), plan=plan))


def test_a_device_asks_for_no_chunk_of_a_larger_one(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.flow()
    scene.say(manifest(model=Blob("a" * 64, 2**20, "model")))
    for _ in range(3):
        scene.work(REPAIR_S)
    assert scene.session.refused_messages == 1
    assert scene.heard(Want) == []


def test_a_broadcast_that_was_missed_is_asked_for_at_once(fetching: ModelDownload) -> None:
    told = manifest(model=blob(model()), plan=PLAN)
    fetching.expect(told, 0.0, missed=True)
    assert fetching.poll_want(told, 0.0) == everything(told.model)


def test_a_broadcast_is_waited_for_and_its_gaps_asked_for_once_it_is_silent(
    fetching: ModelDownload,
) -> None:
    body = model()
    told, last = manifest(model=blob(body), plan=PLAN), blob(body).chunks - 1
    fetching.expect(told, 0.0, missed=False)
    assert fetching.poll_want(told, 0.0) is None
    send(fetching, body, ((0, 1), (3, last - 1)), now=0.5)
    assert fetching.poll_want(told, 0.5 + REPAIR_S - 0.1) is None
    assert fetching.poll_want(told, 0.5 + REPAIR_S) == Want(
        told.model.sha256, ((2, 2), (last, last))
    )


def test_the_model_that_is_held_is_not_fetched_again(fetching: ModelDownload) -> None:
    body = model()
    told = manifest(model=blob(body), plan=PLAN)
    fetching.expect(told, 0.0, missed=False)
    send(fetching, body)
    fetching.complete(told)
    fetching.expect(told, 10.0, missed=True)
    assert [fetching.poll_want(told, now) for now in (10.0, 20.0, 30.0)] == [None] * 3
    damaged = next(chunks.split(body, told.model))[:-1]
    fetching.receive_chunk(damaged, 30.0)  # ignored: the download is complete


OTHER_TERMS = Model("fedclip", 1, {"gate": np.ones((D, D), np.float32)})
FORGED: dict[str, tuple[bytes, str]] = {
    "another hash": (model(1), blob(model(1)).sha256[:16] + "0" * 48),
    "other terms": (wire.pack_model(OTHER_TERMS, PLAN.codec_down), ""),
    "another method": (
        wire.pack_model(replace(methods.initial(PLAN, CLASSES, D), method="fedblip"), "fp32"),
        "",
    ),
    "no model": (b"no model" * CHUNK, ""),
}


@pytest.mark.parametrize(("body", "sha256"), FORGED.values(), ids=FORGED)
def test_what_is_no_such_model_is_fetched_anew_and_the_one_before_stays(
    fetching: ModelDownload, body: bytes, sha256: str
) -> None:
    before = manifest(model=blob(model()), plan=PLAN)
    fetching.expect(before, 0.0, missed=False)
    send(fetching, model())
    held = fetching.complete(before)
    announced = replace(blob(body), sha256=sha256 or blob(body).sha256)
    told = manifest(model=announced, plan=PLAN)
    fetching.expect(told, 1.0, missed=False)
    send(fetching, body, now=1.0)
    with pytest.raises(PeerError):
        fetching.complete(told)
    assert fetching.has(before)
    assert fetching.held is held
    assert fetching.poll_want(told, 1.0) is None
    assert fetching.poll_want(told, 1.0 + REPAIR_S) == everything(announced)


def test_a_plan_that_the_learner_does_not_know_is_refused_with_its_reason(
    fetching: ModelDownload,
) -> None:
    told = manifest(model=Blob("a" * 64, 2**30, "model"), plan=replace(PLAN, method="fedklip"))
    with pytest.raises(ConfigError, match="unknown method 'fedklip'; did you mean 'fedclip'"):
        fetching.check_size(told)
    with pytest.raises(ConfigError, match="unknown method 'fedklip'; did you mean 'fedclip'"):
        fetching.complete(told)
