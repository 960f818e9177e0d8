"""Labels that a person gives on the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_edge.agent.label_store import (
    LABELS,
    confirm_labels,
    confirmed_in,
    labels_in,
    set_labels,
)
from fedclip_edge.errors import DataError

ONE, TWO = "1" * 64, "2" * 64


def test_labels_are_kept_replaced_and_taken_back(tmp_path: Path) -> None:
    assert labels_in(tmp_path) == {}
    set_labels(tmp_path, {ONE: "dog", TWO: "cafe\u0301"})
    assert labels_in(tmp_path) == {ONE: "dog", TWO: "café"}
    set_labels(tmp_path, {ONE: "cat", TWO: None})
    assert labels_in(tmp_path) == {ONE: "cat"}


def test_a_confirmation_is_no_label(tmp_path: Path) -> None:
    assert confirmed_in(tmp_path) == {}
    confirm_labels(tmp_path, {ONE: "dog", TWO: "cat"})
    confirm_labels(tmp_path, {TWO: None})
    assert (labels_in(tmp_path), confirmed_in(tmp_path)) == ({}, {ONE: "dog"})
    set_labels(tmp_path, {ONE: "cat"})
    assert (labels_in(tmp_path), confirmed_in(tmp_path)) == ({ONE: "cat"}, {ONE: "dog"})


@pytest.mark.parametrize("labels", [{"dog": "dog"}, {ONE: " "}])
def test_what_is_no_label_is_refused_and_nothing_is_stored(
    tmp_path: Path, labels: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=r"hex digits|is empty"):
        set_labels(tmp_path, {TWO: "dog", **labels})
    assert labels_in(tmp_path) == {}


def test_a_damaged_file_is_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / LABELS).write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="restore it from a backup"):
        labels_in(tmp_path)
