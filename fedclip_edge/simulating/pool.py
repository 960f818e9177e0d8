"""The features of a simulation: encoded from pictures, or read from an array file (.npz).

Law: every array is checked completely before it is used, and an error names the array.
"""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedclip_edge.config.agent import DataConfig
from fedclip_edge.errors import BundleError, DataError
from fedclip_edge.exporting.class_names import checked_names
from fedclip_edge.records import F32, I64, U8, ClassTexts, normalized_name
from fedclip_edge.vision.bundle import Bundle
from fedclip_edge.vision.datasets import side_of

TRAIN, VALIDATION, TEST, UNUSED = range(4)
_SIDE = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
LOGIT_SCALE = 100.0  # of OpenAI's models; used if an array file has no logit_scale
_REQUIRED = ("train_x", "train_y", "test_x", "test_y")
_TEXTS = ("class_texts", "classes")
_GROUPS = ("train_group", "test_group")
_KNOWN = (*_REQUIRED, *_TEXTS, *_GROUPS, "logit_scale")


@dataclass(frozen=True, eq=False)
class Pool:
    """The raw feature, label, side and domain of each of N pictures.

    A side is one of TRAIN, VALIDATION, TEST and UNUSED. A picture that is UNUSED is on no device.
    """

    classes: ClassTexts
    encoder_id: str
    vectors: F32  # (N, D)
    labels: I64  # (N,)
    sides: U8  # (N,)
    domains: tuple[str, ...]  # empty if no domains are known
    domain_of: I64  # (N,) index into `domains`; zeros if it is empty

    @property
    def dim(self) -> int:
        """The feature width D."""
        return int(self.vectors.shape[1])

    def rows(self, side: int) -> I64:
        """Rows of the pictures on `side` (TRAIN, VALIDATION or TEST), in ascending order."""
        return np.flatnonzero(self.sides == side)


def _say_nothing(_sentence: str) -> None: ...


def read_features(
    path: Path,
    validation: float,
    bundle: Bundle | None = None,
    note: Callable[[str], None] = _say_nothing,
) -> Pool:
    """Read a pool from an .npz file, and set part of the training rows aside for validation.

    The file holds these arrays:
    - train_x and test_x: raw features (N, D), read as float32;
    - train_y and test_y: labels (N,), integers from 0 to C - 1;
    - class_texts (C, D) and classes (C,): text vectors, which are scaled to unit length, and names;
      both come from `bundle` if the file has neither;
    - optional: train_group and test_group (N,), the domains; logit_scale, one number.

    `validation` is the fraction of the training rows to set aside. The side of a row is derived
    from its bytes, so that exact copies stay on one side. A class name that occurs again, as in the
    usual names of ImageNet, gets a number, and `note` is called with a sentence.

    Raises DataError, which names the array, if one is missing, unknown or malformed. Raises
    BundleError if the feature width or the classes of the bundle differ from those of the file.
    """
    arrays = _load(path)
    texts = _class_texts(path, arrays, bundle, note)
    count, (classes, dim) = len(texts.names), texts.vectors.shape
    sides = {}
    for name in ("train", "test"):
        x, y = _matrix(path, f"{name}_x", arrays), _labels(path, f"{name}_y", arrays, texts.names)
        if x.shape[1] != dim:
            raise DataError(
                f"{path}: {name}_x has {x.shape[1]} columns, but the class texts have {dim}; "
                "compute both with the same CLIP model"
            )
        if len(x) != len(y):
            raise DataError(
                f"{path}: {name}_x has {len(x)} rows, but {name}_y has {len(y)} labels; each "
                "picture needs one of both"
            )
        sides[name] = (x, y)
    (train_x, train_y), (test_x, test_y) = sides["train"], sides["test"]
    groups = _groups(path, arrays, len(train_y), len(test_y))
    domains = tuple(sorted(set(groups)))
    place = {name: number for number, name in enumerate(domains)}
    of_domain = [place[name] for name in groups] or [0] * (len(train_y) + len(test_y))
    assert count == classes
    vectors = np.concatenate([train_x, test_x])
    return Pool(
        classes=texts,
        encoder_id=hashlib.sha256(vectors.tobytes()).hexdigest(),
        vectors=vectors,
        labels=np.concatenate([train_y, test_y]),
        sides=np.concatenate(
            [_set_aside(train_x, validation), np.full(len(test_y), TEST, np.uint8)]
        ),
        domains=domains,
        domain_of=np.array(of_domain, np.int64),
    )


def _load(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array, not an .npz file; {_WRITE}")
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; {_WRITE}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} is damaged, is not an .npz file, or holds Python objects ({error}); {_WRITE}"
        ) from error
    if unknown := sorted(set(arrays) - set(_KNOWN)):
        raise DataError(f"{path}: unknown array {unknown[0]!r}; allowed are {', '.join(_KNOWN)}")
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise DataError(f"{path}: the array {missing[0]!r} is missing; {_WRITE}")
    return arrays


_WRITE = f"write it with numpy.savez and the arrays {', '.join((*_REQUIRED, *_TEXTS))}"


def _matrix(path: Path, name: str, arrays: Mapping[str, NDArray[Any]]) -> F32:
    array = arrays[name]
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
        raise DataError(
            f"{path}: {name} is {array.dtype} with shape {list(array.shape)}; it must be numbers "
            "of shape [rows, feature width], with at least one row"
        )
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(
            f"{path}: {name} holds NaN or infinity (first in row {row}); remove such rows"
        )
    if not vectors.any(axis=1).all():
        row = int(np.flatnonzero(~vectors.any(axis=1))[0])
        raise DataError(
            f"{path}: {name} holds a row of zeros ({row}), which cannot be normalised; remove it"
        )
    return vectors


def _labels(
    path: Path, name: str, arrays: Mapping[str, NDArray[Any]], classes: tuple[str, ...]
) -> I64:
    array = arrays[name]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {name} is {array.dtype} with shape {list(array.shape)}; it must be whole "
            "numbers of shape [pictures], each the index of the class, from 0"
        )
    if len(array) and not 0 <= int(array.min()) <= int(array.max()) < len(classes):
        raise DataError(
            f"{path}: {name} holds labels from {array.min()} to {array.max()}, but there are "
            f"{len(classes)} classes (labels 0 to {len(classes) - 1})"
        )
    return array.astype(np.int64)


def _class_texts(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    bundle: Bundle | None,
    note: Callable[[str], None],
) -> ClassTexts:
    if bundle is not None:
        width = arrays["train_x"].shape[-1] if arrays["train_x"].ndim else 0
        if width != bundle.manifest.dim:
            raise BundleError(
                f"{bundle.folder} gives features of width {bundle.manifest.dim}, but train_x of "
                f"{path} has width {width}; give the bundle that computed these features"
            )
        if not any(name in arrays for name in _TEXTS):
            return bundle.classes
    if missing := [name for name in _TEXTS if name not in arrays]:
        raise DataError(
            f"{path}: the array {missing[0]!r} is missing; add it, or give --bundle with the "
            "bundle that computed these features"
        )
    names = arrays["classes"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise DataError(
            f"{path}: classes is {names.dtype} with shape {list(names.shape)}; it must hold the "
            "class names as strings, in shape [classes]"
        )
    try:
        checked = checked_names(_numbered(path, [str(name) for name in names], note))
    except ValueError as error:
        raise DataError(f"{path}: classes: {error}") from None
    vectors = _matrix(path, "class_texts", arrays)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    scale = arrays.get("logit_scale", np.array(LOGIT_SCALE))
    if scale.size != 1 or scale.dtype.kind not in "fiu":
        raise DataError(f"{path}: logit_scale must be one number, such as 100")
    try:
        texts = ClassTexts(
            checked,
            (vectors / norms).astype(np.float32),
            float(scale.ravel()[0]),
            "unknown",
        )
    except ValueError as error:
        raise DataError(
            f"{path}: class_texts and classes do not fit each other: {error}; write both again"
        ) from error
    if bundle is not None and texts.names != bundle.classes.names:
        raise BundleError(
            f"{bundle.folder} has other classes than {path}, or in another order; remove "
            "class_texts and classes from the file, or leave out --bundle"
        )
    return texts


def _numbered(path: Path, names: Sequence[str], note: Callable[[str], None]) -> list[str]:
    """Number the names that occur again; the labels say which picture is of which class."""
    plain = [normalized_name(name.strip()) for name in names]
    taken, found = set(plain), list(plain)
    again = [i for i, name in enumerate(plain) if name and name in plain[:i]]
    for i in again:
        numbers = (f"{plain[i]} {number}" for number in itertools.count(2))
        found[i] = next(name for name in numbers if name not in taken)
        taken.add(found[i])
    if again:
        first = again[0]
        more = f" ({len(again) - 1} more are numbered too)" if len(again) > 1 else ""
        note(
            f"{path}: class {first} has the name of class {plain.index(plain[first])}, "
            f"{plain[first]!r}, and is called {found[first]!r} here{more}; if both are one class, "
            "give their pictures one label"
        )
    return found


def _groups(
    path: Path, arrays: Mapping[str, NDArray[Any]], train: int, test: int
) -> tuple[str, ...]:
    given = [name for name in _GROUPS if name in arrays]
    if not given:
        return ()
    if len(given) == 1:
        raise DataError(
            f"{path}: {given[0]} needs its counterpart; write both {' and '.join(_GROUPS)}, or none"
        )
    found: list[str] = []
    for name, count in zip(_GROUPS, (train, test), strict=True):
        array = arrays[name]
        if array.shape != (count,) or array.dtype.kind not in "Uiu":
            raise DataError(
                f"{path}: {name} is {array.dtype} with shape {list(array.shape)}; it must name "
                f"the domain of each of the {count} pictures"
            )
        found += [str(group) for group in array]
    return tuple(found)


def _set_aside(vectors: F32, validation: float) -> U8:
    shares = DataConfig(Path(), train=1 - validation, validation=validation, test=0.0)
    sides = [_SIDE[side_of(hashlib.sha256(row.tobytes()).hexdigest(), shares)] for row in vectors]
    return np.array(sides, np.uint8)
