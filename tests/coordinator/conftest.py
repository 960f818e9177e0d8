"""Fixtures for the coordinator tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from coordinated_fleet import joined, state, until
from in_memory import Fleet
from receiver_desk import PLAN

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
