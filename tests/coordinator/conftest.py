"""Fixtures for the coordinator tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from coordinated_fleet import joined, state, until
from in_memory import Fleet
from journal_scene import RUN, model
from receiver_desk import PLAN

from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.records import Plan


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """A federation of three, with its first round open."""
    made = joined(tmp_path, 3)
    until(made, lambda: state(made).phase == "open")
    return made


@pytest.fixture
def plan() -> Plan:
    """The default plan; a test that needs several plans parametrizes `plan` instead."""
    return PLAN


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The place of a journal, in a folder that does not exist yet."""
    return tmp_path / "deeper" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """A journal with the run of `journal_scene`."""
    opened = open_journal(path)
    opened.runs.add(RUN, model(0))
    yield opened
    opened.close()
