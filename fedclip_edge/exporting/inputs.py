"""What a person hands to `export`: class names, and the files that describe an own encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from fedclip_edge.config import read_table, read_toml
from fedclip_edge.errors import ConfigError
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

    Raises ConfigError where the file is missing or holds no such list.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = json.loads(text) if path.suffix.lower() == ".json" else text.splitlines()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; write one class name a line") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no list of class names: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f'{path} holds no list of class names; write ["dog", "house"]')
    return tuple(name.strip() for name in names if name.strip())


def read_class_texts(vectors: Path, classes: Path, described: EncoderFile) -> ClassTexts:
    """The `.npy` of C unit rows [C, D] with the names in `classes`, one for each row.

    Raises ConfigError, naming the file, where one is missing or they do not fit together.
    """
    names = read_class_names(classes)
    try:
        array: Any = np.load(vectors, allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{vectors} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise ConfigError(f"{vectors} is no .npy of numbers: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != "f":
        what = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an .npz"
        raise ConfigError(f"{vectors}: expected floats [C, D], a row for each class; got {what}")
    try:
        # A row that is not of unit length is refused, not scaled: it may be no text vector at all.
        return ClassTexts(names, array.astype(np.float32), described.logit_scale, described.prompt)
    except ValueError as error:
        raise ConfigError(f"{vectors} with {classes}: {error}") from error
