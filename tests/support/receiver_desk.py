"""A receiver with a real journal, and contributions for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from in_memory import ENCODER, class_texts, features

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.devices import Devices
from fedclip_edge.coordinator.journal import open_journal
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.receiver import Arrival, Receiver
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.coordinator.slots import Slots
from fedclip_edge.coordinator.uploads import LEASE_S, Uploads
from fedclip_edge.learning import methods
from fedclip_edge.learning.method import LocalTask
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import chunks, signing, wire
from fedclip_edge.protocol.messages import Message, Offer, Want
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import Arrays, Contribution, Plan, Shapes, Update
from fedclip_edge.transport.base import Received, Will
from fedclip_edge.transport.in_memory import InMemoryBroker

CLASSES, D = class_texts(), 8


PLAN = Plan("fedclip", rounds=3, vote="off", codec_up="fp32")


TOPICS, ME = Topics("lab"), signing.create_identity()


DOWN = TOPICS.down("cam-0")


def small(shapes: Shapes) -> Arrays:
    """Terms of a thousandth each, which no bound refuses."""
    return {name: np.full(shape, 0.001, np.float32) for name, shape in shapes.items()}


class Desk:
    """A coordinator's run state and receiver, and a client that listens for all devices."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        config = FleetConfig("lab", bundle=folder, journal=folder / "journal.sqlite", plan=plan)
        journal = open_journal(config.journal)
        self.run = choose_run(config, CLASSES, D, ENCODER, journal).begin()
        schedule = Schedule(self.run.plan, CLASSES, D)
        self.layout = schedule.layout(0)
        self.run_state = run_state.open_run_state(self.run, journal, schedule)
        broker, gone = InMemoryBroker(), Will("gone", b"")
        self.devices = broker.client("devices", (TOPICS.down("+"),), gone)
        link = broker.client("coordinator", (), gone)
        publisher = Publisher(config, self.run_state, ME, link, "boot-1", 1)
        slots = Slots(2, LEASE_S)
        self.receiver = Receiver(self.run_state, publisher, Uploads(slots), Devices({}))

    def body(self, kind: Literal["sum", "single"] = "sum", **changes: Any) -> bytes:
        """A contribution of cam-0 to the open round that is valid except for these changes."""
        update = Update(kind, 1, small(self.layout.delta))
        if self.layout.sums:
            data, plan, model = features(40, 0, CLASSES), self.run.plan, self.run_state.model
            update = methods.fit(LocalTask(plan, model, data, data, CLASSES, 0))
        right = Contribution(
            run=self.run.id,
            round=self.run_state.model.round + 1,
            device="cam-0",
            exchange=self.run_state.exchange.sha256,
            update=replace(update, kind=kind),
        )
        return wire.pack_contribution(replace(right, **changes), self.run.plan.codec_up)

    def offer(self, body: bytes) -> Offer:
        return Offer(self.run.id, 1, chunks.blob_of(body, "update"))

    def upload(self, body: bytes) -> list[Arrival | None]:
        """Offer, request and send the body in two chunks; return the result of each chunk."""
        blob = chunks.blob_of(body, "update", -(-len(body) // 2))
        self.receiver.receive_offer("cam-0", Offer(self.run.id, 1, blob))
        self.receiver.uploads.request("cam-0")
        self.receiver.request_missing(0.0)
        assert self.heard() == [(DOWN, Want(blob.sha256, ((0, 1),)))]
        return [
            self.receiver.receive_chunk("cam-0", chunk, 0.1) for chunk in chunks.split(body, blob)
        ]

    def close_round_with(self, body: bytes) -> Offer:
        """Close the round with this contribution only; return its offer."""
        arrived, offer = self.upload(body)[-1], self.offer(body)
        assert arrived is not None
        self.run_state.keep(arrived.contribution, offer.blob.sha256, arrived.payload)
        self.run_state.close_round()
        return offer

    def heard(self) -> list[tuple[str, Message]]:
        """The messages to devices since the last call, with their topics."""
        said = []
        while (event := self.devices.next_event(0)) is not None:
            if isinstance(event, Received):
                signed = wire.unpack_control(event.topic, event.payload)
                signed.check(ME.key)
                said.append((event.topic, signed.message))
        return said
