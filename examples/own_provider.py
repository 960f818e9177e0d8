"""An execution provider outside the package, checked with the golden vectors of a bundle.

    fedclip-edge export tiny --out bundle
    python examples/own_provider.py bundle

It runs the encoder on the CPU and on ONNX Runtime's own OpenVINO provider, which is not the package
`openvino` that the product uses. If ONNX Runtime was built without it, it ends with an error that
says so.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import FedclipError
from fedclip_edge.vision import verification
from fedclip_edge.vision.bundle import Bundle, read_bundle
from fedclip_edge.vision.encoder import Provider, register

NAME = "openvino-ep"
# FP32, because every provider computes a float32 encoder in float32.
OPENVINO = Provider("OpenVINOExecutionProvider", {"device_type": "CPU", "precision": "FP32"})


def check(bundle: Bundle, provider: str) -> None:
    """Compare this box's features with the golden vectors; print each figure and its limit."""
    # The cast is for the type checker: EncoderConfig lists the product's own names.
    found = verification.verify(bundle, EncoderConfig(provider=cast("Any", provider)))
    for figure in found.figures:
        print(f"{provider:<12} {figure.name:<33} {figure.found:.1e}, at most {figure.allowed:.0e}")
    verification.check(found, bundle)
    print(f"{provider:<12} passes, {found.images_per_s:.0f} pictures per second")


def main() -> None:
    register(NAME, OPENVINO)
    bundle = read_bundle(Path(sys.argv[1]))
    for provider in ("cpu", NAME):
        check(bundle, provider)


if __name__ == "__main__":
    try:
        main()
    except FedclipError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
