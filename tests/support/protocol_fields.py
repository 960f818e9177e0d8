"""Texts of docs/reference/protocol.md on each field, limit, constant and setting.

A limit has a name, a text, values that are accepted and values that are refused. A test tries all
of these values on every field with that limit (tests/protocol/test_protocol_document.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedclip_edge.agent import (
    download,
    evaluation_queue,
    handshake,
    state_db,
    trust,
    upload,
)
from fedclip_edge.coordinator import (
    attendance,
    coordinator,
    device_messages,
    devices,
    fleet_claim,
    phase_open,
    reminders,
    round_state,
    uploads,
)
from fedclip_edge.learning import aggregation
from fedclip_edge.protocol import chunks, codec, message_parts, messages, revision, topics, wire
from fedclip_edge.protocol.hand_over import HandOver
from fedclip_edge.protocol.message_parts import (
    CHUNK_BYTES,
    Address,
    Blob,
    Capabilities,
    Encoding,
    Exchange,
    Pictures,
)
from fedclip_edge.protocol.messages import (
    CoordinatorState,
    DeviceState,
    Hello,
    Kept,
    Manifest,
    Offer,
    Refused,
    Want,
)
from fedclip_edge.protocol.report import Report
from fedclip_edge.records import Plan
from fedclip_edge.transport import base, inbox, outbox

_COUNT = message_parts.MAX_COUNT
_SHA = "a" * 64

# name -> its text, accepted values, refused values
MEANINGS: Mapping[str, tuple[str, list[Any], list[Any]]] = {
    "id": (
        "1 to 64 characters of `a-z`, `0-9`, `-`; no `-` at the start or end",
        ["a", "0", "a-9", "a" * 64],
        ["", "-a", "a-", "A", "a_b", "a/b", "a" * 65, "é", 1],
    ),
    "id or empty": ("an id, or an empty string", ["", "a"], ["-", "A", None, 1]),
    "hash, empty or null": (
        "a hash, an empty string, or null",
        ["", _SHA, None],
        ["a", "A" * 64, 1],
    ),
    "hash": ("64 lower-case hex digits", [_SHA], ["", "a" * 63, "A" * 64, "g" * 64, 1]),
    "hash or empty": ("a hash, or an empty string", ["", _SHA], ["a", "A" * 64, None]),
    "text": (
        "0 to 128 printable Unicode characters",
        ["", "x" * 128, "é 1"],
        ["x" * 129, "\n", "\x1b", "\ud800", 7],
    ),
    "short text": (
        "0 to 64 printable Unicode characters",
        ["", "x" * 64],
        ["x" * 65, "\n", "\ud800"],
    ),
    "reason": (
        "0 to 1,000 characters; for people, not to be parsed",
        ["", "x" * messages.MAX_REASON],
        ["x" * (messages.MAX_REASON + 1), None],
    ),
    "count": (
        "integer, 0 to 2^53",
        [0, _COUNT],
        [-1, _COUNT + 1, 1.0, True, "1", None],
    ),
    "large count": (
        "integer, 0 to 2^63 - 1",
        [0, 2**63 - 1],
        [-1, 2**63, 1.0, False],
    ),
    "large count or null": ("a large count, or null", [None, 0, 2**63 - 1], [-1, 2**63, 0.5]),
    "devices": ("integer, 1 to 1,000,000", [1, 1_000_000], [0, 1_000_001, True]),
    "size": ("integer, 1 to 2^32; at most 65,536 chunks", [1, 2**32], [0, -1, 2**32 + 1]),
    "chunk size": ("integer, 1 to 122,880", [1, CHUNK_BYTES], [0, CHUNK_BYTES + 1, 1024.0]),
    "truth": ("true or false", [True, False], [0, 1, "true", None]),
    "truth or null": ("true, false or null", [True, False, None], [0, 1, "null"]),
    "duration": ("finite number above 0", [0.001, 1, 1e9], [0, -1.0, "1", True]),
    "measured": ("finite number, 0 or more", [0, 0.5], [-0.5, "1", None]),
    "gaps": (
        "1 to 1,024 pairs of integers 0 or more, in ascending order, without overlap",
        [[[0, 0]], [[0, 3], [5, 5]]],
        [[], [[1, 0]], [[-1, 0]], [[0, 1], [1, 2]], [[3, 4], [0, 1]], [[0]], [[0, 1, 2]], [0, 1]],
    ),
    "shares": (
        "keys `[a-z][a-z0-9_]{0,31}`, none of them a field of this message; numbers 0 to 1",
        [{}, {"federated": 0.5}, {"a": 0, "b": 1}],
        [{"A": 0.5}, {"round": 0.5}, {"a": 1.5}, {"a": True}, [0.5]],
    ),
    "shares by class": (
        "keys of `accuracy`; arrays of numbers 0 to 1 or null, in the order of the classes",
        [{}, {"federated": [0.5, None, 1]}],
        [{"nobody": [0.5]}, {"federated": [1.5]}, {"federated": 0.5}, [0.5]],
    ),
    "counts by class": (
        "keys `train`, `validation`, `test`; arrays of up to 1,000 counts, in order of the classes",
        [{}, {"train": [3, 0]}, {"test": [0] * 1000, "validation": [_COUNT]}],
        [
            {"train": [-1]},
            {"withheld": [0]},
            {"test": [0] * 1001},
            {"test": [0.5]},
            {"test": 1},
            [],
        ],
    ),
    "roles": (
        "none, one or both of them, each at most once",
        [[], ["train"], ["evaluate", "train"]],
        [["train", "train"], ["serve"], "train"],
    ),
    "names": (
        "0 to 64 texts, all different",
        [[], ["a"], [f"m{n}" for n in range(64)]],
        [["a", "a"], [f"m{n}" for n in range(65)], ["x" * 129], [1], "a", None],
    ),
    "number": ("integer, 1 to 2^53", [1, _COUNT], [0, -1, _COUNT + 1, 1.0, True]),
    "one of these": ("one of the values in the type column", [], ["", "TRAIN", 0, None]),
    "record": (
        "an object with the fields of the record in the type column",
        [],
        [[], "x", 0, None, {"nobody": 1}],
    ),
    "record or null": (
        "an object with the fields of the record in the type column, or null",
        [None],
        [[], "x", 0, {"nobody": 1}],
    ),
    "host": ("1 to 128 printable characters, not only spaces", ["h", "::1"], ["", " ", "x" * 129]),
    "port": ("integer, 1 to 65535", [1, 65535], [0, 65536, "1", None]),
    "signature": ("128 lower-case hex digits", ["0" * 128], ["", "0" * 127, "A" * 128, None]),
    "hand-overs": ("0 to 16 statements", [[]], [[{}], [1], {}, "x", None]),
    "class names": (
        "0 to 1,000 texts",
        [[], ["ant", "b\u00e4r"], ["c"] * 1000],
        [["c"] * 1001, ["x" * 129], ["\n"], [1], "a", None],
    ),
    "epochs": ("integer, 0 to 1000", [0, 1000], [-1, 1001, 1.0, "1", True]),
    "rounds": (
        "integer, 0 to 1,000,000; in a manifest 1 or more",
        [0, 1, 1_000_000],
        [-1, 1_000_001, 1.0],
    ),
    "seed": ("integer, 0 to 2^63 - 1", [0, 2**63 - 1], [-1, 2**63]),
    "bits": ("integer, 1 to 52", [1, 52], [0, 53]),
    "weight": ("integer, 1 to 2^40", [1, 2**40], [0, 2**40 + 1]),
    "norm": ("number above 0, below 10^9", [0.5, 999], [0, 1e9, -1]),
    "name": (
        "any string; a device without a method or strategy of this name takes no part",
        ["fedclip", "other"],
        [1, None],
    ),
    "options": (
        "values are strings, finite numbers, true or false",
        [{}, {"lr": 0.1, "loss": "x", "epochs": 2, "a": True}],
        [{"lr": None}, {"lr": [1]}, []],
    ),
}

_BOOT = ("text", "the sender's incarnation: a random name of its process")
_EPOCH = ("count", "grows with each start of the coordinator, and with each further run of it")
_RUN = ("id", "the run of the contribution")
_NUMBER = ("count", "number of the exchange that it answers")
_ONLINE = ("truth", "false in the will, and when the sender leaves on purpose")

FIELDS: Mapping[type[Any], Mapping[str, tuple[str, str]]] = {
    Blob: {
        "sha256": ("hash", "SHA-256 of all bytes; later messages name the blob by it"),
        "size_bytes": ("size", "number of bytes"),
        "kind": ("one of these", "use of the bytes"),
        "chunk_bytes": ("chunk size", "bytes in each chunk except the last"),
    },
    CoordinatorState: {
        "boot": _BOOT,
        "epoch": _EPOCH,
        "run": ("id", "the run that it coordinates"),
        "online": _ONLINE,
        "key": ("hash", "the coordinator's public key"),
        "hand_overs": (
            "hand-overs",
            "statements of earlier keys, oldest first; empty if the key was never replaced",
        ),
        "moved_to": ("record or null", "the broker's address, if it was another one before"),
    },
    Address: {
        "host": ("host", "name or IP address"),
        "port": ("port", "TCP port"),
    },
    HandOver: {
        "old": ("hash", "a key of the coordinator"),
        "new": ("hash", "the key that follows it"),
        "signature": (
            "signature",
            "by `old`, over `fedclip-edge hand-over`, a zero byte, and the 32 bytes of each key",
        ),
    },
    DeviceState: {
        "boot": _BOOT,
        "online": _ONLINE,
        "encoding": (
            "record or null",
            "progress of a device that encodes its pictures and has not said hello yet",
        ),
        "activity": (
            "one of these",
            "what the device does, for people; told once it has lasted 2 s, `paused` at once",
        ),
        "reason": (
            "text",
            "why a device that stays connected is offline, such as a pause; empty in the will",
        ),
    },
    Encoding: {
        "done": ("count", "pictures whose features are ready"),
        "total": ("count", "all pictures of the device"),
    },
    Hello: {
        "boot": _BOOT,
        "key": ("hash", "the device's public key, which verifies this message"),
        "domain": ("short text", "label for the source of its pictures; only shown to people"),
        "encoder_id": ("text", "encoder id of the device's bundle"),
        "classes_digest": ("text", "classes digest of the device's bundle (see below)"),
        "capabilities": ("record", "the work that the device can and may do"),
        "epoch": ("count", "`epoch` of the last manifest that it accepted; 0 if none"),
        "run": ("id or empty", "`run` of that manifest; empty if none"),
        "closed": ("count", "`closed` of that manifest; 0 if none"),
    },
    Capabilities: {
        "roles": ("roles", "the work that the device accepts; empty if it only receives models"),
        "methods": ("names", "methods that the device supports and its owner allows"),
        "codecs": ("names", "codecs that the device supports"),
        "min_per_class": (
            "count",
            "pictures of a class with fewer than this on a side are withheld",
        ),
        "pictures": ("record", "pictures with features, by their use"),
        "provider": ("text", "where its encoder runs, such as `cpu`; only shown to people"),
        "version": ("text", "of the device's program; only shown to people"),
    },
    Pictures: {
        "train": ("count", "pictures that it trains on"),
        "validation": ("count", "pictures that it chooses settings by"),
        "test": ("count", "pictures that it evaluates on"),
        "withheld": ("count", "pictures that it uses for nothing, because of `min_per_class`"),
        "by_class": (
            "counts by class",
            "pictures of each class on a side; a device that sends no reports sends none",
        ),
    },
    Exchange: {
        "kind": ("one of these", "what the devices do in it"),
        "number": ("number", "place among the exchanges of the run, from 1"),
        "sha256": (
            "hash",
            "hash of everything that an answer depends on; opaque to devices, which repeat it",
        ),
        "max_norm": ("norm", "largest accepted L2 norm over all terms, divided by the weight"),
    },
    Manifest: {
        "run": ("id", "random name of the run; every run has a different one"),
        "epoch": _EPOCH,
        "key": ("hash", "the coordinator's public key"),
        "phase": ("one of these", "phase of the run (see below)"),
        "exchange": ("record", "the exchange that is open, or opens next; the last one at the end"),
        "attempt": ("count", "attempt at it, from 0; one more each time it had no quorum"),
        "closed": ("count", "number of closed exchanges"),
        "model": ("record", "the model to train from, or to evaluate"),
        "plan": ("record", "settings that all devices of the run share"),
        "encoder_id": ("text", "encoder id that every device must have"),
        "classes_digest": ("text", "classes digest that every device must have"),
        "cohort": ("hash", "largest cohort hash that takes part in the round"),
        "deadline_s": ("duration", "longest time of an attempt; only the coordinator enforces it"),
        "devices": ("devices", "size of the fleet, for the wait before a reconnect"),
        "takes_part": (
            "truth or null",
            "true if this device is in the cohort; null in a broadcast",
        ),
        "answers": ("text", "`boot` of the hello that it answers; empty in a broadcast"),
        "bundle": (
            "record or null",
            "the blob that describes the run's bundle, if it is signed, for devices without it",
        ),
        "kept": (
            "hash, empty or null",
            (
                "SHA-256 of the answer of this device that is kept for `exchange`; empty if none; "
                "null in a broadcast"
            ),
        ),
    },
    Offer: {
        "run": _RUN,
        "number": _NUMBER,
        "blob": ("record", "the blob of the contribution"),
    },
    Want: {
        "sha256": ("hash", "SHA-256 of the blob: a model or a contribution"),
        "missing": ("gaps", "ranges of chunk indices; both ends are included"),
    },
    Kept: {
        "run": _RUN,
        "number": _NUMBER,
        "sha256": ("hash", "SHA-256 of the contribution"),
    },
    Refused: {
        "reason": ("reason", "explanation for people; do not parse it"),
        "scope": ("one of these", "what is refused: one contribution, or the device"),
        "sha256": ("hash or empty", "SHA-256 of the refused contribution; empty if there is none"),
        "key": (
            "hash or empty",
            "public key of the device that is refused; empty for a contribution",
        ),
        "closed": ("count", "number of closed exchanges when this was sent, or 0 (see D18)"),
        "classes": (
            "class names",
            "names of the run's classes, for a device that has others; empty if they do not fit",
        ),
    },
    Report: {
        "run": ("id", "the run of the evaluated model"),
        "round": ("large count", "number of closed rounds in the evaluated model"),
        "device": ("id", "the sender"),
        "domain": ("short text", "as in the device's hello"),
        "model": ("hash", "SHA-256 of the evaluated model"),
        "accuracy": ("shares", "by name: `zero_shot`, `federated`, and others (see below)"),
        "train_pictures": ("large count", "training pictures with features"),
        "test_pictures": ("large count", "test pictures with features"),
        "encoded": ("large count", "pictures encoded since the agent started"),
        "skipped": ("large count", "files and folders that could not be read"),
        "bytes_up": (
            "large count or null",
            "bytes sent on its sockets since the agent started; null if unknown",
        ),
        "bytes_down": ("large count or null", "bytes received, likewise"),
        "encode_s": ("measured", "seconds of encoding since the agent started"),
        "train_s": ("measured", "seconds of training since the agent started"),
        "wait_s": (
            "measured",
            "seconds since the first connection in which it neither trained nor evaluated",
        ),
        "per_class": (
            "shares by class",
            (
                "in the report on the last model: share of right answers by class; null for a class "
                "without a test picture"
            ),
        ),
    },
    Plan: {
        "method": ("name", "name of the method, from docs/explanation/methods.md"),
        "options": ("options", "options of the method, by name"),
        "rounds": ("rounds", "number of rounds in the run"),
        "seed": ("seed", "seed of the initial model and of shuffling"),
        "codec_up": ("one of these", "codec of contributions"),
        "codec_down": ("one of these", "codec of models"),
        "grid_bits": ("bits", "values are added in steps of 2^-grid_bits"),
        "max_weight": ("weight", "largest accepted weight of a contribution"),
        "max_norm": (
            "norm",
            "upper limit of every round's largest L2 norm over all terms, divided by the weight",
        ),
        "strategy": (
            "name",
            "rule that makes the next model from the updates, from docs/explanation/methods.md",
        ),
        "strategy_options": ("options", "options of the strategy, by name"),
        "personal_epochs": (
            "epochs",
            "epochs after the last round in which a device trains a model of its own",
        ),
        "vote": ("one of these", "whether the run ends with a vote of the devices"),
        "local_baseline": ("truth", "true if each device also trains a model alone, to compare"),
    },
}

# Constants of the protocol under the names of the page -> value, text.
CONSTANTS: Mapping[str, tuple[object, str]] = {
    "MAX_CONTROL_BYTES": (
        wire.MAX_CONTROL_BYTES,
        "largest control message, with its signature line",
    ),
    "CHUNK_BYTES": (CHUNK_BYTES, "largest part in a chunk, and the usual one"),
    "CHUNK_HEADER_BYTES": (chunks._HEADER.size, "header in front of each part"),
    "CHUNK_VERSION": (chunks._VERSION, "version in the header of each chunk"),
    "MAX_GAPS": (messages.MAX_GAPS, "most ranges in one `want`"),
    "REVISION": (revision.REVISION, "revision of the messages on this page"),
    "SCHEMA": (wire._SCHEMA, "version in the metadata of each payload"),
    "MAX_HEADER_BYTES": (wire._MAX_HEADER_BYTES, "largest JSON header of a payload"),
    "BLOCK": (codec.BLOCK, "`int8`: values that share a scale"),
    "STEPS": (codec.STEPS, "`int8`: largest step"),
    "SCALE_MAX": (codec._SCALE_MAX, "`int8`: largest accepted scale"),
    "PER_PICTURE": (
        aggregation.PER_PICTURE,
        "largest entry of a whole-number sum, divided by the weight",
    ),
    "REPEAT_S": (upload.REPEAT_S, "before a device repeats a hello or an offer"),
    "REPAIR_S": (download.REPAIR_S, "before a device first asks for missing chunks"),
    "REPAIR_MAX_S": (
        download._REPAIR_MAX_S,
        "longest wait before it asks again; the wait doubles each time",
    ),
    "REPAIR_CHUNKS": (
        download._REPAIR_CHUNKS,
        "most chunks that it asks for at a time, after the first time",
    ),
    "WANT_S": (
        devices.MODEL_REPEAT_S,
        "shortest time between two answers to a device's `want` for one model",
    ),
    "FLOOD": (inbox.FLOOD, "dropped messages of a device before the coordinator stops listening"),
    "MUTED_S": (coordinator.MUTED_S, "for which the coordinator does not listen to such a device"),
    "UPLOAD_REPAIR_S": (
        uploads.REPAIR_S,
        "without a new chunk, before the coordinator asks for the missing ones",
    ),
    "LEASE_S": (uploads.LEASE_S, "without a new chunk, before a device loses its upload slot"),
    "REMIND_S": (
        reminders.REMIND_S,
        "before a silent device gets the manifest again; then at 2, 4, 8, ... times that",
    ),
    "ATTEMPTS": (
        phase_open.ATTEMPTS,
        "attempts at a round before the coordinator stops, if every contribution is refused",
    ),
    "PAUSE_S": (
        attendance.PAUSE_S,
        (
            "from one attempt at a round to the next, if every device that trains in the next one "
            "was refused; then 2, 4, 8, ... times that, `deadline_s` at most"
        ),
    ),
    "LEFT_OUT_AFTER": (
        round_state.LEFT_OUT_AFTER,
        "deadlines in a row that a device misses before it is left out",
    ),
    "STEADY_DEADLINES": (
        attendance.STEADY_DEADLINES,
        "deadlines within which a device goes away twice to be unsteady",
    ),
    "EPOCHS_AT_ONCE": (device_messages._EPOCHS_AT_ONCE, "largest rise of the epoch by one hello"),
    "LISTEN_S": (fleet_claim._LISTEN_S, "time that a starting coordinator listens for another one"),
    "ALONE_S": (handshake._ALONE_S, "longest wait between hellos without a coordinator"),
    "ALONE_HELLOS": (
        handshake._ALONE_HELLOS,
        "unanswered hellos in a row after which a device counts as alone",
    ),
    "RUNS": (state_db.RUNS, "newest runs whose contributions a device stores"),
    "RUNS_PINNED": (trust._RUNS_PINNED, "runs whose coordinator's key a device remembers"),
    "QUEUE_MODELS": (evaluation_queue._WAITING, "most models that wait for evaluation"),
    "QUEUE_BYTES": (evaluation_queue._WAITING_BYTES, "most bytes of decoded models that wait"),
    "WINDOW": (outbox.WINDOW, "most messages that the broker has not acknowledged"),
    "RECONNECT_MAX_S": (
        base._RECONNECT_MAX_S,
        "largest value of 2^failures in the wait before a reconnect",
    ),
    "RECONNECTS_PER_S": (
        base._RECONNECTS_PER_S,
        "reconnects in one second that the random wait aims at",
    ),
    "PREFIX": (f"fedclip/v{topics.VERSION}", "prefix of every topic"),
}

# Settings of the coordinator under [rules] in fleet.toml -> text.
RULES: Mapping[str, str] = {
    "devices": "training devices that the first round waits for",
    "quorum": "share of the cohort's devices that count whose contributions a round needs to close",
    "deadline_s": "longest time of an attempt at a round, and of the evaluation of the last model",
    "grace_s": "time that a round waits for a device that went away",
    "cohort": "devices in each round; 0 takes all that are online",
    "upload_slots": "devices that may upload at the same time",
    "absent": "last: a device that is away counts with its last contribution",
}
