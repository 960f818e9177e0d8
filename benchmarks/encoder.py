"""Speed of an image encoder on this machine's CPU, and the change of its features per precision.

Compares PyTorch eager, the graph of PyTorch's own exporter, our graph at each precision, and
OpenVINO with our graph if it is installed. Weights are random. All contenders alternate in one
process, in an order that is reversed after each round, and each figure is a median. With one thread
the clock is the CPU time of the process, which other programs do not disturb; with more it is the
wall clock.

Peak: the rate of PyTorch's floating-point operations, as a share of the rate of a bare ONNX Runtime
MatMul with the sizes of ViT-B-32's MLP, on the same batch in the same round. Operations that a
graph avoids count as speed. Cosine: the smallest cosine between a feature and PyTorch's, after the
mean of PyTorch's features is subtracted from both, on seeded noise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.exporting.golden import noise_pixels
from fedclip_edge.exporting.image_tower import export_by_pytorch, export_image_tower
from fedclip_edge.exporting.onnx_file import OPSET, serialise
from fedclip_edge.exporting.open_clip_model import load_open_clip
from fedclip_edge.exporting.precision import convert
from fedclip_edge.exporting.recipe import Precision, Source
from fedclip_edge.exporting.versions import versions
from fedclip_edge.exporting.vit_structure import supports
from fedclip_edge.records import F32
from fedclip_edge.vision.encoder import open_onnx
from fedclip_edge.vision.pictures import Preprocessing

Embed = Callable[[F32], F32]

PYTORCH, STOCK, OURS = "PyTorch eager", "stock graph", "ours"
_MLP = (50, 768, 3072)  # tokens per picture, width and hidden width of ViT-B-32
_PICTURES = 32  # for the cosine and for calibration


@dataclass(frozen=True)
class Row:
    contender: str
    threads: int
    batch: int
    milliseconds: float
    pictures_per_s: float
    speed: float  # relative to our fp32 graph
    peak: float  # a share
    file_mb: float  # 0 if there is no file
    centred_cosine: float  # the smallest over the pictures


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    table = {key.strip(): value for key, _, value in (line.partition(": ") for line in lines)}
    flags = set(table.get("flags", table.get("Features", "")).split())
    known = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp")
    return {
        "cpu": table.get("model name", platform.machine()),
        "flags": [flag for flag in known if flag in flags],
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "versions": dict(versions("torch", "onnxruntime", "openvino", "open_clip_torch")),
    }


def files_of(
    tower: torch.nn.Module, preprocessing: Preprocessing, precisions: Sequence[Precision]
) -> dict[str, bytes]:
    side = preprocessing.image_size
    files = {}
    if supports(tower, side):
        files[f"{STOCK} fp32"] = serialise(export_by_pytorch(tower, side))
    ours = export_image_tower(tower, side)
    pixels = noise_pixels(_PICTURES, preprocessing, seed=1)
    for precision in precisions:
        began = time.perf_counter()
        batches = np.split(pixels, _PICTURES // 8)
        files[f"{OURS} {precision}"] = serialise(convert(ours, precision, batches))
        print(f"{precision} took {time.perf_counter() - began:.1f} s to make", flush=True)
    return files


def openvino_embed(file: bytes, threads: int) -> Embed | None:
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError:
        return None
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(file), "CPU", settings)
    return lambda pixels: np.asarray(compiled(pixels)[0])


def peak_product(threads: int) -> Callable[[int], None]:
    """A function that runs the bare matrix product for a batch of that many pictures."""
    tokens, width, hidden = _MLP
    weights = np.random.default_rng(0).standard_normal((width, hidden)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "peak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", hidden])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    run = bare_session(model, threads)
    inputs: dict[int, F32] = {}

    def product(batch: int) -> None:
        x = inputs.setdefault(batch, np.ones((batch * tokens, width), np.float32))
        run({"x": x})

    return product


def bare_session(model: onnx.ModelProto, threads: int) -> Callable[[Mapping[str, F32]], Any]:
    """A session with the options of vision/encoder.py, which opens only encoders."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda inputs: session.run(None, dict(inputs))


def medians(
    contenders: Mapping[str, Callable[[], Any]], rounds: int, threads: int
) -> dict[str, float]:
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()  # the first run allocates memory
    order = list(contenders)
    for _ in range(rounds):
        for name in order:
            began = clock()
            contenders[name]()
            seconds[name].append(clock() - began)
        order.reverse()
    return {name: statistics.median(times) for name, times in seconds.items()}


def worst_centred_cosine(features: F32, reference: F32) -> float:
    mean = reference.mean(axis=0, dtype=np.float64)
    ours, theirs = features - mean, reference - mean  # (N, D)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(((ours * theirs).sum(axis=1) / norms).min())


def operations(tower: torch.nn.Module, side: int) -> int:
    """Floating-point operations per picture; a multiplication with its addition counts as two."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see fused attention
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        torch.no_grad(),
    ):
        tower(torch.zeros(1, 3, side, side))
    torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def measure(
    tower: torch.nn.Module,
    preprocessing: Preprocessing,
    files: Mapping[str, bytes],
    options: argparse.Namespace,
) -> list[Row]:
    side = preprocessing.image_size
    work = operations(tower, side)
    print(f"{work / 1e9:.2f} GFLOP per picture in PyTorch")

    def eager(pixels: F32) -> F32:
        with torch.no_grad():
            return np.asarray(tower(torch.from_numpy(pixels)).numpy())

    pixels = noise_pixels(max(_PICTURES, *options.batches), preprocessing, seed=2)
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        embeds: dict[str, Embed] = {f"{PYTORCH} fp32": eager}
        config = EncoderConfig(threads=threads)
        for name, file in files.items():
            embeds[name] = open_onnx(file, config, image_size=side).embed
        openvino = openvino_embed(files[f"{OURS} fp32"], threads)
        if openvino is None:
            print("OpenVINO is not installed, so it has no row")
        else:
            embeds["OpenVINO fp32"] = openvino
        reference = eager(pixels[:_PICTURES])
        cosines = {
            name: worst_centred_cosine(embed(pixels[:_PICTURES]), reference)
            for name, embed in embeds.items()
        }
        product = peak_product(threads)
        for batch in options.batches:
            some = pixels[:batch]
            runs = {
                name: lambda embed=embed, some=some: embed(some) for name, embed in embeds.items()
            }
            runs["peak"] = lambda batch=batch, product=product: product(batch)
            rounds = min(20, max(3, options.repeat * 8 // batch))
            seconds = medians(runs, rounds, threads)
            peak = 2 * batch * np.prod(_MLP) / seconds.pop("peak")  # FLOP/s
            print(
                f"\n{threads} thread{'s'[: threads - 1]}, batch {batch}, median of {rounds}: "
                f"matrix peak {peak / 1e9:.0f} GFLOP/s"
            )
            for name, median in seconds.items():
                row = Row(
                    contender=name,
                    threads=threads,
                    batch=batch,
                    milliseconds=1e3 * median,
                    pictures_per_s=batch / median,
                    speed=seconds[f"{OURS} fp32"] / median,
                    peak=float(work * batch / median / peak),
                    file_mb=len(files.get(name, b"")) / 1e6,
                    centred_cosine=cosines[name],
                )
                rows.append(row)
                print_row(row)
    return rows


def print_row(row: Row) -> None:
    size = f"{row.file_mb:6.0f} MB" if row.file_mb else " " * 9
    print(
        f"  {row.contender:20} {row.milliseconds:9.1f} ms {row.pictures_per_s:7.2f} pictures/s "
        f"{row.speed:5.2f}x  peak {100 * row.peak:4.0f} %  {size}  "
        f"cosine {row.centred_cosine:.6f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="ViT-B-32-quickgelu", help="the name of an open_clip model"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=5, help="rounds at batch size 8")
    parser.add_argument(
        "--precisions", nargs="+", choices=get_args(Precision), default=list(get_args(Precision))
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    options = parser.parse_args()
    precisions = list(dict.fromkeys(["fp32", *options.precisions]))
    described = machine()
    print(f"{described['cpu']}, {described['cores']} cores, {' '.join(described['flags'])}")
    print(f"load {described['load']}, {described['versions']}")
    model = load_open_clip(Source(options.model, random_weights=True))
    tower, preprocessing = model.image_tower, model.preprocessing
    del model  # frees the text tower as well
    began = time.perf_counter()
    files = files_of(tower, preprocessing, precisions)
    print(f"{options.model}: {len(files)} files took {time.perf_counter() - began:.1f} s to make")
    rows = measure(tower, preprocessing, files, options)
    if options.json:
        print(
            json.dumps(
                {
                    "machine": described,
                    "model": options.model,
                    "rows": [asdict(row) for row in rows],
                }
            )
        )


if __name__ == "__main__":
    main()
