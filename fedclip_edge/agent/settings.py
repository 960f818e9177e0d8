"""The settings of a running agent, which it reads again after SIGHUP.

Laws:
- New limits count at once. Most other settings count as soon as the agent serves again, which it
  then does by itself. Those that belong to the process need a restart: they stay as they are, and
  the log names them.
- A file with a mistake changes nothing. Settings with which the agent cannot serve are taken back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge import log
from fedclip_edge.config.agent import AgentConfig, load_agent
from fedclip_edge.config.limits import Limits
from fedclip_edge.errors import ConfigError
from fedclip_edge.processes.reloading import RELOAD

# The agent serves again to use them; all others but `limits` need a restart.
_SERVED = (
    "domain",
    "roles",
    "min_per_class",
    "min_votes",
    "methods",
    "reports",
    "data",
    "inbox",
    "encoder",
)


def _nothing(_config: AgentConfig) -> None:
    """There is nothing to check."""


@dataclass(eq=False)
class Settings:
    """The settings of one agent; `file` is their agent.toml, or None if they come from elsewhere.

    `check` raises ConfigError or ModuleNotFoundError for settings that the agent cannot use.
    """

    config: AgentConfig
    file: Path | None = None
    check: Callable[[AgentConfig], None] = _nothing
    is_new: bool = False  # the agent is to serve again
    _before: AgentConfig | None = None  # in case that the agent cannot serve with these

    def limits(self) -> Limits:
        """The limits that count now."""
        return self.config.limits

    def look(self) -> None:
        """Read the file again if that was asked for."""
        if RELOAD.take() and self.file is not None:
            self._reload(self.file)

    def begin(self) -> None:
        """Note that the agent begins to serve with these settings."""
        self.is_new = False

    def confirm(self) -> None:
        """Note that the agent serves with these settings."""
        self._before = None

    def take_back(self, reason: str) -> bool:
        """Go back to the settings before, because the agent cannot serve with these.

        False if there are none.
        """
        if self._before is None:
            return False
        self.config, self._before = self._before, None
        log.event("settings_not_used", file=self.file, reason=reason)
        return True

    def _reload(self, file: Path) -> None:
        try:
            read = load_agent(file)
            changed = [
                field.name
                for field in dataclasses.fields(AgentConfig)
                if getattr(read, field.name) != getattr(self.config, field.name)
            ]
            used = [name for name in changed if name in (*_SERVED, "limits")]
            made = dataclasses.replace(self.config, **{name: getattr(read, name) for name in used})
            self.check(made)
        except (ConfigError, ModuleNotFoundError, ValueError) as error:
            log.event("settings_not_used", file=file, reason=str(error))
            return
        log.event("settings_read", file=file, changed=", ".join(used) or None)
        left = [name for name in changed if name not in used]
        if left:
            log.event("restart_needed", file=file, changed=", ".join(left))
        if any(name in _SERVED for name in used):
            self._before, self.is_new = self._before or self.config, True
        self.config = made
