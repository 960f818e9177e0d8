"""A federation under an adversary: real coordinator, sessions and journal, a made-up network and
clock, and one seed that decides everything that goes wrong.

Nothing here looks at a wall clock or at chance of its own: the same seed gives the same events in
the same order, and `Outcome.trace` is their hash. While the adversary acts it loses, repeats,
reorders, delays and alters messages, mutes parties, cuts links, kills the broker, starts a second
agent under an id in use, and kills any process at any instruction that matters: before a message
or a statement, within a commit (crashing.py). Then it is quiet, everybody who may comes back, and
the run has to end. What must hold meanwhile stands in laws.py.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bad_network import Network, Weather, worse
from cheap_parts import CLASSES, DIM, Learner, identity_of, quickly, shapes
from crashing import Disk, Fuse, Journal, Killed
from faults import FAULTS
from in_memory import ENCODER
from laws import BrokenLawError, Laws

from fedclip_edge import announcing, coordinator, ledger, session
from fedclip_edge.config import AgentConfig, DataConfig, FleetConfig, RunRules
from fedclip_edge.errors import FedclipError
from fedclip_edge.learning import methods
from fedclip_edge.messaging.memory import MemoryTransport
from fedclip_edge.messaging.messages import CoordinatorState
from fedclip_edge.messaging.topics import Topics
from fedclip_edge.messaging.uploads import LEASE_S
from fedclip_edge.parked import open_parked
from fedclip_edge.records import Plan, Role
from fedclip_edge.store import Run, Store, open_store

FLEET = "lab"
TICK_S = 1.0
_NOWHERE = Path("/nowhere")


@dataclass(frozen=True)
class Outcome:
    """How a seed ended; `broken` names the law, and is empty where all held."""

    seed: int
    trace: str
    events: int
    broken: str = ""
    law: str = ""
    settled_s: float = 0.0  # of virtual time, from the adversary's silence to the run's end
    kills: int = 0
    rounds: int = 0


def simulate(seed: int, show: Callable[[str], None] | None = None) -> Outcome:
    """One seed, from the first start to the end of the run, or to the first broken law."""
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder, quickly(logs=show is not None):
        world = World(seed, Path(folder), show)
        broken = law = ""
        try:
            world.play()
        except BrokenLawError as error:
            broken, law = str(error), error.law
        finally:
            world.close()
        return Outcome(
            seed=seed,
            trace=world.trace.hexdigest(),
            events=world.events,
            broken=broken,
            law=law,
            settled_s=world.now - world.quiet_at,
            kills=world.kills,
            rounds=world.plan.rounds,
        )


def _fast_folder() -> str | None:
    """Memory where there is some: what is tested is what SQLite wrote, not how long a disk takes."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclass(eq=False)
class Party:
    """A process, or the place where one was."""

    name: str
    process: coordinator.Coordinator | session.Session | None = None
    link: MemoryTransport | None = None
    fuse: Fuse = field(default_factory=Fuse)
    lives: int = 0
    busy_until: float = 0.0  # it trains, and hears nothing meanwhile
    muted_until: float = 0.0  # nothing passes, and nobody notices
    gone_for_good: bool = False


class World:
    """The parties, the clock, and what is yet to happen."""

    def __init__(self, seed: int, folder: Path, show: Callable[[str], None] | None) -> None:
        self.luck = random.Random(seed)
        self.now = 1000.0
        self.trace = hashlib.sha256()
        self.events = self.kills = 0
        self.quiet_at = self.now + self.luck.uniform(5, 60)
        self.finished = False
        self._show = show
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        devices, spare = self.luck.choice((1, 1, 2, 2, 3)), self.luck.choice((0, 0, 1))
        rounds = self.luck.choice((1, 2, 2, 3))
        # Lossless, so that what a device made can be told from what it made of its residual.
        self.plan = Plan(rounds=rounds, codec_up="fp32", codec_down="fp32")
        self.rules = RunRules(
            devices=devices,
            quorum=self.luck.choice((0.5, 0.75, 1.0)),
            deadline_s=self.luck.choice((10.0, 20.0, 40.0)),
            grace_s=self.luck.choice((1.0, 4.0, 10.0)),
            cohort=self.luck.choice((0, 0, 0, devices)),
            upload_slots=self.luck.choice((1, 2, 8)),
        )
        self.serve = Party("coordinator")
        self.agents = [Party(f"cam-{number}") for number in range(devices + 1 + spare)]
        self.clones = [Party(agent.name) for agent in self.agents[:1]]
        self.roles: dict[str, tuple[Role, ...]] = {
            agent.name: ("evaluate",)
            if not number and self.luck.random() < 0.3
            else self.luck.choice((("train", "evaluate"), ("train", "evaluate"), ("train",)))
            for number, agent in enumerate(self.agents)
        }
        self.training_s = {agent.name: self.luck.uniform(0, 6) for agent in self.agents}
        self.disk = Disk(folder, self.luck)
        self.journal: Journal | None = None
        self.dies_young = self.luck.random() < 0.1
        self.checkpoint_pages = self.luck.choice((0, 0, 4, 12))
        self.laws: Laws | None = None
        self.weather = worse(self.luck)
        self.network = Network(self)
        self._spare = spare

    @property
    def bound_s(self) -> float:
        """Within which virtual time a run must end once the adversary is quiet."""
        rules = self.rules
        return (self.plan.rounds + 3) * (rules.deadline_s + rules.grace_s + LEASE_S)

    # ---- time

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, act))

    def note(self, what: str) -> None:
        """One line of the trace."""
        self.events += 1
        line = f"{self.now:.6f} {what}"
        self.trace.update(line.encode() + b"\n")
        if self._show is not None:
            self._show(line)

    def play(self) -> None:
        """Until the run has ended; raises BrokenLawError."""
        self.disk.folder.mkdir()
        self._plan_faults()
        self.start(self.serve)
        for agent in self.agents:
            self.at(self.luck.uniform(0, 5), functools.partial(self.start, agent))
        self.at(self.quiet_at - self.now, self.fall_quiet)
        while not self.finished:
            self.now, _, act = heapq.heappop(self._queue)
            if self.now > self.quiet_at + self.bound_s:
                raise BrokenLawError("ends", f"not ended {self.bound_s:.0f} s after the last fault")
            act()

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    # ---- the adversary

    def _plan_faults(self) -> None:
        span_s = self.quiet_at - self.now
        for _ in range(self.luck.randint(0, 12)):
            fault = self.luck.choice(FAULTS)
            self.at(self.luck.uniform(0, span_s), functools.partial(fault, self))

    def fall_quiet(self) -> None:
        """The adversary's last act: whoever may comes back, and nothing goes wrong any more."""
        self.note("quiet")
        self.weather = Weather()
        for clone in self.clones:
            self.kill(clone, back_in_s=None)
        for party in (self.serve, *self.agents):
            party.fuse.left = 0
            party.muted_until = 0.0
        for agent in self.agents[len(self.agents) - self._spare :]:
            agent.gone_for_good = True
            self.kill(agent, back_in_s=None)
        for party in (self.serve, *self.agents):
            if party.process is None:
                self.start(party)
            elif party.link is not None and not self.network.is_here(party.link):
                self.reconnect(party)

    # ---- processes

    def start(self, party: Party) -> None:
        """A new process, unless one runs, or none is to."""
        if party.process is not None or party.gone_for_good or self.finished:
            return
        party.lives += 1
        party.busy_until = 0.0
        self.note(f"start {party.name}")
        try:
            if party is self.serve:
                self._start_coordinator()
            else:
                self._start_agent(party)
        except Killed:
            self._die(party)
            return
        except FedclipError as error:
            raise BrokenLawError("ends", f"{party.name} cannot start: {error}") from error
        self.at(0, functools.partial(self.poke, party))
        self._tick(party, party.lives)

    def _start_coordinator(self) -> None:
        party, path = self.serve, self.disk.path
        store = open_store(path)
        database = store._database
        if self.dies_young:
            self.dies_young = False
            self.disk.born(database)
        if self.checkpoint_pages:
            database.execute(f"PRAGMA wal_autocheckpoint = {self.checkpoint_pages}")
        torn = functools.partial(self.disk.torn, database)
        self.journal = Journal(database, torn, party.fuse)
        store = Store(path, cast("Any", self.journal))
        run = self._begin(store)
        if run is None:
            self._end()
            return
        epoch = store.next_epoch()
        boot = f"boot-{epoch}"
        me = identity_of(party.name)
        gone = CoordinatorState(boot, epoch, run.id, online=False, key=me.key)
        books = ledger.open_ledger(run, store, shapes(run.plan.method))
        if self.laws is None:
            self.laws = Laws(run, books.model)
        self.laws.check(books)
        # Each start has an id of its own, as serving.py gives it; the last one's will may follow.
        party.link = self.network.client(
            f"coordinator-{boot}",
            Topics(FLEET).for_coordinator(),
            announcing.will(FLEET, gone, me),
        )
        config = self._fleet_config(path)
        party.process = coordinator.Coordinator(
            config=config,
            ledger=books,
            voice=announcing.Announcer(config, books, me, party.link, boot, epoch),
        )
        party.process.resume(self.now)

    def _begin(self, store: Store) -> Run | None:
        """The run to go on with; None where it is finished already. Its id is no chance here."""
        if store.last_run() is None:
            initial = methods.get(self.plan.method).initial(CLASSES, DIM, self.plan.seed)
            run = Run("run-1", self.plan, ENCODER, CLASSES.digest)
            store.add_run(run, ledger._stored(initial, {}, self.plan))
        elif store.unfinished_run() is None:
            return None
        return ledger.begin(self._fleet_config(store.path), CLASSES, DIM, ENCODER, store)

    def _fleet_config(self, journal: Path) -> FleetConfig:
        return FleetConfig(
            FLEET, bundle=_NOWHERE, journal=journal, rules=self.rules, plan=self.plan
        )

    def _start_agent(self, party: Party) -> None:
        name, me = party.name, identity_of(party.name)
        roles = self.roles[name]
        config = AgentConfig(name, FLEET, _NOWHERE, DataConfig(_NOWHERE), _NOWHERE, name, roles)
        variant = int(party in self.clones)
        boot = f"{name}-{party.lives}-{variant}"
        party.link = self.network.client(
            f"{FLEET}.{name}", Topics(FLEET).for_device(name), session.will(config, me, boot)
        )
        party.process = session.Session(
            config=config,
            boot=boot,
            encoder_id=ENCODER,
            classes_digest=CLASSES.digest,
            learner=Learner(name, variant, functools.partial(self._trains, party)),
            identity=me,
            transport=party.link,
            parked=open_parked(
                Path(":memory:")
            ),  # devices forget; test_session.py has those that do not
        )

    def _trains(self, party: Party) -> None:
        training_s = self.training_s[party.name]
        party.busy_until = self.now + training_s
        self.at(training_s, functools.partial(self.poke, party))

    def _tick(self, party: Party, life: int) -> None:
        """The process's own clock, for as long as it lives."""
        if party.process is None or party.lives != life:
            return
        self.at(TICK_S, functools.partial(self._tick, party, life))
        self.poke(party, ticks=True)

    def poke(self, party: Party, *, ticks: bool = False) -> None:
        """The process takes what has come, and does what is due."""
        process, link = party.process, party.link
        if process is None or link is None or party.busy_until > self.now or self.finished:
            return
        try:
            if isinstance(process, coordinator.Coordinator):
                self._serve(process, link, ticks=ticks)
            else:
                self._act(party, process, link)
        except Killed:
            self._die(party)
        except BrokenLawError:
            raise
        except Exception as error:
            what = f"{party.name} died of {type(error).__name__}: {error}"
            raise BrokenLawError("ends", what) from error

    def _serve(
        self, process: coordinator.Coordinator, link: MemoryTransport, *, ticks: bool
    ) -> None:
        assert self.journal is not None
        before = self.journal.commits
        while not process.finished and (event := link.next_event(0)) is not None:
            process.take(event, self.now)
            before = self._check(process, before)
        if ticks and not process.finished:
            process.tick(self.now)
            self._check(process, before)
        if process.finished:
            process.say_goodbye()
            link.close()
            self._end()

    def _check(self, process: coordinator.Coordinator, before: int) -> int:
        assert self.journal is not None
        assert self.laws is not None
        if self.journal.commits != before:
            self.laws.check(process.ledger)
        return self.journal.commits

    def _act(self, party: Party, process: session.Session, link: MemoryTransport) -> None:
        while True:
            while (event := link.next_event(0)) is not None:
                process.take(event, self.now)
            if not process.act(self.now) or party.busy_until > self.now:
                return

    def _end(self) -> None:
        """The run is over: what is left of it is checked, from the disk."""
        assert self.laws is not None
        assert self.journal is not None
        self.note("end")
        store = Store(self.disk.path, cast("Any", self.journal))
        run = self.laws.run
        books = ledger.open_ledger(run, store, shapes(run.plan.method))
        self.laws.check(books)
        if len(self.laws.models) != self.plan.rounds + 1 or store.unfinished_run() is not None:
            raise BrokenLawError("ends", "it says that it ended, and its journal says otherwise")
        self.laws.check_file(books)
        self.finished = True

    # ---- what befalls them

    def kill(self, party: Party, back_in_s: float | None) -> None:
        """The process is gone; it starts again after `back_in_s`."""
        if party.process is not None:
            self._die(party, back_in_s)

    def _die(self, party: Party, back_in_s: float | None = 0.5) -> None:
        self.kills += 1
        self.note(f"killed {party.name}")
        party.process, party.fuse.left = None, 0
        if party is self.serve:
            self.disk.kill(self.journal)
            self.journal = None
        link, party.link = party.link, None
        if link is not None and self.network.is_here(link):
            # A killed process's socket is closed at once; a box without power is missed later.
            late = self.luck.choice((0.0, 0.0, self.luck.uniform(0, 15)))
            self.at(late, functools.partial(self.network.miss, link))
        if back_in_s is not None:
            back_in_s = self.luck.choice((back_in_s, self.luck.uniform(0, 12)))
            self.at(back_in_s, functools.partial(self.start, party))

    def reconnect(self, party: Party) -> None:
        """paho's own back-off is over."""
        if party.process is None or party.link is None or self.network.is_here(party.link):
            return
        self.note(f"reconnected {party.name}")
        self.network.come_back(party.link)
        self.at(0, functools.partial(self.poke, party))

    def lose_link(self, party: Party) -> None:
        """The link is gone, and comes back by itself."""
        if party.link is not None and self.network.is_here(party.link):
            self.network.cut(party.link.client_id)

    def link_lost(self, link: MemoryTransport) -> None:
        """Told by the network: its owner, if it lives, comes back after paho's back-off."""
        for party in (self.serve, *self.agents, *self.clones):
            if party.link is link:
                self.note(f"link lost {party.name}")
                self.at(0, functools.partial(self.poke, party))
                back_in_s = self.luck.uniform(1, 3) if self.luck.random() < 0.7 else 8.0
                self.at(back_in_s, functools.partial(self.reconnect, party))

    def owner(self, link: MemoryTransport) -> Party | None:
        """The living process at the end of this link."""
        for party in (self.serve, *self.agents, *self.clones):
            if party.link is link:
                return party
        return None
