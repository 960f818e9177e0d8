"""Labels that a person gives on the page, and the steps that can be undone.

Laws:
- A label is on disk before the answer to the browser (agent/label_store.py).
- A label is the name of a class of the bundle.
- An undo gives each picture of the step exactly the person's label that it had before, or none.
  Only the newest step can be undone, so no undo destroys a later one.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge.agent.label_store import (
    confirm_labels,
    confirmed_in,
    labels_in,
    set_labels,
)
from fedclip_edge.errors import ConfigError
from fedclip_edge.records import normalized_name

STEPS = 20


@dataclass(frozen=True)
class Step:
    """One change of labels."""

    id: str
    label: str | None  # None if labels were taken back or confirmed
    before: Mapping[str, str | None] = field(repr=False)  # the person's label by picture hash
    confirms: bool = False  # labels were confirmed, and `before` has what was confirmed before
    name: str = ""  # that the person wrote at the login

    @property
    def words(self) -> str:
        """The step as a sentence without its full stop."""
        count = len(self.before)
        pictures = "1 picture" if count == 1 else f"{count} pictures"
        by = f" by {self.name}" if self.name else ""
        if self.confirms:
            return f"The label of {pictures} confirmed{by}"
        if self.label is None:
            return f"The label of {pictures} taken back{by}"
        return f"{pictures} labelled as {self.label}{by}"


@dataclass(eq=False)
class Labelling:
    """Changes of the labels in `state_dir`; several threads may use it."""

    state_dir: Path
    _steps: deque[Step] = field(default_factory=lambda: deque(maxlen=STEPS))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def last(self) -> Step | None:
        """The step that can be undone; None if there is none."""
        return self._steps[-1] if self._steps else None

    def give(
        self, pictures: Sequence[str], label: str | None, classes: Sequence[str], name: str = ""
    ) -> Step:
        """Give a label to pictures, by hash; None takes the person's labels back.

        Raises ConfigError if there is no picture, or if the label is not one of `classes`;
        otherwise the errors of `set_labels`.
        """
        found = None if label is None else _known(label, classes)
        with self._lock:
            before = labels_in(self.state_dir)
            step = Step(secrets.token_hex(8), found, _part(before, pictures), name=name)
            set_labels(self.state_dir, dict.fromkeys(pictures, found))
            self._steps.append(step)
            return step

    def confirm(self, labels: Mapping[str, str], name: str = "") -> Step:
        """Note that the labels that pictures have, by hash, are right.

        Raises ConfigError if there is no picture; otherwise the errors of `confirm_labels`.
        """
        with self._lock:
            before = _part(confirmed_in(self.state_dir), list(labels))
            step = Step(secrets.token_hex(8), None, before, confirms=True, name=name)
            confirm_labels(self.state_dir, labels)
            self._steps.append(step)
            return step

    def undo(self, step: str) -> Step:
        """Undo the newest step, which must have this id.

        Raises ConfigError if it has another one, and the errors of `set_labels`.
        """
        with self._lock:
            if not self._steps or self._steps[-1].id != step:
                raise ConfigError(
                    "this step cannot be undone any more: another one followed, or the page was "
                    "started again; give the pictures their labels anew"
                )
            last = self._steps[-1]
            store = confirm_labels if last.confirms else set_labels
            store(self.state_dir, last.before)
            return self._steps.pop()


def _part(labels: Mapping[str, str], pictures: Sequence[str]) -> dict[str, str | None]:
    """The labels of these pictures; raises ConfigError if there is none."""
    if not pictures:
        raise ConfigError("no picture is selected; select at least one, then choose a class")
    return {picture: labels.get(picture) for picture in pictures}


def _known(label: str, classes: Sequence[str]) -> str:
    known = {normalized_name(one): one for one in classes}
    found = known.get(normalized_name(label.strip()))
    if found is None:
        raise ConfigError(
            f"{label!r} is no class of the bundle; choose one of its {len(known)} classes, or "
            "publish new classes first"
        )
    return found
