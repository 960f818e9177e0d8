"""The state of a serving process, on which the operator's commands work."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.config import FleetConfig
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.coordinator.journal import Journal


@dataclass(eq=False)
class Server:
    """The runs of one process, one after the other."""

    config: FleetConfig
    journal: Journal
    coordinator: Coordinator  # of the newest run; it stays when the run is done
