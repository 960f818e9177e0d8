"""What docs/reference/protocol.md says of each field, limit and constant; the tests hold it to the code.

A limit is a name with what it means, values that are taken and values that are refused; the test
tries them all on every field that has the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedclip_edge.agent import handshake, model_download, upload
from fedclip_edge.coordinator import coordinator, devices, round_driver, round_machine, uploads
from fedclip_edge.protocol import chunks, codec, messages, topics, wire
from fedclip_edge.protocol.messages import (
    CHUNK_BYTES,
    Blob,
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
from fedclip_edge.transport import base, outbox

_COUNT = messages._MAX_COUNT
_SHA = "a" * 64

# name -> what it is, values taken, values refused
MEANINGS: Mapping[str, tuple[str, list[Any], list[Any]]] = {
    "id": (
        "1 to 64 of `a-z`, `0-9`, `-`; not starting or ending with `-`",
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
        "0 to 1,000 characters, for a person",
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
    "duration": ("finite, above 0", [0.001, 1, 1e9], [0, -1.0, "1", True]),
    "measured": ("finite, 0 or more", [0, 0.5], [-0.5, "1", None]),
    "gaps": (
        "1 to 1,024 pairs of 0 or more, in order and apart",
        [[[0, 0]], [[0, 3], [5, 5]]],
        [[], [[1, 0]], [[-1, 0]], [[0, 1], [1, 2]], [[3, 4], [0, 1]], [[0]], [[0, 1, 2]], [0, 1]],
    ),
    "shares": (
        "names `[a-z][a-z0-9_]{0,31}` that are no field's; numbers 0 to 1",
        [{}, {"federated": 0.5}, {"a": 0, "b": 1}],
        [{"A": 0.5}, {"round": 0.5}, {"a": 1.5}, {"a": True}, [0.5]],
    ),
    "shares by class": (
        "names of `accuracy`; arrays of numbers 0 to 1 or null, in the order of the classes",
        [{}, {"federated": [0.5, None, 1]}],
        [{"nobody": [0.5]}, {"federated": [1.5]}, {"federated": 0.5}, [0.5]],
    ),
    "roles": (
        "one or both, each once",
        [["train"], ["evaluate", "train"]],
        [[], ["train", "train"], ["serve"], "train"],
    ),
    "one of these": ("one of the values named", [], ["", "TRAIN", 0, None]),
    "record": ("the fields of the record named", [], [[], "x", 0, None, {"nobody": 1}]),
    "epochs": ("0 to 1000", [0, 1000], [-1, 1001, 1.0, "1", True]),
    "rounds": (
        "integer, 0 to 1,000,000; in a manifest 1 or more",
        [0, 1, 1_000_000],
        [-1, 1_000_001, 1.0],
    ),
    "seed": ("integer, 0 to 2^63 - 1", [0, 2**63 - 1], [-1, 2**63]),
    "bits": ("integer, 1 to 52", [1, 52], [0, 53]),
    "weight": ("integer, 1 to 2^40", [1, 2**40], [0, 2**40 + 1]),
    "norm": ("above 0, below 10^9", [0.5, 999], [0, 1e9, -1]),
    "name": ("a method's name", ["fedclip", "other"], [1, None]),
    "options": (
        "strings, finite numbers, truth values, by name",
        [{}, {"lr": 0.1, "loss": "x", "epochs": 2, "a": True}],
        [{"lr": None}, {"lr": [1]}, []],
    ),
}

_BOOT = ("text", "random per process of the speaker")
_EPOCH = ("count", "grows by one or more at each start of a coordinator")
_ROUND = ("count", "the round it is for, from 1")

FIELDS: Mapping[type[Any], Mapping[str, tuple[str, str]]] = {
    Blob: {
        "sha256": ("hash", "of all its bytes; its name from here on"),
        "size_bytes": ("size", "of all its bytes"),
        "chunk_bytes": ("chunk size", "of every part but the last"),
    },
    CoordinatorState: {
        "boot": _BOOT,
        "epoch": _EPOCH,
        "run": ("id", "the run it coordinates"),
        "online": ("truth", "false in its will, and when it leaves"),
        "key": ("hash", "its public key"),
    },
    DeviceState: {
        "boot": _BOOT,
        "online": ("truth", "false in its will, and when it leaves"),
    },
    Hello: {
        "boot": _BOOT,
        "key": ("hash", "its public key, which signed this message"),
        "roles": ("roles", "what it is willing to do"),
        "domain": ("short text", "where its pictures come from; shown, never used"),
        "encoder_id": ("text", "of its bundle"),
        "classes_digest": ("text", "of its bundle"),
        "epoch": ("count", "of the last manifest that it believed"),
        "run": ("id or empty", "of that manifest; empty before any"),
        "closed": ("count", "rounds closed in it (`model_round`)"),
    },
    Manifest: {
        "run": ("id", "random; another run has another"),
        "epoch": _EPOCH,
        "key": ("hash", "the coordinator's public key"),
        "phase": ("one of these", "where the run stands"),
        "round": ("count", "the round that is open, or next to open; from 1"),
        "attempt": ("count", "grows when the round is repeated for want of a quorum"),
        "model": ("record", "the model to train from, or to evaluate"),
        "model_round": ("count", "rounds closed in that model; 0 is the initial one"),
        "plan": ("record", "what every device does alike"),
        "encoder_id": ("text", "features of another encoder may not take part"),
        "classes_digest": ("text", "nor may other classes"),
        "cohort": ("hash", "the largest cohort hash that takes part"),
        "deadline_s": ("duration", "of a round; the coordinator's clock alone enforces it"),
        "devices": ("devices", "how many the fleet has, for the wait after a lost link"),
        "takes_part": ("truth or null", "null in a broadcast; else the answer for this device"),
        "answers": ("text", "the boot of the hello answered; empty in a broadcast"),
        "kept": (
            "hash, empty or null",
            "what is kept of this device for `round`; empty for nothing; null in a broadcast",
        ),
    },
    Offer: {
        "run": ("id", "the run it is for"),
        "round": _ROUND,
        "parcel": ("record", "the contribution"),
    },
    Want: {
        "sha256": ("hash", "of the parcel, a model's or a contribution's"),
        "missing": ("gaps", "indices of chunks, both ends included"),
    },
    Kept: {
        "run": ("id", "the run it was for"),
        "round": _ROUND,
        "sha256": ("hash", "of the contribution"),
    },
    Refused: {
        "reason": ("reason", "why"),
        "final": ("truth", "nothing of this device will be taken in this run"),
        "sha256": ("hash or empty", "of the contribution refused; empty where none was"),
        "key": ("hash or empty", "with `final`, the key of the device refused"),
        "closed": ("count", "rounds that were closed when it was said"),
    },
    Report: {
        "run": ("id", "the run it is for"),
        "round": ("large count", "rounds closed in the model evaluated"),
        "device": ("id", "the speaker"),
        "domain": ("short text", "as in its hello"),
        "model": ("hash", "of the model evaluated"),
        "accuracy": ("shares", "by name: `zero_shot`, `federated`, at the end `local`, ..."),
        "train_pictures": ("large count", "with features, on the training side"),
        "test_pictures": ("large count", "on the test side"),
        "encoded": ("large count", "pictures encoded since the agent started"),
        "skipped": ("large count", "files that could not be read"),
        "bytes_up": ("large count or null", "on its socket since it started; null if unknown"),
        "bytes_down": ("large count or null", "likewise"),
        "encode_s": ("measured", "seconds of encoding since it started"),
        "train_s": ("measured", "seconds of training"),
        "wait_s": ("measured", "seconds connected without work"),
        "per_class": ("shares by class", "at the end; null where the device has no picture of it"),
    },
    Plan: {
        "method": ("name", "by its name in docs/explanation/methods.md"),
        "options": ("options", "the method's own"),
        "rounds": ("rounds", "after which the run is finished"),
        "seed": ("seed", "of the initial model, and of shuffling"),
        "codec_up": ("one of these", "of contributions"),
        "codec_down": ("one of these", "of models"),
        "grid_bits": ("bits", "sums are taken in steps of 2^-grid_bits"),
        "max_weight": ("weight", "the largest weight taken"),
        "max_norm": ("norm", "the largest L2 norm of all terms together over the weight"),
        "strategy": ("name", "what is made of a round's updates (docs/explanation/methods.md)"),
        "strategy_options": ("options", "the strategy's own"),
        "personal_epochs": ("epochs", "after the last round, for a model of the device's own"),
        "local_baseline": ("truth", "also train alone, for comparison"),
    },
}

CONSTANTS: Mapping[str, tuple[object, str]] = {
    "MAX_CONTROL_BYTES": (wire.MAX_CONTROL_BYTES, "a control message, signature line included"),
    "CHUNK_BYTES": (
        CHUNK_BYTES,
        "the part of a chunk, and what to use where nothing speaks for less",
    ),
    "CHUNK_HEADER_BYTES": (chunks._HEADER.size, "before the part of each chunk"),
    "CHUNK_VERSION": (chunks._VERSION, "in each chunk's header"),
    "MAX_GAPS": (messages.MAX_GAPS, "pairs in one `want`"),
    "SCHEMA": (wire._SCHEMA, "in each body's metadata"),
    "MAX_HEADER_BYTES": (wire._MAX_HEADER_BYTES, "a body's JSON header"),
    "BLOCK": (codec.BLOCK, "`int8`: values that share a scale"),
    "STEPS": (codec.STEPS, "`int8`: the largest step"),
    "SCALE_MAX": (codec._SCALE_MAX, "`int8`: the largest scale taken"),
    "REPEAT_S": (upload.REPEAT_S, "a device says a hello or an offer again after so long"),
    "REPAIR_S": (
        model_download.REPAIR_S,
        "a device asks for missing chunks after so long without one",
    ),
    "REPAIR_MAX_S": (
        model_download._REPAIR_MAX_S,
        "and, each time twice as patient, at most so long",
    ),
    "REPAIR_CHUNKS": (model_download._REPAIR_CHUNKS, "so many at a time after the first time"),
    "WANT_S": (devices.MODEL_REPEAT_S, "the same model is sent to a device no sooner again"),
    "UPLOAD_REPAIR_S": (uploads.REPAIR_S, "the coordinator asks an uploader again after so long"),
    "LEASE_S": (uploads.LEASE_S, "and takes its slot away after so long without a chunk"),
    "REMIND_S": (
        round_machine.REMIND_S,
        "a silent device is told again what is open; then at twice that",
    ),
    "ATTEMPTS": (round_driver._ATTEMPTS, "of a round that refusals leave without a quorum"),
    "EPOCHS_AT_ONCE": (coordinator._EPOCHS_AT_ONCE, "a hello may be so far ahead, no further"),
    "ALONE_S": (handshake._ALONE_S, "between hellos, at most, where nobody coordinates"),
    "ALONE_HELLOS": (
        handshake._ALONE_HELLOS,
        "unanswered, after which a device takes itself for alone",
    ),
    "WINDOW": (outbox.WINDOW, "messages that wait for the broker's acknowledgement"),
    "RECONNECT_MAX_S": (base._RECONNECT_MAX_S, "the doubling wait after a lost link, at most"),
    "RECONNECTS_PER_S": (base._RECONNECTS_PER_S, "devices that come back in one second"),
    "PREFIX": (topics._PREFIX, "of every topic"),
}
