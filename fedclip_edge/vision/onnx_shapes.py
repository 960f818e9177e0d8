"""Checks that an ONNX graph takes pictures and returns features."""

from __future__ import annotations

from typing import Any

from fedclip_edge.errors import BundleError


def check_input(session: Any, name: str, side: int) -> str:
    """Return the name of the input, pixels float32 (batch, 3, `side`, `side`).

    `session` is ONNX Runtime's, and `name` appears in messages. Raises BundleError for another
    input, several inputs, or a fixed batch size.
    """
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(node.name for node in inputs)
        raise BundleError(
            f"{name} has {len(inputs)} inputs ({names}); export it with pixels as its only input"
        )
    (node,) = inputs
    fits = len(node.shape) == 4 and all(
        not isinstance(got, int) or got == want
        for got, want in zip(node.shape[1:], (3, side, side), strict=True)
    )
    if node.type != "tensor(float)" or not fits:
        raise BundleError(
            f"the input {node.name} of {name} is {node.type} {node.shape}; "
            f"expected float32 [batch, 3, {side}, {side}]"
        )
    if isinstance(node.shape[0], int):
        raise BundleError(
            f"{name} has a fixed batch size of {node.shape[0]}; export it with a dynamic batch size"
        )
    return str(node.name)


def check_output(session: Any, name: str, dim: int | None) -> tuple[str, int | None]:
    """Return the name of the output with the features, and D.

    If the graph does not state the width, D is `dim`. Raises BundleError for another output.
    """
    outputs = {node.name: node for node in session.get_outputs()}
    node = next(iter(outputs.values())) if len(outputs) == 1 else outputs.get("image_features")
    if node is None:
        raise BundleError(
            f"{name} has the outputs {', '.join(outputs)}; expected only one output, or one named "
            "image_features"
        )
    width = node.shape[1] if len(node.shape) == 2 else 0
    if (
        node.type != "tensor(float)"
        or width == 0
        or (dim is not None and isinstance(width, int) and width != dim)
    ):
        raise BundleError(
            f"the output {node.name} of {name} is {node.type} {node.shape}; "
            f"expected float32 [batch, {dim or 'D'}]"
        )
    return str(node.name), width if isinstance(width, int) else dim
