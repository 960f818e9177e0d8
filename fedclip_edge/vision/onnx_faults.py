"""Causes of ONNX Runtime's errors, and what to do about each.

ONNX Runtime's errors differ only in their text, which also quotes its own source code. A message
for a person therefore begins with the cause and the next step, and ends with the whole text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fedclip_edge.errors import reason_of

# The newest IR version and opset that each release of ONNX Runtime reads, found by asking the
# releases 1.20 to 1.31 themselves. A release that is not listed reads the same as the one before.
_READS = {
    "1.20": (10, 21),
    "1.21": (10, 22),
    "1.23": (11, 23),
    "1.24": (13, 25),
    "1.25": (13, 26),
}


def explain(error: Exception, version: str, otherwise: str) -> str:
    """Return the cause and the next step, or `otherwise` if it is unknown, and the whole text.

    `error` is from ONNX Runtime, whose release is `version`, such as "1.31.1".
    """
    return f"{cause(error, version) or otherwise}. ONNX Runtime said: {reason_of(error)}"


def cause(error: Exception, version: str) -> str:
    """Return the cause and the next step in plain words; "" for an error that is not known."""
    said = reason_of(error)
    for pattern, explained in _FAULTS:
        if found := re.search(pattern, said, re.IGNORECASE):
            return explained(found, f"the installed onnxruntime {version}")
    return ""


def _ir_version(found: re.Match[str], here: str) -> str:
    its, highest = int(found[1]), int(found[2])
    return (
        f"its IR version is {its}, and {here} reads IR versions up to {highest}; "
        f"install {_release(0, its)} on this box, or save the model again with an older version "
        f"(model.ir_version = {highest}; onnx.save(model, PATH))"
    )


def _opset(found: re.Match[str], here: str) -> str:
    its, domain, highest = int(found[1]), found[2], int(found[3])
    if domain.lower() != "ai.onnx":  # ONNX Runtime's name for ONNX's own operators
        return (
            f"its opset of {domain} is {its}, and {here} has opset {highest} of it; install a "
            "newer onnxruntime on this box, or export the encoder again with ONNX's own operators"
        )
    return (
        f"its opset is {its}, and {here} supports opsets up to {highest}; "
        f"install {_release(1, its)} on this box, or export the encoder again with opset {highest} "
        f"or lower (torch.onnx.export(..., opset_version={highest}))"
    )


def _release(column: int, wanted: int) -> str:
    """Name the first release of ONNX Runtime that reads version `wanted`."""
    fitting = [release for release, reads in _READS.items() if reads[column] >= wanted]
    return f"onnxruntime {fitting[0]} or newer" if fitting else "a newer onnxruntime"


def _foreign_operator(found: re.Match[str], here: str) -> str:
    return (
        f"its operator {found[2]} belongs to the domain {found[1]}, and {here} does not have it; "
        "export the encoder again with ONNX's own operators"
    )


def _undeclared(found: re.Match[str], here: str) -> str:
    return (
        f"it has operators of the domain {found[1]}, but no opset for that domain; export the "
        "encoder again with ONNX's own operators"
    )


def _unknown_operator(found: re.Match[str], here: str) -> str:
    return (
        f"its operator {found[1]} does not exist in its opset {found[2]}; export the encoder again "
        "with an opset that has this operator"
    )


def _not_implemented(found: re.Match[str], here: str) -> str:
    return (
        f"{here} cannot compute its operator {found[1]} with this type of numbers, which may be "
        "bfloat16; export the encoder again in fp32 or fp16"
    )


def _wrong_type(found: re.Match[str], here: str) -> str:
    return (
        f"its operator {found[2]} does not accept {found[1]} in the file's opset; export the "
        "encoder again in fp32 or fp16"
    )


def _other_file(found: re.Match[str], here: str) -> str:
    return (
        "its weights are in another file, which is missing; on a machine that has both files, make "
        "one of them: onnx.save(onnx.load(PATH), NEW_PATH)"
    )


def _incomplete(found: re.Match[str], here: str) -> str:
    return (
        "it is incomplete, damaged, or not an ONNX file; compare its size with that of the "
        "original, and copy it again"
    )


def _memory(found: re.Match[str], here: str) -> str:
    return (
        "there is not enough memory; end other programs, set a smaller batch_size in [encoder], "
        "or use a smaller model"
    )


def _fixed_batch(found: re.Match[str], here: str) -> str:
    return (
        "it does not accept this number of pictures; export the encoder again with a dynamic batch "
        "size"
    )


# The first pattern that is found counts; upper and lower case are the same.
_FAULTS: tuple[tuple[str, Callable[[re.Match[str], str], str]], ...] = (
    (r"model IR version: (\d+), max supported IR version: (\d+)", _ir_version),
    (r"Opset (\d+) is under development.*support for domain (\S+) is till opset (\d+)", _opset),
    (r"([\w.]+):(\w+)\(-?\d+\) is not a registered function/op", _foreign_operator),
    (r"No opset import for domain '([^']+)'", _undeclared),
    (r"No Op registered for (\w+) with domain_version of (\d+)", _unknown_operator),
    (r"Could not find an implementation for (\w+)", _not_implemented),
    (r"Type 'tensor\((\w+)\)' of input parameter .* of operator \((\w+)\)", _wrong_type),
    (r"External data|cannot get file size: No such file", _other_file),
    (
        r"protobuf parsing failed|No graph was found in the protobuf|does not have a graph",
        _incomplete,
    ),
    (r"allocate memory|bad_alloc|out of (GPU )?memory|ALLOC_FAILED", _memory),
    (r"cannot be reshaped|invalid dimensions|by \S+ with shape|shape mismatch", _fixed_batch),
)
