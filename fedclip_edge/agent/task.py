"""A task of a device: a piece of work that its session asks for, and that takes long.

The session makes a task and goes on with its messages. The owner of the session has the task done
(`working.py`), and gives the session the result.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_edge.agent.model_download import Held
from fedclip_edge.protocol.messages import Manifest


@dataclass(frozen=True, eq=False)
class Training:
    """Answer the exchange of the manifest: train one round, or vote."""

    manifest: Manifest  # the one with which the task began
    held: Held  # its model


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Evaluate a model on the test pictures, and report on it."""

    manifest: Manifest  # the one with which the task began
    held: Held
    is_last: bool  # it is the last model of its run
    waited_s: float  # the device's idle time since it first connected


Task = Training | Evaluation
