"""The agent's metrics: kept up to date from its log events and its state, and written to a file.

The file is for the textfile collector of Prometheus' node_exporter, which runs on the box anyway.
So the agent opens no port.

Laws:
- The file is complete or not there, and is written once per WRITE_S at most.
- A file that cannot be written is reported in the log. It never stops the agent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedclip_edge import __version__, log
from fedclip_edge.agent.features import CACHE
from fedclip_edge.agent.session import Session
from fedclip_edge.config.agent import AgentConfig
from fedclip_edge.monitoring.definitions import AGENT, MODELS
from fedclip_edge.monitoring.metrics import Metrics
from fedclip_edge.monitoring.process_figures import database_bytes, memory_bytes
from fedclip_edge.pki.expiry import end_of
from fedclip_edge.storage import atomic

WRITE_S = 15.0
_HINT = (
    "create the folder of metrics_file, let the agent's user write there (under systemd also with "
    "ReadWritePaths), or free the disk; the agent goes on without the file"
)
Fields = Mapping[str, Any]


@contextmanager
def monitored(config: AgentConfig) -> Iterator[Monitor | None]:
    """Keep the metrics of this process until the end of the block; None without `metrics_file`.

    Raises ModuleNotFoundError if prometheus-client is not installed.
    """
    if config.metrics_file is None:
        yield None
        return
    from fedclip_edge.monitoring.exposition import text

    monitor = Monitor(config, config.metrics_file, text)
    with log.observed(monitor.note):
        yield monitor


class Monitor:
    """The metrics of one agent process. `text` makes the content of the file from them."""

    def __init__(self, config: AgentConfig, file: Path, text: Callable[[Metrics], bytes]) -> None:
        self.config = config
        self.metrics = Metrics(AGENT, {"fleet": config.fleet, "device": config.id})
        self._file = file
        self._text = text
        self._written_at = -math.inf
        self._has_failed = False
        self.name_provider(config.encoder.label)

    def name_provider(self, provider: str) -> None:
        """Set the provider of the encoder: an EncoderConfig.label."""
        labels = {"version": __version__, "provider": provider}
        self.metrics.replace("fedclip_edge_agent_info", [(labels, 1)])

    def note(self, event: str, fields: Fields) -> None:
        """Count a log event, and take its figures."""
        self.metrics.add("fedclip_edge_agent_log_events_total", event=event)
        if event in _FROM_EVENTS:
            _FROM_EVENTS[event](self.metrics, fields)

    def tell(self, done: int, total: int) -> None:
        """Note that `done` of `total` pictures are encoded, and write the file if that is due."""
        self.metrics.set("fedclip_edge_agent_pictures_to_encode", total - done)
        now = time.monotonic()
        if self._is_due(now):
            self._look_at_files()
            self._write(now)

    def look(self, session: Session, now: float) -> None:
        """Take the figures that no event tells, and write the file, if that is due.

        `now` is monotonic, in seconds.
        """
        if not self._is_due(now):
            return
        metrics, handshake = self.metrics, session.handshake
        pictures = session.publisher.capabilities.pictures
        for side in metrics.listed("fedclip_edge_agent_pictures", "side"):
            metrics.set("fedclip_edge_agent_pictures", getattr(pictures, side), side=side)
        connected = handshake.is_connected
        answers = handshake.is_answered or handshake.is_refused
        online = connected and answers and not handshake.is_alone
        metrics.set("fedclip_edge_agent_broker_connected", connected)
        metrics.set("fedclip_edge_agent_coordinator_online", online)
        metrics.set("fedclip_edge_agent_in_run", not (session.standby.reason or session.paused))
        if session.heard_at is not None:
            ago_s = now - session.heard_at
            metrics.set("fedclip_edge_agent_last_contact_timestamp_seconds", time.time() - ago_s)
        self._look_at_files()
        self._write(now)

    def _is_due(self, now: float) -> bool:
        return now - self._written_at >= WRITE_S

    def _look_at_files(self) -> None:
        cache = database_bytes(self.config.state_dir / CACHE)
        self.metrics.set("fedclip_edge_agent_cache_bytes", cache)
        certificate, memory = self.config.broker.certificate, memory_bytes()
        ends = None if certificate is None else end_of(certificate)
        if ends is not None:
            name = "fedclip_edge_agent_certificate_end_timestamp_seconds"
            self.metrics.set(name, ends.timestamp())
        if memory is not None:
            self.metrics.set("fedclip_edge_agent_memory_bytes", memory)

    def _write(self, now: float) -> None:
        self._written_at = now
        try:
            atomic.write_file(self._file, self._text(self.metrics))
        except OSError as error:
            if not self._has_failed:
                reason = error.strerror or str(error)
                log.event("metrics_not_written", file=self._file, reason=reason, hint=_HINT)
            self._has_failed = True
        else:
            if self._has_failed:
                log.event("metrics_written", file=self._file)
            self._has_failed = False


def _features_ready(metrics: Metrics, fields: Fields) -> None:
    metrics.set("fedclip_edge_agent_pictures_to_encode", 0)
    metrics.set("fedclip_edge_agent_pictures_skipped", fields["skipped"])
    if fields["encoded"] and fields["seconds"] > 0:
        per_s = fields["encoded"] / fields["seconds"]
        metrics.set("fedclip_edge_agent_encoded_pictures_per_second", per_s)


def _trained(metrics: Metrics, fields: Fields) -> None:
    metrics.set("fedclip_edge_agent_last_round", fields["round"])
    metrics.set("fedclip_edge_agent_last_round_timestamp_seconds", time.time())


def _evaluated(metrics: Metrics, fields: Fields) -> None:
    for model in MODELS:
        if model in fields:
            metrics.set("fedclip_edge_agent_accuracy", fields[model], model=model)


_FROM_EVENTS: Mapping[str, Callable[[Metrics, Fields], None]] = {
    "features_ready": _features_ready,
    "trained": _trained,
    "evaluated": _evaluated,
}
