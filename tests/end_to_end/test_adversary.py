"""The adversary: 200 runs break no law, and for each law a seeded bug is found.

`make adversary` checks the laws with 100,000 runs.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import habits
import pytest
import safetensors.numpy
from checkout import ROOT, SUPPORT
from made_up_network import Outcome, World, simulate
from simulated_processes import SimulatedProcess

from fedclip_edge.agent.session import Session
from fedclip_edge.agent.state_db import PendingUpdate, RunPosition, StateDb
from fedclip_edge.agent.upload import Upload
from fedclip_edge.coordinator import (
    phase_gathering,
    recomputation,
    removal,
    round_events,
    round_machine,
)
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.coordinator.device_messages import DeviceMessages
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_contributions import Contributions
from fedclip_edge.coordinator.journal_file import JournalFile
from fedclip_edge.coordinator.journal_rounds import Rounds
from fedclip_edge.coordinator.journal_tables import LastContribution, Run
from fedclip_edge.coordinator.publisher import Publisher
from fedclip_edge.coordinator.receiver import Arrival
from fedclip_edge.coordinator.round_driver import RoundDriver
from fedclip_edge.coordinator.round_state import RoundState
from fedclip_edge.coordinator.run_state import ClosedRound, RunState
from fedclip_edge.protocol.chunks import Incoming, Ranges
from fedclip_edge.protocol.messages import Manifest
from fedclip_edge.records import Arrays, Contribution
from fedclip_edge.storage.sqlite import Connection, errors_as
from fedclip_edge.transport.fair_queue import FairQueue

SEEDS = 200  # as many as suffice to find each of the bugs below
ADVERSARY = ROOT / "benchmarks" / "adversary.py"


@pytest.mark.one_python
def test_no_seed_breaks_a_law() -> None:
    # Fresh interpreters: this process may have threads of other tests, which a fork would break.
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as workers:
        outcomes = list(workers.map(simulate, range(SEEDS), chunksize=20))
    broken = [f"seed {o.seed}: {o.broken}" for o in outcomes if o.broken]
    assert not broken, f"{broken[:5]}; {ADVERSARY.name} --seeds 1 --first-seed SEED replays one"
    assert len({o.trace for o in outcomes}) == SEEDS, "every seed must give another run"
    assert sum(o.kills for o in outcomes) > SEEDS, "the adversary must kill processes"


@pytest.mark.parametrize("seed", [3, 28])
def test_the_same_seed_is_the_same_run_in_another_process(seed: int) -> None:
    code = f"from made_up_network import simulate; print(simulate({seed}).trace)"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{SUPPORT}:{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    simulate(seed + 1)  # earlier runs in the same process must not matter
    assert other.stdout.split() == [simulate(seed).trace]


def test_the_benchmark_ends_with_1_and_the_command_that_shows_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Session, "_repeat_offer", never_repeats_an_offer)
    monkeypatch.setattr(sys, "argv", ["adversary.py", "--seeds", "40", "--trace", "--json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ADVERSARY), run_name="__main__")
    assert ended.value.code == 1
    said = capsys.readouterr()
    figures = json.loads(said.out.splitlines()[-1])
    seed = figures["broken"]["seed"]
    assert said.err.splitlines()[-1].endswith(f"--seeds 1 --first-seed {seed} --trace")


def test_the_benchmark_ends_with_0_and_its_figures() -> None:
    command = [sys.executable, str(ADVERSARY), "--seeds", "3", "--first-seed", "9", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert (figures["seeds"], figures["first_seed"], figures["broken"]) == (3, 9, None)


def test_the_benchmark_goes_on_where_it_was_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    benchmark, file = runpy.run_path(str(ADVERSARY)), tmp_path / "progress"

    def seeds_of(count: int) -> dict[str, Any]:
        line = ["adversary.py", "--seeds", str(count), "--trace", "--json", "--progress", str(file)]
        monkeypatch.setattr(sys, "argv", line)
        assert benchmark["main"]() == 0
        figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return figures

    seeds_of(2)
    with file.open("a") as interrupted:
        interrupted.write('{"code": "0')
    assert seeds_of(3)["seeds"] == 3
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]
    assert sorted(seed for line in lines for seed in line["seeds"]) == [0, 1, 2]
    file.write_text(json.dumps({**lines[0], "code": "other"}) + "\n")
    with pytest.raises(SystemExit, match="results of other code"):
        seeds_of(3)


# In the first two, one device heard of a later epoch than the coordinator that ended the run. In
# the last, the only device that had said hello was refused five times within half a second.
@pytest.mark.parametrize("seed", [509367, 700274, 7502])
def test_a_seed_that_once_broke_a_law_breaks_none(seed: int) -> None:
    assert not simulate(seed).broken


# Bugs: one or more for each law. Each bug replaces one function.


def says_kept_before_it_is(
    self: RoundDriver,
    event: round_events.Event,
    now: float,
    arrival: Arrival | None = None,
) -> None:
    self.state, actions = round_machine.step(self.state, event, now)
    for action in actions:
        following = self.perform(action, now)
        if isinstance(action, round_events.Keep):
            assert arrival is not None
            sha256 = self.state.kept[action.device]
            self.run_state.keep(arrival.contribution, sha256, arrival.payload)
        elif following is not None:
            self.handle(following, now)


def commits_with_the_next(
    self: Contributions,
    run: str,
    round: int,
    device: str,
    sha256: str,
    body: bytes,
    norm: float,
    weight: int,
) -> None:
    database = self.file._database
    added = database.execute(
        "INSERT INTO contribution VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)",
        (run, round, device, sha256, len(body), norm, weight),
    )
    database.execute("INSERT INTO payload VALUES (?, ?)", (added.lastrowid, body))


def acknowledges_before_the_sync(self: RoundDriver, action: round_events.Keep, now: float) -> None:
    self.publisher.send(action.device, self.receiver.kept(action.device))
    self.receiver.request_missing(now)


def adds_what_it_keeps_already(
    self: RunState, contribution: Contribution, sha256: str, body: bytes
) -> float:
    if contribution.device not in self.journal.contributions.kept(self.run.id, contribution.round):
        self.journal.contributions.keep(
            self.run.id, contribution.round, contribution.device, sha256, body, 0.5, 1
        )
    self.total.add(contribution.update)
    return 0.5


def resumes_without_what_is_kept(self: RunState) -> dict[str, str]:
    return {}


def closes_with_the_next(self: Rounds, *arguments: Any) -> int:
    vars(self.file)["late"] = self, *arguments
    return 0


@contextmanager
def writes_what_is_late(
    self: JournalFile, transaction: Any = JournalFile.transaction, close: Any = Rounds.close
) -> Iterator[Connection]:
    if "late" in vars(self):
        close(*vars(self).pop("late"))
    with transaction(self) as database:
        yield database


def never_repeats_an_offer(self: Session, now: float) -> bool:
    return False


def believes_every_chunk(self: Incoming, payload: bytes) -> bool:
    index = int.from_bytes(payload[12:16], "little")
    known = index in self.parts
    self.parts[index] = payload[24:]
    return not known and index < self.blob.chunks


def joins_what_came(self: Incoming) -> bytes:
    assert isinstance(self.parts, dict)
    data = b"".join(self.parts[index] for index in range(self.blob.chunks))
    self.parts.clear()
    return data


def parks_with_the_next(self: StateDb, update: PendingUpdate, left: Arrays) -> None:
    database = self._database
    database.execute("INSERT OR IGNORE INTO run (id) VALUES (?)", (update.run,))
    self._clear(update.run)
    values = update.run, update.round, update.exchange, update.sha256, update.payload, 5
    database.execute("INSERT INTO parked VALUES (?, ?, ?, ?, ?, ?)", values)
    left_here = update.run, update.sha256, safetensors.numpy.save(dict(left))
    database.execute("INSERT OR IGNORE INTO residual VALUES (?, ?, ?)", left_here)


def takes_any_answer_for_kept(
    self: StateDb, run: str, sha256: str, *, kept: bool, settle: Any = StateDb.resolve
) -> None:
    settle(self, run, sha256, kept=True)


def forgets_what_was_left(self: StateDb, run: str) -> Arrays:
    return {}


def leaves_what_nobody_kept(self: StateDb, run: str) -> Arrays:
    rows = self._rows("SELECT terms FROM residual WHERE run = ? ORDER BY rowid DESC LIMIT 1", run)
    return safetensors.numpy.load(rows[0][0]) if rows else {}


def clears_what_is_parked(self: StateDb, run: str) -> None:
    self._database.execute("DELETE FROM parked WHERE run = ?", (run,))


def gives_up_waiting_for_the_answer(
    self: Upload, manifest: Manifest, go_back: Any = Upload.go_back
) -> None:
    go_back(self, manifest)
    if self._pending is not None and self._pending.update.round < manifest.exchange.number:
        self._pending = None


def believes_any_epoch(self: RunPosition, other: RunPosition) -> bool:
    return False


def listens_on(self: Coordinator, *, anew: bool = False) -> None:
    pass


def stays_below(self: DeviceMessages, *_: object) -> None:
    pass


def nobody(self: RoundState) -> frozenset[str]:
    return frozenset()


def waits_on(state: RoundState, now: float) -> tuple[RoundState, tuple[round_events.Action, ...]]:
    return state, ()


def has_room(self: FairQueue[object], mine: object, size_bytes: int) -> bool:
    return True


def all_but_one(world: World, good: list[SimulatedProcess]) -> list[SimulatedProcess]:
    return good[1:]


def one_that(habit: str) -> Callable[[World], dict[str, str]]:
    return lambda world: {"bad-0": habit}


def writes_on(self: JournalFile) -> Iterator[Connection]:
    with errors_as(self._unusable("written")), self._database:
        yield self._database


def claims_for_ever(self: JournalFile) -> None:
    pass


def gives_no_chunk_again(self: Publisher, device: str, missing: Ranges) -> None:
    pass


def is_never_left_alone(self: Session, manifest: Manifest) -> bool:
    return False


def keeps_what_it_sent(database: Connection, device: str) -> tuple[int, int]:
    return 0, 0


def keeps_its_models(
    journal: Journal, database: Connection, run: Run, *_: object, **__: object
) -> recomputation.Solved:
    return recomputation.Solved(run.id, 0, journal.rounds.closed(run.id), 0, is_open=False)


Bug = Callable[[pytest.MonkeyPatch], None]


def replaced(*patches: tuple[Any, str, Any]) -> Bug:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for target, name, value in patches:
            monkeypatch.setattr(target, name, value)

    return patch


def throws_the_vote_away(
    self: RunState,
    *,
    decided: bool = True,
    lasts: Iterable[LastContribution] = (),
    close: Any = RunState.close_round,
) -> ClosedRound:
    return cast("ClosedRound", close(self, decided=False, lasts=lasts))


# For each bug: the broken law, the patch, and the number of seeds that must suffice to find it.
BUGS: dict[str, tuple[str, Bug, int]] = {
    "says kept before it is": (
        "lost", replaced((RoundDriver, "handle", says_kept_before_it_is)), 100
    ),
    "acknowledges before the sync": (
        "lost",
        replaced(
            (
                RoundDriver,
                "_HANDLERS",
                {**RoundDriver._HANDLERS, round_events.Keep: acknowledges_before_the_sync},
            )
        ),
        100,
    ),
    "commits with the next": ("lost", replaced((Contributions, "keep", commits_with_the_next)), 100),
    "adds a duplicate": (
        "twice",
        replaced(
            (RunState, "kept", resumes_without_what_is_kept),
            (RunState, "keep", adds_what_it_keeps_already),
        ),
        100,
    ),
    "closes a round with the next commit": (
        "reopened",
        replaced(
            (Rounds, "close", closes_with_the_next),
            (JournalFile, "transaction", writes_what_is_late),
        ),
        100,
    ),
    "throws the vote away": (
        "equal", replaced((RunState, "close_round", throws_the_vote_away)), 100
    ),
    "never repeats an offer": (
        "ends progress", replaced((Session, "_repeat_offer", never_repeats_an_offer)), 100
    ),
    "believes every chunk": (
        "equal residual",
        replaced((Incoming, "add_chunk", believes_every_chunk), (Incoming, "assemble", joins_what_came)),
        200,
    ),
    "writes on after a take-over": (
        "lost reopened twice ends",
        replaced(
            (JournalFile, "transaction", contextmanager(writes_on)),
            (JournalFile, "check_claim", claims_for_ever),
        ),
        100,
    ),
    "stays below the epoch that its devices have heard of": (
        "ends progress", replaced((DeviceMessages, "_raise_epoch", stays_below)), 200
    ),
    "gives no chunk of a model again": (
        "ends progress", replaced((Publisher, "send_wanted", gives_no_chunk_again)), 200
    ),
    "waits for ever for the end": (
        "ends", replaced((Session, "_is_left_alone", is_never_left_alone)), 200
    ),
    "counts devices that it has left out": (
        "progress",
        replaced(
            (RoundState, "left_out", property(nobody)), (habits, "choose", one_that("is refused"))
        ),
        100,
    ),
    "never stops waiting in gathering": (
        "progress",
        replaced(
            (phase_gathering, "_miss_gathering", waits_on), (habits, "leavers", all_but_one)
        ),
        100,
    ),
    "listens to a flood": (
        "flood",
        replaced((Coordinator, "_subscribe", listens_on), (habits, "choose", one_that("floods"))),
        100,
    ),
    "reads a whole flood": (
        "flood",
        replaced((FairQueue, "_has_room", has_room), (habits, "choose", one_that("floods"))),
        100,
    ),
    "parks with the next commit": ("parked", replaced((StateDb, "keep_update", parks_with_the_next)), 100),
    "takes any answer for kept": (
        "residual", replaced((StateDb, "resolve", takes_any_answer_for_kept)), 100
    ),
    "forgets what was left": (
        "residual", replaced((StateDb, "residual", forgets_what_was_left)), 100
    ),
    "leaves what nobody kept": (
        "residual",
        replaced(
            (StateDb, "residual", leaves_what_nobody_kept), (StateDb, "_clear", clears_what_is_parked)
        ),
        200,
    ),
    "gives up waiting for the answer": (
        "residual", replaced((Upload, "go_back", gives_up_waiting_for_the_answer)), 100
    ),
    "keeps what a forgotten device sent": (
        "forgotten", replaced((removal, "remove_device", keeps_what_it_sent)), 100
    ),
    "keeps the models of a forgotten device": (
        "equal", replaced((recomputation, "solve_again", keeps_its_models)), 200
    ),
    "believes any epoch": ("epochs", replaced((RunPosition, "is_newer_than", believes_any_epoch)), 100),
}  # fmt: skip


@pytest.mark.one_python
@pytest.mark.parametrize("bug", BUGS)
def test_the_adversary_catches(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law, patch, seeds = BUGS[bug]
    patch(monkeypatch)
    found: list[Outcome] = []
    for seed in range(seeds):
        found.append(simulate(seed))
        if found[-1].law and found[-1].law in law.split():
            return
    raise AssertionError(f"{bug}: {[o.broken for o in found if o.broken][:5]}")
