"""The current values of a process's metrics.

Laws:
- Only metrics that are defined can have a value, with exactly their labels and the listed values.
- Reading and writing from several threads is safe: a reader sees no half-made change.
- The number of series is bounded, whatever devices send (definitions.py).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterable, Mapping

from fedclip_edge.monitoring.definitions import DEVICES_MAX, OTHER, Metric

Labels = tuple[str, ...]  # values, in the order of the metric's labels


class Metrics:
    """Values of the metrics in `definitions`. `constant` are labels that all of them have.

    A counter whose label values are all listed begins at 0, so that its first increase is seen.
    """

    def __init__(self, definitions: Iterable[Metric], constant: Mapping[str, str]) -> None:
        self.constant = constant
        self._lock = threading.Lock()
        self._metrics = {metric.name: metric for metric in definitions}
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in self._metrics}
        self._enrolled: frozenset[str] | None = None
        self._known: set[str] = set()  # devices with series of their own, without a registry
        for name, metric in self._metrics.items():
            if metric.kind == "counter" and all(metric.labels.values()):
                self._values[name] = dict.fromkeys(itertools.product(*metric.labels.values()), 0.0)

    def admit(self, devices: Collection[str] | None) -> None:
        """Give series of their own to these devices only; with None, to the first DEVICES_MAX.

        Gauges of all other devices disappear.
        """
        with self._lock:
            enrolled = None if devices is None else frozenset(devices)
            if enrolled == self._enrolled:
                return
            self._enrolled = enrolled
            for name, metric in self._metrics.items():
                if "device" in metric.labels and metric.kind == "gauge":
                    place = list(metric.labels).index("device")
                    kept = self._values[name].items()
                    self._values[name] = {k: v for k, v in kept if self._owns(k[place])}

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge. Nothing happens for a device without series of its own."""
        with self._lock:
            key = self._key(name, "gauge", labels)
            if OTHER not in key:
                self._values[name][key] = value

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Increase a counter by `amount`, 0 or more."""
        assert amount >= 0
        with self._lock:
            key = self._key(name, "counter", labels)
            self._values[name][key] = self._values[name].get(key, 0.0) + amount

    def replace(self, name: str, values: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """Replace all series of a gauge: pairs of labels and value."""
        with self._lock:
            keyed = {self._key(name, "gauge", labels): value for labels, value in values}
            self._values[name] = {key: v for key, v in keyed.items() if OTHER not in key}

    def listed(self, name: str, label: str) -> tuple[str, ...]:
        """The values that a label of this metric can have; empty for an open label."""
        return self._metrics[name].labels[label]

    def all(self) -> list[tuple[Metric, dict[Labels, float]]]:
        """A copy of all values, in the order of the definitions."""
        with self._lock:
            return [(metric, dict(self._values[name])) for name, metric in self._metrics.items()]

    def _key(self, name: str, kind: str, labels: Mapping[str, str]) -> Labels:
        metric = self._metrics[name]
        assert metric.kind == kind, f"{name} is a {metric.kind}"
        assert labels.keys() == metric.labels.keys(), f"{name} has the labels {list(metric.labels)}"
        values = []
        for label, listed in metric.labels.items():
            value = labels[label]
            assert not listed or value in listed, f"{name}: {label} is {value!r}"
            values.append(self._device(value) if label == "device" else value)
        return tuple(values)

    def _device(self, device: str) -> str:
        if self._enrolled is None and device and len(self._known) < DEVICES_MAX:
            self._known.add(device)
        return device if self._owns(device) else OTHER

    def _owns(self, device: str) -> bool:
        return device in (self._known if self._enrolled is None else self._enrolled)
