"""The providers of this box, found without loading any of them, and their versions."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from fedclip_edge.config.agent import EncoderConfig, Provider

# ONNX Runtime has one library for each of these; its package for macOS has CoreML inside.
_LIBRARIES: Mapping[Provider, str] = {
    "cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
}
_VERSION = re.compile(r"^__version__ = [\"']([^\"']+)[\"']", re.MULTILINE)


def installed() -> tuple[Provider, ...]:
    """Return the providers that are installed, "cpu" first; whether they start is not tried."""
    runtime = _folder("onnxruntime")
    found: list[Provider] = ["cpu"]
    if _folder("openvino") is not None:
        found.append("openvino")
    if runtime is not None and sys.platform == "darwin":
        found.append("coreml")
    if runtime is not None:
        found += [name for name, file in _LIBRARIES.items() if (runtime / "capi" / file).exists()]
    return tuple(found)


def options(settings: EncoderConfig) -> tuple[EncoderConfig, ...]:
    """Return what `settings` allow: each with a provider by name and its precision.

    "auto" allows what is installed; a provider that is named may be missing.
    """
    named = installed() if settings.provider == "auto" else (settings.provider,)
    found: list[EncoderConfig] = []
    for provider in named:
        if settings.precision != "bf16":
            found.append(replace(settings, provider=provider, precision="fp32"))
        if settings.precision != "fp32" and provider == "openvino":
            found.append(replace(settings, provider=provider, precision="bf16"))
    # "auto" in bf16, without OpenVINO: its error says what to install.
    return tuple(found) or (replace(settings, provider="openvino"),)


def environment(option: EncoderConfig) -> dict[str, str]:
    """Return what decides the features of an option on this box, besides the bundle."""
    library = "openvino" if option.runs_on == "openvino" else "onnxruntime"
    return {library: _version(library), "processor": _processor()}


def _folder(package: str) -> Path | None:
    """Folder of a package, without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places))) if places else None


def _version(package: str) -> str:
    """Version of a package as it says itself; several distributions have the same module."""
    folder = _folder(package)
    if folder is None:
        return ""
    for file in (folder / "__init__.py", folder / "_version.py"):
        if file.exists() and (found := _VERSION.search(file.read_text(errors="replace"))):
            return found[1]
    described = sorted(folder.parent.glob(f"{package}-*.dist-info"))
    return described[0].name.split("-")[1].removesuffix(".dist") if described else ""


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line[:10] == "model name"), "")
    return f"{platform.machine()} {name}".strip()
