"""A whole federation in one process with a clock that the test moves.

Coordinator, sessions, learners and journal are the real ones; the transport is in memory.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from local_trainer import local_trainer

from fedclip_edge.agent.features import DeviceFeatures
from fedclip_edge.agent.publisher import will
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.session_start import start_session
from fedclip_edge.agent.state_db import open_state_db
from fedclip_edge.agent.working import work
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.fleet import FleetConfig, RunRules
from fedclip_edge.coordinator import coordinator, publisher, run_state
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.resume import resume_coordinator
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.pki.registry import Registry
from fedclip_edge.protocol import signing
from fedclip_edge.protocol.messages import CoordinatorState
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import ClassTexts, Features, Plan, Role
from fedclip_edge.transport.base import Transport
from fedclip_edge.transport.in_memory import InMemoryBroker, InMemoryTransport

ENCODER = "e" * 64
TICK_S = 0.25


def class_texts(names: tuple[str, ...] = ("ant", "bee", "cat"), dim: int = 8) -> ClassTexts:
    vectors = np.random.default_rng(7).normal(size=(len(names), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ClassTexts(names, vectors.astype(np.float32), 100.0, "a picture of a {}")


def features(count: int, seed: int, classes: ClassTexts, noise: float = 0.6) -> Features:
    """Raw features scattered around their class text, with a norm of about 10."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(classes.names), count)
    spread = random.normal(size=(count, classes.vectors.shape[1])) * noise
    vectors = 10 * (classes.vectors[labels] + spread)
    return Features(vectors.astype(np.float32), labels.astype(np.int64), ENCODER)


def nothing(dim: int = 8) -> Features:
    """No pictures, such as the validation set of a device that has none."""
    return Features(np.zeros((0, dim), np.float32), np.zeros(0, np.int64), ENCODER)


@dataclass
class Fleet:
    """A coordinator and devices. Their files stay open until `close`, as after a kill."""

    folder: Path
    plan: Plan
    rules: RunRules
    classes: ClassTexts = field(default_factory=class_texts)
    broker: InMemoryBroker = field(default_factory=InMemoryBroker)
    now: float = 1000.0
    sessions: dict[str, Session] = field(default_factory=dict)
    registry: Registry | None = None  # with a registry, devices also pin the coordinator's key
    once: bool = False  # begin a new run if the newest one is over

    def __post_init__(self) -> None:
        self._files = ExitStack()
        self.open_journal()
        self.coordinator = self.start_coordinator()

    @property
    def config(self) -> FleetConfig:
        return FleetConfig(
            "lab",
            bundle=self.folder,
            journal=self.folder / "journal.sqlite",
            rules=self.rules,
            plan=self.plan,
        )

    def open_journal(self) -> None:
        """Open the journal for a new coordinator; a killed one has not closed it."""
        self.journal: Journal = open_journal(self.folder / "journal.sqlite")
        self._files.callback(self.journal.close)

    def close(self) -> None:
        """Close all files that the processes opened."""
        self._files.close()

    def start_coordinator(self) -> coordinator.Coordinator:
        """Start a coordinator in a new process with the same journal."""
        dim = self.classes.vectors.shape[1]
        run = choose_run(
            self.config, self.classes, dim, ENCODER, self.journal, once=self.once
        ).begin()
        me = signing.load_or_create(self.folder / "coordinator.key")
        epoch = self.journal.next_epoch()
        incarnation = f"boot-{epoch}"
        gone = CoordinatorState(incarnation, epoch, run.id, online=False, key=me.key)
        link = self.broker.client(
            "coordinator",
            Topics("lab").for_coordinator(),
            publisher.will("lab", gone, me),
        )
        schedule = Schedule(run.plan, self.classes, dim)
        state = run_state.open_run_state(
            run, self.journal, schedule, counts_absent=self.rules.absent == "last"
        )
        said = publisher.Publisher(self.config, state, me, link, incarnation, epoch)
        return resume_coordinator(self.config, state, said, self.now, registry=self.registry)

    def start_device(
        self,
        name: str,
        train: Features,
        test: Features | None = None,
        roles: tuple[Role, ...] = ("train", "evaluate"),
        validation: Features | None = None,
        **limits: Any,
    ) -> Session:
        """Start a device with these features, or restart it; `limits` are keys of agent.toml."""
        pinned = "" if self.registry is None else self.registry.coordinator
        config = AgentConfig(
            name,
            "lab",
            DataConfig(self.folder),
            self.folder / name,
            name,
            roles,
            pinned,
            self.folder,
            **limits,
        )
        config.state_dir.mkdir(exist_ok=True)
        data = DeviceFeatures(
            train=train,
            validation=nothing(self.classes.vectors.shape[1]) if validation is None else validation,
            test=test if test is not None else train,
            test_pictures=(),
        )
        me = signing.load_or_create(config.state_dir / "device.key")
        incarnation = f"{name}-{self.now}"
        state_db = open_state_db(config.state_dir / "parked.sqlite")
        self._files.callback(state_db.close)
        link = self.broker.client(
            name, Topics("lab").for_device(name), will(config, me, incarnation)
        )
        session = start_session(
            config=config,
            incarnation=incarnation,
            encoder_id=ENCODER,
            classes_digest=self.classes.digest,
            learner=local_trainer(config, self.classes, data, link.traffic),
            identity=me,
            transport=link,
            state_db=state_db,
        )
        self.sessions[name] = session
        return session

    def everybody(self) -> list[tuple[coordinator.Coordinator | Session, InMemoryTransport]]:
        """The coordinator and all sessions, each with its link."""
        links: list[tuple[coordinator.Coordinator | Session, Transport]] = [
            (self.coordinator, self.coordinator.publisher.transport)
        ]
        links += [(session, session.transport) for session in self.sessions.values()]
        return [(somebody, link) for somebody, link in links if isinstance(link, InMemoryTransport)]

    def step(self) -> None:
        """Deliver all messages, let each session do one piece of work, and move the clock."""
        for somebody, link in self.everybody():
            event = link.next_event(0)
            while event is not None:
                following = link.next_event(0)
                if isinstance(somebody, Session):
                    somebody.handle_event(event, self.now)
                else:
                    somebody.handle_event(event, self.now, more=following is not None)
                event = following
        for session in self.sessions.values():
            session.act(self.now)
            work(session, lambda: self.now)
        self.coordinator.tick(self.now)
        self.now += TICK_S

    def run(self, steps: int = 2000) -> None:
        """Step until the run is done; fail after `steps`."""
        for _ in range(steps):
            if self.coordinator.finished:
                return
            self.step()
        raise AssertionError(f"not finished after {steps} steps")
