"""The choice of the pictures that are shown on one page of the site, and its addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import urlencode

from fedclip_edge.agent.page.catalogue import Entry

UNSURE = 0.2  # difference of the two largest probabilities, below which the model is unsure
SHOW = {
    "": "all pictures",
    "unlabelled": "without a label",
    "unsure": "the model is unsure",
    "unknown": "unknown: none of the classes",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Filter:
    """The wish of a person; empty texts ask for everything."""

    label: str = ""  # a class: by the label, otherwise by the answer
    show: str = ""  # a key of SHOW

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """Return the filter of an address; an unknown `show` asks for everything."""
        show = query.get("show", "")
        return cls(query.get("class", ""), show if show in SHOW else "")

    def address(self, page: int = 1) -> str:
        """Return the address of a page with this filter."""
        values = {"class": self.label, "show": self.show, "page": page if page > 1 else ""}
        query = urlencode({name: value for name, value in values.items() if value})
        return f"/?{query}" if query else "/"

    def matches(self, entry: Entry) -> bool:
        """True if the picture is one that the person asks for."""
        if self.label and entry.likely != self.label:
            return False
        if self.show == "unlabelled":
            return not entry.label
        if self.show == "unsure":
            return is_unsure(entry)
        if self.show == "unknown":
            return entry.answer is not None and entry.answer.is_unknown
        return True


def is_unsure(entry: Entry) -> bool:
    """True if the two likeliest classes of the answer are close, and it is one of the classes."""
    answer = entry.answer
    if answer is None or answer.is_unknown or len(answer.likeliest) < 2:
        return False
    return answer.likeliest[0][1] - answer.likeliest[1][1] < UNSURE


@dataclass(frozen=True)
class Part(Generic[T]):
    """One page of a long list."""

    items: Sequence[T]
    number: int  # of this page, from 1
    pages: int
    total: int  # of all items


def part_of(items: Sequence[T], number: str, size: int) -> Part[T]:
    """Cut the page with this number out; a number that does not exist gives the nearest page."""
    pages = max(1, -(-len(items) // size))
    wanted = int(number) if number.isdecimal() and len(number) < 9 else 1
    page = min(max(wanted, 1), pages)
    return Part(items[(page - 1) * size : page * size], page, pages, len(items))
