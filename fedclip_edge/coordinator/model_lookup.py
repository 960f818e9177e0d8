"""Lookup of the model that `--model RUN_OR_FILE` names: a model file, a journal, or a run's id.

Law: a model that is returned fits the bundle. A model for another encoder or other classes is
refused, never silently used.
"""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path
from typing import Any

from fedclip_edge import model_file
from fedclip_edge.coordinator.journal import Journal, open_journal
from fedclip_edge.coordinator.journal_tables import Run
from fedclip_edge.coordinator.run_state import master_model
from fedclip_edge.errors import ConfigError, PeerError
from fedclip_edge.learning import methods
from fedclip_edge.learning.schedule import Schedule
from fedclip_edge.model_file import NAME_ANOTHER, TrainedModel
from fedclip_edge.vision.bundle import Bundle

_SQLITE = b"SQLite format 3\0"  # sqlite.org/fileformat.html


def find_model(name: str, journal: Path, bundle: Bundle) -> TrainedModel:
    """Find the model that `--model name` names, with float32 parameters.

    `name` is the path of a model file; or the path of a journal, for the newest model of its newest
    run; or the id of a run, for its newest model in `journal`. Raises ConfigError if there is no
    such model, if it is damaged, or if it was made for another encoder, other classes or other
    shapes than the bundle's; JournalError if the journal cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"--model {path} is a folder; {NAME_ANOTHER}")
    if not path.exists():
        return _from_journal(journal, bundle, name)
    if _is_database(path):
        return _from_journal(path, bundle, None)
    trained = model_file.read(path)
    _check_fits(str(path), trained.encoder_id, trained.classes_digest, bundle)
    dim = bundle.manifest.dim
    shapes = methods.shapes_beside(trained.model, trained.plan, bundle.classes, dim)
    found = {term: array.shape for term, array in trained.model.parameters.items()}
    if found != shapes:
        raise ConfigError(
            f"{path} has the parameters {_described(found)}, but {trained.plan.method} with this "
            f"bundle has {_described(shapes)}; {NAME_ANOTHER}"
        )
    return trained


def _from_journal(path: Path, bundle: Bundle, name: str | None) -> TrainedModel:
    if not path.is_file():
        raise ConfigError(
            f"--model {name} is not a file, and there is no journal {path} to look for a run of "
            "this id; name a file, or name the journal with --journal"
        )
    with contextlib.closing(open_journal(path)) as journal:
        run = find_run(journal, name, "neither a file nor a run")
        where = f"{run.id} in {path}"
        _check_fits(where, run.encoder_id, run.classes_digest, bundle)
        schedule = Schedule(run.plan, bundle.classes, bundle.manifest.dim)
        stored = journal.rounds.newest_model(run.id)
        try:
            model = master_model(stored, schedule.layout(stored.round).parameters)
            methods.shapes_beside(model, run.plan, bundle.classes, bundle.manifest.dim)
        except PeerError as error:
            raise ConfigError(
                f"the model of {where} is damaged ({error}); {NAME_ANOTHER}"
            ) from error
    return TrainedModel(model, run.id, run.plan, run.encoder_id, run.classes_digest)


def find_run(journal: Journal, name: str | None, otherwise: str = "not a run") -> Run:
    """Find the run with this id, or the newest run without a name.

    Raises ConfigError if there is none: the name is what `otherwise` says. It suggests the nearest
    id.
    """
    runs = {run.id: run for run in journal.runs.all()}
    if not runs:
        raise ConfigError(
            f"the journal {journal.path} has no run yet; start one with `fedclip-edge serve`"
        )
    if name is None:
        return next(reversed(runs.values()))
    if name not in runs:
        near = difflib.get_close_matches(name, runs, n=1)
        newest = next(reversed(runs))
        hint = f"did you mean {near[0]!r}?" if near else f"its newest run is {newest!r}"
        raise ConfigError(f"{name!r} is {otherwise} in the journal {journal.path}; {hint}")
    return runs[name]


def _check_fits(where: str, encoder_id: str, classes_digest: str, bundle: Bundle) -> None:
    ours = bundle.manifest.encoder_id
    if encoder_id != ours:
        raise ConfigError(
            f"{where} was trained with another encoder ({encoder_id[:12]}) than that of the bundle "
            f"{bundle.folder} ({ours[:12]}); use the bundle that the model was trained with"
        )
    if classes_digest != bundle.classes.digest:
        raise ConfigError(
            f"{where} was trained with other classes or class texts than those of the bundle "
            f"{bundle.folder} ({len(bundle.classes.names)} classes); use the bundle that the model "
            "was trained with"
        )


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def _described(shapes: dict[str, tuple[int, ...]] | Any) -> str:
    terms = (f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    return ", ".join(terms) or "no parameters"
