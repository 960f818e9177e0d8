"""Computation of raw features from pixels by ONNX Runtime, or by OpenVINO.

Laws:

- The encoder runs on the requested provider, or an error is raised. A silent fallback would be
  slower, and its features would be cached under the key of the requested provider.
- Every provider computes an fp32 encoder in fp32, unless bf16 is asked for, so that features of one
  encoder are comparable.
- The graph has one input. The features are its only output, or the one named `image_features`.
- Features are raw, never normalised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

# When it is imported, ONNX Runtime 1.31 starts to record a device id and events for Microsoft,
# unless this is set. No data may leave a box unless its owner asks for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

from fedclip_edge import log
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError, reason_of
from fedclip_edge.records import F32
from fedclip_edge.vision import openvino_session, tensorrt
from fedclip_edge.vision.bundle import Bundle, key_of
from fedclip_edge.vision.manifest import ENCODER
from fedclip_edge.vision.onnx_faults import cause, explain
from fedclip_edge.vision.onnx_shapes import check_input, check_output
from fedclip_edge.vision.pace import threads_of


@dataclass(frozen=True)
class Provider:
    """An execution provider: its name in ONNX Runtime, and its options there."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


# The keys are the values of [encoder] provider and of --provider. OpenVINO has its own package.
_PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider"),
    # TF32 keeps 10 of the 23 mantissa bits and is on by default.
    "cuda": Provider("CUDAExecutionProvider", {"use_tf32": "0"}),
    "tensorrt": Provider("TensorrtExecutionProvider"),  # `_with_engine` gives its options
    # Without the Neural Engine, which computes in fp16 only. This was never run.
    "coreml": Provider(
        "CoreMLExecutionProvider", {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU"}
    ),
}


@dataclass(frozen=True, eq=False)
class Encoder:
    """A loaded image encoder, made by `open_encoder` or `open_onnx`."""

    session: Any  # onnxruntime.InferenceSession, which has no type hints, or OpenvinoSession
    name: str  # name of the file in error messages
    input_name: str
    output_name: str
    image_size: int  # S
    dim: int | None  # D; None if the graph does not state it
    provider: str  # EncoderConfig.label: "cpu", "openvino-bf16", ...
    feature_key: str  # key under which the features are cached
    max_batch: int | None = None  # largest number of pictures in one call; None: no limit
    # True: one picture is computed twice in one call. ONNX Runtime 1.31 uses other instructions for
    # a batch of one in 8 bits, and its feature would differ from that in a larger batch.
    is_paired: bool = False

    def embed(self, pixels: F32) -> F32:
        """Return raw features float32 (N, D) of `pixels` float32 (N, 3, S, S).

        More than `max_batch` pictures run in several calls. Raises ValueError for pixels of another
        shape or dtype; BundleError if the encoder fails, or returns a wrong shape or dtype, NaN or
        infinity.
        """
        side = self.image_size
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
            raise ValueError(
                f"pixels: expected float32 [N, 3, {side}, {side}], "
                f"got {pixels.dtype} {list(pixels.shape)}"
            )
        if not len(pixels):
            return np.zeros((0, self.dim or 0), np.float32)
        if self.is_paired and len(pixels) == 1:
            return self._run(np.concatenate([pixels, pixels]))[:1]
        step = self.max_batch or len(pixels)
        parts = [self._run(pixels[i : i + step]) for i in range(0, len(pixels), step)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)  # (N, D)

    def _run(self, pixels: F32) -> F32:
        try:
            (features,) = self.session.run([self.output_name], {self.input_name: pixels})
        except BundleError:
            raise
        except Exception as error:  # onnxruntime's errors share no base but Exception
            why = explain(error, onnxruntime.__version__, "export the encoder again")
            raise BundleError(f"{self.name} failed on {len(pixels)} pictures: {why}") from error
        expected = (len(pixels), self.dim or features.shape[-1])
        if features.dtype != np.float32 or features.shape != expected:
            raise BundleError(
                f"{self.name} returned {features.dtype} {list(features.shape)} for {len(pixels)} "
                f"pictures, expected float32 {list(expected)}; export it again"
            )
        if not np.isfinite(features).all():
            raise BundleError(
                f"{self.name} returned NaN or infinity; its weights are damaged, or its precision "
                "is too low for this provider: export it again in fp32"
            )
        return np.asarray(features)


def register(name: str, provider: Provider) -> None:
    """Add a provider to the table of this process; raises ValueError if the name is taken.

    Use it for experiments in one process. To support a provider on devices, add it to the table in
    this module, because every process imports that.
    """
    if name in (*_PROVIDERS, openvino_session.NAME):
        raise ValueError(f"there is a provider {name!r} already; choose another name")
    _PROVIDERS[name] = provider


def open_encoder(bundle: Bundle, config: EncoderConfig) -> Encoder:
    """Load a bundle's encoder on the provider of `config`; TensorRT may take minutes.

    Raises ConfigError if that provider is missing or does not start (the message lists the
    available ones), or if TensorRT cannot run the encoder; BundleError if the file is not the
    encoder that the manifest describes.
    """
    manifest = bundle.manifest
    return open_onnx(
        bundle.encoder_path,
        config,
        image_size=manifest.preprocessing.image_size,
        dim=manifest.dim,
        key=key_of(bundle, config),
        precision=manifest.precision,
        sha256=str(manifest.files[ENCODER]),
    )


def open_onnx(
    model: Path | bytes,
    config: EncoderConfig,
    *,
    image_size: int,
    dim: int | None = None,
    key: str = "",
    name: str = "",
    precision: str = "fp32",
    sha256: str = "",
) -> Encoder:
    """Load an ONNX file, or its bytes, that is not part of a bundle.

    `image_size` is S and `dim` is D; with None, D comes from the graph. `key` becomes the feature
    key. Error messages call the model `name`, by default its path. `precision` is that of the file.
    TensorRT needs the `sha256` of the file, because its engine is stored under it, and computes in
    fp16 if `precision` is "fp16".

    Raises the errors of `open_encoder`, and ValueError for TensorRT without a `sha256`.
    """
    name = name or ("the encoder" if isinstance(model, bytes) else str(model))
    provider = config.runs_on
    if provider != openvino_session.NAME and not _is_available(provider):
        raise ConfigError(_no_provider(provider, "is not part of this onnxruntime"))
    # Always load on the CPU first: this separates a wrong file from a failing provider, before
    # TensorRT spends minutes on an engine. OpenVINO's session does not check shapes.
    session = _load(model, name, config)
    input_name = check_input(session, name, image_size)
    output_name, width = check_output(session, name, dim)
    max_batch = None
    if provider == openvino_session.NAME:
        del session
        bf16 = config.precision == "bf16"
        session = openvino_session.open_session(model, name, threads_of(config), bf16=bf16)
    elif provider == "tensorrt":
        del session
        tensorrt.check_precision(precision, name)
        max_batch = tensorrt.MAX_BATCH
        session = _with_engine(model, config, input_name, image_size, precision, sha256)
    elif provider != "cpu":
        session = _accelerate(model, config, [_PROVIDERS[provider]])
    return Encoder(
        session,
        name,
        input_name,
        output_name,
        image_size,
        width,
        config.label,
        key,
        max_batch,
        is_paired=precision == "int8",
    )


def _is_available(provider: str) -> bool:
    return _PROVIDERS[provider].name in onnxruntime.get_available_providers()


def _load(model: Path | bytes, name: str, config: EncoderConfig) -> Any:
    try:
        return _session(model, config, [_PROVIDERS["cpu"]])
    except Exception as error:  # onnxruntime's errors share no base but Exception
        why = explain(error, onnxruntime.__version__, "copy it again, or export it again")
        raise BundleError(f"{name} cannot be loaded as an ONNX model: {why}") from error


def _accelerate(model: Path | bytes, config: EncoderConfig, providers: Sequence[Provider]) -> Any:
    """Return a session on `providers`, and on the CPU for operators that they do not support."""
    try:
        session = _session(model, config, [*providers, _PROVIDERS["cpu"]])
    except Exception as error:  # onnxruntime's errors share no base but Exception
        raise _failed(config.runs_on, "did not start on this box", error) from error
    if session.get_providers()[0] != _PROVIDERS[config.runs_on].name:
        raise ConfigError(_no_provider(config.runs_on, "did not start on this box"))
    return session


def _with_engine(
    model: Path | bytes,
    config: EncoderConfig,
    input_name: str,
    side: int,
    precision: str,
    sha256: str,
) -> Any:
    """Return a session on TensorRT, with the stored engine or, if that does not load, a new one."""
    if not sha256:
        raise ValueError("sha256: TensorRT needs the ONNX file's hash to store its engine")
    if precision != "fp16":
        # Outside TensorRT's own API, only this variable turns off TF32 in its builder.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    capi = Path(onnxruntime.__file__).parent / "capi"
    builder = tensorrt.find_builder(onnxruntime.__version__, capi)
    engines = tensorrt.engines_folder(config.engine_dir)
    folder = tensorrt.engine_folder(engines, builder, sha256)

    def start(where: Path) -> Any:
        options = tensorrt.provider_options(where, input_name, side, precision)
        own, cuda = Provider(_PROVIDERS["tensorrt"].name, options), _PROVIDERS["cuda"]
        return _accelerate(model, config, [own, cuda] if _is_available("cuda") else [own])

    if folder.exists():
        try:
            return start(folder)
        except ConfigError as error:
            log.event("tensorrt_engine_not_used", folder=folder, reason=str(error))
    log.event("tensorrt_engine_building", takes="several minutes, only this once", folder=folder)
    began = time.monotonic()
    with tensorrt.new_engine(folder) as new:
        _try(start(new), input_name, side)
        # Load the stored engine too, because ONNX Runtime does not report a full disk.
        session = start(new)
        _try(session, input_name, side)
    log.event("tensorrt_engine_built", seconds=time.monotonic() - began, folder=folder)
    return session


def _try(session: Any, input_name: str, side: int) -> None:
    """Run the smallest and the largest batch.

    If TensorRT supports only parts of the graph, it builds their engines at the first run.
    """
    try:
        for batch in (tensorrt.MIN_BATCH, tensorrt.MAX_BATCH):
            session.run(None, {input_name: np.zeros((batch, 3, side, side), np.float32)})
    except Exception as error:  # onnxruntime's errors share no base but Exception
        raise _failed("tensorrt", "failed on its first pictures", error) from error


def _session(model: Path | bytes, config: EncoderConfig, providers: Sequence[Provider]) -> Any:
    options = onnxruntime.SessionOptions()
    # On the CPU, as many threads as there are cores each encode a batch (pace.py).
    options.intra_op_num_threads = 1 if providers == [_PROVIDERS["cpu"]] else threads_of(config)
    options.inter_op_num_threads = 1
    # Spinning threads take cores that other programs on the box need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only; this module itself checks what matters
    source = model if isinstance(model, bytes) else str(model)
    # Without enable_fallback=0, ONNX Runtime silently continues on the CPU if a provider fails to
    # start or to run.
    named = [(one.name, dict(one.options)) if one.options else one.name for one in providers]
    return onnxruntime.InferenceSession(source, options, providers=named, enable_fallback=0)


def _failed(provider: str, what: str, error: Exception) -> ConfigError:
    if why := cause(error, onnxruntime.__version__):
        said = reason_of(error)
        return ConfigError(
            f"[encoder] provider {provider!r} {what}: {why}. ONNX Runtime said: {said}"
        )
    return ConfigError(_no_provider(provider, f"{what} ({reason_of(error)})"))


def _no_provider(provider: str, why: str) -> str:
    names = {one.name: name for name, one in _PROVIDERS.items()}
    here = [names[p] for p in onnxruntime.get_available_providers() if p in names]
    here += [openvino_session.NAME] if openvino_session.is_installed() else []
    others = ", ".join(name for name in here if name != provider)
    return (
        f"[encoder] provider {provider!r} {why}; available: {others}. "
        f"Choose one of these, or install a build of onnxruntime with {provider}"
    )
