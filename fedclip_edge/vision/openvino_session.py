"""OpenVINO on the CPU, with the interface of an ONNX Runtime session.

The package `openvino` reads the ONNX file itself, so the ordinary onnxruntime stays installed. It
can multiply in bf16 on processors that have such instructions, which onnxruntime cannot on x86.

Laws:

- OpenVINO computes in the requested numbers, or an error is raised.
- Nothing is sent or recorded about this box.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from fedclip_edge.errors import BundleError, ConfigError, reason_of
from fedclip_edge.records import F32

NAME = "openvino"  # of the provider, and of the package


class OpenvinoSession:
    """A compiled encoder; `run` works like that of onnxruntime.InferenceSession.

    As many threads as there are `requests` run at the same time; others wait.
    """

    def __init__(self, requests: Sequence[Any], name: str) -> None:
        self._free: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._free.put(request)
        self._name = name
        self._first = threading.Lock()
        self._has_run = False

    def run(self, outputs: Sequence[str], inputs: Mapping[str, F32]) -> list[F32]:
        """Return the named outputs, features (N, D), for pixels (N, 3, S, S), all float32.

        Raises BundleError if OpenVINO fails.
        """
        if self._has_run:
            return self._infer(outputs, inputs)
        # OpenVINO 2026.4 prepares its types at the first call, and hangs if two threads make it.
        with self._first:
            found = self._infer(outputs, inputs)
            self._has_run = True
            return found

    def _infer(self, outputs: Sequence[str], inputs: Mapping[str, F32]) -> list[F32]:
        request = self._free.get()
        try:
            found = request.infer(dict(inputs), share_inputs=True)
            return [np.array(found[output]) for output in outputs]  # its memory is used again
        except Exception as error:  # openvino's errors share no base but Exception
            raise BundleError(
                f"{self._name} failed; use provider 'cpu', or export the encoder again. "
                f"OpenVINO said: {reason_of(error)}"
            ) from error
        finally:
            self._free.put(request)


def is_installed() -> bool:
    """True if the package is installed; it is not imported."""
    return importlib.util.find_spec(NAME) is not None


def open_session(model: Path | bytes, name: str, threads: int, *, bf16: bool) -> OpenvinoSession:
    """Compile an ONNX file, or its bytes, for the CPU; `name` appears in messages.

    Raises ConfigError if OpenVINO is not installed, or if OpenVINO or the processor cannot run the
    encoder in these numbers.
    """
    if not is_installed():
        raise ConfigError(
            "[encoder] provider 'openvino' is not installed; install it with "
            "pip install 'fedclip-edge[openvino]', or choose provider 'cpu'"
        )
    # When it is imported, OpenVINO 2026.4 writes an id of this box to its home and sends events,
    # unless this package of its own is missing. No data may leave a box unless its owner asks.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino

        core = openvino.Core()
        if bf16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ConfigError(
                "[encoder] precision 'bf16' is not possible: this processor has no bf16 "
                "instructions; choose precision 'fp32'"
            )
        wanted = openvino.Type.bf16 if bf16 else openvino.Type.f32
        compiled = core.compile_model(
            core.read_model(model),
            "CPU",
            {
                # By default OpenVINO computes in bf16 where it can, whatever the file has.
                "INFERENCE_PRECISION_HINT": wanted,
                # A batch on each core (pace.py), so no core waits for another.
                "PERFORMANCE_HINT": "THROUGHPUT",
                "NUM_STREAMS": threads,
                "INFERENCE_NUM_THREADS": threads,
                "ENABLE_CPU_PINNING": False,  # other programs on the box need the cores too
            },
        )
        got = compiled.get_property("INFERENCE_PRECISION_HINT")
        if got != wanted:
            raise ConfigError(
                f"[encoder] provider 'openvino' computes in {got} and not in {wanted}; choose "
                "another precision, or provider 'cpu'"
            )
        requests = [compiled.create_infer_request() for _ in range(threads)]
        return OpenvinoSession(requests, name)
    except ConfigError:
        raise
    except Exception as error:  # openvino's errors share no base but Exception
        raise ConfigError(
            f"[encoder] provider 'openvino' cannot run {name}; choose provider 'cpu'. OpenVINO "
            f"said: {reason_of(error)}"
        ) from error
