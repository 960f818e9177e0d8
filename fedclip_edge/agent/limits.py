"""The limits of agent.toml, for the two child processes."""

from __future__ import annotations

import dataclasses

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.config.limits import Limits
from fedclip_edge.processes.child_limits import ChildLimits


def of_child(limits: Limits) -> ChildLimits:
    """The limits of the encoder process, and of the trainer process."""
    return ChildLimits(limits.nice, limits.max_threads, limits.max_memory_mb)


def within(config: EncoderConfig, limits: Limits) -> EncoderConfig:
    """The settings of the encoder, with no more threads than the limits allow."""
    most = limits.max_threads or config.threads
    return dataclasses.replace(config, threads=min(config.threads, most))
