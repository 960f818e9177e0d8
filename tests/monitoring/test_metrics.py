"""The values of metrics: only what is defined, bounded, and seen whole from other threads."""

from __future__ import annotations

import threading

import pytest

from fedclip_edge.monitoring.definitions import (
    AGENT,
    COORDINATOR,
    DEVICES_MAX,
    OPEN_LABELS,
    OTHER,
    Metric,
)
from fedclip_edge.monitoring.metrics import Metrics
from fedclip_edge.records import check_id

GAUGE = Metric("size", "gauge", "A size.", {"device": ()})
COUNTER = Metric("seen_total", "counter", "A count.", {"device": ()})
LISTED = Metric("closes_total", "counter", "A count.", {"by": ("all", "quorum")})


def made() -> Metrics:
    return Metrics((GAUGE, COUNTER, LISTED), {"fleet": "lab"})


def of(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    (values,) = (values for metric, values in metrics.all() if metric.name == name)
    return values


def test_the_definitions_follow_the_conventions() -> None:
    names = [metric.name for metric in (*COORDINATOR, *AGENT)]
    assert len(set(names)) == len(names)
    for metric in (*COORDINATOR, *AGENT):
        assert metric.name.startswith("fedclip_edge_")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert metric.meaning.endswith(".")
        for label, listed in metric.labels.items():
            assert (label in OPEN_LABELS) == (not listed), metric.name
    used = {label for metric in (*COORDINATOR, *AGENT) for label in metric.labels}
    assert used >= OPEN_LABELS.keys()
    assert {name for name in names if "agent" in name} == {metric.name for metric in AGENT}


def test_a_counter_with_listed_labels_begins_at_zero_and_the_others_without_a_value() -> None:
    metrics = made()
    assert of(metrics, "closes_total") == {("all",): 0, ("quorum",): 0}
    assert of(metrics, "seen_total") == of(metrics, "size") == {}


def test_devices_beyond_the_limit_share_one_counter_and_have_no_gauge() -> None:
    metrics = made()
    for number in range(DEVICES_MAX + 3):
        metrics.add("seen_total", device=f"cam-{number}")
        metrics.set("size", number, device=f"cam-{number}")
    assert of(metrics, "seen_total")[OTHER,] == 3
    assert len(of(metrics, "size")) == DEVICES_MAX
    with pytest.raises(ValueError, match="is not an id"):
        check_id(OTHER, "id")  # so no device has this name


def test_with_a_registry_only_its_devices_have_series_of_their_own() -> None:
    metrics = made()
    metrics.set("size", 1, device="cam-1")
    metrics.admit({"cam-1", "cam-2"})
    for name in ("cam-1", "cam-2", "mallory", ""):
        metrics.add("seen_total", device=name)
        metrics.set("size", 2, device=name)
    assert of(metrics, "seen_total") == {("cam-1",): 1, ("cam-2",): 1, (OTHER,): 2}
    assert of(metrics, "size") == {("cam-1",): 2, ("cam-2",): 2}
    metrics.admit({"cam-2"})  # cam-1 is revoked
    assert of(metrics, "size") == {("cam-2",): 2}


def test_replacing_a_gauge_removes_the_series_that_are_gone() -> None:
    metrics = made()
    metrics.replace("size", [({"device": "cam-1"}, 1), ({"device": "cam-2"}, 2)])
    metrics.replace("size", [({"device": "cam-2"}, 3)])
    assert of(metrics, "size") == {("cam-2",): 3}


def test_what_is_not_defined_is_a_mistake_of_the_caller() -> None:
    metrics = made()
    with pytest.raises(KeyError):
        metrics.set("other", 1)
    for labels in ({}, {"device": "a", "more": "b"}):
        with pytest.raises(AssertionError):
            metrics.set("size", 1, **labels)
    with pytest.raises(AssertionError):
        metrics.add("closes_total", by="chance")
    with pytest.raises(AssertionError):
        metrics.set("closes_total", 1, by="all")


def test_counts_of_several_threads_add_up() -> None:
    metrics = made()

    def count() -> None:
        for _ in range(5000):
            metrics.add("closes_total", by="all")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert of(metrics, "closes_total")["all",] == 20_000
