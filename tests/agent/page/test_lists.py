from __future__ import annotations

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest
from filled_box import FilledBox
from system import wait_until

from fedclip_edge.agent import review_files
from fedclip_edge.agent.label_store import confirm_labels, set_labels
from fedclip_edge.agent.page import lists as lists_module
from fedclip_edge.agent.page.catalogue import Catalogue
from fedclip_edge.agent.page.lists import Lists, ReviewMaker
from fedclip_edge.agent.review import make_review
from fedclip_edge.errors import DataError
from fedclip_edge.vision.bundle import Bundle

LONG_S = 60.0


@pytest.fixture
def scene(tmp_path: Path, random_bundle: Bundle) -> FilledBox:
    return FilledBox(tmp_path, random_bundle, labelled=30, unlabelled=30).write()


def maker(scene: FilledBox) -> tuple[Catalogue, ReviewMaker]:
    catalogue = Catalogue(scene.config, lambda: scene.bundle)
    catalogue.refresh()
    return catalogue, ReviewMaker(scene.config, catalogue)


def made(review: ReviewMaker) -> Lists:
    review.lists()
    review.wait(LONG_S)
    return review.lists()


def test_it_is_the_review_of_the_command(scene: FilledBox) -> None:
    found = made(maker(scene)[1])
    assert found.trouble == ""
    expected, skipped = review_files.review_device(scene.config, scene.bundle, lists_module.MOST)
    assert not skipped
    assert found.review == expected
    assert found.review is not None
    assert len(found.review.label_next) > 3


def test_it_is_made_once_for_each_state_and_the_old_one_is_shown_meanwhile(
    scene: FilledBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, calls = threading.Event(), []

    def slowly(*given: object, **named: object) -> object:
        calls.append(given)
        assert may_go_on.wait(LONG_S)
        return make_review(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(lists_module, "make_review", slowly)
    catalogue, review = maker(scene)
    assert review.now == Lists()
    assert review.lists().is_making
    assert review.lists() == Lists(is_making=True)
    wait_until(lambda: bool(calls), "the review")
    (thread,) = (one for one in threading.enumerate() if one.name == "review")
    assert not thread.daemon  # a process that ends waits for it
    set_labels(scene.state, {catalogue.refresh().entries[1].hash: "circle"})
    assert review.lists().is_making  # one at a time
    may_go_on.set()
    review.wait(LONG_S)
    assert (len(calls), review.now.version) == (1, 1)
    made(review)
    calls.clear()
    set_labels(scene.state, {catalogue.refresh().entries[1].hash: None})
    catalogue.refresh()
    first = made(review)
    assert (len(calls), first.is_making, first.version) == (1, False, 3)
    may_go_on.clear()
    set_labels(scene.state, {catalogue.refresh().entries[0].hash: "circle"})
    catalogue.refresh()
    meanwhile = review.lists()
    assert (meanwhile.review, meanwhile.is_making) == (first.review, True)
    may_go_on.set()
    second = made(review)
    assert (len(calls), second.version) == (2, 4)
    assert second.review is not None
    assert first.review is not None
    assert second.review.labelled == first.review.labelled + 1


def test_pictures_without_a_feature_are_left_out_and_counted(scene: FilledBox) -> None:
    scene.add([60, 61], answered=False)
    scene.forget_features([60, 61, 0])
    found = made(maker(scene)[1])
    assert found.without_feature == 3
    assert found.review is not None
    assert (found.review.labelled, found.review.unlabelled) == (29, 30)
    with contextlib.closing(sqlite3.connect(scene.state / "features.sqlite")) as database, database:
        database.execute("UPDATE block SET checksum = 0")
    assert made(maker(scene)[1]).without_feature == 62
    (scene.state / "features.sqlite").unlink()
    found = made(maker(scene)[1])
    assert (found.without_feature, found.trouble) == (62, "")


def test_an_error_is_said_and_it_is_tried_again(
    scene: FilledBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, review = maker(scene)
    with monkeypatch.context() as patched:

        def fails(*_: object, **__: object) -> None:
            raise DataError("the cache is damaged")

        patched.setattr(lists_module, "make_review", fails)
        review.lists()
        review.wait(LONG_S)
        assert review.now.trouble == "the cache is damaged."
        assert not review.now.is_making
    review.lists()
    review.wait(LONG_S)
    assert review.now.trouble == ""
    assert review.now.review is not None


def test_a_confirmed_label_is_in_no_review(scene: FilledBox) -> None:
    wrong = scene.folder / "pictures" / "square" / "img-00900.jpg"
    wrong.write_bytes(scene.path(0).read_bytes() + b"copy")
    (picture,) = scene.learn([wrong])
    scene.give_feature(picture, 3)  # that of a circle
    found = made(maker(scene)[1]).review
    assert found is not None
    assert [one.path for one in found.looks_mislabelled] == [wrong]
    confirm_labels(scene.state, {picture: "square"})
    found = made(maker(scene)[1]).review
    assert found is not None
    assert found.looks_mislabelled == ()
    expected, _ = review_files.review_device(scene.config, scene.bundle, lists_module.MOST)
    assert expected.looks_mislabelled == ()


def test_without_a_bundle_the_reason_is_said(scene: FilledBox) -> None:
    catalogue = Catalogue(scene.config, lambda: None)
    assert "no bundle yet" in made(ReviewMaker(scene.config, catalogue)).trouble
