"""The registry file while a coordinator runs: read at the start, and again when it has changed."""

from __future__ import annotations

import threading

from fedclip_edge import log
from fedclip_edge.config.fleet import FleetConfig
from fedclip_edge.coordinator.coordinator import Coordinator
from fedclip_edge.errors import ConfigError, FedclipError
from fedclip_edge.pki import registry
from fedclip_edge.protocol import signing
from fedclip_edge.transport import base
from fedclip_edge.transport.disconnect import disconnect_client


def read_registry(config: FleetConfig) -> registry.Registry | None:
    """The registry that the configuration names, if any.

    Raises ConfigError if it cannot be read, or belongs to another fleet.
    """
    if config.registry is None:
        return None
    enrolled = registry.read(config.registry)
    if enrolled.fleet != config.fleet:
        raise ConfigError(
            f"{config.registry} is the registry of the fleet {enrolled.fleet!r}, not of "
            f"{config.fleet!r}; correct 'fleet' or 'registry' in fleet.toml"
        )
    return enrolled


def check_own_key(
    config: FleetConfig, enrolled: registry.Registry | None, me: signing.Identity
) -> None:
    """Raise ConfigError if the registry names another key for the coordinator.

    Devices would refuse every message, and say only that a signature is wrong.
    """
    if enrolled is not None and config.broker.key is not None and enrolled.coordinator != me.key:
        raise ConfigError(
            f"{config.broker.key} is not the key that {config.registry} names for the coordinator; "
            "copy coordinator.key, coordinator.crt and devices.json together from the operator's "
            "folder, or run `fedclip-edge broker rotate` there again if it was interrupted"
        )


def changed_at(config: FleetConfig) -> int:
    """Modification time of the registry in nanoseconds; 0 if it cannot be read."""
    try:
        return 0 if config.registry is None else config.registry.stat().st_mtime_ns
    except OSError:
        return 0


def read_again(serving: Coordinator, now: float) -> None:
    """Read the registry again, and disconnect the devices that it no longer admits."""
    config = serving.config
    try:
        enrolled = read_registry(config)
        assert enrolled is not None
        out = serving.apply_registry(enrolled, now)
    except ConfigError as error:
        log.event("registry_not_read", reason=str(error))  # the registry read before is still used
        return
    for device, incarnation in out.items():
        client = base.device_client(config.fleet, device, incarnation)
        threading.Thread(target=_disconnect_client, args=(config, client), daemon=True).start()


def _disconnect_client(config: FleetConfig, client: str) -> None:
    try:
        disconnect_client(config.broker, client)
    except FedclipError as error:
        log.event("client_not_disconnected", client=client, reason=str(error))
