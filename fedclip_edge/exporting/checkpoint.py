"""Reading of a file of weights, in the formats that training programs save, without running code.

A file has a state dict, which maps names to tensors, directly or among other things that a training
program saved. Law: a pickle is read with `weights_only`.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedclip_edge.errors import ConfigError, reason_of

State = dict[str, torch.Tensor]

INDEX = ".index.json"  # end of the name of transformers' list of parts
# The files that transformers, accelerate, open_clip and PEFT write to a folder. The last one has an
# adapter, which the error for it explains.
_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "adapter_model.safetensors",
)
_PART = re.compile(r"(.+)-\d{5}-of-(?!00001)\d{5}(\.safetensors|\.bin)")
# The usual names of the state dict in a training program's file, the preferred ones first. An
# average over training steps (EMA) is preferred, because training programs report its accuracy.
_AVERAGE = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)", re.IGNORECASE)
_USUAL = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "params",
    "weights",
)
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|loss|criterion|discrim|callback|loop", re.IGNORECASE)
_DEPTH = 4  # levels of tables in tables; no training program has more
_LFS = b"version https://git-lfs"
_SAVE = (
    "save only the weights where it was made: "
    "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state dict of a file, and sentences about what else the file had."""

    state: State  # the names are those in the file
    notes: tuple[str, ...] = ()


def weights_file(path: Path) -> Path:
    """Return `path`, or the file of weights in the folder `path`.

    Raises ConfigError if there is none, or if `path` is one of several parts of a model.
    """
    if path.is_dir():
        found = [path / name for name in _IN_FOLDER if (path / name).is_file()]
        others = list(path.glob("*.safetensors"))
        if not found and len(others) == 1:
            found = others
        if not found and others:
            raise ConfigError(
                f"{path} has {len(others)} .safetensors and none of the usual names "
                f"({', '.join(_IN_FOLDER[:2])}, ...); name the file of weights"
            )
        if not found:
            raise ConfigError(
                f"{path} has no file of weights ({', '.join(_IN_FOLDER[:2])}, ...); name the file. "
                f"If a program for distributed training wrote this folder, {_SAVE}"
            )
        return found[0]
    part = _PART.fullmatch(path.name)
    index = path.with_name(f"{part[1]}{part[2]}{INDEX}") if part else path
    if part and index.is_file():
        raise ConfigError(f"{path} has only a part of the weights; name {index}")
    if part:
        raise ConfigError(
            f"{path} has only a part of the weights, and {index.name}, which lists the parts, is "
            "not beside it; copy all files of the model to one folder and name that folder"
        )
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the state dict in `path`: a .safetensors, a file of `torch.save`, or an index of parts.

    Raises ConfigError, naming the file, if it cannot be read without running code, is incomplete,
    or has no state dict, or several of which none can be preferred.
    """
    if path.name.endswith(INDEX):
        return Checkpoint(_parts(path))
    if _is_safetensors(path):
        return Checkpoint(_safetensors(path))
    loaded = _unpickled(path)
    where = tuple(_state_dicts(loaded))
    if not where:
        raise ConfigError(f"{path} has no {_missing(loaded)}; save the model's state_dict()")
    key, state = _chosen(path, where)
    others = [other for other, _ in where if other != key]
    return Checkpoint(state, (choice_note(path, key, others),) if others else ())


def choice_note(path: Path, key: str, others: Iterable[str]) -> str:
    """Sentence about the choice of the weights under `key` among those under `others` in a file."""
    average = ", an average over the training" if is_average(key) else ""
    also = ", ".join(map(repr, others))
    return f"using the weights under {key!r} in {path.name}{average}; it also has {also}"


def _parts(index: Path) -> State:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({Path(name).name for name in table.values()})  # all are beside the list
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{index} is not a list of a model's parts ({reason_of(error)}); copy it again"
        ) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConfigError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} files that {index.name} "
            f"lists: {', '.join(missing[:3])}; copy them there"
        )
    state: State = {}
    for name in names:
        if name.endswith(INDEX):
            raise ConfigError(f"{index} lists {name}, which has no weights; copy it again")
        state.update(read_checkpoint(index.parent / name).state)
    return state


def _is_safetensors(path: Path) -> bool:
    """True if the name or the content is that of a .safetensors.

    Raises ConfigError if the file cannot be opened, or stands for one that was not downloaded.
    """
    try:
        with path.open("rb") as file:
            begins = file.read(len(_LFS))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if begins == _LFS:
        raise ConfigError(
            f"{path} cannot be read: it is a pointer of Git LFS, which stands for the weights; "
            "run git lfs pull in its folder, or download the file itself"
        )
    return path.suffix == ".safetensors" or begins[8:9] == b"{"


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: State = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{path} cannot be read: {reason_of(error)}; it is incomplete or not a safetensors file"
        ) from error
    if not state:
        raise ConfigError(f"{path} has no weights; save the model's state_dict()")
    return state


def _unpickled(path: Path) -> Any:
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError, ...
        # torch's text also advises to load the file without weights_only, which would run code.
        said = str(error).rpartition("WeightsUnpickler error: ")[2]
        said = said.partition("Check the documentation of torch.load")[0]
        if found := re.search(r"Unsupported (?:global|class):?(?: GLOBAL)? (\S+)", said):
            raise ConfigError(
                f"{path} contains more than weights, and loading it could run code "
                f"({found[1]}); {_SAVE}"
            ) from error
        raise ConfigError(
            f"{path} cannot be read: it is incomplete or not a file of weights "
            f"({' '.join(said.split()) or type(error).__name__})"
        ) from error


def _state_dicts(loaded: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """State dicts in what was loaded, each with its key, such as "model" or "ema.module"."""
    if not isinstance(loaded, Mapping) or depth > _DEPTH:
        return
    inner = [
        found
        for name, value in loaded.items()
        if isinstance(name, str) and not _NOT_WEIGHTS.search(name)
        for found in _state_dicts(value, f"{key}.{name}" if key else name, depth + 1)
    ]
    if inner:
        yield from inner
        return
    state = {name: tensor for name, tensor in loaded.items() if torch.is_tensor(tensor)}
    if state and all(isinstance(name, str) for name in state):
        yield key, state


def _chosen(path: Path, found: tuple[tuple[str, State], ...]) -> tuple[str, State]:
    averages = [one for one in found if is_average(one[0])]
    usual = sorted((one for one in found if one[0] in _USUAL), key=lambda one: _USUAL.index(one[0]))
    for some in (averages, found, usual[:1]):
        if len(some) == 1:
            return some[0]
    keys = ", ".join(repr(key) for key, _ in found)
    raise ConfigError(
        f"{path} has several state dicts ({keys}); save the one to export in a file of its own"
    )


def is_average(key: str) -> bool:
    """True if a part of the dotted name `key` says that it is an average over the training."""
    return any(_AVERAGE.search(part) for part in key.split("."))


def _missing(loaded: Any) -> str:
    if isinstance(loaded, Mapping) and "param_groups" in loaded:
        return "state dict of a model, but that of an optimizer"
    empty = isinstance(loaded, Mapping) and not any(
        torch.is_tensor(value) or (value and not isinstance(value, (int, float, str)))
        for value in loaded.values()
    )
    return "weights" if empty else "state dict"
