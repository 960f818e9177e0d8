"""Metrics in the text format of Prometheus: served over HTTP, or as one text.

This is the only module that needs prometheus-client.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fedclip_edge.errors import ConfigError
from fedclip_edge.monitoring.metrics import Metrics


def text(metrics: Metrics) -> bytes:
    """Return all metrics in the text format 0.0.4, in UTF-8."""
    made: bytes = generate_latest(_registry(metrics))
    return made


@contextmanager
def served(metrics: Metrics, host: str, port: int) -> Iterator[None]:
    """Answer scrapes at http://host:port/metrics until the end of the block, in threads.

    Raises ConfigError if the address cannot be opened.
    """
    try:
        server, thread = start_http_server(port, host, _registry(metrics))
    except OSError as error:
        raise ConfigError(
            f"[metrics] listen: {host}:{port} cannot be opened ({error.strerror or error}); choose "
            "another port, or an address of this machine"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """A collector of the library: it reads the values anew at each scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield every metric with its help, also one without a value."""
        constant = self._metrics.constant
        for metric, values in self._metrics.all():
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            made = family(metric.name, metric.meaning, labels=[*constant, *metric.labels])
            for labels, value in values.items():
                made.add_metric([*constant.values(), *labels], value)
            yield made


def _registry(metrics: Metrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(cast("Collector", _Collector(metrics)))
    return registry
