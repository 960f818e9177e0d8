"""A server with runs one after the other, over the in-memory fleet of in_memory.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from in_memory import ENCODER, Fleet

from fedclip_edge.config.fleet import FleetConfig, RunSchedule
from fedclip_edge.coordinator import commands
from fedclip_edge.coordinator.control import Request
from fedclip_edge.coordinator.server import Basis, Server
from fedclip_edge.records import Plan


@dataclass
class Served:
    """The server of a fleet; `plan` and `schedule` are what fleet.toml says now."""

    fleet: Fleet
    plan: Plan | None = None
    schedule: RunSchedule = field(default_factory=RunSchedule)

    def __post_init__(self) -> None:
        self.plan = self.plan or self.fleet.plan
        self.server = Server(self._config(), self.fleet.journal, self.fleet.coordinator, self._load)

    def _config(self) -> FleetConfig:
        assert self.plan is not None
        return replace(self.fleet.config, plan=self.plan, schedule=self.schedule)

    def _load(self) -> tuple[FleetConfig, Basis]:
        classes = self.fleet.classes
        return self._config(), Basis(classes, classes.vectors.shape[1], ENCODER)

    def step(self, *, starts: bool = False) -> None:
        """One step of the fleet and of the server's loop; with `starts`, due runs start."""
        self.fleet.step()
        self.server.end_run()
        if starts:
            self.server.start_if_due(self.fleet.now)
        self.fleet.coordinator = self.server.coordinator

    def finish(self) -> str:
        """Step until the run is over; returns its id."""
        for _ in range(2000):
            if self.server.coordinator.finished:
                return self.server.run.id
            self.step()
        raise AssertionError("not finished")

    def ask(self, command: str, **arguments: Any) -> Mapping[str, Any]:
        """Give a command, as an operator does; returns the line for the client."""
        request = Request(command, arguments, "operator")
        answered = commands.answer(self.server, request, self.fleet.now)
        self.fleet.coordinator = self.server.coordinator
        return answered

    def done(self, command: str, **arguments: Any) -> Mapping[str, Any]:
        answered = self.ask(command, **arguments)
        assert answered["ok"], answered["error"]
        result: Mapping[str, Any] = answered["result"]
        return result

    def refused(self, command: str, **arguments: Any) -> str:
        answered = self.ask(command, **arguments)
        assert not answered["ok"], answered["result"]
        return str(answered["error"])
