"""The process of the fleet's page, which `serve` starts beside itself and starts again.

Law: the page cannot disturb a round. It is another process, and its end is a line in the log.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.processes.children import Children, own_command

_AGAIN_S = 5.0  # from the end of the process to the next start
# Codes of errors.py with which a person must change something first.
_FOR_A_PERSON = range(10, 20)


class PageProcess:
    """The page's process; `now` is monotonic, in seconds."""

    def __init__(self, config: Path, children: Children, *, as_json: bool) -> None:
        self._words = own_command("page", str(config), *(["--json"] if as_json else []))
        self._children = children
        self._process: subprocess.Popen[str] | None = self._start()
        self._again_at: float | None = None

    def look(self, now: float) -> None:
        """Log the end of the process, and start it again when that is due."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            self._process = None
            is_over = code in _FOR_A_PERSON or code == 2
            self._again_at = None if is_over else now + _AGAIN_S
            log.event(
                "page_ended",
                code=code,
                hint="correct [page] as the line above says, then restart serve"
                if is_over
                else None,
            )
        elif self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        return self._children.start(self._words, None)
