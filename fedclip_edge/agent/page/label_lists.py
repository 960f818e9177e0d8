"""The lists of the page on which a person labels: what is in each, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from fedclip_edge.agent.page.catalogue import Entry, Pictures
from fedclip_edge.agent.page.lists import Lists
from fedclip_edge.reporting.figures import percent

_REASONS = {"unsure": "the model is unsure", "unlike": "unlike all labelled pictures"}


@dataclass(frozen=True)
class Choice:
    """One picture that can be selected."""

    entry: Entry
    what: str  # the class that the model names; empty without an answer
    why: str


@dataclass(frozen=True)
class Tab:
    """One of the lists."""

    name: str  # in addresses
    title: str
    about: str
    choices: Callable[[Pictures, Lists], Iterator[Choice]]
    needs_review: bool = True


def _worth(pictures: Pictures, lists: Lists) -> Iterator[Choice]:
    """Yield the pictures of the review that still have no label."""
    by_path = {entry.path: entry for entry in pictures.entries if not entry.label}
    for one in lists.review.label_next if lists.review else ():
        entry = by_path.get(one.path)
        if entry is not None:
            why = f"{percent(one.probability)}, {_REASONS[one.reason]}"
            yield Choice(entry, one.label, why)


def _doubtful(pictures: Pictures, lists: Lists) -> Iterator[Choice]:
    """Yield the labels of the review that are as they were, and not confirmed since."""
    by_path = {entry.path: entry for entry in pictures.entries}
    for one in lists.review.looks_mislabelled if lists.review else ():
        entry = by_path.get(one.path)
        if entry is not None and entry.label == one.label and not entry.is_confirmed:
            why = f"{percent(one.likelier_probability)}, but the label is {one.label}"
            yield Choice(entry, one.likelier, why)


def _unlabelled(pictures: Pictures, lists: Lists) -> Iterator[Choice]:
    """Yield all pictures without a label, the newest first."""
    for entry in pictures.entries:
        if not entry.label:
            answer = entry.answer
            if answer is None:
                yield Choice(entry, "", "no answer yet")
            elif answer.is_unknown:
                yield Choice(entry, "unknown", "none of the classes")
            else:
                yield Choice(entry, answer.label, percent(answer.probability))


TABS: Mapping[str, Tab] = {
    tab.name: tab
    for tab in (
        Tab(
            "worth",
            "Worth a label",
            "The unlabelled pictures from which the model learns most, the most useful first.",
            _worth,
        ),
        Tab(
            "doubtful",
            "Looks mislabelled",
            "Labels that are very unlikely to a model that was made without the picture. Correct "
            "them, or confirm those that are right.",
            _doubtful,
        ),
        Tab(
            "all",
            "All unlabelled",
            "Every picture without a label, the newest first.",
            _unlabelled,
            needs_review=False,
        ),
    )
}
FIRST = "worth"
