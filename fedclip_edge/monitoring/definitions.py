"""Every metric of the coordinator and the agent: name, type, labels and meaning.

The names follow the conventions of Prometheus: base units, `_total` for counters, and times as
seconds since 1970. The manual's page is generated from these tables.

Law: the number of time series is bounded. A label has the values that are listed here, or is one of
the unbounded names in OPEN_LABELS, each with its bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from fedclip_edge.protocol.messages import Phase

DEVICES_MAX = 1000  # devices with series of their own, without a registry
OTHER = "(other)"  # all further devices together, in counters; no id has parentheses

# Labels whose values are not listed in the definitions, with what bounds them.
OPEN_LABELS: Mapping[str, str] = {
    "device": f"The id of a device: those of the registry or, without one, the first {DEVICES_MAX} "
    f"that the process has met. Counters add up all other devices as `{OTHER}`.",
    "event": "The name of a [log event](log-events.md).",
    "run": "The id of the run; only the current one.",
    "method": "The method of the run; only the current one.",
    "provider": "The execution provider of the encoder; only the configured one.",
    "version": "The version of fedclip-edge; only that of the process.",
}


@dataclass(frozen=True)
class Metric:
    """One metric. `labels` has the possible values of each label; empty for an open one."""

    name: str
    kind: Literal["gauge", "counter"]
    meaning: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _gauge(name: str, meaning: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(name, "gauge", meaning, labels)


def _counter(name: str, meaning: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(name, "counter", meaning, labels)


# Names of models in a report, as protocol/report.py explains them.
MODELS = ("zero_shot", "federated", "personal", "local")

# Each has the label `fleet` as well.
COORDINATOR: tuple[Metric, ...] = (
    _gauge("fedclip_edge_info", "Always 1; the version of the coordinator.", version=()),
    _gauge(
        "fedclip_edge_run_info",
        "Always 1; the id and the method of the current run.",
        run=(),
        method=(),
    ),
    _gauge(
        "fedclip_edge_run_active",
        "1 while a run is under way; 0 between runs, and while the run is paused.",
    ),
    _gauge(
        "fedclip_edge_phase",
        "1 for the phase of the run, else 0. `gathering` waits for devices, `open` for "
        "contributions, `final` for the evaluation of the last model; `done` is the end.",
        phase=get_args(Phase),
    ),
    _gauge("fedclip_edge_rounds", "Number of rounds of the run, with its vote."),
    _gauge("fedclip_edge_rounds_closed", "Number of closed rounds of the run."),
    _counter(
        "fedclip_edge_round_closes_total",
        "Rounds that this process has closed. `all`: with the contributions of the whole cohort. "
        "`quorum`: without some of them.",
        by=("all", "quorum"),
    ),
    _gauge(
        "fedclip_edge_progress_timestamp_seconds",
        "Time at which the last round was closed or, if that is later, at which the run began or went "
        "on: when this process started, with `run start` or with `run resume`.",
    ),
    _gauge("fedclip_edge_deadline_seconds", "The setting `deadline_s` under `[rules]`."),
    _gauge("fedclip_edge_round_seconds", "Duration of the last closed round."),
    _gauge("fedclip_edge_cohort_devices", "Devices in the cohort of the open round."),
    _gauge("fedclip_edge_contributions_needed", "Contributions that the open round needs."),
    _gauge("fedclip_edge_contributions_kept", "Contributions that the open round has."),
    _counter(
        "fedclip_edge_contributions_total", "Contributions that were kept, by device.", device=()
    ),
    _counter(
        "fedclip_edge_updates_bytes_total", "Size of the contributions to closed rounds, as sent."
    ),
    _gauge("fedclip_edge_model_bytes", "Size of the newest model as it is sent."),
    _gauge(
        "fedclip_edge_update_norm",
        "L2 norm of the device's last update, divided by its weight.",
        device=(),
    ),
    _counter(
        "fedclip_edge_deadlines_missed_total",
        "Deadlines that a device missed; the [log event `missed`](log-events.md) explains the "
        "reasons.",
        device=(),
        reason=("silent", "late", "offline", "refused"),
    ),
    _gauge(
        "fedclip_edge_accuracy",
        "Top-1 accuracy on the device's test pictures in its last report, from 0 to 1.",
        device=(),
        model=MODELS,
    ),
    _gauge(
        "fedclip_edge_accuracy_round",
        "Number of closed rounds of the model in the device's last report.",
        device=(),
    ),
    _gauge(
        "fedclip_edge_vote_accuracy",
        "Share of the voting pictures that the last vote's choice, and zero-shot CLIP, classify "
        "correctly.",
        model=("zero_shot", "chosen"),
    ),
    _gauge("fedclip_edge_vote_pictures", "Validation pictures that took part in the last vote."),
    _gauge(
        "fedclip_edge_devices",
        "Number of devices. `online`: have joined. `encoding`: encode their pictures and have not "
        "joined yet. `paused`: are too hot, or run on their battery. `left_out`: missed two deadlines, and do not count for the quorum. `unfit`: "
        "refused in this run. `enrolled`: in the registry and not revoked.",
        state=("online", "encoding", "paused", "left_out", "unfit", "enrolled"),
    ),
    _gauge("fedclip_edge_device_online", "1 if the device has joined, else 0.", device=()),
    _gauge(
        "fedclip_edge_device_last_seen_timestamp_seconds",
        "Time of the device's last verified message to this process.",
        device=(),
    ),
    _counter(
        "fedclip_edge_messages_refused_total",
        "Messages that broke the protocol or had a wrong signature, by sender.",
        device=(),
    ),
    _counter(
        "fedclip_edge_messages_dropped_total",
        "Messages above the sender's share that were dropped, by sender.",
        device=(),
    ),
    _gauge("fedclip_edge_broker_connected", "1 while connected to the broker, else 0."),
    _gauge(
        "fedclip_edge_certificate_end_timestamp_seconds",
        "Time at which the coordinator's certificate, or that of its authority, expires.",
        certificate=("coordinator", "authority"),
    ),
    _gauge(
        "fedclip_edge_device_certificate_end_timestamp_seconds",
        "Start of the day (UTC) on which the certificate of an enrolled device that is not revoked "
        "expires.",
        device=(),
    ),
    _gauge("fedclip_edge_journal_bytes", "Size of the journal with its write-ahead log."),
    _gauge("fedclip_edge_disk_free_bytes", "Free space on the disk of the journal."),
    _gauge("fedclip_edge_disk_size_bytes", "Size of the disk of the journal."),
    _gauge("fedclip_edge_memory_bytes", "Resident memory of the coordinator."),
    _counter("fedclip_edge_log_events_total", "Log events of the coordinator, by name.", event=()),
)

# Each has the labels `fleet` and `device` as well.
AGENT: tuple[Metric, ...] = (
    _gauge(
        "fedclip_edge_agent_info",
        "Always 1; the version of the agent, and the execution provider of its encoder.",
        version=(),
        provider=(),
    ),
    _gauge(
        "fedclip_edge_agent_pictures",
        "Pictures with features, by the side that they are used for. `withheld`: on no side, for "
        "privacy.",
        side=("train", "validation", "test", "withheld"),
    ),
    _gauge(
        "fedclip_edge_agent_pictures_skipped",
        "Pictures, and folders of pictures, that cannot be read.",
    ),
    _gauge(
        "fedclip_edge_agent_pictures_to_encode",
        "Pictures that still have to be encoded.",
    ),
    _gauge(
        "fedclip_edge_agent_encoded_pictures_per_second",
        "Pictures encoded in a second, the last time that pictures were encoded.",
    ),
    _gauge("fedclip_edge_agent_broker_connected", "1 while connected to the broker, else 0."),
    _gauge(
        "fedclip_edge_agent_coordinator_online",
        "1 while connected to a coordinator that answers, else 0.",
    ),
    _gauge(
        "fedclip_edge_agent_in_run",
        "1 if the device can take part in the coordinator's run; 0 if it waits for another run.",
    ),
    _gauge(
        "fedclip_edge_agent_last_contact_timestamp_seconds",
        "Time of the coordinator's last message that the device trusts.",
    ),
    _gauge(
        "fedclip_edge_agent_last_round",
        "Number of the last round that this process has trained for.",
    ),
    _gauge(
        "fedclip_edge_agent_last_round_timestamp_seconds",
        "Time at which this process last trained for a round.",
    ),
    _gauge(
        "fedclip_edge_agent_accuracy",
        "Top-1 accuracy on the device's test pictures at its last evaluation, from 0 to 1.",
        model=MODELS,
    ),
    _gauge(
        "fedclip_edge_agent_certificate_end_timestamp_seconds",
        "Time at which the device's certificate expires.",
    ),
    _gauge("fedclip_edge_agent_cache_bytes", "Size of the feature cache."),
    _gauge(
        "fedclip_edge_agent_memory_bytes",
        "Resident memory of the agent, without its child processes.",
    ),
    _counter("fedclip_edge_agent_log_events_total", "Log events of the agent, by name.", event=()),
)
