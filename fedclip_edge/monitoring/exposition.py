"""Metrics in the text format of Prometheus: served over HTTP, or as one text.

This is the only module that needs prometheus-client.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fedclip_edge.errors import ConfigError
from fedclip_edge.monitoring.metrics import Metrics

_SILENT_S = 10.0  # a connection without a request is closed after this time


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
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]

        class Server(_Server):
            address_family = family

        server = make_server(host, port, make_wsgi_app(_registry(metrics)), Server, _Handler)
    except OSError as error:
        raise ConfigError(
            f"[metrics] listen: {host}:{port} cannot be opened ({error.strerror or error}); choose "
            "another port, or an address of this machine"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """A server with a thread for each scrape."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: the client has gone away, or was silent for too long."""


class _Handler(WSGIRequestHandler):
    timeout = _SILENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing: a line for each scrape would fill the log."""


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
