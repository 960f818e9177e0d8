"""The processes of a simulated federation, and their start from the contents of their disks."""

from __future__ import annotations

import functools
import random
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import device_laws
from bad_network import FLEET
from cached_crypto import CLASSES, DIM, identity_of, schedule
from crashing import CrashingConnection, Disk, Fuse
from device_laws import HEAVY, Memory, answer_of
from fake_learner import FakeLearner
from in_memory import ENCODER
from laws import Laws

from fedclip_edge.agent import publisher as agent_publisher
from fedclip_edge.agent import session
from fedclip_edge.agent.session_start import start_session
from fedclip_edge.agent.state_db import StateDb, open_state_db
from fedclip_edge.agent.task import Evaluation, Task
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import coordinator, publisher, run_state
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.resume import resume_coordinator
from fedclip_edge.coordinator.run_choice import choose_run
from fedclip_edge.coordinator.server import Basis, Server
from fedclip_edge.errors import PeerError
from fedclip_edge.learning import ballot
from fedclip_edge.pki.registry import Device, Registry
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.message_parts import Pictures
from fedclip_edge.protocol.messages import CoordinatorState, Manifest
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import COORDINATOR, Measured, Model, Plan, Update
from fedclip_edge.transport.in_memory import InMemoryTransport

if TYPE_CHECKING:
    from made_up_network import World

_NOWHERE = Path("/nowhere")


@dataclass(eq=False)
class SimulatedProcess:
    """A simulated process; `process` is None while it is not running."""

    name: str
    disk: Disk
    copy: bool = False  # a copy of a box: the same key, other pictures, its own disk
    process: coordinator.Coordinator | session.Session | None = None
    link: InMemoryTransport | None = None
    fuse: Fuse = field(default_factory=Fuse)
    connection: CrashingConnection | None = None  # to its journal or state file
    lives: int = 0
    busy_until: float = 0.0  # it is stopped and handles no messages
    # The task that it works on, its result, and the time at which it is done.
    work: tuple[Task, Update | Measured, float] | None = None
    muted_until: float = 0.0  # its messages are lost, and nothing reports it
    deaf_until: float = 0.0  # it does not receive the state of other coordinators
    gone_for_good: bool = False
    dies_young: bool = False  # killed while its file is created
    dies_of_answers: bool = False  # killed right after it has sent a `kept`
    memory: Memory = field(init=False)
    view: Any = None  # its file without a fuse: Journal or StateDb
    believed: Manifest | None = None
    # The topic and content of its last message of some kinds, for repetition.
    last_said: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = Memory(self.name)

    @property
    def label(self) -> str:
        return f"copy of {self.name}" if self.copy else self.name

    @property
    def serves(self) -> bool:
        return self.name == COORDINATOR

    def open(self, view: Journal | StateDb, luck: random.Random, checkpoint_pages: int) -> Any:
        """Open the file's connection with a fuse; the process may be killed at once."""
        database = view._database
        if self.dies_young:
            self.dies_young = False
            self.disk.born(database)
        if checkpoint_pages:
            database.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
        self.view = view
        self.connection = CrashingConnection(
            database, functools.partial(self.disk.torn, database), self.fuse
        )
        return self.connection

    def sleep(self, world: World, for_s: float) -> None:
        """Handle nothing for this long, like a stopped process; 0 wakes it."""
        self.busy_until = world.now + for_s
        world.at(for_s, functools.partial(world.poke, self))

    def check(self, laws: Laws | None) -> None:
        """Check the current contents of a device's disk."""
        if laws is not None and self.view is not None:
            device_laws.check(laws, self.memory, self.view)

    def lose_disk(self) -> None:
        """Replace the disk of a box that is off by an empty one."""
        self.disk.replace((b"", b""))
        self.memory, self.believed = Memory(self.name), None


def start_coordinator(world: World, simulated: SimulatedProcess) -> bool:
    """Start a coordinator from its journal; False if its run is already finished."""
    path = simulated.disk.path
    connection = simulated.open(open_journal(path), world.luck, world.checkpoint_pages)
    journal = Journal(path, connection)
    run = _begin(world, journal)
    if run is None:
        return False
    # The first coordinator may continue with the epoch of an earlier run.
    epoch = journal.next_epoch(
        above=_heard(world) if world.starts else world.luck.choice((0, 3, 3))
    )
    world.starts += 1
    incarnation = f"boot-{world.starts}"
    me = identity_of(simulated.name)
    gone = CoordinatorState(incarnation, epoch, run.id, online=False, key=me.key)
    state = run_state.open_run_state(run, journal, schedule(run.plan))
    _apply_laws(world, state)
    # Each start has a new client id, as in process.py, so an old will may arrive later.
    simulated.link = world.network.client(
        f"coordinator-{incarnation}",
        Topics(FLEET).for_coordinator(),
        publisher.will(FLEET, gone, me),
    )
    config = _fleet_config(world, path)
    said = publisher.Publisher(config, state, me, simulated.link, incarnation, epoch)
    simulated.process = resume_coordinator(
        config, state, said, world.now, registry=_registry(world) if world.is_enrolled else None
    )
    return True


def start_next_run(
    world: World, simulated: SimulatedProcess, process: coordinator.Coordinator
) -> None:
    """Start another run in the process of one that is over."""

    def load() -> tuple[FleetConfig, Basis]:
        return _fleet_config(world, simulated.disk.path), Basis(CLASSES, DIM, ENCODER)

    world.runs += 1
    world.backup = (b"", b"")  # the laws of the run before are forgotten
    server = SimulatedServer(process.config, process.run_state.journal, process, load)
    server.world, server.simulated = world, simulated
    is_done = server.course.state == "done"
    start = world.operator_luck.choice(("zero-shot", "last"))
    if world.plan.method != "fedclip" or not is_done:
        start = "zero-shot"
    with mock.patch.object(secrets, "token_hex", return_value=str(world.runs)):
        begin = server.prepare_run(by="the operator", start=start)
    begin(world.now)


class SimulatedServer(Server):
    """A server whose laws are those of its newest run before it says anything about it."""

    world: World
    simulated: SimulatedProcess

    def open(self, now: float) -> None:
        self.simulated.process = self.coordinator
        _apply_laws(self.world, self.coordinator.run_state)
        super().open(now)


def _apply_laws(world: World, state: run_state.RunState) -> None:
    """Check the laws of this run from now on, also of what is in its journal already."""
    run = state.run
    if world.laws is None or world.laws.run.id != run.id:
        world.laws = Laws(
            run,
            state.model,
            schedule(run.plan),
            sum("train" in roles for roles in world.roles.values()),
            world.rules.quorum,
        )
    world.laws.check_run_state(state)


def _registry(world: World) -> Registry:
    devices = {
        agent.name: Device(identity_of(agent.name).key, (), "2099-01-01") for agent in world.agents
    }
    return Registry(FLEET, "localhost", 0, identity_of(COORDINATOR).key, devices=devices)


def _heard(world: World) -> int:
    """The epoch of a retained coordinator state, as process.py reads it; 0 if there is none."""
    topic = Topics(FLEET).coordinator_state
    payload = world.network.retained(topic)
    if not payload or world.luck.random() < 0.7:  # the retained message came too late
        return 0
    try:
        state = wire.unpack_control(topic, payload).message
    except PeerError:
        return 0
    return state.epoch if isinstance(state, CoordinatorState) else 0


def _begin(world: World, journal: Journal) -> Run | None:
    """The run to continue, or a new one with a deterministic id; None if it is finished."""
    if journal.runs.last() is None:
        world.runs += 1
        initial = schedule(world.plan).initial()
        run = Run(f"run-{world.runs}", world.plan, ENCODER, CLASSES.digest)
        journal.runs.add(run, run_state.stored_model(initial, {}, world.plan))
    elif journal.runs.unfinished() is None:
        return None
    return choose_run(_fleet_config(world, journal.path), CLASSES, DIM, ENCODER, journal).begin()


def _fleet_config(world: World, journal: Path) -> FleetConfig:
    return FleetConfig(FLEET, bundle=_NOWHERE, journal=journal, rules=world.rules, plan=world.plan)


def start_agent(world: World, simulated: SimulatedProcess) -> None:
    """Start a device from the contents of its disk."""
    path = simulated.disk.path
    connection = simulated.open(open_state_db(path), world.luck, world.checkpoint_pages)
    simulated.check(world.laws)
    name, me = simulated.name, identity_of(simulated.name)
    roles = world.roles[name]
    pinned = identity_of(COORDINATOR).key if world.is_enrolled else ""
    config = AgentConfig(name, FLEET, DataConfig(_NOWHERE), _NOWHERE, name, roles, pinned, _NOWHERE)
    variant = f"{simulated.lives}-{int(simulated.copy)}"
    if world.habits.get(name) == "is refused":
        variant += HEAVY
    incarnation = f"{name}-{variant}"
    simulated.link = world.network.client(
        f"{FLEET}.{name}",
        Topics(FLEET).for_device(name),
        agent_publisher.will(config, me, incarnation),
    )
    simulated.believed = None
    simulated.process = start_session(
        config=config,
        incarnation=incarnation,
        encoder_id=ENCODER,
        classes_digest=CLASSES.digest,
        learner=FakeLearner(
            lambda closed: schedule(_plan(world, simulated)).layout(closed).parameters,
            name,
            functools.partial(_train, world, simulated, variant),
            # Without times in the report, its bytes are the same in every trace.
            report_fields={"wait_s": 0.0},
            roles=roles,
            pictures=Pictures(train=1, validation=ballot.MOST, test=1, withheld=0),
        ),
        identity=me,
        transport=simulated.link,
        state_db=StateDb(path, cast("Any", connection)),
    )


def work(world: World, simulated: SimulatedProcess, process: session.Session) -> bool:
    """Begin the task of a device, or hand in its result; False if neither is due.

    Training takes virtual time, in which the device follows the messages. Evaluation takes none.
    """
    task, begun = process.task, simulated.work
    if task is None:
        return False
    if begun is None or begun[0] is not task:
        model, plan, learner = task.held.model, task.manifest.plan, process.work.learner
        if isinstance(task, Evaluation):
            measured = learner.evaluate(model, plan, final=task.is_last)
            begun = task, measured, world.now
        else:
            training_s = world.training_s[simulated.name]
            begun = task, learner.fit(model, plan), world.now + training_s
            world.at(training_s, functools.partial(world.poke, simulated))
        simulated.work = begun
    _, result, done_at = begun
    if world.now < done_at:
        return False
    process.take_result(result, world.now)
    return True


def _train(world: World, simulated: SimulatedProcess, variant: str, model: Model) -> Update:
    """An update that is made at once."""
    process = simulated.process
    assert isinstance(process, session.Session)
    assert process.task is not None
    run = process.task.manifest.run
    device_laws.trains(simulated.memory, run, model.round, variant)
    return answer_of(schedule(_plan(world, simulated)), model, simulated.name, variant)


def _plan(world: World, simulated: SimulatedProcess) -> Plan:
    """The plan as the device knows it: the operator may change its rounds."""
    process = simulated.process
    manifest = process.trust.manifest if isinstance(process, session.Session) else None
    return world.plan if manifest is None else manifest.plan
