"""Readers of the files given to `export`: class names, prompts, class texts, encoder settings."""

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
    """The TOML file that describes a user's own encoder: its preprocessing and its texts."""

    logit_scale: float = 100.0  # multiplies the cosine
    prompt: str = "unknown"
    model: str = "unknown"

    def preprocessing(self) -> Preprocessing:
        """The preprocessing, without the settings of the texts."""
        return Preprocessing(**{f.name: getattr(self, f.name) for f in fields(Preprocessing)})


def read_encoder_file(path: Path) -> EncoderFile:
    """Read the TOML file of an encoder.

    Raises ConfigError, with the file, the key and what to write instead, if it is wrong.
    """
    return read_table(EncoderFile, read_toml(path), str(path))


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names from a `.json` list or from a `.txt` with one name per line.

    A class's label is its index in the list. Raises ConfigError if the file cannot be read, is not
    such a list or has fewer than two names, or if a name is empty or occurs twice, because leaving
    it out would shift the labels of all later names.
    """
    names = _read_list(path, "class name")
    if len(names) < 2:
        raise ConfigError(f"{path} has {len(names) or 'no'} class name; write two or more")
    return names


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts from a `.json` list or from a `.txt` with one prompt per line.

    Raises ConfigError if the file cannot be read, is not such a list or an empty one, or if a
    prompt is empty, occurs twice, or is refused by `check_prompt`.
    """
    prompts = _read_list(path, "prompt")
    if not prompts:
        raise ConfigError(f"{path} has no prompt; write one, with {{}} for the class name")
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
        # Not splitlines(), which would also split a line at a page break.
        lines = json.loads(text) if listed else text.rstrip().split("\n")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; create it, with one {what} per line") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not a list of {what}s: {error}") from error
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f'{path} is not a list of {what}s; write ["one", "another"]')
    if not text.strip():
        return ()
    unit = "entry" if listed else "line"
    seen: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line:
            raise ConfigError(f"{path}: {unit} {number} is empty; remove it")
        if line in seen:
            raise ConfigError(
                f"{path}: the {what} {line!r} is in {unit} {seen[line]} and in {unit} {number}; "
                "keep one"
            )
        seen[line] = number
    return tuple(seen)


def read_class_texts(vectors: Path, classes: Path, logit_scale: float, prompt: str) -> ClassTexts:
    """Class texts from a `.npy` of unit rows (C, D), of any float type, and a file of C names.

    `logit_scale` and `prompt` are not checked against the vectors. Raises ConfigError, naming the
    file, if a file is missing or wrong or the two do not fit together.
    """
    names = read_class_names(classes)
    try:
        array: Any = np.load(vectors, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{vectors} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{vectors} is not a .npy file of numbers, or is incomplete") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        what = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an .npz"
        raise ConfigError(f"{vectors}: expected floats [C, D], one row for each class; got {what}")
    try:
        # A row that is not of unit length is refused, not scaled: it may not be a text vector.
        return ClassTexts(names, array.astype(np.float32), logit_scale, prompt)
    except ValueError as error:
        raise ConfigError(f"{vectors} with {classes}: {error}") from error
