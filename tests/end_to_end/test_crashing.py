"""Simulated kills: a journal keeps every committed write and nothing else."""

from __future__ import annotations

import functools
import random
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from crashing import CrashingConnection, Disk, Fuse, Killed

from fedclip_edge.coordinator.journal import Journal, open_journal


def killed_at(folder: Path, seed: int, left: int, checkpoint_pages: int = 0) -> tuple[int, int]:
    """The last epoch that was returned before the kill, and the epoch on disk afterwards."""
    disk, fuse = Disk(folder, random.Random(seed)), Fuse(left)
    disk.folder.mkdir(parents=True)
    database = open_journal(disk.path)._database
    if checkpoint_pages:
        database.execute(f"PRAGMA wal_autocheckpoint = {checkpoint_pages}")
    connection = CrashingConnection(database, functools.partial(disk.torn, database), fuse)
    journal = Journal(disk.path, cast("Any", connection))
    promised = 0
    try:
        while True:
            promised = journal.next_epoch()
    except Killed:
        pass
    disk.kill(connection)
    again = open_journal(disk.path)
    found = again.next_epoch() - 1
    again.close()
    return promised, found


@pytest.mark.parametrize("left", [1, 3, 4, 51, 53, 54])
@pytest.mark.parametrize("checkpoint_pages", [0, 4])
def test_what_was_promised_is_there_and_at_most_what_was_being_written(
    tmp_path: Path, left: int, checkpoint_pages: int
) -> None:
    differences: Counter[int] = Counter()
    for seed in range(12):
        promised, found = killed_at(tmp_path / str(seed), seed, left, checkpoint_pages)
        differences[found - promised] += 1
    # An epoch takes a BEGIN, two queries (the first epoch: one), an update and a commit. So the
    # fourth point is within a commit, and so is every fifth point after it.
    assert set(differences) == ({0, 1} if left % 5 == 4 else {0}), (
        "a kill within a commit must lead to both outcomes, other kills to one"
    )


def test_a_journal_that_was_being_made_is_made_again(tmp_path: Path) -> None:
    for seed in range(12):
        disk = Disk(tmp_path / str(seed), random.Random(seed))
        disk.folder.mkdir(parents=True)
        with pytest.raises(Killed):
            disk.born(open_journal(disk.path)._database)
        disk.kill(None)
        journal = open_journal(disk.path)
        assert journal.next_epoch() == 1
        journal.close()
