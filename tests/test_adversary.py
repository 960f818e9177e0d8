"""2,000 runs under the adversary keep every law; and for each law a bug that it must catch."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from simulation import Outcome, simulate

from fedclip_edge.coordinator import Coordinator
from fedclip_edge.ledger import Ledger
from fedclip_edge.messaging import round_events, rounds
from fedclip_edge.messaging.transfer import Incoming
from fedclip_edge.records import Contribution
from fedclip_edge.session import Session
from fedclip_edge.store import Store, StoredModel

SEEDS = 2000
ADVERSARY = Path(__file__).parents[1] / "benchmarks" / "adversary.py"


def test_no_seed_breaks_a_law() -> None:
    # Fresh interpreters: this one may hold threads of other tests, which a fork would break.
    with ProcessPoolExecutor(mp_context=get_context("forkserver")) as workers:
        outcomes = list(workers.map(simulate, range(SEEDS), chunksize=50))
    broken = [f"seed {o.seed}: {o.broken}" for o in outcomes if o.broken]
    assert not broken, f"{broken[:5]}; {ADVERSARY.name} --seeds 1 --first-seed SEED shows one"
    assert len({o.trace for o in outcomes}) == SEEDS, "the seeds differ"
    assert sum(o.kills for o in outcomes) > SEEDS, "the adversary does its work"


@pytest.mark.parametrize("seed", [3, 28])
def test_the_same_seed_is_the_same_run_in_another_process(seed: int) -> None:
    code = f"from simulation import simulate; print(simulate({seed}).trace)"
    other = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=True,
    )
    simulate(seed + 1)  # what ran before in a process changes nothing
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


# Bugs, one or more to a law; each replaces one function.


def says_kept_before_it_is(
    self: Coordinator,
    event: round_events.Event,
    now: float,
    contribution: Contribution | None = None,
    body: bytes = b"",
) -> None:
    self._rounds, actions = rounds.step(self._rounds, event, now)
    for action in actions:
        if isinstance(action, round_events.Keep):
            self._do(action, now)
            assert contribution is not None
            self.ledger.keep(contribution, self._rounds.kept[action.device], body)
        else:
            self._do(action, now)


def commits_with_the_next(
    self: Store, run: str, round: int, device: str, sha256: str, body: bytes
) -> None:
    self._database.execute(
        "INSERT INTO contribution VALUES (?, ?, ?, ?, ?, ?)",
        (run, round, device, sha256, len(body), body),
    )


def adds_what_it_keeps_already(
    self: Ledger, contribution: Contribution, sha256: str, body: bytes
) -> None:
    if contribution.device not in self.store.kept(self.run.id, contribution.round):
        self.store.keep(self.run.id, contribution.round, contribution.device, sha256, body)
    self.total.add(contribution.update)


def resumes_without_what_is_kept(self: Ledger) -> dict[str, str]:
    return {}


def closes_with_the_next(self: Store, run: str, model: StoredModel) -> None:
    self._add_model(run, model)


def never_repeats_an_offer(self: Session, now: float) -> bool:
    return False


def believes_every_chunk(self: Incoming, payload: bytes) -> bool:
    index = int.from_bytes(payload[12:16], "little")
    known = index in self._parts
    self._parts[index] = payload[24:]
    return not known and index < self.parcel.chunks


def joins_what_came(self: Incoming) -> bytes:
    data = b"".join(self._parts[index] for index in range(self.parcel.chunks))
    self._parts.clear()
    return data


Bug = Callable[[pytest.MonkeyPatch], None]


def replaced(*patches: tuple[Any, str, Any]) -> Bug:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        for target, name, value in patches:
            monkeypatch.setattr(target, name, value)

    return patch


# The law that is broken, the bug, and within how many seeds the adversary has to notice.
BUGS: dict[str, tuple[str, Bug, int]] = {
    "says kept before it is": (
        "lost", replaced((Coordinator, "_step", says_kept_before_it_is)), 200
    ),
    "commits with the next": ("lost", replaced((Store, "keep", commits_with_the_next)), 200),
    "adds a duplicate": (
        "twice",
        replaced(
            (Ledger, "kept", resumes_without_what_is_kept),
            (Ledger, "keep", adds_what_it_keeps_already),
        ),
        200,
    ),
    "closes a round with the next commit": (
        "reopened", replaced((Store, "close_round", closes_with_the_next)), 200
    ),
    "never repeats an offer": (
        "ends", replaced((Session, "_repeat_offer", never_repeats_an_offer)), 200
    ),
    "believes every chunk": (
        "equal",
        replaced((Incoming, "receive", believes_every_chunk), (Incoming, "take", joins_what_came)),
        200,
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_the_adversary_catches(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law, patch, seeds = BUGS[bug]
    patch(monkeypatch)
    found: list[Outcome] = []
    for seed in range(seeds):
        found.append(simulate(seed))
        if found[-1].law == law:
            return
    raise AssertionError(f"{bug}: {[o.broken for o in found if o.broken][:5]}")
