"""Files that ONNX Runtime cannot load or run: the message has the cause, a next step, all words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, reason_of
from fedclip_edge.vision.encoder import open_onnx
from fedclip_edge.vision.onnx_faults import cause

SIDE, DIM = 8, 3 * 8 * 8
HERE = f"the installed onnxruntime {onnxruntime.__version__}"


def encoder(*, nodes: Any = (), weights: Any = (), ir: int = 8, opset: int = 17) -> onnx.ModelProto:
    """An encoder whose features are the pixels, with `nodes` between "x" and "made"."""
    made = "made" if nodes else "x"
    graph = helper.make_graph(
        [*nodes, helper.make_node("Flatten", [made], ["image_features"])],
        "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["batch", DIM])],
        list(weights),
    )
    return helper.make_model(graph, ir_version=ir, opset_imports=[helper.make_opsetid("", opset)])


def node(operator: str, inputs: str = "x", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), ["made"], **attributes)


def external() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((SIDE, SIDE), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    return encoder(nodes=[node("MatMul", "x w")], weights=[weight])


def brain_floats(opset: int) -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [3, 3, 1, 1], [1.0] * 9)
    return encoder(
        nodes=[
            helper.make_node("Cast", ["x"], ["short"], to=TensorProto.BFLOAT16),
            helper.make_node("Conv", ["short", "w"], ["small"]),
            helper.make_node("Cast", ["small"], ["made"], to=TensorProto.FLOAT),
        ],
        weights=[weight],
        opset=opset,
    )


def another_domain(version: int, domain: str = "org.example") -> onnx.ModelProto:
    model = encoder(nodes=[node("Mine", domain=domain)])
    if version:
        model.opset_import.append(helper.make_opsetid(domain, version))
    return model


WRONG: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "a newer IR version": (
        lambda: encoder(ir=99),
        (
            rf"its IR version is 99, and {HERE} reads IR versions up to (\d+); install a newer "
            r"onnxruntime on this box, or save the model again with an older version "
            r"\(model\.ir_version = \1; onnx\.save\(model, PATH\)\)\. .*max supported IR version: \1$"
        ),
    ),
    "a newer opset": (
        lambda: encoder(opset=99),
        (
            rf"its opset is 99, and {HERE} supports opsets up to (\d+); install a newer onnxruntime "
            r"on this box, or export the encoder again with opset \1 or lower "
            r"\(torch\.onnx\.export\(\.\.\., opset_version=\1\)\)\. .*is till opset \1\.$"
        ),
    ),
    "a newer opset of another domain": (
        lambda: another_domain(99, "com.microsoft"),
        rf"its opset of com\.microsoft is 99, and {HERE} has opset 1 of it; install a newer",
    ),
    "an operator of another domain": (
        lambda: another_domain(1),
        (
            rf"its operator Mine belongs to the domain org\.example, and {HERE} does not have it; "
            r"export the encoder again with ONNX's own operators\. .*org\.example:Mine"
        ),
    ),
    "a domain without an opset": (
        lambda: another_domain(0),
        r"it has operators of the domain org\.example, but no opset for that domain; export the",
    ),
    "an operator that is newer than the opset": (
        lambda: encoder(nodes=[node("Gelu")]),
        r"its operator Gelu does not exist in its opset 17; export the encoder again with an opset",
    ),
    "numbers that the provider cannot compute": (
        lambda: brain_floats(22),
        rf"{HERE} cannot compute its operator Conv with this type of numbers, .* in fp32 or fp16\.",
    ),
    "numbers that the operator does not accept": (
        lambda: brain_floats(21),
        r"its operator Conv does not accept bfloat16 in the file's opset; export the encoder again",
    ),
    "weights in a file that is missing": (
        external,
        (
            r"its weights are in another file, which is missing; .* make one of them: "
            r"onnx\.save\(onnx\.load\(PATH\), NEW_PATH\)\. .*weights\.bin"
        ),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_model_is_told_with_its_cause(name: str, tmp_path: Path) -> None:
    make, message = WRONG[name]
    path = tmp_path / "encoder.onnx"
    path.write_bytes(make().SerializeToString())
    for source in (path, path.read_bytes()):
        with pytest.raises(BundleError) as caught:
            open_onnx(source, EncoderConfig(), image_size=SIDE)
        assert re.search(f"cannot be loaded as an ONNX model: {message}", str(caught.value))
        assert "copy it again" not in str(caught.value)
        assert "  " not in str(caught.value)
        assert str(caught.value).isprintable()
        assert isinstance(caught.value.__cause__, Exception)
        assert str(caught.value).endswith(reason_of(caught.value.__cause__))


@pytest.mark.parametrize(
    "content",
    [
        encoder().SerializeToString()[:-20],
        encoder().SerializeToString()[:40],
        b"",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        bytes(1000),
    ],
    ids=["without its end", "its beginning", "empty", "a web page", "Git LFS", "zeros"],
)
def test_a_file_that_is_cut_off_or_something_else(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(content)
    with pytest.raises(
        BundleError, match="it is incomplete, damaged, or not an ONNX file; compare its size with"
    ):
        open_onnx(tmp_path / "encoder.onnx", EncoderConfig(), image_size=SIDE)


def test_memory_that_is_not_there(tmp_path: Path) -> None:
    size = numpy_helper.from_array(np.array([2**40], np.int64), "size")
    large = encoder(
        nodes=[
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["zero"]),
            node("Add", "x zero"),
        ],
        weights=[size],
    )
    # Earlier releases compute the constant when they load the model, later ones with the pictures.
    with pytest.raises(
        BundleError,
        match=r": there is not enough memory; .* smaller batch_size in \[encoder\].*"
        r"(Failed to allocate memory for requested buffer of size 4398046511104|bad_alloc)$",
    ):
        open_onnx(large.SerializeToString(), EncoderConfig(), image_size=SIDE).embed(
            np.zeros((2, 3, SIDE, SIDE), np.float32)
        )


def test_a_batch_size_inside_the_graph(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, 3, SIDE, SIDE], np.int64), "shape")
    fixed = encoder(nodes=[node("Reshape", "x shape")], weights=[shape])
    opened = open_onnx(fixed.SerializeToString(), EncoderConfig(), image_size=SIDE)
    with pytest.raises(
        BundleError,
        match=r"failed on 2 pictures: it does not accept this number of pictures; export the "
        r"encoder again with a dynamic batch size\. ONNX Runtime said: .*Reshape",
    ):
        opened.embed(np.zeros((2, 3, SIDE, SIDE), np.float32))


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("Unsupported model IR version: 11, max supported IR version: 10", "onnxruntime 1.23 or"),
        ("Unsupported model IR version: 12, max supported IR version: 10", "onnxruntime 1.24 or"),
        ("Unsupported model IR version: 14, max supported IR version: 13", "a newer onnxruntime"),
    ],
)
def test_the_release_that_reads_the_file_is_named(text: str, release: str) -> None:
    assert f"install {release}" in cause(RuntimeError(text), "1.20.1")


def test_an_unknown_error_has_no_cause() -> None:
    assert not cause(RuntimeError("CUDA failure 999: unknown error"), "1.31.1")
