"""Removal of a device from the journal, and from the models that were made with it.

Laws:
- Nothing is changed, or everything is: all writes to the journal are one transaction, which
  overwrites what it deletes. What follows it, the model files and the erasing of free pages, is
  done again if `forget` is called again.
- A coordinator that serves goes on while free pages are erased, in short steps. It rewrites the
  whole file when it is started the next time.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedclip_edge import model_file
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import recomputation, removal
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import ZERO_SHOT, Run
from fedclip_edge.coordinator.run_state import open_run_state
from fedclip_edge.coordinator.server import Basis, read_basis
from fedclip_edge.errors import ConfigError, JournalError, LinkError
from fedclip_edge.storage.sqlite import Connection

_WAITS_S = 30.0  # for other processes that read the journal
_ASKS_S = 0.2  # between two looks at whether they still do


@dataclass(frozen=True)
class Choices:
    """The operator's choices."""

    quorum: float  # as in the run's rules
    without_vote: bool = False  # take the default candidate instead of a new vote
    delete_models: bool = False  # delete models that contain the device and cannot be made again


@dataclass(frozen=True)
class Forgotten:
    """The result of `forget`; runs are ids, oldest first."""

    device: str
    contributions: int  # deleted
    reports: int  # deleted
    solved: tuple[recomputation.Solved, ...]
    emptied: tuple[str, ...]  # runs whose models are deleted
    # Runs whose models still contain the device, and why; no reason if it was removed before.
    remaining: tuple[tuple[str, str], ...]
    files: tuple[Path, ...]  # model files that were written again or deleted
    remaining_files: tuple[Path, ...]  # model files that still contain the device
    failures: tuple[str, ...]  # what is left to do after the transaction, and why

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with the fields of this class."""
        return {
            **asdict(self),
            "remaining": [{"run": run, "reason": reason} for run, reason in self.remaining],
            "files": list(map(str, self.files)),
            "remaining_files": list(map(str, self.remaining_files)),
        }


@dataclass(frozen=True, eq=False)
class _Found:
    """A device's traces in the journal."""

    runs: Mapping[str, Run]  # all runs of the journal, oldest first
    touched: Collection[str]  # runs with any data of the device
    marked: Collection[str]  # runs that it was removed from before
    firsts: Mapping[str, int]  # the first closed exchange of a run in which it counts
    stuck: Mapping[str, str]  # runs whose models cannot be made without it, and why


def forget_offline(
    config: FleetConfig, device: str, *, without_vote: bool = False, delete_models: bool = False
) -> Forgotten:
    """Remove a device while no coordinator serves from the journal.

    A coordinator that writes to it nevertheless, and has no control socket, stops at its next
    write. Raises the errors of `forget`; ConfigError if there is no journal; BundleError if the
    bundle cannot be used.
    """
    if not config.journal.is_file():
        raise ConfigError(
            f"there is no journal {config.journal}; correct 'journal' in fleet.toml, or name the "
            "fleet.toml that `serve` uses"
        )
    choices = Choices(config.rules.quorum, without_vote, delete_models)
    journal = open_journal(config.journal, config.keep_models, config.keep_sums_mb)
    with contextlib.closing(journal):
        journal.check()
        basis = read_basis(config, journal.runs.last())
        done = forget(journal, device, basis, choices)
        try:
            journal.rewrite()
        except JournalError as error:
            return replace(done, failures=(*done.failures, str(error)))
    return done


def erase(journal: Path, step: Callable[[], int]) -> str:
    """Erase what SQLite has left of deleted rows, in short steps between which a coordinator works.

    `step` lets it do one (`Journal.erase_step`) and returns the result. Returns a sentence with the
    reason if something is left, otherwise an empty string.
    """
    least, until = math.inf, time.monotonic() + _WAITS_S
    while True:
        try:
            left = step()
        except (ConfigError, JournalError, LinkError) as error:
            return str(error)
        if not left:
            return ""
        if left < least:
            least, until = left, time.monotonic() + _WAITS_S
        elif time.monotonic() >= until:
            return (
                f"deleted data is still in the journal {journal} (another process reads it); end all "
                "processes that read it"
            )
        elif left == 1:
            time.sleep(_ASKS_S)


def check(journal: Journal, device: str, basis: Basis, choices: Choices) -> None:
    """Raise ConfigError if `forget` would refuse; JournalError on a disk error."""
    with journal.transaction() as database:
        _find(journal, database, device, basis, choices)


def forget(journal: Journal, device: str, basis: Basis, choices: Choices) -> Forgotten:
    """Remove a device from the journal; claims a new epoch.

    `Journal.rewrite` or, while a coordinator serves, `erase` must follow. Raises ConfigError, and
    changes nothing, if the journal knows no such device, or if the newest model contains it and
    cannot be computed without it; JournalError on a disk error before the end of the transaction.
    """
    with journal.transaction(overwrites=True) as database:
        found = _find(journal, database, device, basis, choices)
        journal.mark_for_rewriting()
        contributions, reports = removal.remove_device(database, device)
        for run in found.touched:
            removal.mark(database, run, device, in_models=run in found.stuck)
        solved, emptied = [], []
        for run, its in found.runs.items():
            if run in found.stuck and choices.delete_models:
                recomputation.empty_run(journal, database, its, basis)
                emptied.append(run)
            elif run in found.firsts and run not in found.stuck:
                first = found.firsts[run]
                solved.append(
                    recomputation.solve_again(
                        journal,
                        database,
                        its,
                        first,
                        basis,
                        quorum=choices.quorum,
                        without_vote=choices.without_vote,
                    )
                )
        journal.next_epoch()
    remaining = [(run, why) for run, why in found.stuck.items() if run not in emptied]
    changed = {*found.marked, *found.touched} - dict(remaining).keys()
    files, failures = _update_files(journal, found.runs, changed, basis)
    paths = (model_file.path_of(journal.path, run) for run, _ in remaining)
    return Forgotten(
        device,
        contributions,
        reports,
        tuple(solved),
        tuple(emptied),
        tuple(remaining),
        tuple(files),
        tuple(path for path in paths if path.exists()),
        tuple(failures),
    )


def _find(
    journal: Journal, database: Connection, device: str, basis: Basis, choices: Choices
) -> _Found:
    """Find what has to be removed; raises ConfigError if that is refused."""
    marked = removal.marked(database, device)
    touched = removal.runs_with(database, device)
    if not marked and not touched:
        raise _unknown(journal, device, removal.known_devices(database))
    runs = {run.id: run for run in journal.runs.all()}
    firsts = {
        run: first
        for run, first in removal.first_exchanges(database, device).items()
        if first <= journal.rounds.closed(run)
    }
    stuck: dict[str, str] = {}
    current = ""  # the newest run with a model of its own, which the fleet uses
    for run, its in runs.items():
        origin = journal.runs.course(run).started_from
        if run in firsts and (
            reason := recomputation.hindrance(journal, database, its, firsts[run], device, basis)
        ):
            stuck[run] = reason
        elif origin in stuck:
            stuck[run] = f"it started from the model of {origin}"
        elif marked.get(run):
            stuck[run] = ""  # it was removed before, but not from the models
        if journal.rounds.closed(run) or origin != ZERO_SHOT:
            current = run
    if stuck.get(current) and touched and not choices.delete_models:
        raise _refusal(device, current, stuck[current])
    return _Found(runs, {*touched, *stuck}, marked, firsts, stuck)


def _update_files(
    journal: Journal, runs: Mapping[str, Run], changed: Collection[str], basis: Basis
) -> tuple[list[Path], list[str]]:
    """Write the model files of finished runs again, and delete those of all others.

    Returns the files that were changed, and a sentence for each one that could not be.
    """
    left = {run.id for run in journal.runs.all()}
    files, failures = [], []
    for run in sorted(changed):
        path = model_file.path_of(journal.path, run)
        if not path.exists():
            continue
        schedule = recomputation.schedule_of(basis, runs[run])
        is_done = (
            run in left and journal.runs.course(run).is_over and journal.rounds.closed(run) > 0
        )
        try:
            if not is_done:
                path.unlink()
            elif schedule is not None:
                open_run_state(runs[run], journal, schedule).write_model()
        except (OSError, JournalError) as error:
            failures.append(f"{path} contains the device and could not be replaced ({error})")
        else:
            files.append(path)
    return files, failures


def _unknown(journal: Journal, device: str, known: Collection[str]) -> ConfigError:
    near = difflib.get_close_matches(device, known, n=1)
    listed = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(known) or 'no device'}"
    return ConfigError(f"the journal {journal.path} has nothing of a device {device!r}; {listed}")


def _refusal(device: str, run: str, reason: str) -> ConfigError:
    return ConfigError(
        f"the newest model, of {run}, contains {device} and cannot be computed without it: {reason}; "
        f"nothing was changed. Revoke {device}, train a new run without it, which starts from "
        "zero-shot CLIP, and then forget it; or add --delete-models to delete the models of this "
        "run now"
    )
