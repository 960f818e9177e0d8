from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from answer_scene import class_texts

from fedclip_edge.agent.model_in_use import ModelInUse
from fedclip_edge.agent.review import Review, Reviewed, make_review
from fedclip_edge.records import F32
from fedclip_edge.vision.datasets import Picture
from fedclip_edge.vision.labels import UNLABELLED

CLASSES = class_texts("bolt", "nut", "washer")
ZERO_SHOT = ModelInUse("zero-shot", CLASSES)


def reviewed(labels: list[int], seed: int, *, true: list[int] | None = None) -> Reviewed:
    """Pictures whose features are near the texts of `true`, by default their own labels."""
    random = np.random.default_rng(seed)
    texts = CLASSES.vectors[true or labels] if labels else CLASSES.vectors[:0]
    vectors: F32 = (texts + random.normal(0, 0.1, texts.shape)).astype(np.float32)
    pictures = tuple(
        Picture(Path(f"{seed}-{i}.jpg"), label, f"{seed:08x}{i:056x}"[::-1])
        for i, label in enumerate(labels)
    )
    return Reviewed(pictures, vectors)


def review(
    labelled: Reviewed,
    unlabelled: Reviewed | None = None,
    most: int = 10,
    confirmed: Mapping[str, str] = MappingProxyType({}),
) -> Review:
    unlabelled = unlabelled or reviewed([], 9)
    return make_review(
        labelled, unlabelled, CLASSES, ZERO_SHOT, most=most, least=5, confirmed=confirmed
    )


def test_a_wrong_label_is_found_and_the_likelier_class_is_said() -> None:
    labels = [0, 1, 2] * 8
    said = [*labels]
    said[4] = 2  # a nut, labelled as a washer
    (doubtful,) = review(reviewed(said, 1, true=labels)).looks_mislabelled
    assert doubtful.path == Path("1-4.jpg")
    assert (doubtful.label, doubtful.likelier) == ("washer", "nut")
    assert doubtful.probability < 0.01 < doubtful.likelier_probability


def test_a_label_that_a_person_confirmed_is_not_called_wrong() -> None:
    labels = [0, 1, 2] * 8
    said = [*labels]
    said[4] = said[7] = 2
    labelled = reviewed(said, 1, true=labels)
    first = review(labelled, most=1).looks_mislabelled[0]
    (right,) = (one.hash for one in labelled.pictures if one.path == first.path)
    (other,) = review(labelled, most=1, confirmed={right: "washer"}).looks_mislabelled
    assert other.path != first.path
    again = review(labelled, most=1, confirmed={right: "nut"}).looks_mislabelled
    assert again == (first,)  # another label than the one that was confirmed


def test_the_only_picture_of_a_class_is_never_called_wrong() -> None:
    labels = [0, 1] * 8
    only = reviewed([*labels, 2], 2, true=[*labels, 0])
    assert review(only).looks_mislabelled == ()


def test_unlabelled_pictures_are_named_with_what_the_model_calls_them() -> None:
    labelled = reviewed([0, 1, 2] * 4, 3)
    unlabelled = reviewed([UNLABELLED] * 6, 4, true=[0, 1, 2, 0, 1, 2])
    found = review(labelled, unlabelled, most=6).label_next
    named = {one.path.stem: one.label for one in found}
    assert named == {
        f"4-{i}": ("bolt", "nut", "washer")[i % 3] for i in range(6) if f"4-{i}" in named
    }
    assert found
    assert len(review(labelled, unlabelled, most=2).label_next) <= 2


def test_each_class_has_its_state_the_neediest_first() -> None:
    found = review(reviewed([0] * 12 + [1] * 12 + [2] * 2, 5)).classes
    assert [(one.name, one.pictures, one.advice) for one in found] == [
        ("washer", 2, "too few"),
        ("bolt", 12, "enough"),
        ("nut", 12, "enough"),
    ]


def test_a_class_that_is_often_mistaken_needs_more() -> None:
    random = np.random.default_rng(0)
    labelled = reviewed([0] * 20 + [1] * 20, 6)
    vectors = labelled.vectors.copy()
    vectors[:20] = vectors[20:] + random.normal(0, 0.02, vectors[20:].shape)  # bolts like nuts
    found = review(replace(labelled, vectors=vectors)).classes
    assert found[0].name == "washer"  # no picture
    assert found[0].accuracy is None
    assert {one.name: one.advice for one in found[1:]}["bolt"] == "more"


def test_a_device_without_any_label() -> None:
    found = review(reviewed([], 7), reviewed([UNLABELLED] * 3, 8, true=[0, 1, 2]))
    assert found.labelled == 0
    assert found.looks_mislabelled == ()
    assert len(found.label_next) == 3
    assert {one.advice for one in found.classes} == {"too few"}
