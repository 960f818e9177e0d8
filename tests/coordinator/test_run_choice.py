"""The choice of the run to serve: the unfinished one, or a new one."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_memory import ENCODER, class_texts
from opened import opened

from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator import run_state
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.run_choice import RunChoice, choose_run, next_run
from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.protocol import chunks, wire
from fedclip_edge.records import ClassTexts, Contribution, Plan, Update
from fedclip_edge.vision.bundle import Bundle, read_bundle, replace_classes

CLASSES, D = class_texts(), 8
PLAN = Plan("fedclip", rounds=3, vote="off")


def choose(
    journal: Journal,
    plan: Plan = PLAN,
    *,
    encoder: str = ENCODER,
    classes: ClassTexts = CLASSES,
    new_run: bool = False,
) -> RunChoice:
    folder = journal.path.parent
    config = FleetConfig("lab", bundle=folder / "bundle", journal=journal.path, plan=plan)
    return choose_run(config, classes, D, encoder, journal, new_run=new_run)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return opened(open_journal(tmp_path / "journal.sqlite"))


@pytest.fixture
def begun(journal: Journal) -> Run:
    """A run to which a device has said hello, and no more."""
    run = choose(journal).begin()
    journal.devices.pin_key(run.id, "cam-0", "a" * 64)
    return run


def contribute(journal: Journal, run: Run) -> run_state.RunState:
    """Keep one contribution to the run's first round."""
    state = run_state.open_run_state(run, journal, Schedule(run.plan, CLASSES, D))
    delta = {name: np.zeros(shape, np.float32) for name, shape in state.layout.delta.items()}
    made = Contribution(run.id, 1, "cam-0", state.exchange.sha256, Update("sum", 1, delta))
    body = wire.pack_contribution(made, PLAN.codec_up)
    state.keep(made, chunks.blob_of(body, "update").sha256, body)
    return state


def abandoned(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if " run_abandoned " in line]


def test_choosing_writes_nothing(journal: Journal) -> None:
    choose(journal)
    assert journal.runs.last() is None
    run = choose(journal).begin()
    contribute(journal, run).close_round()
    choose(journal, new_run=True)
    assert journal.runs.all() == (run,)
    assert journal.runs.unfinished() == run


def test_the_same_settings_continue_the_run(journal: Journal, begun: Run) -> None:
    contribute(journal, begun)
    assert choose(journal).begin() == begun
    assert choose(journal, methods.with_defaults(PLAN)).begin() == begun


def test_a_run_without_results_makes_way_for_other_settings_and_says_so(
    journal: Journal, begun: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = choose(journal, dataclasses.replace(PLAN, seed=1)).begin()
    assert run.id != begun.id
    assert run.plan.seed == 1
    assert journal.runs.unfinished() == run
    (said,) = abandoned(capsys)
    assert f"run={begun.id}" in said
    assert "plan.seed: 0 in the journal, 1 in fleet.toml" in said
    assert "hint" not in said  # it has no model to use


CHANGES: dict[str, tuple[Callable[[Plan], dict[str, Any]], list[str]]] = {
    "plan": (
        lambda plan: {
            "plan": dataclasses.replace(plan, rounds=40, codec_up="fp16", options={"lr": 0.5})
        },
        [
            "plan.rounds: 3 in the journal, 40 in fleet.toml",
            'plan.codec_up: "int8" in the journal, "fp16" in fleet.toml',
            "plan.options.lr: ",
        ],
    ),
    "method": (
        lambda plan: {"plan": Plan(method="linear", rounds=3, vote="off")},
        ['plan.method: "fedclip" in the journal, "linear" in fleet.toml'],
    ),
    "encoder": (
        lambda plan: {"encoder": "f" * 64},
        [f"encoder: {ENCODER[:12]} in the journal, ffffffffffff in the bundle "],
    ),
    "classes": (
        lambda plan: {"classes": class_texts(("ant", "bee", "dog"))},
        [f"classes: {CLASSES.digest[:12]} in the journal, "],
    ),
}


@pytest.mark.parametrize("changed", CHANGES)
@pytest.mark.parametrize("closed", [False, True])
def test_a_run_with_results_is_not_continued_under_other_settings(
    journal: Journal, begun: Run, changed: str, closed: bool
) -> None:
    state = contribute(journal, begun)
    if closed:
        state.close_round()
    change, expected = CHANGES[changed]
    with pytest.raises(ConfigError) as refused:
        choose(journal, **change(PLAN))
    said = str(refused.value)
    for words in (begun.id, f"({int(closed)} of 3 rounds closed)", "--new-run", *expected):
        assert words in said
    assert journal.runs.unfinished() == begun


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("closed", [False, True])
def test_a_new_run_that_is_asked_for_leaves_the_old_models_in_the_journal(
    journal: Journal, begun: Run, changed: bool, closed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    state = contribute(journal, begun)
    if closed:
        state.close_round()
    before = journal.rounds.newest_model(begun.id).payload
    plan = dataclasses.replace(PLAN, seed=1) if changed else PLAN
    run = choose(journal, plan, new_run=True).begin()
    assert run.id != begun.id
    assert journal.runs.unfinished() == run
    assert journal.rounds.closed(run.id) == 0
    assert [one.id for one in journal.runs.all()] == [begun.id, run.id]
    assert journal.rounds.newest_model(begun.id).payload == before
    (said,) = abandoned(capsys)
    assert f"run={begun.id} rounds_closed={int(closed)} rounds=3" in said
    assert (f"predict --model {begun.id}" in said) == closed


def test_asking_for_a_new_run_without_an_unfinished_one_is_no_error(
    journal: Journal, begun: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.runs.finish(begun.id)
    assert choose(journal, new_run=True).begin().id != begun.id
    assert abandoned(capsys) == []


def test_an_invalid_plan_changes_nothing(journal: Journal, begun: Run) -> None:
    with pytest.raises(ConfigError, match="fedklip"):
        choose(journal, dataclasses.replace(PLAN, method="fedklip"), new_run=True)
    assert journal.runs.unfinished() == begun


def done_run(journal: Journal, folder: Path, plan: Plan) -> tuple[FleetConfig, Bundle]:
    """A finished run with the classes of the bundle in `folder`; returns the settings for more."""
    bundle = read_bundle(folder)
    config = FleetConfig("lab", bundle=folder, journal=journal.path, plan=plan)
    run = Run(
        "run-1", methods.with_defaults(plan), bundle.manifest.encoder_id, bundle.classes.digest
    )
    schedule = Schedule(run.plan, bundle.classes, bundle.manifest.dim)
    journal.runs.add(run, run_state.stored_model(schedule.initial(), {}, run.plan))
    run_state.open_run_state(run, journal, schedule).close_round()
    journal.runs.finish(run.id)
    return config, bundle


@pytest.mark.parametrize("named", ["last", "run-1"])
def test_a_run_with_other_classes_starts_from_a_model_while_their_bundle_is_there(
    journal: Journal, random_bundle: Bundle, tmp_path: Path, named: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(random_bundle.folder, folder)
    config, bundle = done_run(journal, folder, Plan("linear", rounds=1, vote="off"))
    dim, encoder = bundle.manifest.dim, bundle.manifest.encoder_id
    more = class_texts((*bundle.classes.names, "hexagon"), dim)
    chosen = next_run(config, more, dim, encoder, journal, by="test", start=named)
    assert chosen.initial is not None
    assert chosen.initial.parameters["weight"].shape == (4, dim)
    assert chosen.origin.model == "run-1"

    replace_classes(bundle, more)  # in place, by hand: nothing says which classes run-1 had
    with pytest.raises(ConfigError, match=r"run-1 had other classes .* no bundle that names them"):
        next_run(config, more, dim, encoder, journal, by="test", start=named)


def test_a_run_with_another_encoder_cannot_start_from_a_model(
    journal: Journal, random_bundle: Bundle
) -> None:
    config, bundle = done_run(journal, random_bundle.folder, PLAN)
    with pytest.raises(ConfigError, match="run-1 has another encoder"):
        next_run(
            config, bundle.classes, bundle.manifest.dim, "f" * 64, journal, by="test", start="last"
        )
