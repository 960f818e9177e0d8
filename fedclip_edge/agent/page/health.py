"""The checks of `fedclip-edge doctor`, in a child process that starts when somebody asks for them.

The child has the memory and the libraries that the checks need. It starts at most once per AGAIN_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedclip_edge.agent.doctor.finding import Finding
from fedclip_edge.processes.children import Children, own_command

if TYPE_CHECKING:
    from jinja2 import Environment

AGAIN_S = 60.0
_LASTS_S = 400.0  # longer than the slowest check
_SEVERITY = {"ok": "well", "todo": "bad", "skipped": "past"}
_WORDS = {"ok": "fine", "todo": "to do", "skipped": "not checked"}


@dataclass(eq=False)
class Health:
    """The findings about one device; `file` is its agent.toml."""

    file: Path
    environment: Environment
    findings: tuple[Finding, ...] = ()
    checked_at: int | None = None  # Unix time, in seconds
    trouble: str = ""  # the reason why there are no newer findings
    _began_at: float = -math.inf  # monotonic, in seconds
    _task: asyncio.Task[None] | None = None
    _children: Children = field(default_factory=Children)
    _child: subprocess.Popen[str] | None = None
    _is_over: bool = False
    _shown: tuple[tuple[Any, ...], str] | None = None  # an age in it is not rendered again

    @property
    def is_checking(self) -> bool:
        """True while the checks run."""
        return self._task is not None and not self._task.done()

    def ask(self) -> None:
        """Start the checks, unless they run or ran within AGAIN_S."""
        now = time.monotonic()
        if self.is_checking or now - self._began_at < AGAIN_S:
            return
        self._began_at = now
        self._task = asyncio.create_task(self._check())

    def render(self) -> dict[str, str]:
        """Return the piece with the findings."""
        key = self.findings, self.checked_at, self.trouble, self.is_checking
        if self._shown is None or self._shown[0] != key:
            self._shown = key, self._rendered()
        return {"findings": self._shown[1]}

    def _rendered(self) -> str:
        macros: Any = self.environment.get_template("health_pieces.html.j2").module
        rows = [
            {
                "name": one.name,
                "severity": _SEVERITY[one.state],
                "state": _WORDS[one.state],
                "said": one.said,
                "todo": one.todo,
            }
            for one in sorted(self.findings, key=lambda one: one.state != "todo")
        ]
        piece = macros.findings(rows, self.checked_at, self.trouble, is_checking=self.is_checking)
        return str(piece).strip()

    @contextlib.asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """End the checks that run at the end of the block."""
        try:
            yield
        finally:
            self._is_over = True
            if self._child is not None:
                self._child.terminate()
            if self._task is not None:
                await self._task

    async def _check(self) -> None:
        try:
            self.findings = await asyncio.to_thread(self._run)
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            self.trouble = f"The checks failed: {error}"
        else:
            self.checked_at, self.trouble = int(time.time()), ""

    def _run(self) -> tuple[Finding, ...]:
        """Run the checks; raises ValueError with what the child said if it says no findings."""
        words = own_command("doctor", str(self.file), "--json")
        child = self._children.start(words, None, pipe=True, errors_too=True)
        self._child = child
        if self._is_over:
            child.terminate()
        try:
            said, _ = child.communicate(timeout=_LASTS_S)
        finally:
            self._child = None
            self._children.end(child)
        lines = said.strip().splitlines()
        found = next((line for line in reversed(lines) if line.startswith('{"config"')), None)
        if found is None:
            raise ValueError(lines[-1] if lines else f"it ended with code {child.returncode}")
        return tuple(Finding(**row) for row in json.loads(found)["checks"])
