from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.agent.label_store import confirm_labels, confirmed_in, labels_in, set_labels
from fedclip_edge.agent.page.labelling import STEPS, Labelling
from fedclip_edge.errors import ConfigError, DataError

A, B, C = (letter * 64 for letter in "abc")
CLASSES = ("café", "nut")


def test_an_undo_restores_what_each_picture_had(tmp_path: Path) -> None:
    set_labels(tmp_path, {A: "nut", B: "café"})
    labelling = Labelling(tmp_path)
    given = labelling.give([A, B, C], "nut", CLASSES, "anna")
    assert given.words == "3 pictures labelled as nut by anna"
    assert labels_in(tmp_path) == {A: "nut", B: "nut", C: "nut"}
    taken = labelling.give([A], None, CLASSES)
    assert taken.words == "The label of 1 picture taken back"
    assert labels_in(tmp_path) == {B: "nut", C: "nut"}
    with pytest.raises(ConfigError, match="another one followed"):
        labelling.undo(given.id)
    labelling.undo(taken.id)
    assert labels_in(tmp_path) == {A: "nut", B: "nut", C: "nut"}
    assert labelling.undo(given.id) is given
    assert labels_in(tmp_path) == {A: "nut", B: "café"}
    assert labelling.last is None
    with pytest.raises(ConfigError):
        labelling.undo(given.id)


def test_labels_that_are_right_are_confirmed_and_that_is_undone(tmp_path: Path) -> None:
    confirm_labels(tmp_path, {A: "café"})
    labelling = Labelling(tmp_path)
    step = labelling.confirm({A: "nut", B: "café"}, "anna")
    assert step.words == "The label of 2 pictures confirmed by anna"
    assert confirmed_in(tmp_path) == {A: "nut", B: "café"}
    assert labels_in(tmp_path) == {}
    labelling.undo(step.id)
    assert confirmed_in(tmp_path) == {A: "café"}
    with pytest.raises(ConfigError, match="no picture is selected"):
        labelling.confirm({})


def test_only_classes_of_the_bundle_are_given_in_any_unicode_form(tmp_path: Path) -> None:
    labelling = Labelling(tmp_path)
    for label in ("dog", "", " ", "Nut"):
        with pytest.raises(ConfigError, match="no class of the bundle"):
            labelling.give([A], label, CLASSES)
    with pytest.raises(ConfigError, match="no picture is selected"):
        labelling.give([], "nut", CLASSES)
    assert labelling.last is None
    assert labels_in(tmp_path) == {}
    assert labelling.give([A], "cafe\N{COMBINING ACUTE ACCENT}", CLASSES).label == "café"
    assert labels_in(tmp_path) == {A: "café"}


def test_a_step_that_failed_is_none_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    labelling = Labelling(tmp_path)
    steps = [labelling.give([A], CLASSES[n % 2], CLASSES) for n in range(STEPS + 5)]
    (tmp_path / "labels.sqlite").write_bytes(b"damaged" * 1000)
    with pytest.raises(DataError):
        labelling.give([A], "nut", CLASSES)
    assert [labelling.last] == [steps[-1]]
    (tmp_path / "labels.sqlite").unlink()
    undone = [labelling.undo(step.id) for step in reversed(steps[5:])]
    assert len(undone) == STEPS
    assert labelling.last is None
    assert labels_in(tmp_path) == {A: CLASSES[4 % 2]}  # as after the fifth
