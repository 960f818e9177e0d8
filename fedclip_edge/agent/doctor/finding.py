"""Findings of checks, and the running of checks that may fail or hang.

Law: each check has its time. One that fails or takes longer becomes a finding, and the others go
on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedclip_edge.errors import FedclipError, reason_of

# ok: nothing to do. todo: somebody must act. skipped: it could not be looked at.
State = Literal["ok", "todo", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of one check; `todo` is the next step, and empty unless the state is "todo"."""

    name: str
    state: State
    said: str
    todo: str = ""


def ok(name: str, said: str) -> Finding:
    """A finding about which there is nothing to do."""
    return Finding(name, "ok", said)


def todo(name: str, said: str, what: str) -> Finding:
    """A finding that asks for a step."""
    return Finding(name, "todo", said, what)


def skipped(name: str, why: str) -> Finding:
    """A finding of a check that had nothing to look at."""
    return Finding(name, "skipped", why)


def of_error(name: str, error: FedclipError) -> Finding:
    """The finding of an error of this package; its message ends with the next step."""
    said, _, what = str(error).partition("; ")
    return Finding(name, "todo", said, what)


@dataclass(frozen=True)
class Check:
    """A check, which makes one finding or more; in seconds, the time that it has."""

    name: str
    find: Callable[[], Iterable[Finding]]
    deadline_s: float


@dataclass(eq=False)
class _Run:
    """A check that runs in a thread of its own, which ends with the program if it hangs."""

    check: Check
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ends_at = time.monotonic() + self.check.deadline_s
        self._thread = threading.Thread(target=self._find, name=self.check.name, daemon=True)
        self._thread.start()

    def _find(self) -> None:
        name = self.check.name
        try:
            for finding in self.check.find():
                self.findings.append(finding)
        except FedclipError as error:
            self.findings.append(of_error(name, error))
        except Exception as error:  # noqa: BLE001 - a fault of one check must not stop the others
            said = f"the check failed: {type(error).__name__}: {reason_of(error)}"
            self.findings.append(todo(name, said, "if this happens again, report it as a bug"))

    def result(self) -> list[Finding]:
        """Wait for the check, until its time is over."""
        self._thread.join(max(0.0, self._ends_at - time.monotonic()))
        found = list(self.findings)
        if self._thread.is_alive():
            said = f"no answer within {self.check.deadline_s:g} s"
            found.append(
                todo(self.check.name, said, "see if a disk, a network share or the network hangs")
            )
        return found


def run_all(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks at once, and return their findings in the order of `checks`."""
    runs = [_Run(check) for check in checks]
    return [finding for run in runs for finding in run.result()]
