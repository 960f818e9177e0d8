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

from fedclip_edge.agent.label_store import labels_in, set_labels
from fedclip_edge.errors import ConfigError
from fedclip_edge.records import normalized_name

STEPS = 20


@dataclass(frozen=True)
class Step:
    """One change of labels."""

    id: str
    label: str | None  # None if labels were taken back, or if the pictures have different ones
    before: Mapping[str, str | None] = field(repr=False)  # the person's label by picture hash
    is_taken: bool = False  # the labels were taken back
    name: str = ""  # that the person wrote at the login

    @property
    def words(self) -> str:
        """The step as a sentence without its full stop."""
        count = len(self.before)
        pictures = "1 picture" if count == 1 else f"{count} pictures"
        by = f" by {self.name}" if self.name else ""
        if self.is_taken:
            return f"The label of {pictures} taken back{by}"
        if self.label is None:
            return f"The labels of {pictures} confirmed{by}"
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
        self, labels: Mapping[str, str | None], classes: Sequence[str], name: str = ""
    ) -> Step:
        """Give pictures their labels, by hash; None takes the person's label back.

        Raises ConfigError if there is no picture, or if a label is not one of `classes`; otherwise
        the errors of `set_labels`.
        """
        if not labels:
            raise ConfigError("no picture is selected; select at least one, then choose a class")
        known = {normalized_name(one): one for one in classes}
        wanted = {
            picture: None if label is None else _known(label, known)
            for picture, label in labels.items()
        }
        with self._lock:
            before = labels_in(self.state_dir)
            set_labels(self.state_dir, wanted)
            different = set(wanted.values())
            step = Step(
                secrets.token_hex(8),
                different.pop() if len(different) == 1 else None,
                {picture: before.get(picture) for picture in wanted},
                is_taken=not any(wanted.values()),
                name=name,
            )
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
            set_labels(self.state_dir, self._steps[-1].before)
            return self._steps.pop()


def _known(label: str, known: Mapping[str, str]) -> str:
    found = known.get(normalized_name(label.strip()))
    if found is None:
        raise ConfigError(
            f"{label!r} is no class of the bundle; choose one of its {len(known)} classes, or "
            "publish new classes first"
        )
    return found
