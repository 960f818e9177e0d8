"""The list of all checks of a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedclip_edge.agent.doctor import box, fleet
from fedclip_edge.agent.doctor.answers import check_answers
from fedclip_edge.agent.doctor.finding import Check, Finding, ok
from fedclip_edge.agent.doctor.pictures import ENCODER_S, Pictures
from fedclip_edge.agent.pause import SENSORS
from fedclip_edge.agent.state_lock import LOCK
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.storage.lock import is_locked

_SHORT_S = 20.0
_FILES_S = 300.0  # many pictures that nobody has read yet, on a slow card


def checks_of(config: AgentConfig, sensors: Path = SENSORS) -> tuple[Check, ...]:
    """The checks of the device with these settings, in the order of their findings."""
    pictures = Pictures(config)
    return (
        Check("agent", lambda: _agent(config), _SHORT_S),
        Check("packages", lambda: box.packages(config), _SHORT_S),
        Check("bundle", pictures.check_bundle, _FILES_S),
        Check("encoder", pictures.check_encoder, ENCODER_S + _SHORT_S),
        Check("pictures", pictures.check_pictures, _FILES_S),
        Check("cache", pictures.check_cache, _FILES_S),
        Check("answers", lambda: check_answers(config), _SHORT_S),
        Check("disk", lambda: box.disk(config), _SHORT_S),
        Check("memory", box.memory, _SHORT_S),
        Check("limits", lambda: box.conditions(config, sensors), _SHORT_S),
        Check("clock", lambda: box.clock(config), _SHORT_S),
        Check("certificate", lambda: box.certificate(config), _SHORT_S),
        Check(
            "broker", lambda: fleet.check_broker(config, lambda: pictures.bundle), fleet.BROKER_S
        ),
    )


def _agent(config: AgentConfig) -> Iterator[Finding]:
    """Say if the agent runs; the lock of its state_dir tells."""
    said = f"device {config.id} of the fleet {config.fleet}"
    runs = is_locked(config.state_dir / LOCK)
    yield ok("agent", f"{said}; it {'runs' if runs else 'does not run'}")
