"""TensorRT under ONNX Runtime: where a built engine is kept, and how one is asked for.

An engine is an encoder compiled for one GPU by one TensorRT; building it takes minutes. ONNX
Runtime names an engine's file by the ONNX file's name, the names of its tensors, the compute
capability and versions known when it was compiled (`TRTGenerateId` in its
tensorrt_execution_provider_utils.h), but not by the weights: every bundle's encoder has the same
name, so two fine-tuned models would share one file. Therefore the folder is ours.

Laws: the folder's name says encoder, ONNX Runtime, TensorRT, GPU and batches, so a stale engine is
never met; a folder under its final name holds an engine that ran, because it is built beside it and
renamed (ONNX Runtime writes the file in place).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.errors import ConfigError
from fedclip_edge.storage.atomic import beside

# The batches an engine is built for: one picture, the agent's default, and a bound on its memory.
MIN_BATCH, OPT_BATCH, MAX_BATCH = 1, 8, 32

_LIBRARY = "libonnxruntime_providers_tensorrt.so"
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute of cuda.h


@dataclass(frozen=True)
class Builder:
    """What an engine depends on beside the encoder."""

    onnxruntime: str  # version
    tensorrt: str  # version of the library found at run time
    gpu: str  # name, compute capability, multiprocessors: "Orin sm87 16"

    @property
    def key(self) -> str:
        """One part of a path."""
        text = f"ort-{self.onnxruntime}_trt-{self.tensorrt}_{self.gpu}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def engines_folder(configured: Path | None) -> Path:
    """`configured`, or engines/ in the user's cache folder."""
    if configured is not None:
        return configured
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "fedclip-edge" / "engines"


def engine_folder(engines: Path, builder: Builder, onnx_sha256: str) -> Path:
    """Where the engine of one encoder for one builder, and for our batches, is kept."""
    return engines / f"{builder.key}_b{MIN_BATCH}-{OPT_BATCH}-{MAX_BATCH}" / onnx_sha256


def provider_options(folder: Path, input_name: str, side: int, precision: str) -> dict[str, str]:
    """Options of ONNX Runtime's TensorRT provider (1.20 and newer) for an encoder of side S.

    ONNX Runtime wants 'True' and 'False' in words; with 1 and 0 it starts without TensorRT.
    LayerNormalization is one node from opset 17 on, and TensorRT itself keeps it in fp32 then.
    """

    def shape(batch: int) -> str:
        return f"{input_name}:{batch}x3x{side}x{side}"

    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": str(precision == "fp16"),
        "trt_profile_min_shapes": shape(MIN_BATCH),
        "trt_profile_opt_shapes": shape(OPT_BATCH),
        "trt_profile_max_shapes": shape(MAX_BATCH),
    }


def check_precision(precision: str, name: str) -> None:
    """Raises ConfigError for an encoder that TensorRT would not take as it is."""
    if precision.startswith("int8"):
        raise ConfigError(
            f"[encoder] provider 'tensorrt' does not run {name}, which is {precision}: TensorRT "
            "takes symmetric 8 bit alone, and this encoder's is not; export it again with "
            "--precision fp16, or use provider 'cpu'"
        )


@contextmanager
def new_engine(folder: Path) -> Iterator[Path]:
    """A folder to build in, which becomes `folder` if an engine is in it at the end.

    Raises ConfigError where it cannot be written, or where TensorRT built nothing: ONNX Runtime
    would have run the whole graph on other providers without a word.
    """
    try:
        with beside(folder) as new:
            for known in folder.parent.glob("*.timing"):  # of other encoders: a faster build
                shutil.copy(known, new)
            yield new
            if not any(new.glob("*.engine")):
                raise ConfigError(
                    "[encoder] provider 'tensorrt' built no engine: TensorRT took no part of this "
                    "encoder; use provider 'cuda' or 'cpu'"
                )
            for timing in new.glob("*.timing"):
                timing.replace(folder.parent / timing.name)
            with contextlib.suppress(OSError):  # another process was first; both are right
                new.rename(folder)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written: {error.strerror or error}; set [encoder] engine_dir to "
            "a folder that this user may write"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # it is empty after a failure only
            folder.parent.rmdir()


def find_builder(onnxruntime_version: str, capi: Path) -> Builder:
    """Asks the libraries that this ONNX Runtime would load; `capi` is the folder of its own.

    Raises ConfigError, naming the library, where one does not load.
    """
    try:
        wanted = re.search(rb"libnvinfer\.so\.\d+", (capi / _LIBRARY).read_bytes())
        version = _tensorrt_version(wanted.group().decode() if wanted else "libnvinfer.so")
        return Builder(onnxruntime_version, version, _gpu())
    except (OSError, AttributeError) as error:
        raise ConfigError(
            f"[encoder] provider 'tensorrt' did not start on this box: {error}; install the "
            "TensorRT and driver that this onnxruntime was built for, or use provider 'cpu'"
        ) from error


def _tensorrt_version(library: str) -> str:
    number = int(ctypes.CDLL(library).getInferLibVersion())
    thousand = 10_000 if number >= 100_000 else 1_000  # 8601 is 8.6.1, 100300 is 10.3.0
    return f"{number // thousand}.{number % thousand // 100}.{number % 100}"


def _gpu() -> str:
    """The first GPU, as CUDA's driver describes it; two Jetsons of one name differ in the rest."""
    cuda = ctypes.CDLL("libcuda.so.1")
    device, value = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(128)
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
    )
    if failed:
        raise OSError(f"CUDA's driver finds no GPU (error {failed})")

    def attribute(which: int) -> int:
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
        return value.value

    sm = f"sm{attribute(_MAJOR)}{attribute(_MINOR)}"
    return f"{name.value.decode(errors='replace')} {sm} {attribute(_MULTIPROCESSORS)}"
