"""What a person hands to `export`: class names, prompts, and what describes an own encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedclip_edge.config import read_table, read_toml
from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.recipe import check_prompt
from fedclip_edge.records import ClassTexts
from fedclip_edge.vision.pictures import Preprocessing


@dataclass(frozen=True)
class EncoderFile(Preprocessing):
    """The TOML file that describes somebody's own encoder: its preprocessing, and its texts."""

    logit_scale: float = 100.0
    prompt: str = "unknown"
    model: str = "unknown"

    def preprocessing(self) -> Preprocessing:
        """Without what is about the texts."""
        return Preprocessing(**{f.name: getattr(self, f.name) for f in fields(Preprocessing)})


def read_encoder_file(path: Path) -> EncoderFile:
    """Reads the TOML file; raises ConfigError with the file, the key and what to write instead."""
    return read_table(EncoderFile, read_toml(path), str(path))


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a `.json` list or a `.txt` with one name a line; their order is the label.

    Raises ConfigError where the file is missing, holds no such list or fewer than two names, and
    where a name is empty or stands twice: the labels behind it would not be what they seem.
    """
    names = _read_list(path, "class name")
    if len(names) < 2:
        raise ConfigError(f"{path} holds {len(names) or 'no'} class name; write two or more")
    return names


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in a `.json` list or a `.txt` with one prompt a line, as `read_class_names`.

    Raises ConfigError where the file is missing, holds no such list or an empty one, and where a
    prompt is empty, stands twice, or holds {} not exactly once.
    """
    prompts = _read_list(path, "prompt")
    if not prompts:
        raise ConfigError(f"{path} holds no prompt; write one, with {{}} for the class name")
    try:
        for prompt in prompts:
            check_prompt(prompt)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return prompts


def _read_list(path: Path, what: str) -> tuple[str, ...]:
    listed = path.suffix.lower() == ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        # Not splitlines(): a page break inside a line is no new line.
        lines = json.loads(text) if listed else text.rstrip().split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; write one {what} a line") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no list of {what}s: {error}") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f'{path} holds no list of {what}s; write ["one", "another"]')
    if not text.strip():
        return ()
    unit = "entry" if listed else "line"
    seen: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            raise ConfigError(f"{path}: {unit} {number} is empty; take it out")
        if line in seen:
            raise ConfigError(
                f"{path}: the {what} {line!r} stands in {unit} {seen[line]} and in {unit} "
                f"{number}; keep one"
            )
        seen[line] = number
    return tuple(seen)


def read_class_texts(vectors: Path, classes: Path, logit_scale: float, prompt: str) -> ClassTexts:
    """The `.npy` of C unit rows [C, D] with the names in `classes`, one for each row.

    Raises ConfigError, naming the file, where one is missing or they do not fit together.
    """
    names = read_class_names(classes)
    try:
        array: Any = np.load(vectors, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{vectors} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{vectors} is no .npy of numbers, or cut short") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        what = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an .npz"
        raise ConfigError(f"{vectors}: expected floats [C, D], a row for each class; got {what}")
    try:
        # A row that is not of unit length is refused, not scaled: it may be no text vector at all.
        return ClassTexts(names, array.astype(np.float32), logit_scale, prompt)
    except ValueError as error:
        raise ConfigError(f"{vectors} with {classes}: {error}") from error
