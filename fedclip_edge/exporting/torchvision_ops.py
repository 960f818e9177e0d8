"""Declarations of operators that let torchvision be imported without its compiled library.

open_clip imports torchvision, and PyPI's torchvision wheels for Linux link against CUDA
libraries. With a CPU build of torch their `_C.so` fails to load. The import of torchvision then
fails at once, because it registers fake kernels for operators that do not exist. Image
classification uses none of these operators, so declaring them is enough.

Law: torchvision's own library is tried first. If it were loaded after a stand-in declared the
same operator, the process would abort.
"""

from __future__ import annotations

import importlib.util
import pathlib
from typing import Literal

import torch

# torchvision 0.28 and newer need both; older versions need `nms` alone.
_OPERATORS = ("nms", "qnms")
_libraries: list[torch.library.Library] = []  # an operator lives as long as its Library


def declare_missing() -> Literal["absent", "native", "declared"]:
    """Make torchvision importable; call it before importing open_clip, timm or torchvision.

    Returns "absent" without torchvision, "native" if its own library loads, "declared" if stand-in
    declarations were needed. Another call changes nothing.
    """
    spec = importlib.util.find_spec("torchvision")  # locates, does not import
    if spec is None or spec.origin is None:
        return "absent"
    if _libraries:
        return "declared"
    for library in sorted(pathlib.Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:  # linked against CUDA libraries that are missing
            continue
        return "native"
    stand_in = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in _OPERATORS:
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        stand_in.define(schema)  # type: ignore[no-untyped-call]
    _libraries.append(stand_in)
    return "declared"
