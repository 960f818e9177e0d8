"""TensorRT in ONNX Runtime: the folders of built engines and the provider's options.

An engine is an encoder compiled for one GPU by one version of TensorRT; building it takes minutes.
ONNX Runtime names an engine's file by the ONNX file's name, the names of its tensors, the compute
capability and the versions it was compiled with (`TRTGenerateId` in its
tensorrt_execution_provider_utils.h), but not by the weights. The ONNX file has the same name
in every bundle, so two fine-tuned models would share one file. Therefore this module names a folder
for each engine.

Laws:

- The folder's name states encoder, ONNX Runtime, TensorRT, GPU and batches, so a stale engine is
  never loaded.
- A folder gets its final name only after the engine in it has run. Until then it has a temporary
  name, because an interrupted ONNX Runtime can leave an incomplete engine file.
- A stored engine that does not load is replaced by a new one once that has run.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.storage.atomic import beside
from fedclip_edge.storage.user_cache import cache_folder

# Batch sizes that an engine is built for: one picture, the agent's default, and a largest one that
# limits memory.
MIN_BATCH, OPT_BATCH, MAX_BATCH = 1, 8, 32

_LIBRARY = "libonnxruntime_providers_tensorrt.so"
_MULTIPROCESSORS, _MAJOR, _MINOR = 16, 75, 76  # CUdevice_attribute of cuda.h


@dataclass(frozen=True)
class Builder:
    """Versions and GPU that an engine depends on, in addition to the encoder."""

    onnxruntime: str  # version
    tensorrt: str  # version of the library found at run time
    gpu: str  # name, compute capability, multiprocessors: "Orin sm87 16"

    @property
    def key(self) -> str:
        """The versions and the GPU as one component of a path."""
        text = f"ort-{self.onnxruntime}_trt-{self.tensorrt}_{self.gpu}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def engines_folder(configured: Path | None) -> Path:
    """Return `configured`, or by default fedclip-edge/engines in the user's cache folder."""
    if configured is not None:
        return configured
    return cache_folder() / "engines"


def engine_folder(engines: Path, builder: Builder, onnx_sha256: str) -> Path:
    """Return the folder for the engine of one encoder, one builder and the batch sizes above."""
    return engines / f"{builder.key}_b{MIN_BATCH}-{OPT_BATCH}-{MAX_BATCH}" / onnx_sha256


def provider_options(folder: Path, input_name: str, side: int, precision: str) -> dict[str, str]:
    """Return options for ONNX Runtime's TensorRT provider (1.20 and newer).

    `side` is S, the side of the pictures. The engine computes in fp16 if `precision` is "fp16".
    ONNX Runtime needs the words 'True' and 'False'; with 1 and 0 it starts without TensorRT.
    From opset 17 on, LayerNormalization is one node, which TensorRT keeps in fp32.
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
    """Raise ConfigError for int8 and int8-weights, whose 8-bit format TensorRT does not support.

    `name` is the encoder's name in the message.
    """
    if precision.startswith("int8"):
        raise ConfigError(
            f"[encoder] provider 'tensorrt' cannot run {name}, which is {precision}: TensorRT does "
            "not support this 8-bit format; export the encoder again with --precision fp16, or use "
            "provider 'cpu'"
        )


@contextmanager
def new_engine(folder: Path) -> Iterator[Path]:
    """Yield a folder to build an engine in, and rename it to `folder` at the end.

    If `folder` exists at the beginning, it is replaced. If another process makes it meanwhile, that
    one is kept. Raises DiskError if the folder cannot be written, and ConfigError if no engine is
    in it at the end; ONNX Runtime would then run the whole graph on other providers without an
    error.
    """
    is_replaced = folder.exists()
    try:
        with beside(folder) as new:
            for known in folder.parent.glob("*.timing"):  # of other encoders; speeds up the build
                shutil.copy(known, new)
            yield new
            if not any(new.glob("*.engine")):
                raise ConfigError(
                    "[encoder] provider 'tensorrt' built no engine, because it supports no part of "
                    "this encoder; use provider 'cuda' or 'cpu'"
                )
            for timing in new.glob("*.timing"):
                timing.replace(folder.parent / timing.name)
            if is_replaced:
                shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another process was first; both engines are valid
                new.rename(folder)
    except OSError as error:
        raise DiskError(
            f"{folder} cannot be written: {error.strerror or error}; set [encoder] engine_dir to "
            "a folder that this user may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # after a success it is not empty
            folder.parent.rmdir()


def find_builder(onnxruntime_version: str, capi: Path) -> Builder:
    """Read versions and GPU from the libraries that ONNX Runtime would load.

    `capi` is the folder with ONNX Runtime's own libraries. Raises ConfigError, with the reason, if
    a library does not load or there is no GPU.
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
    """Return name, compute capability and multiprocessors of the first GPU, from CUDA's driver.

    The name is not enough, because two Jetsons with the same name can differ in the rest.
    """
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
