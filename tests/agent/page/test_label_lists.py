from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fedclip_edge.agent.page.answered import Answered
from fedclip_edge.agent.page.catalogue import Entry, Pictures
from fedclip_edge.agent.page.label_lists import TABS
from fedclip_edge.agent.page.lists import Lists
from fedclip_edge.agent.review import Doubtful, Review, ToLabel


def entry(name: str, label: str = "", *, confirmed: bool = False) -> Entry:
    answer = Answered(0.0, (("cat", 0.75), ("dog", 0.25)), name == "strange", "fleet", "run-1")
    return Entry(
        name, name, Path(name), 0.0, label, "the manifest", confirmed, "train", True, answer
    )


def listed(tab: str, entries: Iterable[Entry], review: Review | None) -> list[tuple[str, str, str]]:
    pictures = Pictures(tuple(entries))
    found = TABS[tab].choices(pictures, Lists(review))
    return [(one.entry.id, one.what, one.why) for one in found]


def test_the_order_and_the_reasons_are_those_of_the_review() -> None:
    review = Review(
        tuple(
            ToLabel(Path(name), reason, "dog", 0.5, 0.1)  # type: ignore[arg-type]
            for name, reason in (
                ("b", "unsure"),
                ("gone", "unsure"),
                ("a", "unlike"),
                ("c", "unsure"),
            )
        ),
        (),
        (),
        4,
        0,
    )
    entries = [entry("a"), entry("b"), entry("c", "cat")]
    assert listed("worth", entries, review) == [
        ("b", "dog", "50.0 %, the model is unsure"),
        ("a", "dog", "50.0 %, unlike all labelled pictures"),
    ]
    assert listed("worth", entries, None) == []


def test_a_doubtful_label_is_listed_while_it_is_as_it_was_and_not_confirmed() -> None:
    doubtful = tuple(Doubtful(Path(name), "cat", 0.001, "dog", 0.9) for name in "abcd")
    review = Review((), doubtful, (), 0, 4)
    entries = [entry("a", "cat"), entry("b", "dog"), entry("c"), entry("d", "cat", confirmed=True)]
    assert listed("doubtful", entries, review) == [("a", "dog", "90.0 %, but the label is cat")]


def test_all_unlabelled_pictures_are_listed_with_their_answers() -> None:
    entries = [entry("a"), entry("b", "cat"), entry("strange"), entry("c")._replace(answer=None)]
    assert listed("all", entries, None) == [
        ("a", "cat", "75.0 %"),
        ("strange", "unknown", "none of the classes"),
        ("c", "", "no answer yet"),
    ]
