"""The report of a demo run: the page of its run, with examples of test pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedclip_edge.demo.examples import KINDS, Example, thumbnail
from fedclip_edge.reporting.run_page import write_run_page


def write_report(path: Path, summary: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Write the page under a temporary name, then rename it.

    `summary` is the content of summary.json. Examples of a device that is not in the summary are
    shown as examples of the held-out device. A picture that cannot be read is left out, and the
    page lists it. Raises OSError if the file cannot be written.
    """
    cards: dict[str, list[tuple[Example, str]]] = {}
    unreadable = []
    for example in examples:
        embedded = thumbnail(example.picture)
        if embedded is None:
            unreadable.append(example.picture.name)
        else:
            cards.setdefault(example.device, []).append((example, embedded))
    shown = {"cards": cards, "kinds": KINDS, "unreadable": unreadable}
    write_run_page(path, summary, shown)
