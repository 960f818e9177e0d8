"""Files of trained models: a run's final model, or a device's personal one.

The file is plain safetensors: the model's parameters, float32, by name, and one metadata entry
`fedclip_edge` with a JSON object: schema, run, round, plan (method, options, seed, ...),
encoder_id, classes_digest, the SHA-256 of the parameters, and the version if the file has one. It
can be read without this package.

Laws:

- The same model gives the same bytes.
- A file in which a parameter has changed is refused.
- `Model.method` of a model that was read is the method in its plan. The shapes of its parameters
  are not checked here; coordinator/model_lookup.py compares them with the bundle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedclip_edge.decoding import DecodeError, decode_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.records import Arrays, Model, Plan, in_order
from fedclip_edge.storage import atomic

_SCHEMA = 2
_METADATA = "fedclip_edge"
NAME_ANOTHER = "name a models/RUN.safetensors that `serve` wrote, a journal, or the id of a run"


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model with its run, plan, encoder and classes."""

    model: Model
    run: str
    plan: Plan
    encoder_id: str
    classes_digest: str
    version: str = ""  # SHA-256 of the model as it was sent to the devices; empty if not known


def path_of(journal: Path, run: str) -> Path:
    """Return the path of a run's final model: models/RUN.safetensors in the journal's folder."""
    return journal.parent / "models" / f"{run}.safetensors"


def write(path: Path, trained: TrainedModel) -> None:
    """Write the file, completely or not at all; raise OSError if it cannot be written."""
    head = {
        "schema": _SCHEMA,
        "run": trained.run,
        "round": trained.model.round,
        "plan": trained.plan.to_json(),
        "encoder_id": trained.encoder_id,
        "classes_digest": trained.classes_digest,
        "parameters": _digest(trained.model.parameters),
    }
    if trained.version:
        head["version"] = trained.version
    # Use one metadata entry, because safetensors writes several in an order that varies.
    metadata = {_METADATA: json.dumps(head, sort_keys=True)}
    atomic.write_file(path, save(in_order(trained.model.parameters), metadata=metadata))


def read(path: Path) -> TrainedModel:
    """Read a model file; the model's parameters are float32 arrays by name.

    Raises ConfigError, which names the file, if it is missing, unreadable, damaged, not a model
    file, or of another version.
    """
    try:
        with safe_open(path, framework="np") as file:
            head = json.loads((file.metadata() or {})[_METADATA])
            terms = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ConfigError(
            f"{path} is incomplete or not a safetensors file; {NAME_ANOTHER}"
        ) from error
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{path} is not the model of a run: it has no {_METADATA!r} metadata; {NAME_ANOTHER}"
        ) from error
    if not isinstance(head, dict) or head.get("schema") != _SCHEMA:
        raise ConfigError(
            f"{path} was written by another version of this program; use that version to read it"
        )
    if head.get("parameters") != _digest(terms):
        raise ConfigError(f"{path} is damaged (its parameters have changed); {NAME_ANOTHER}")
    try:
        plan = decode_table(Plan, head["plan"], "plan")
        model = Model(plan.method, int(head["round"]), terms)
        trained = TrainedModel(
            model,
            str(head["run"]),
            plan,
            str(head["encoder_id"]),
            str(head["classes_digest"]),
            str(head.get("version", "")),
        )
    except (DecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {NAME_ANOTHER}") from error
    return trained


def _digest(parameters: Arrays) -> str:
    """SHA-256, in 64 hex digits, of the names, shapes and bytes of the parameters."""
    found = hashlib.sha256()
    for name, term in sorted(in_order(parameters).items()):
        found.update(f"{name} {term.dtype.str} {term.shape}".encode())
        found.update(term.tobytes())
    return found.hexdigest()
