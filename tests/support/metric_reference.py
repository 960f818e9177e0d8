"""docs/reference/metrics.md: every metric, its type, its labels and its meaning."""

from __future__ import annotations

from collections.abc import Iterator

import reference_markdown as md

from fedclip_edge.agent.monitor import WRITE_S
from fedclip_edge.coordinator.monitor import LOOK_S
from fedclip_edge.monitoring.definitions import AGENT, COORDINATOR, OPEN_LABELS, Metric

_INTRO = f"""\
`serve` answers Prometheus at the address of `[metrics]`, and the agent writes `metrics_file` for
node_exporter, every {WRITE_S:g} seconds. Both are off by default:
[Monitoring](../how-to/monitoring.md) turns them on. Figures that come from log events are up to date
at once; the others at the coordinator are at most {LOOK_S:g} seconds old.

Times are seconds since 1970. A counter begins at 0 when the process starts. A metric without a value
yet has no sample."""


def page() -> str:
    return md.page(
        [
            "# Metrics",
            md.notice("the definitions of the metrics"),
            _INTRO,
            "## Coordinator",
            "Every metric also has the label `fleet`.",
            _table(COORDINATOR),
            "## Agent",
            "Every metric also has the labels `fleet` and `device`.",
            _table(AGENT),
            "## Labels",
            "The values of these labels are not listed above:",
            md.table(
                ("label", "values"),
                [(f"`{name}`", md.prose(bound)) for name, bound in sorted(OPEN_LABELS.items())],
            ),
        ]
    )


def _table(metrics: tuple[Metric, ...]) -> str:
    rows = [
        (f"`{metric.name}`", metric.kind, "; ".join(_labels(metric)), md.prose(metric.meaning))
        for metric in metrics
    ]
    return md.table(("metric", "type", "labels", "meaning"), rows)


def _labels(metric: Metric) -> Iterator[str]:
    for label, values in metric.labels.items():
        yield f"`{label}`" + (f": {md.any_of(values)}" if values else "")
