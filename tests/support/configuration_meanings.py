"""The meaning of each key and table of fleet.toml and agent.toml, for the reader of the manual.

The comments of the fields in the source are for readers of the code; often they explain a default.
An option of a method or of a strategy has the meaning of the class that defines it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedclip_edge.config.agent import AgentConfig, DataConfig, EncoderConfig, InboxConfig
from fedclip_edge.config.answers import AnswersBroker, AnswersConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import FleetConfig, MetricsEndpoint, RunRules, RunSchedule, Trainer
from fedclip_edge.config.limits import Limits
from fedclip_edge.config.page import PageSettings
from fedclip_edge.learning.methods import (
    auto,
    clip_adapter,
    faa_clip,
    facmic,
    fedclip,
    fedot,
    gda,
    lowrank,
    ridge,
    tip_adapter,
    tofa,
)
from fedclip_edge.learning.options import Training
from fedclip_edge.learning.strategies import adaptive, fedavgm, robust
from fedclip_edge.records import Plan

_BETA1 = "Decay rate of the mean of the gradients."
_LOSS = (
    "`contrastive` is the loss of the FedCLIP paper; `multi-positive` does not count pictures of the "
    "same class as negatives; `cross-entropy` compares with all classes."
)
_SERVER_LR = "Learning rate of the coordinator."
_MIN_PER_CLASS = (
    "A device sends nothing for a class of which it has fewer pictures than this on one side of its "
    "split. This protects single pictures."
)

MEANINGS: Mapping[type[Any], Mapping[str, str]] = {
    FleetConfig: {
        "fleet": "Name of the fleet. It is part of every MQTT topic; all devices use the same one.",
        "bundle": "Folder of the bundle, with the encoder and the class texts. Enrolled devices fetch "
        "it if it is signed; all others need a copy.",
        "journal": "SQLite file with the state of all runs. `serve` continues from it after a "
        "restart. The control socket has the same name with the ending `.sock`. The trained models are written to the folder `models` next to it.",
        "keep_models": "Number of models of the run under way that the journal keeps, the newest ones; of a "
        "run that is over it keeps the last one. If the "
        "newest model is damaged, `serve --from-round` can go back to one of the others.",
        "reports": "Report of each run that is over, without pictures: `reports/RUN.html` and "
        "`reports/RUN.json` in the folder of the journal. `off` writes none.",
        "keep_sums_mb": "Megabytes of the devices' last sums that stay in the journal, the newest "
        'ones. `absent = "last"` and `fedclip-edge forget` need them. 0 keeps none.',
        "delivery_bytes_per_s": "Most bytes of a bundle that the coordinator sends in a second to the "
        "devices that fetch it. All of them get the same copy. Messages of a run go first.",
        "registry": "The file `devices.json` of the enrolled devices, which `fedclip-edge broker "
        "init` makes. Without it, any device may join.",
    },
    AgentConfig: {
        "id": "Name of this device, unique in the fleet.",
        "fleet": "Name of the fleet, the same as in `fleet.toml`.",
        "bundle": "Folder of the bundle, a copy of the coordinator's. With `export_key` it may be "
        "left out: the device then fetches the bundle from the coordinator.",
        "export_key": "Public key of the machine that exports; `fedclip-edge enroll` writes it. The "
        "device fetches the bundle of a run that needs another one, if this key has signed it. "
        "Empty: the device fetches none.",
        "state_dir": "Folder for all files that this device keeps: bundles, features, models, "
        "answers, the update that is not acknowledged yet, and without enrolment the device's key. "
        "`device/README.md` in the checkout lists them.",
        "domain": "A name for the origin of the pictures, shown in reports.",
        "roles": "`train` sends updates; `evaluate` measures each model on the test pictures.",
        "coordinator_key": "Public key of the only coordinator to accept; `fedclip-edge enroll` "
        "writes it. Empty: the device accepts the first key that it sees in a run.",
        "min_per_class": "Smallest number of pictures of a class that an update may depend on; no "
        "plan lowers it. A side of the split with fewer pictures of a class is withheld. If training "
        "and validation reach the number only together, all these pictures are for training.",
        "min_votes": "Smallest number of validation pictures that the device votes with. With fewer, "
        "its answer to the vote is empty.",
        "methods": "Methods that this device takes part in; it refuses a plan with another one. "
        "Without this key, all methods.",
        "metrics_file": "File for the textfile collector of Prometheus' node_exporter, which reads "
        "`*.prom` in its folder; see [Monitoring](../how-to/monitoring.md). The agent writes its "
        "[metrics](metrics.md) to it every 15 seconds. Without this key, no such file is written.",
        "reports": "`false` keeps the measured accuracies on the device, and no round waits for them.",
    },
    BrokerAddress: {
        "host": "Name or address of the broker. With TLS, the broker's certificate must contain it.",
        "port": "TCP port of the broker; 8883 is usual for TLS.",
        "username": "User name for a broker that asks for a password.",
        "password": "Password for that user name.",
        "keepalive_s": "Seconds without traffic after which the client sends a ping. The broker "
        "reports a client as gone after one and a half times this period.",
        "max_packet_bytes": "Largest MQTT packet that the broker accepts. Needed only for a broker "
        "that does not announce its limit, or to stay below it.",
        "ca": "Certificate of the authority that issued the broker's certificate. It turns on TLS.",
        "certificate": "Certificate of this device or coordinator, from the same authority. Its "
        "common name is the user name at the broker.",
        "key": "Private key of the certificate. It also signs the messages.",
    },
    RunRules: {
        "devices": "Training devices that must be online before round 1 opens. Later rounds need "
        "the `quorum` share of this number, or of the training devices that still count if they "
        "are fewer. A device that misses two deadlines in a row does not count until it "
        "contributes again.",
        "quorum": "Share of the cohort that must have contributed for a round to close. Devices "
        "that do not count are left out of the cohort's size.",
        "deadline_s": "Longest time of one attempt at a round, in seconds. A training device that "
        "is offline for two deadlines while a later round waits to open does not count any more.",
        "grace_s": "How long a round waits for a device that went offline, in seconds. A device "
        "that goes away again within ten deadlines is waited for only if the others are too few to "
        "go on.",
        "cohort": "Number of devices that take part in a round. 0 means all that are online.",
        "upload_slots": "Number of devices that may upload at the same time.",
        "absent": "`last`: in a round of exact sums (`gda`, `ridge`, `tofa`, the first round of "
        "`auto`), a device that is away or late counts with its last contribution for the same "
        "encoder and classes. It does not count for `devices` and `quorum`, and does not vote.",
    },
    RunSchedule: {
        "start": "`manual`: the first run waits for `fedclip-edge run start`, or until it is due. "
        "Otherwise the first run starts when `serve` starts with a new journal.",
        "every": "Time from the start of one run to the start of the next. Not together with `at`.",
        "at": "Time of day at which a run starts, on the coordinator's own clock.",
        "new_pictures": "Start a run when the devices have so many labelled pictures that the last "
        "run did not have. The devices count them themselves.",
        "model": "The model that such a run starts from: `zero-shot`, or that of the last run that "
        "is done. Not for a method that makes its model in one round.",
    },
    Trainer: {
        "config": "The `agent.toml` of that device. It has the same fleet and broker.",
    },
    PageSettings: {
        "listen": "Address of the page, `HOST:PORT`. An address that other machines can reach needs "
        "`certificate` and `key`.",
        "names": "Further host names under which browsers may open the page. A request for any "
        "other name is refused.",
        "certificate": "PEM file with the certificate chain that the page shows. It turns on HTTPS.",
        "key": "PEM file with the private key of that certificate.",
    },
    MetricsEndpoint: {
        "listen": "Host and port at which `serve` answers Prometheus, at `/metrics`. There is no "
        "password and no encryption: with an address other than 127.0.0.1, whoever reaches the port "
        "can read all [metrics](metrics.md), among them the ids of the devices.",
    },
    DataConfig: {
        "folder": "Folder of the labelled pictures, with one subfolder per class. The names of "
        "the subfolders are the class names of the bundle.",
        "train": "Share of the pictures to train on.",
        "validation": "Share of the pictures that choose settings and personal models.",
        "test": "Share of the pictures that every model is evaluated on.",
        "labels": "[Manifest of labels](../how-to/own-pictures.md#labels-without-class-folders): a "
        "CSV file with the columns `file` and `label`, or JSON lines. Its labels count before those "
        "of side-cars and class folders.",
        "group_by": "Pictures of one event are on one side of the split. `folder`: those in one "
        "sub-folder of a class folder; `prefix`: those whose names begin alike; `seconds`: those "
        "taken shortly after each other, by EXIF, else by the file's time.",
        "group_pattern": "Regular expression for `prefix`: its first group, matched at the start of "
        "the file's name, is the event. The default takes the name up to the last `_` or `-`.",
        "group_seconds": "For `seconds`: the longest time between two pictures of one event.",
    },
    InboxConfig: {
        "folder": "Folder of unlabelled pictures, with or without sub-folders. They are never "
        "trained on before they have a label.",
    },
    EncoderConfig: {
        "provider": "[Where the encoder runs](../how-to/precision.md). `auto` tries what is "
        "installed, takes the fastest whose features agree with the bundle's, and stays with it. "
        "Another value is used, or the agent stops with an error.",
        "precision": "Numbers that the encoder computes with: `fp32` as the bundle was exported, "
        "`bf16` with OpenVINO on a processor that has it, `auto` the faster one whose features "
        "agree.",
        "threads": "Number of threads that decode pictures, and of the providers `cpu` and `openvino`. 0: one for "
        "each core that the process may use, by its affinity and the quotas of its control groups.",
        "batch_size": "Pictures per call of the encoder. 0: up to 8 in each thread on the CPU and "
        "OpenVINO, and up to 32 on an accelerator; less with many threads, to save memory.",
        "fast": "true decodes large JPEGs at a lower resolution, still at least twice that of the "
        "encoder. It is faster and changes the features a little; they are cached separately. "
        "[Figures](../how-to/precision.md).",
        "engine_dir": "Folder for the engines that TensorRT builds. Without it, they are in "
        "`fedclip-edge/engines` in the user's cache folder.",
    },
    Limits: {
        "max_threads": "Number of processors that encoder and trainer run on, each.",
        "nice": "Niceness of encoder and trainer, added to that of the agent. With 19 all other "
        "programs of the box come first.",
        "max_memory_mb": "Memory in megabytes that the encoder may take, and that the trainer may "
        "take. A process that takes more is ended, and its work is tried once more.",
        "max_cache_mb": "Megabytes of the feature cache. The features that are unused for the longest "
        "time are deleted; those of the labelled pictures stay.",
        "max_temperature_c": "The device pauses while its hottest thermal zone is above this, until "
        "it is 5 degrees below.",
        "on_battery": "`pause`: the device pauses while it runs on its battery.",
    },
    AnswersConfig: {
        "model": "The model that answers: `own` is the device's own, if the plan of the last run made "
        "one, otherwise the fleet's; `fleet` is always the fleet's. Before the first run it is "
        "zero-shot CLIP.",
        "top": "Number of classes in each answer, the likeliest first.",
        "file": "File of the answers, as JSON lines. Without this key, `answers.jsonl` in "
        "`state_dir`.",
        "file_bytes": "The file is renamed to `FILE.1` before it grows beyond this size.",
        "old_files": "Number of renamed files that are kept.",
        "event_s": "An event is over when it has had no new picture for so many seconds.",
        "event_pictures": "An event of fewer pictures is unknown.",
        "event_share": "Share of the pictures of an event that must have the same label; otherwise "
        "the event is unknown.",
    },
    AnswersBroker: {
        "topic": "The topics are `TOPIC/DEVICE/answer`, `TOPIC/DEVICE/event` and "
        "`TOPIC/DEVICE/availability`.",
        "keep": "Number of answers that wait while the broker is away. The oldest are dropped.",
        "home_assistant": "`true` announces the device to Home Assistant (MQTT discovery).",
        "discovery_topic": "The discovery prefix that Home Assistant has.",
        "certificate": "Certificate for the login at this broker; needs `key`.",
        "key": "Private key of the certificate.",
    },
    Plan: {
        "method": "The [method](../explanation/methods.md) that the devices train.",
        "rounds": "Number of rounds. 0 means the default of the method.",
        "seed": "Seed of the initial model and of the order of the pictures.",
        "codec_up": "Codec of the updates that devices send.",
        "codec_down": "Codec of the models that the coordinator sends. It keeps the model itself "
        "in float32.",
        "grid_bits": "Updates are rounded to multiples of 2 to the power of minus this number "
        "before they are added. So the order of the devices does not change the sum.",
        "max_weight": "Largest weight of an update; the coordinator refuses a larger one.",
        "max_norm": "Upper limit of every round's largest norm: the L2 norm of an update divided by "
        "its weight. A device scales a longer update down.",
        "strategy": "The [strategy](../explanation/methods.md) that makes the next model from the "
        "updates.",
        "personal_epochs": "Number of epochs for which each device continues to train alone after the "
        "last round. It keeps the model that is best on its validation pictures as its personal "
        "model. 0 makes none.",
        "vote": "`on`: the run ends with a [vote](../explanation/methods.md#the-vote) of the devices "
        "on their validation pictures, so that its model is not worse than zero-shot CLIP. `off`: "
        "it ends with the model of the last round, which nothing guards.",
        "local_baseline": "Each device also trains a model alone, for comparison.",
    },
    Training: {
        "optimizer": "`adamw` decouples the weight decay from the gradient; `adam` does not. "
        "`sgd` is plain gradient descent.",
        "lr": "Learning rate.",
        "beta1": _BETA1 + " `adam` and `adamw` only.",
        "beta2": "Decay rate of the mean of the squared gradients. `adam` and `adamw` only.",
        "eps": "Added to the denominator of a step. `adam` and `adamw` only.",
        "weight_decay": "Weight decay.",
        "batch_size": "Pictures per step.",
        "epochs": "Passes over the training pictures in one round.",
        "weighting": "Weight of an update: `uniform` is 1, `pictures` is the number of training "
        "pictures.",
        "proximal_mu": "FedProx: adds this number, halved, times the squared distance to the "
        "received model to the loss.",
    },
    faa_clip.Options: {"loss": _LOSS},
    facmic.Options: {
        "loss": _LOSS,
        "transfer": "Weight of the loss that aligns the classes of the training pictures with those "
        "predicted for the validation pictures. 0 leaves it out.",
    },
    fedclip.Options: {"loss": _LOSS},
    fedot.Options: {
        "blocks": "Number of blocks of the device's map. Fewer blocks can turn features more.",
        "map_epochs": "Passes over the training pictures that find a device's map, in each round "
        "and for its own model.",
    },
    auto.Options: {"min_per_class": _MIN_PER_CLASS},
    clip_adapter.Options: {
        "reduction": "The bottleneck has the width of the features divided by this number.",
        "ratio": "Share of the adapter's output in the feature.",
    },
    lowrank.Options: {"rank": "Rank of the map."},
    ridge.Options: {
        "l2": "Strength of the shrinkage (lambda). Without it, the value with the smallest error "
        "on the validation pictures is used.",
        "prior": "Scale of the class texts to shrink towards (tau). Without it, the value with the "
        "smallest error on the validation pictures is used.",
        "min_per_class": _MIN_PER_CLASS,
    },
    gda.Options: {
        "share": "Weight of the Gaussian head relative to the class texts. Without it, it grows with "
        "the number of pictures.",
        "min_per_class": _MIN_PER_CLASS,
    },
    tip_adapter.Options: {
        "alpha": "Weight of the cached pictures relative to the class texts. Without it, the value "
        "that is best on the device's validation pictures is used.",
        "beta": "Sharpness of the similarity to a cached picture. Without it, the value that is "
        "best on the device's validation pictures is used.",
    },
    tofa.Options: {
        "alpha": "Weight of a picture of the fleet relative to a picture of the device, in the "
        "device's own model. Without it, the value that is best on its validation pictures is used.",
        "min_per_class": _MIN_PER_CLASS,
    },
    fedavgm.Options: {"lr": _SERVER_LR, "momentum": "Momentum of the coordinator."},
    adaptive.Options: {
        "lr": _SERVER_LR,
        "beta1": "Decay rate of the mean of the changes.",
        "beta2": "Decay rate of the mean of the squared changes.",
        "tau": "Added to the denominator of a step.",
    },
    robust.Options: {
        "byzantine": "Largest share of the devices that may send arbitrary updates.",
    },
}

TABLES: Mapping[str, str] = {
    "rules": "Rules for opening and closing a round.",
    "plan": "What is trained, and how.",
    "plan.options": "Options of the method.",
    "plan.strategy_options": "Options of the strategy.",
    "broker": "Address of the MQTT broker, and how to log in.",
    "schedule": "When runs start by themselves. Whichever is due first starts the next run; one that is "
    "due during another run, or while `serve` is not running, starts as soon as it can. Without this "
    "table, the first run starts at once and each further one with `fedclip-edge run start`.",
    "trainer": "A device that `serve` starts as a child process, with pictures of the operator. "
    "Without this table there is no such device.",
    "metrics": "The coordinator's metrics for Prometheus; see "
    "[Monitoring](../how-to/monitoring.md). Without this table there are none.",
    "page": "The web page of the fleet, or of the box; see [A page for the fleet]"
    "(../how-to/fleet-page.md) and [A page for the box](../how-to/box-page.md). Without this table "
    "there is none.",
    "data": "The pictures of this device.",
    "inbox": "Pictures that nobody has labelled yet. Without this table there are none but those that "
    "lie in the folder of `[data]` without a label.",
    "encoder": "How the encoder runs on this device.",
    "limits": "What the agent may take from its box. Without a key, there is no such limit.",
    "answers": "What the device says about its new pictures; see "
    "[Predictions](../how-to/predictions.md).",
    "answers.broker": "MQTT broker that gets the answers; it need not be the fleet's. Without this "
    "table, the answers stay on the device.",
}
