"""A federation under an adversary, with a simulated network and clock and one seed for all faults.

Coordinator, sessions, journal and device files are the real ones. Nothing uses the wall clock or
other random numbers: the same seed gives the same events in the same order, and `Outcome.trace` is
their hash. The adversary's faults are in fault_schedule.py and bad_network.py. It loses, repeats,
reorders, delays and alters messages; cuts links; kills the broker; empties disks and restores old
ones; starts a second agent or coordinator with the same id; and kills any process before a message
or a statement, or within a commit (crashing.py). Then the faults stop, all processes come back that
may, and the run has to end, although some members of the fleet may never behave (habits.py). The
laws that must hold are in laws.py.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import heapq
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import device_laws
import habits
import operator_acts
import simulated_processes
from bad_network import FLEET, Network, Weather, worse
from broken_law import BrokenLawError
from cached_crypto import identity_of, quickly, schedule
from crashing import Disk, Killed
from fault_schedule import FAULTS
from laws import Laws
from progress import Progress
from simulated_processes import (
    SimulatedProcess,
    start_agent,
    start_coordinator,
    start_next_run,
)

from fedclip_edge.agent import session
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator import coordinator, run_state
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.uploads import LEASE_S
from fedclip_edge.errors import FedclipError, PeerError, RunError
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import COORDINATOR, Codec, Plan, Role
from fedclip_edge.transport.in_memory import InMemoryTransport

TICK_S = 1.0
_CLOSE_S = 5.0  # see base.py: queued messages are sent for this long
_LOSSY: tuple[Codec, Codec] = ("int8", "fp16")  # the defaults of the product
_TOLD_S = 150.0  # a device must learn within this time that its run is done


@dataclass(frozen=True)
class Outcome:
    """The result of a seed; `broken` names the law, and is empty if all laws held."""

    seed: int
    trace: str
    events: int
    broken: str = ""
    law: str = ""
    settled_s: float = 0.0  # virtual time from the last fault to the end of the run
    kills: int = 0
    rounds: int = 0
    bad: int = 0  # members with a bad habit
    slowest: float = 0.0  # the largest share of a bound of progress.py that a round needed


def simulate(seed: int, show: Callable[[str], None] | None = None) -> Outcome:
    """Run one seed from the first start to the end of the run, or to the first broken law."""
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
            settled_s=world.ended_at - world.quiet_at if world.ended_at else 0.0,
            kills=world.kills,
            rounds=world.exchanges,
            bad=len(world.bad),
            slowest=world.progress.slowest,
        )


def _fast_folder() -> str | None:
    """A folder in memory if there is one: the test needs SQLite's writes, not a slow disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class World:
    """The processes, the clock, and the queue of events."""

    def __init__(self, seed: int, folder: Path, show: Callable[[str], None] | None) -> None:
        self.luck: random.Random = random.Random(seed)
        self.habit_luck: random.Random = random.Random(f"habits of {seed}")
        self.operator_luck: random.Random = random.Random(f"operator of {seed}")
        self.has_operator = self.operator_luck.random() < 0.3
        # Runs that the operator starts once the one before is over.
        self.further_runs = self.operator_luck.choice((0, 1)) if self.has_operator else 0
        self._runs_in_all = 1 + self.further_runs
        self.forget_luck: random.Random = random.Random(f"forget {seed}")
        self.forgotten = ""  # the device that the operator takes away and forgets
        # For one choice alone, so that it changes no other one.
        self.more_waits: random.Random = random.Random(f"more {seed}")
        self.now = 1000.0
        self.trace = hashlib.sha256()
        self.events = self.kills = self.runs = self.starts = 0
        self.quiet_at = self.now + self.luck.uniform(5, 60)
        self.ended_at = 0.0  # time at which the coordinator ended
        self._look_at = 0.0  # time of the next check of the bounds
        self.finished = False
        self._show = show
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        devices, spare = self.luck.choice((1, 1, 2, 2, 3)), self.luck.choice((0, 0, 1))
        rounds = self.luck.choice((1, 2, 2, 3))
        self.habits: dict[str, str] = habits.choose(self)
        if self.habits:
            rounds += self.habit_luck.choice((0, 2))  # most of them after the last fault
        lossless: tuple[Codec, Codec] = ("fp32", "fp32")
        up, down = self.luck.choice((lossless, *[_LOSSY] * 2))
        self.plan = Plan("fedclip", rounds=rounds, vote="off", codec_up=up, codec_down=down)
        # From luck of its own, so that it changes no other choice.
        vote_luck = random.Random(f"vote of {seed}")
        if vote_luck.random() < 0.5:
            self.plan = replace(self.plan, vote="on")
            method = vote_luck.choice(("fedclip", "fedclip", "gda", "ridge"))
            if method != "fedclip":
                self.plan = replace(self.plan, method=method, rounds=1)
        self.rules = RunRules(
            devices=devices,
            quorum=self.luck.choice((0.5, 0.75, 1.0)),
            deadline_s=self.luck.choice((10.0, 20.0, 40.0)),
            grace_s=self.luck.choice((1.0, 4.0, 10.0)),
            cohort=self.luck.choice((0, 0, 0, devices)),
            upload_slots=self.luck.choice((1, 2, 8)),
        )
        journal = Disk(folder / COORDINATOR, self.luck)
        # Two coordinators on one journal, the second with --take-over. `serve` is the current one.
        self.serve, self.rival = (SimulatedProcess(COORDINATOR, journal) for _ in range(2))
        names = [f"cam-{number}" for number in range(devices + 1 + spare)]
        self.agents = [self._box(folder, name) for name in names]
        self.clones = [self._box(folder, names[0], copy=True)]
        self.roles: dict[str, tuple[Role, ...]] = {
            name: ("evaluate",)
            if not number and self.luck.random() < 0.3
            else self.luck.choice((("train", "evaluate"), ("train", "evaluate"), ("train",)))
            for number, name in enumerate(names)
        }
        work_s = {name: self.luck.uniform(0, 6) for name in names}
        self._add_bad_members(folder, work_s)
        # Virtual time of one training, and of each chunk on its way to the coordinator.
        self.training_s = {name: 0.5 * both for name, both in work_s.items()}
        self.upload_s = dict(self.training_s)
        # The coordinator's pause for a flood goes by the registry of enrolled devices.
        self.is_enrolled = "floods" in self.habits.values() or self.habit_luck.random() < 0.2
        for simulated in (self.serve, *self.agents):
            simulated.dies_young = self.luck.random() < 0.1
        self.checkpoint_pages = self.luck.choice((0, 0, 4, 12))
        self.backup: tuple[bytes, bytes] = (b"", b"")  # a copy of the journal
        self.laws: Laws | None = None
        self.weather: Weather = worse(self.luck)
        self.network = Network(self)
        self._leavers: list[SimulatedProcess] = []
        self._owners: dict[InMemoryTransport, SimulatedProcess] = {}  # also of links that are gone
        self._spares = [self.agents[len(names) - 1]] if spare else []
        # A spare goes away for good; it may be a training device that a round waits for.
        missing = [box for box in (*self._spares, *self.bad) if "train" in self.roles[box.name]]
        # The operator lets a paused run go on at a tick after the last fault.
        quiet_at = self.quiet_at + (2 * TICK_S if self.has_operator else 0.0)
        self.progress = Progress(self.rules, self.exchanges, len(missing), quiet_at)

    def _add_bad_members(self, folder: Path, work_s: dict[str, float]) -> None:
        self.bad = [self._box(folder, name) for name in self.habits]
        self.agents += self.bad
        luck = self.habit_luck
        both: tuple[Role, ...] = ("train", "evaluate")
        for name, habit in self.habits.items():
            roles: tuple[tuple[Role, ...], ...] = (both, ("train",), ("evaluate",))
            self.roles[name] = both if habit == "is refused" else luck.choice(roles)
            late_s = luck.uniform(1.05, 2) * self.rules.deadline_s
            work_s[name] = late_s if habit == "is slow" else luck.uniform(0, 6)

    def good_agents(self) -> list[SimulatedProcess]:
        """The devices that a round may need, without those that are gone for good."""
        return [a for a in self.agents if self._is_good(a) and not a.gone_for_good]

    def _is_good(self, agent: SimulatedProcess) -> bool:
        """True if a round may need the device: it trains and has no bad habit."""
        is_bad = agent in self.bad or agent in self._spares
        return "train" in self.roles[agent.name] and not is_bad

    def _box(self, folder: Path, name: str, *, copy: bool = False) -> SimulatedProcess:
        disk = Disk(folder / f"{name}{'-copy' if copy else ''}", self.luck, "parked.sqlite")
        return SimulatedProcess(name, disk, copy)

    @property
    def processes(self) -> tuple[SimulatedProcess, ...]:
        return (self.serve, self.rival, *self.agents, *self.clones)

    @property
    def exchanges(self) -> int:
        """The largest number of rounds and votes that the run may have."""
        more = operator_acts.MORE_ROUNDS if self.has_operator else 0
        return len(schedule(self.plan).steps) + more

    @property
    def bound_s(self) -> float:
        """The virtual time within which a run must end after the last fault."""
        rules = self.rules
        if self.bad or self._leavers or self.forgotten:
            return self._runs_in_all * self.progress.run_s
        return (
            self._runs_in_all * (self.exchanges + 3) * (rules.deadline_s + rules.grace_s + LEASE_S)
        )

    # ---- time

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._count, act))

    def note(self, what: str) -> None:
        """Add a line to the trace."""
        self.events += 1
        line = f"{self.now:.6f} {what}"
        self.trace.update(line.encode() + b"\n")
        if self._show is not None:
            self._show(line)

    def play(self) -> None:
        """Run until the end; raises BrokenLawError."""
        for simulated in (self.serve, *self.agents, *self.clones):
            simulated.disk.folder.mkdir(parents=True)
        self._plan_faults()
        self.start(self.serve)
        for agent in self.agents:
            self.at(self.luck.uniform(0, 5), functools.partial(self.start, agent))
        habits.begin(self)
        self.at(self.quiet_at - self.now, self.fall_quiet)
        while not self.finished:
            self.now, _, act = heapq.heappop(self._queue)
            if self.now >= self._look_at and not self.ended_at:
                self._look_at = self.now + TICK_S
                self._check_progress()
            act()
            if self.ended_at:
                self._check_told()

    def _check_progress(self) -> None:
        if self.now > self.quiet_at + self.bound_s:
            raise BrokenLawError("ends", f"not ended {self.bound_s:.0f} s after the last fault")
        if self.laws is not None:
            self.progress.check(self.laws.run.id, len(self.laws.models) - 1, self.now)

    def close(self) -> None:
        for simulated in self.processes:
            if simulated.connection is not None:
                simulated.connection.close()

    # ---- the adversary

    def _plan_faults(self) -> None:
        span_s = self.quiet_at - self.now
        for _ in range(self.luck.randint(0, 12)):
            fault = self.luck.choice(FAULTS)
            self.at(self.luck.uniform(0, span_s), functools.partial(fault, self))
        operator_acts.plan(self, span_s)

    def fall_quiet(self) -> None:
        """Stop all faults, and restart or reconnect all processes that may come back."""
        self.note("quiet")
        self.weather = Weather()
        for clone in self.clones:
            self.kill(clone, back_in_s=None)
        for simulated in self.processes:
            simulated.fuse.left = 0
            simulated.muted_until = simulated.deaf_until = 0.0
            simulated.dies_young = simulated.dies_of_answers = False
        self.lose_for_good(self._spares)
        for simulated in (self.serve, self.rival, *self.agents):
            if simulated.process is None:
                if simulated is not self.rival:
                    self.start(simulated)
            elif simulated.link is not None and not self.network.is_here(simulated.link):
                self.reconnect(simulated)
        if self.laws is not None and len(self.laws.models) > 1:
            # Before its first round is closed, the run may wait for `devices` of them. Its journal
            # may be new: only the coordinator that has just started knows.
            good = self.good_agents()
            self._leavers = habits.leavers(self, good)
            if self.forgotten or self.further_runs:  # so many stay as a run needs to begin
                del self._leavers[max(0, len(good) - self.rules.devices) :]
            self.progress.bad += len(self._leavers)
            self.lose_for_good(self._leavers)

    def lose_for_good(self, agents: list[SimulatedProcess]) -> None:
        """Kill these, and never start them again."""
        for agent in agents:
            agent.gone_for_good = True
            self.kill(agent, back_in_s=None)

    # ---- processes

    def start(self, simulated: SimulatedProcess, *, take_over: bool = False) -> None:
        """Start a process, unless it runs already or must stay away."""
        if simulated.process is not None or simulated.gone_for_good or self.finished:
            return
        if simulated.serves and (
            self.ended_at or (self._other(simulated).process and not take_over)
        ):
            return
        simulated.lives += 1
        simulated.busy_until, simulated.work = 0.0, None
        self.note(f"start {simulated.label}")
        try:
            if not simulated.serves:
                start_agent(self, simulated)
            elif not start_coordinator(self, simulated):
                self._end(simulated)
                return
        except Killed:
            self._die(simulated)
            return
        except FedclipError as error:
            raise BrokenLawError("ends", f"{simulated.label} cannot start: {error}") from error
        self.at(0, functools.partial(self.poke, simulated))
        self._tick(simulated, simulated.lives)

    def _other(self, simulated: SimulatedProcess) -> SimulatedProcess:
        return self.rival if simulated is self.serve else self.serve

    def _tick(self, simulated: SimulatedProcess, life: int) -> None:
        """Tick once per second while this life of the process lasts."""
        if simulated.process is None or simulated.lives != life:
            return
        self.at(TICK_S, functools.partial(self._tick, simulated, life))
        self.poke(simulated, ticks=True)

    def poke(self, simulated: SimulatedProcess, *, ticks: bool = False) -> None:
        """Let the process handle its messages and do its work."""
        process, link = simulated.process, simulated.link
        if process is None or link is None or simulated.busy_until > self.now or self.finished:
            return
        if isinstance(process, coordinator.Coordinator):
            self.guarded(
                simulated, functools.partial(self._serve, simulated, process, link, ticks=ticks)
            )
        else:
            self.guarded(simulated, functools.partial(self._act, simulated, process, link))

    def guarded(self, simulated: SimulatedProcess, act: Callable[[], None]) -> None:
        """Let the process do something that may kill it, or that may show a broken law."""
        try:
            act()
        except Killed:
            self._die(simulated)
        except BrokenLawError:
            raise
        except RunError as error:
            if not simulated.serves or "took over" not in str(error):
                raise BrokenLawError("ends", f"{simulated.label}: {error}") from error
            self._give_way(simulated)
        except Exception as error:
            what = f"{simulated.label} died of {type(error).__name__}: {error}"
            raise BrokenLawError("ends", what) from error

    def _serve(
        self,
        simulated: SimulatedProcess,
        process: coordinator.Coordinator,
        link: InMemoryTransport,
        *,
        ticks: bool,
    ) -> None:
        assert simulated.connection is not None
        before = simulated.connection.commits
        while not process.finished and (event := link.next_event(0)) is not None:
            # As if another event waited: then contributions are on disk after a tick at the latest.
            process.handle_event(event, self.now, more=self.more_waits.random() < 0.5)
            before = self._check(simulated, process, before)
        if ticks and not process.finished:
            if process.rounds.paused and self.now >= self.quiet_at:
                operator_acts.let_go_on(self, simulated)
                if simulated.process is not process:
                    return  # it was killed
            process.tick(self.now)
            self._check(simulated, process, before)
        if process.finished and self.further_runs:
            self.further_runs -= 1
            self.note("another run")
            self._check_over(simulated)
            start_next_run(self, simulated, process)
        elif process.finished:
            process.say_goodbye()
            self._end(simulated)

    def _check(
        self, simulated: SimulatedProcess, process: coordinator.Coordinator, before: int
    ) -> int:
        assert simulated.connection is not None
        assert self.laws is not None
        if process.run_state.journal.is_holding:
            return before  # the sum has contributions that are not on disk yet
        if simulated.connection.commits != before:
            self.laws.check_run_state(process.run_state)
        return simulated.connection.commits

    def _act(
        self, simulated: SimulatedProcess, process: session.Session, link: InMemoryTransport
    ) -> None:
        assert simulated.connection is not None
        before = simulated.connection.commits
        try:
            while True:
                while (event := link.next_event(0)) is not None:
                    process.handle_event(event, self.now)
                    self._believes(simulated, process)
                if process.task is not None and not process.is_task_wanted:
                    self.note(f"{simulated.label} drops its work")
                    process.drop_task()
                acted = process.act(self.now)
                if not simulated_processes.work(self, simulated, process) and not acted:
                    break
        finally:
            # Also for a process that is killed, unless the kill was within a commit.
            wrote = simulated.connection.commits != before
            if wrote and not simulated.connection.in_transaction and simulated.disk.image is None:
                simulated.check(self.laws)
        if process.finished:  # as in the loop of agent.py
            process.finished = False
            self.note(f"{simulated.label} is done")

    def _believes(self, simulated: SimulatedProcess, process: session.Session) -> None:
        manifest = process.trust.manifest
        if manifest is not None and manifest is not simulated.believed:
            simulated.believed = manifest
            device_laws.believes(simulated.memory, manifest)

    def _give_way(self, simulated: SimulatedProcess) -> None:
        """End the process, with a good-bye, because another coordinator took over."""
        self.note(f"{simulated.label} gives way")
        assert simulated.process is not None
        with contextlib.suppress(Killed):
            simulated.process.say_goodbye()
        if simulated is self.serve and self.rival.process is not None:
            self.serve, self.rival = self.rival, self.serve
        self._die(simulated, back_in_s=5.0)

    def _check_over(self, simulated: SimulatedProcess) -> None:
        """Check the state on disk of a run that is over."""
        assert self.laws is not None
        journal = Journal(simulated.disk.path, simulated.view._database)
        run = journal.runs.last()
        assert run is not None
        course = journal.runs.course(run.id)
        state = run_state.open_run_state(run, journal, schedule(run.plan))
        self.laws.check_run_state(state)
        exchanges = len(schedule(run.plan).steps)
        if course.state == "abandoned":
            exchanges = len(self.laws.models) - 1
        elif course.ends_after is not None:
            exchanges = course.ends_after
        if len(self.laws.models) != exchanges + 1 or not course.is_over:
            raise BrokenLawError(
                "ends", "the coordinator ended, but the run in its journal is not complete"
            )
        if course.state == "done":
            self.laws.check_file(state, exchanges)

    def _end(self, simulated: SimulatedProcess) -> None:
        """End the world with the run, and the coordinator's process too."""
        self.note("end")
        self._check_over(simulated)
        self.ended_at = self.now
        habits.end(self)
        self.kill(self._other(simulated), back_in_s=None)
        for agent in self.agents:  # some devices are away at that moment
            if self.luck.random() < 0.2:
                self.luck.choice((self.lose_link, functools.partial(self.kill, back_in_s=2.0)))(
                    agent
                )
        simulated.process, link = None, simulated.link
        if link is not None:
            self._leave_when_sent(link, self.now + _CLOSE_S)

    def _leave_when_sent(self, link: InMemoryTransport, until: float) -> None:
        """Close the link as paho does, after its queue has been sent."""
        if link.backlog() and self.now < until:
            self.at(0.1, functools.partial(self._leave_when_sent, link, until))
        elif self.network.is_here(link):
            link.close()

    def _check_told(self) -> None:
        """Check that every device that took part knows that the run is done."""
        assert self.laws is not None
        run = self.laws.run.id
        waiting = [
            agent.name
            for agent in self.agents
            if agent.memory.part_of == run != agent.memory.ended and not agent.gone_for_good
        ]
        if not waiting:
            self.finished = True
        elif self.now > max(self.ended_at, self.quiet_at) + _TOLD_S:
            # The coordinator may have gone, but the retained manifest says it.
            if self._retains_the_end(run):
                raise BrokenLawError("ends", f"{waiting} do not learn that {run} is done")
            self.finished = True

    def _retains_the_end(self, run: str) -> bool:
        topic = Topics(FLEET).manifest
        try:
            signed = wire.unpack_control(topic, self.network.retained(topic))
            signed.check(identity_of(COORDINATOR).key)
        except PeerError:
            return False
        said = signed.message
        return isinstance(said, Manifest) and said.run == run and said.phase == "done"

    # ---- faults of processes and links

    def kill(self, simulated: SimulatedProcess, back_in_s: float | None) -> None:
        """Kill the process; it starts again after `back_in_s`."""
        if simulated.process is not None:
            self._die(simulated, back_in_s)

    def _die(self, simulated: SimulatedProcess, back_in_s: float | None = 0.5) -> None:
        self.kills += 1
        self.note(f"killed {simulated.label}")
        simulated.process, simulated.fuse.left, simulated.dies_of_answers = None, 0, False
        other = self._other(simulated) if simulated.serves else None
        if other is not None and other.process is not None:
            if simulated.disk.image is not None:  # a power failure of the box ends both
                self._drop(simulated)
                self._die(other, back_in_s)
            else:
                self._drop(simulated)
        else:
            simulated.disk.kill(simulated.connection)
            simulated.connection = simulated.view = None
        link, simulated.link = simulated.link, None
        if link is not None and self.network.is_here(link):
            # The socket of a killed process closes at once; a power failure is noticed later.
            late = self.luck.choice((0.0, 0.0, self.luck.uniform(0, 15)))
            self.at(late, functools.partial(self.network.miss, link))
        if back_in_s is not None:
            back_in_s = self.luck.choice((back_in_s, self.luck.uniform(0, 12)))
            self.at(back_in_s, functools.partial(self.start, simulated))

    def _drop(self, simulated: SimulatedProcess) -> None:
        """Close the file of a process whose file another process still uses."""
        if simulated.connection is not None:
            simulated.connection.close()
        simulated.connection = simulated.view = None

    def reconnect(self, simulated: SimulatedProcess) -> None:
        """Reconnect, as paho does after its back-off."""
        if (
            simulated.process is None
            or simulated.link is None
            or self.network.is_here(simulated.link)
        ):
            return
        self.note(f"reconnected {simulated.label}")
        self.network.come_back(simulated.link)
        self.at(0, functools.partial(self.poke, simulated))

    def lose_link(self, simulated: SimulatedProcess) -> None:
        """Cut the link; it comes back on its own."""
        if simulated.link is not None and self.network.is_here(simulated.link):
            self.network.cut(simulated.link.client_id)

    def link_lost(self, link: InMemoryTransport) -> None:
        """Schedule the reconnection, after paho's back-off, of a process whose link was lost."""
        simulated = self.owner(link)
        if simulated is not None:
            self.note(f"link lost {simulated.label}")
            self.at(0, functools.partial(self.poke, simulated))
            back_in_s = self.luck.uniform(1, 3) if self.luck.random() < 0.7 else 8.0
            self.at(back_in_s, functools.partial(self.reconnect, simulated))

    def owner(self, link: InMemoryTransport) -> SimulatedProcess | None:
        """The living process at the end of this link."""
        known = self._owners.get(link)  # this is asked four times for each message
        if known is not None:
            return known if known.link is link else None
        for simulated in self.processes:
            if simulated.link is link:
                self._owners[link] = simulated
                return simulated
        return None
