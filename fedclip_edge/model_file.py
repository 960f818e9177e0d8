"""A run's final model as a file of its own, and what `--model RUN_OR_FILE` means.

The file is plain safetensors: the model's terms, float32, by name, and one metadata entry
`fedclip_edge` with a JSON object: schema, run, round, plan (method, options, seed, ...),
encoder_id, classes_digest. Nothing of ours is needed to read it.

Laws: the same model gives the same bytes; a model that was read fits its own plan, and one that
was found fits the bundle: another encoder or other classes are refused, never silently used.
"""

from __future__ import annotations

import contextlib
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedclip_edge import atomic
from fedclip_edge.config import read_table
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import methods
from fedclip_edge.messaging import wire
from fedclip_edge.records import Codec, Model, Plan, Shapes, in_order
from fedclip_edge.store import Run, Store, StoredModel, open_store
from fedclip_edge.vision.bundle import Bundle

MASTER_CODEC: Codec = "fp32"  # loses nothing
_SCHEMA = 1
_METADATA = "fedclip_edge"
_SQLITE = b"SQLite format 3\0"  # sqlite.org/fileformat.html


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model and what it belongs to."""

    model: Model
    run: str
    plan: Plan
    encoder_id: str
    classes_digest: str


def path_of(journal: Path, run: str) -> Path:
    """Where `serve` puts a run's final model: beside its journal."""
    return journal.parent / "models" / f"{run}.safetensors"


def write(path: Path, trained: TrainedModel) -> None:
    """Writes the file, whole or not at all; raises OSError where the disk refuses."""
    head = {
        "schema": _SCHEMA,
        "run": trained.run,
        "round": trained.model.round,
        "plan": trained.plan.to_json(),
        "encoder_id": trained.encoder_id,
        "classes_digest": trained.classes_digest,
    }
    # One entry: safetensors writes several in an order that varies between runs.
    metadata = {_METADATA: json.dumps(head, sort_keys=True)}
    atomic.write_file(path, save(in_order(trained.model.terms), metadata=metadata))


def read(path: Path) -> TrainedModel:
    """Reads a model file; raises ConfigError, naming it, where it is none or is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            head = json.loads((file.metadata() or {})[_METADATA])
            terms = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ConfigError(f"{path} is cut short or no safetensors file; {_NAME_ANOTHER}") from error
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{path} is no model of a run: it has no {_METADATA!r} metadata; {_NAME_ANOTHER}"
        ) from error
    if not isinstance(head, dict) or head.get("schema") != _SCHEMA:
        raise ConfigError(
            f"{path} is of another version of this program; use the one that wrote it"
        )
    try:
        plan = read_table(Plan, head["plan"], "plan")
        model = Model(plan.method, int(head["round"]), terms)
        trained = TrainedModel(
            model, str(head["run"]), plan, str(head["encoder_id"]), str(head["classes_digest"])
        )
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); {_NAME_ANOTHER}") from error
    return trained


def master(stored: StoredModel, shapes: Shapes) -> Model:
    """A journal's model in float32, whatever it was published in; PeerError if it is damaged."""
    return wire.unpack_model(stored.master or stored.body, MASTER_CODEC, shapes)


def find(name: str, journal: Path, bundle: Bundle) -> TrainedModel:
    """The model that `--model name` means, fitting the bundle.

    `name` is a model file; or a journal, of which the newest run's newest model is taken; or a
    run's id, looked up in `journal`. Raises ConfigError where there is none, or where it was
    made for another encoder or other classes.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"--model {path} is a folder; {_NAME_ANOTHER}")
    if not path.exists():
        return _from_journal(journal, bundle, name)
    if _is_database(path):
        return _from_journal(path, bundle, None)
    trained = read(path)
    _check_fits(str(path), trained.encoder_id, trained.classes_digest, bundle)
    dim = bundle.manifest.dim
    shapes = methods.shapes_beside(trained.model, trained.plan, bundle.classes, dim)
    found = {term: array.shape for term, array in trained.model.terms.items()}
    if found != shapes:
        raise ConfigError(
            f"{path} holds {_described(found)}, but {trained.plan.method} with this bundle has "
            f"{_described(shapes)}; {_NAME_ANOTHER}"
        )
    return trained


_NAME_ANOTHER = "name a models/RUN.safetensors that `serve` wrote, a journal or a run"


def _from_journal(path: Path, bundle: Bundle, name: str | None) -> TrainedModel:
    if not path.is_file():
        raise ConfigError(
            f"--model {name} is no file here, and there is no journal {path} to look a run up in; "
            "name a file, or the journal with --journal"
        )
    with contextlib.closing(open_store(path)) as store:
        run = _run(store, name)
        where = f"{run.id} in {path}"
        _check_fits(where, run.encoder_id, run.classes_digest, bundle)
        shapes = methods.shapes(run.plan, bundle.classes, bundle.manifest.dim)
        try:
            model = master(store.newest_model(run.id), shapes)
            methods.shapes_beside(model, run.plan, bundle.classes, bundle.manifest.dim)
        except PeerError as error:
            raise ConfigError(
                f"the model of {where} is damaged ({error}); {_NAME_ANOTHER}"
            ) from error
    return TrainedModel(model, run.id, run.plan, run.encoder_id, run.classes_digest)


def _run(store: Store, name: str | None) -> Run:
    runs = {run.id: run for run in store.runs()}
    if not runs:
        raise ConfigError(f"the journal {store.path} holds no run yet; start one with `serve`")
    if name is None:
        return next(reversed(runs.values()))
    if name not in runs:
        near = difflib.get_close_matches(name, runs, n=1)
        newest = next(reversed(runs))
        hint = f"did you mean {near[0]!r}?" if near else f"its newest run is {newest!r}"
        raise ConfigError(f"{name!r} is no file and no run in the journal {store.path}; {hint}")
    return runs[name]


def _check_fits(where: str, encoder_id: str, classes_digest: str, bundle: Bundle) -> None:
    ours = bundle.manifest.encoder_id
    if encoder_id != ours:
        raise ConfigError(
            f"{where} was made with another encoder ({encoder_id[:12]}) than that of "
            f"{bundle.folder} ({ours[:12]}); name the bundle of its fleet"
        )
    if classes_digest != bundle.classes.digest:
        raise ConfigError(
            f"{where} was made with other classes or class texts than those of {bundle.folder} "
            f"({len(bundle.classes.names)} classes); name the bundle of its fleet"
        )


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def _described(shapes: dict[str, tuple[int, ...]] | Any) -> str:
    terms = (f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    return ", ".join(terms) or "no terms"
