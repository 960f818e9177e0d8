"""Array files: read completely, or refused with the name of the array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import CLASSES, DOMAINS, NAMES, pool, write_npz

from fedclip_edge.errors import BundleError, DataError
from fedclip_edge.simulating.pool import TEST, TRAIN, VALIDATION, read_features
from fedclip_edge.vision.bundle import Bundle

POOL = pool()
TRAINING = POOL.vectors[POOL.sides != TEST]


def with_row(value: float) -> np.ndarray[Any, Any]:
    vectors: np.ndarray[Any, Any] = TRAINING.copy()
    vectors[3] = value
    return vectors


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    its = read_features(write_npz(tmp_path / "f.npz"), 0.0)
    assert its.classes.names == NAMES
    np.testing.assert_allclose(its.classes.vectors, CLASSES.vectors, atol=1e-6)
    assert its.classes.logit_scale == 100
    assert its.domains == DOMAINS
    assert its.dim == 8
    np.testing.assert_array_equal(its.vectors[its.rows(TRAIN)], TRAINING)
    np.testing.assert_array_equal(its.labels[its.rows(TEST)], POOL.labels[POOL.rows(TEST)])
    found = np.array(its.domains)[its.domain_of[its.rows(TEST)]]
    np.testing.assert_array_equal(found, np.array(DOMAINS)[POOL.domain_of[POOL.rows(TEST)]])


def test_a_share_of_the_training_rows_is_for_validation_and_copies_stay_together(
    tmp_path: Path,
) -> None:
    twice = np.concatenate([TRAINING, TRAINING])
    labels = np.tile(POOL.labels[POOL.sides != TEST], 2)
    path = write_npz(
        tmp_path / "f.npz", train_x=twice, train_y=labels, train_group=None, test_group=None
    )
    its = read_features(path, 0.25)
    first, second = np.split(its.sides[: len(twice)], 2)
    np.testing.assert_array_equal(first, second)
    assert 0.1 < (first == VALIDATION).mean() < 0.4
    assert (its.sides[len(twice) :] == TEST).all()


def test_a_class_name_that_occurs_again_gets_a_number(tmp_path: Path) -> None:
    count = len(NAMES)
    names = [f" {NAMES[0]}", *NAMES[1:-2], f"{NAMES[0]} 2", NAMES[0]]
    path, notes = write_npz(tmp_path / "f.npz", classes=np.array(names)), list[str]()
    its = read_features(path, 0.0, note=notes.append)
    assert its.classes.names == (*NAMES[:-2], f"{NAMES[0]} 2", f"{NAMES[0]} 3")
    (said,) = notes
    assert said == (
        f"{path}: class {count - 1} has the name of class 0, {NAMES[0]!r}, and is called "
        f"'{NAMES[0]} 3' here; if both are one class, give their pictures one label"
    )
    np.testing.assert_array_equal(its.labels[its.rows(TEST)], POOL.labels[POOL.rows(TEST)])
    same = write_npz(tmp_path / "same.npz", classes=np.array(["caf\u00e9"] * count))
    notes.clear()
    its = read_features(same, 0.0, note=notes.append)
    assert its.classes.names[:3] == ("caf\u00e9", "caf\u00e9 2", "caf\u00e9 3")
    assert len(notes) == 1
    assert f"({count - 2} more are numbered too)" in notes[0]
    spelled = np.array(["caf\u00e9", "cafe\u0301", *NAMES[2:]])
    found = read_features(write_npz(tmp_path / "nfd.npz", classes=spelled), 0.0)
    assert found.classes.names[:2] == ("caf\u00e9", "caf\u00e9 2")


def test_any_norm_and_any_kind_of_number_will_do(tmp_path: Path) -> None:
    path = write_npz(
        tmp_path / "f.npz",
        train_x=TRAINING.astype(np.float64),
        test_x=np.round(POOL.vectors[POOL.sides == TEST] * 100).astype(np.int32),
        class_texts=CLASSES.vectors * 7,
        logit_scale=np.array(20.0),
        train_group=None,
        test_group=None,
    )
    its = read_features(path, 0.0)
    assert its.vectors.dtype == np.float32
    np.testing.assert_allclose(its.classes.vectors, CLASSES.vectors, atol=1e-6)
    assert its.classes.logit_scale == 20
    assert its.domains == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_x": None}, "'train_x' is missing"),
        ({"classes": None}, "'classes' is missing"),
        ({"extra": np.zeros(3)}, "unknown array 'extra'"),
        ({"train_x": with_row(np.nan)}, r"train_x holds NaN or infinity \(first in row 3\)"),
        ({"train_x": with_row(np.inf)}, "train_x holds NaN or infinity"),
        ({"train_x": with_row(0)}, r"train_x holds a row of zeros \(3\)"),
        ({"train_x": TRAINING[:, :5]}, "train_x has 5 columns, but the class texts have 8"),
        ({"test_x": np.ones((36, 5))}, "test_x has 5 columns, but the class texts have 8"),
        ({"train_x": TRAINING[:7]}, "train_x has 7 rows, but train_y has 144 labels"),
        ({"train_x": TRAINING.ravel()}, "train_x is float32 with shape"),
        ({"train_x": TRAINING[:0]}, "train_x is float32 with shape"),
        ({"train_x": TRAINING > 0}, "train_x is bool"),
        ({"train_y": np.zeros(144)}, "train_y is float64"),
        ({"test_y": np.full(36, 4)}, "test_y holds labels from 4 to 4, but there are 4 classes"),
        ({"test_y": np.full(36, -1)}, "test_y holds labels from -1 to -1"),
        ({"test_y": np.full(36, 2**63, np.uint64)}, "test_y holds labels from"),
        ({"class_texts": CLASSES.vectors[:3]}, "class_texts and classes do not fit each other"),
        ({"class_texts": np.zeros((4, 8))}, "class_texts holds a row of zeros"),
        (
            {"classes": np.array(["ant", "Ant", "cat", "dog"])},
            "classes: the class names 'ant' in entry 1 and 'Ant' in entry 2 differ only in",
        ),
        ({"classes": np.arange(4)}, "classes is int64"),
        ({"test_group": None}, "train_group needs its counterpart"),
        ({"train_group": np.array(["barn"])}, "train_group is <U4 with shape"),
        ({"logit_scale": np.array([1.0, 2.0])}, "logit_scale must be one number"),
        ({"logit_scale": np.array(-1.0)}, "logit scale: expected above 0"),
        ({"train_y": np.array([object()])}, "holds Python objects"),
    ],
)
def test_a_bad_array_is_refused_by_name(tmp_path: Path, changes: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_features(write_npz(tmp_path / "f.npz", **changes), 0.2)


def test_what_is_no_array_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_features(tmp_path / "none.npz", 0.2)
    one = tmp_path / "one.npy"
    np.save(one, np.zeros(3))
    with pytest.raises(DataError, match="is a single array"):
        read_features(one, 0.2)
    text = tmp_path / "text.npz"
    text.write_text("no zip")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        read_features(text, 0.2)
    whole = write_npz(tmp_path / "whole.npz")
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(DataError, match="is damaged"):
        read_features(cut, 0.2)


def test_a_bundle_gives_the_class_texts_that_the_file_leaves_out(
    tmp_path: Path, random_bundle: Bundle
) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        "train_x": random.normal(size=(9, 16)),
        "train_y": np.arange(9) % 3,
        "test_x": random.normal(size=(3, 16)),
        "test_y": np.arange(3),
    }
    np.savez(tmp_path / "f.npz", **arrays)
    its = read_features(tmp_path / "f.npz", 0.2, random_bundle)
    assert its.classes.digest == random_bundle.classes.digest


def test_a_bundle_of_another_width_or_other_classes_is_refused(
    tmp_path: Path, random_bundle: Bundle
) -> None:
    with pytest.raises(
        BundleError, match=r"gives features of width 16, but train_x of .* has width 8"
    ):
        read_features(write_npz(tmp_path / "f.npz"), 0.2, random_bundle)
    wide: dict[str, Any] = {
        name: np.ones((n, 16)) for name, n in (("train_x", 144), ("test_x", 36))
    }
    path = write_npz(tmp_path / "g.npz", **wide, class_texts=np.eye(4, 16))
    with pytest.raises(BundleError, match="has other classes"):
        read_features(path, 0.2, random_bundle)
