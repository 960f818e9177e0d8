"""A whole federation in one process: the real coordinator, sessions, learners and journal over the
in-memory twin of the transport, under a clock that the test moves."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedclip_edge import announcing, coordinator, ledger
from fedclip_edge.config import AgentConfig, DataConfig, FleetConfig, RunRules
from fedclip_edge.learning import methods
from fedclip_edge.local_learner import LocalLearner
from fedclip_edge.messaging import identity
from fedclip_edge.messaging.memory import MemoryBroker, MemoryTransport
from fedclip_edge.messaging.messages import CoordinatorState
from fedclip_edge.messaging.registry import Registry
from fedclip_edge.messaging.topics import Topics
from fedclip_edge.messaging.transport import Transport
from fedclip_edge.parked import open_parked
from fedclip_edge.preparing import Prepared
from fedclip_edge.records import ClassTexts, Features, Plan, Role
from fedclip_edge.session import Session
from fedclip_edge.speaking import will
from fedclip_edge.store import Store, open_store

ENCODER = "e" * 64
TICK_S = 0.25


def class_texts(names: tuple[str, ...] = ("ant", "bee", "cat"), dim: int = 8) -> ClassTexts:
    vectors = np.random.default_rng(7).normal(size=(len(names), dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return ClassTexts(names, vectors.astype(np.float32), 100.0, "a picture of a {}")


def features(count: int, seed: int, classes: ClassTexts, noise: float = 0.6) -> Features:
    """Raw features that lie round their class text, with a norm of about 10."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(classes.names), count)
    spread = random.normal(size=(count, classes.vectors.shape[1])) * noise
    vectors = 10 * (classes.vectors[labels] + spread)
    return Features(vectors.astype(np.float32), labels.astype(np.int64), ENCODER)


def nothing(dim: int = 8) -> Features:
    """No pictures: what a device without a validation side has."""
    return Features(np.zeros((0, dim), np.float32), np.zeros(0, np.int64), ENCODER)


@dataclass
class Fleet:
    """One coordinator and some devices. Their files stay open until `close`, as if all were killed."""

    folder: Path
    plan: Plan
    rules: RunRules
    classes: ClassTexts = field(default_factory=class_texts)
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    now: float = 1000.0
    sessions: dict[str, Session] = field(default_factory=dict)
    registry: Registry | None = None  # with one, devices pin the coordinator's key as well

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
        """As a new coordinator's process does; one that was killed has closed nothing."""
        self.store: Store = open_store(self.folder / "journal.sqlite")
        self._files.callback(self.store.close)

    def close(self) -> None:
        """Closes every file that its processes opened."""
        self._files.close()

    def start_coordinator(self) -> coordinator.Coordinator:
        """A new process's coordinator over the same journal."""
        dim = self.classes.vectors.shape[1]
        run = ledger.begin(self.config, self.classes, dim, ENCODER, self.store)
        me = identity.load_or_create(self.folder / "coordinator.key")
        epoch = self.store.next_epoch()
        boot = f"boot-{epoch}"
        gone = CoordinatorState(boot, epoch, run.id, online=False, key=me.key)
        link = self.broker.client(
            "coordinator",
            Topics("lab").for_coordinator(),
            announcing.will("lab", gone, me),
        )
        books = ledger.open_ledger(run, self.store, methods.layout(run.plan, self.classes, dim))
        started = coordinator.Coordinator(
            config=self.config,
            ledger=books,
            voice=announcing.Announcer(self.config, books, me, link, boot, epoch),
            registry=self.registry,
        )
        started.resume(self.now)
        return started

    def start_device(
        self,
        name: str,
        train: Features,
        test: Features | None = None,
        roles: tuple[Role, ...] = ("train", "evaluate"),
    ) -> Session:
        """A device with these features; starting it again is its restart."""
        pinned = "" if self.registry is None else self.registry.coordinator
        config = AgentConfig(
            name,
            "lab",
            self.folder,
            DataConfig(self.folder),
            self.folder / name,
            name,
            roles,
            pinned,
        )
        config.state_dir.mkdir(exist_ok=True)
        data = Prepared(
            train=train,
            validation=nothing(self.classes.vectors.shape[1]),
            test=test if test is not None else train,
            test_pictures=(),
            encoded=len(train),
            skipped=0,
            encode_s=0.0,
        )
        me = identity.load_or_create(config.state_dir / "device.key")
        dim = self.classes.vectors.shape[1]
        boot = f"{name}-{self.now}"
        parked = open_parked(config.state_dir / "parked.sqlite")
        self._files.callback(parked.close)
        link = self.broker.client(name, Topics("lab").for_device(name), will(config, me, boot))
        session = Session(
            config=config,
            boot=boot,
            encoder_id=ENCODER,
            classes_digest=self.classes.digest,
            learner=LocalLearner(config, self.classes, dim, data, link.traffic),
            identity=me,
            transport=link,
            parked=parked,
        )
        self.sessions[name] = session
        return session

    def parties(self) -> list[tuple[coordinator.Coordinator | Session, MemoryTransport]]:
        """Everybody, and the link of each."""
        links: list[tuple[coordinator.Coordinator | Session, Transport]] = [
            (self.coordinator, self.coordinator.voice.transport)
        ]
        links += [(session, session.transport) for session in self.sessions.values()]
        return [(party, link) for party, link in links if isinstance(link, MemoryTransport)]

    def step(self) -> None:
        """Everybody takes what came, does one piece of work, and time moves on."""
        for party, link in self.parties():
            while (event := link.next_event(0)) is not None:
                party.take(event, self.now)
        for session in self.sessions.values():
            session.act(self.now)
        self.coordinator.tick(self.now)
        self.now += TICK_S

    def run(self, steps: int = 2000) -> None:
        """Until the run is done; fails after `steps`."""
        for _ in range(steps):
            if self.coordinator.finished:
                return
            self.step()
        raise AssertionError(f"not finished after {steps} steps")
