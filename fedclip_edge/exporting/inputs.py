"""Readers of the files given to `export`: class names, prompts, class texts, encoder settings."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.class_names import checked_names
from fedclip_edge.exporting.recipe import check_prompt
from fedclip_edge.records import ClassTexts
from fedclip_edge.storage.text_file import parse_json, read_text
from fedclip_edge.storage.toml_file import read_toml
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
    """Class names from a `.json` list or from a `.txt` with one name per line, in Unicode form NFC.

    A class's label is its index in the list. Raises ConfigError if the file cannot be read, is not
    such a list or has fewer than two names, and for a name that `checked_names` refuses, because
    leaving it out would shift the labels of all later names.
    """
    entries, unit = _read_list(path, "class name")
    try:
        names = checked_names(entries, unit)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if len(names) < 2:
        raise ConfigError(f"{path} has {len(names) or 'no'} class name; write two or more")
    return names


def read_prompts(path: Path) -> tuple[str, ...]:
    """Prompts from a `.json` list or from a `.txt` with one prompt per line.

    Raises ConfigError if the file cannot be read, is not such a list or an empty one, or if a
    prompt is empty, occurs twice, or is refused by `check_prompt`.
    """
    entries, unit = _read_list(path, "prompt")
    if not entries:
        raise ConfigError(f"{path} has no prompt; write one, with {{}} for the class name")
    seen: dict[str, int] = {}
    for number, prompt in enumerate(map(str.strip, entries), 1):
        if not prompt:
            raise ConfigError(f"{path}: {unit} {number} is empty; remove it")
        if prompt in seen:
            raise ConfigError(
                f"{path}: the prompt {prompt!r} is in {unit} {seen[prompt]} and in {unit} {number}; "
                "keep one"
            )
        try:
            check_prompt(prompt)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
        seen[prompt] = number
    return tuple(seen)


def _read_list(path: Path, what: str) -> tuple[list[str], str]:
    """The entries of the file, and the word for the place of one: "line" or "entry"."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; create it, with one {what} per line") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if path.suffix.lower() != ".json":
        # Not splitlines(), which would also split a line at a page break.
        return (text.rstrip().split("\n") if text.strip() else []), "line"
    entries = parse_json(text, str(path))
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ConfigError(f'{path} is not a list of {what}s; write ["one", "another"]')
    return entries, "entry"


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
