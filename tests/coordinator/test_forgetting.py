"""Forgetting a device: the journal and its models are those of a fleet that never had it."""

from __future__ import annotations

from typing import Any

import pytest
from forgetful_run import Journaled, Pictures
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge import model_file
from fedclip_edge.records import Plan

METHODS = ("gda", "ridge", "tofa")
FLEET = {"cam-0": Pictures(0), "cam-1": Pictures(1), "cam-2": Pictures(2), "cam-3": Pictures(3)}


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Any]:
    """A fleet, the devices to forget in some order, the voters and the order of contributions."""
    count = draw(st.integers(2, 6))
    names = [f"cam-{n}" for n in range(count)]
    sizes = st.sampled_from([0, 3, 20, 60])
    devices = {name: Pictures(n, draw(sizes), draw(sizes)) for n, name in enumerate(names)}
    forgotten = draw(st.lists(st.sampled_from(names), min_size=1, max_size=count - 1, unique=True))
    plan = Plan(draw(st.sampled_from(METHODS)), vote=draw(st.sampled_from(["on", "off"])))
    return {
        "devices": devices,
        "plan": plan,
        "order": draw(st.permutations(names)),
        "voters": draw(st.lists(st.sampled_from(names), unique=True)),
        "forgotten": forgotten,
    }


@settings(max_examples=40, deadline=None)
@given(fleet=fleets())
def test_a_fleet_that_forgets_is_one_that_never_had_the_devices(
    tmp_path_factory: pytest.TempPathFactory, fleet: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("fleets")
    with_them = Journaled(folder / "with", fleet["devices"], fleet["plan"])
    with_them.begin()
    with_them.complete(fleet["order"], fleet["voters"])
    for device in fleet["forgotten"]:
        with_them.forget(device)
    left = [device for device in fleet["order"] if device not in fleet["forgotten"]]
    voters = [device for device in fleet["voters"] if device in left]
    without_them = Journaled(folder / "without", fleet["devices"], fleet["plan"])
    without_them.begin()
    without_them.complete(left, voters)
    with_them.complete(left, voters)
    assert with_them.content() == without_them.content()
    files = [model_file.path_of(its.journal.path, "run-1") for its in (with_them, without_them)]
    assert files[0].read_bytes() == files[1].read_bytes()
