"""A device's session with a fake learner, and a coordinator that the test plays."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fake_learner import FakeLearner
from opened import opened

from fedclip_edge.agent.publisher import will
from fedclip_edge.agent.session_start import start_session
from fedclip_edge.agent.state_db import open_state_db
from fedclip_edge.agent.working import work
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.learning import methods
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.message_parts import Blob, Exchange
from fedclip_edge.protocol.messages import (
    CoordinatorState,
    Kept,
    Manifest,
    Message,
    Offer,
)
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import Model, Plan, Role, Shapes
from fedclip_edge.transport.base import Event, Received, Will
from fedclip_edge.transport.in_memory import InMemoryBroker

TOPICS = Topics("lab")


PLAN = Plan("fedclip", rounds=30, vote="off", codec_up="fp32", codec_down="fp32")


SHAPES: Shapes = {"gate": (40, 10)}


ME, FORGER = signing.create_identity(), signing.create_identity()


DEVICE_KEY = signing.create_identity()


M = TypeVar("M")


def model(value: float, closed: int = 0) -> Model:
    return Model(PLAN.method, closed, {"gate": np.full(SHAPES["gate"], value, np.float32)})


class Scene:
    """A session, a script in place of the coordinator, and a clock."""

    def __init__(
        self,
        folder: Path,
        roles: tuple[Role, ...] = ("train", "evaluate"),
        *,
        declared: tuple[Role, ...] | None = None,
        allowed: tuple[str, ...] = methods.names(),
        reports: bool = True,
    ) -> None:
        self.now = 100.0
        self.broker = InMemoryBroker()
        self.script = self.broker.client(
            "script", (TOPICS.state("+"), TOPICS.up("+")), Will("gone", b"")
        )
        self.config = AgentConfig(
            "cam-01",
            "lab",
            DataConfig(folder),
            folder,
            "photo",
            roles,
            bundle=folder,
            reports=reports,
        )
        self.declared = roles if declared is None else declared
        self.allowed = allowed
        self.start()

    def start(self) -> None:
        """Start the device's process, also after a kill."""
        self.learner = FakeLearner(
            SHAPES,
            roles=self.declared,
            methods=self.allowed,
            evaluates="evaluate" in self.config.roles,
        )
        self.link = self.broker.client(
            "cam-01", TOPICS.for_device("cam-01"), will(self.config, DEVICE_KEY, "b1")
        )
        self.session = start_session(
            config=self.config,
            incarnation="b1",
            encoder_id="e" * 64,
            classes_digest="c" * 64,
            learner=self.learner,
            identity=DEVICE_KEY,
            transport=self.link,
            state_db=opened(open_state_db(self.config.state_dir / "parked.sqlite")),
        )

    def flow(self) -> None:
        """Deliver all messages to the session."""
        while (event := self.link.next_event(0)) is not None:
            self.session.handle_event(event, self.now)

    def work(self, by_s: float = 0.0) -> None:
        """Move the clock, deliver all messages, and let the session do all its work."""
        self.now += by_s
        self.flow()
        while self.act():
            pass

    def act(self) -> bool:
        """Let the session do what is due, and the learner its task, if it has one."""
        acted = self.session.act(self.now)
        return work(self.session, lambda: self.now) or acted

    def heard(self, kind: type[M]) -> list[M]:
        """The device's messages of type `kind` since the last call."""
        said: list[M] = []
        rest: list[Event] = []
        while (event := self.script.next_event(0)) is not None:
            if not isinstance(event, Received):
                continue
            if chunks.is_chunk(event.payload):
                message: object = event.payload
            else:
                signed = wire.unpack_control(event.topic, event.payload)
                signed.check(DEVICE_KEY.key)
                assert signed.sender == "cam-01"
                message = signed.message
            if isinstance(message, kind):
                said.append(message)
            else:
                rest.append(event)
        self.script.inbox.extend(rest)
        return said

    def say(
        self,
        message: Message,
        topic: str = TOPICS.down("cam-01"),
        key: signing.Identity = ME,
        sender: str = "coordinator",
    ) -> bytes:
        payload = wire.pack_control(message, sender, topic, key)
        self.script.publish(topic, payload)
        return payload

    def say_model(self, made: Model, only: chunks.Ranges | None = None) -> None:
        data = wire.pack_model(made, PLAN.codec_down)
        for chunk in chunks.split(data, small(data), only):
            self.script.publish(TOPICS.model, chunk)

    def join(self, **changes: Any) -> None:
        """Answer the session's hello and send the model of round 0."""
        self.flow()
        self.say(manifest(**changes))
        self.flow()
        self.say_model(model(0))
        self.work()


def small(data: bytes) -> Blob:
    return chunks.blob_of(data, "model", 16)


def manifest(made: Model | None = None, round: int = 1, **changes: Any) -> Manifest:
    """A manifest of round `round`, with the model `made`."""
    made = made or model(0)
    fields: dict[str, Any] = {
        "run": "run-1",
        "epoch": 5,
        "key": ME.key,
        "phase": "open",
        "attempt": 0,
        "closed": made.round,
        "model": small(wire.pack_model(made, PLAN.codec_down)),
        "plan": PLAN,
        "encoder_id": "e" * 64,
        "classes_digest": "c" * 64,
        "cohort": "f" * 64,
        "deadline_s": 600.0,
        "takes_part": True,
        "answers": "b1",
    }
    fields |= changes
    return Manifest(**{"exchange": exchange(round, fields["model"].sha256), **fields})


def exchange(number: int, version: str) -> Exchange:
    """The exchange for a round that starts from the model with hash `version`."""
    sha256 = hashlib.sha256(f"{number}/{version}".encode()).hexdigest()
    return Exchange("round", number, sha256, 1000.0)


def state(incarnation: str = "k1", epoch: int = 5, **changes: Any) -> CoordinatorState:
    return replace(
        CoordinatorState(incarnation, epoch, "run-1", online=True, key=ME.key), **changes
    )


def kept(scene: Scene, offer: Offer) -> None:
    scene.say(Kept("run-1", offer.number, offer.blob.sha256))
    scene.work()
