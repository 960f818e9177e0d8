"""A trial of providers: each computes the golden vectors in a child process with a deadline.

    python -m fedclip_edge.vision.provider_trial FOLDER SETTINGS     SETTINGS: [encoder] as JSON

A provider can crash, take all memory, or never return: OpenVINO 2026.4 does not, if it is asked for
fp16 on an int8 encoder. A trial ends such a child, and says so.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import BundleError, ConfigError, DiskError, FedclipError
from fedclip_edge.processes.children import Children, how_it_ended

_TRIAL_S = 180.0  # ViT-L on a small processor takes a minute
_ENGINE_S = 1800.0  # TensorRT builds an engine for minutes
_LOOK_S = 0.05
_ERRORS = {error.exit_code: error for error in (ConfigError, BundleError, DiskError)}
_RESULT = "result "  # begins the line with the figures; libraries print lines of their own


@dataclass(frozen=True)
class Tried:
    """Result of one option: its speed, or the error that rules it out."""

    option: EncoderConfig
    images_per_s: float = 0.0
    differs: float = 0.0  # the largest difference, as a share of its limit
    error: FedclipError | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.option.label} refused: {self.error}"
        return f"{self.option.label} {self.images_per_s:.1f} images/s"


def try_each(
    folder: Path,
    options: Sequence[EncoderConfig],
    children: Children,
    meanwhile: Callable[[], object] = lambda: None,
) -> tuple[Tried, ...]:
    """Try the options one after the other on the bundle in `folder`.

    `meanwhile` is called many times a second. Each trial takes as long as loading the encoder, a
    few batches and a second for the speed.
    """
    return tuple(_try(folder, option, children, meanwhile) for option in options)


def _try(
    folder: Path, option: EncoderConfig, children: Children, meanwhile: Callable[[], object]
) -> Tried:
    settings = json.dumps(dataclasses.asdict(option), default=str)
    words = [sys.executable, "-m", "fedclip_edge.vision.provider_trial", str(folder), settings]
    limit_s = _ENGINE_S if option.runs_on == "tensorrt" else _TRIAL_S
    child = children.start(words, None, pipe=True, errors_too=True)
    ends_at = time.monotonic() + limit_s
    while child.poll() is None and time.monotonic() < ends_at:
        time.sleep(_LOOK_S)
        meanwhile()
    if child.poll() is None:
        child.kill()
        child.wait()
        how = f"took longer than {limit_s:.0f} s to check {folder}, and was ended"
        return Tried(option, error=_failed(option, how))
    assert child.stdout is not None
    said = [line for line in child.stdout.read().splitlines() if line.strip()]
    if child.returncode == 0:
        line = next(line for line in reversed(said) if line.startswith(_RESULT))
        return Tried(option, **json.loads(line.removeprefix(_RESULT)))
    last = said[-1].strip() if said else ""
    if child.returncode in _ERRORS:
        return Tried(option, error=_ERRORS[child.returncode](last))
    how = f"{how_it_ended(child.returncode)} while it checked {folder} ({last})"
    return Tried(option, error=_failed(option, how))


def _failed(option: EncoderConfig, how: str) -> ConfigError:
    return ConfigError(f"[encoder] provider {option.label!r} {how}; choose another provider")


def main(folder: Path, settings: str) -> None:
    """Check one option; prints its figures, or ends the process with the error's line and code."""
    from fedclip_edge.vision import verification
    from fedclip_edge.vision.bundle import read_bundle

    try:
        bundle = read_bundle(folder)
        option = read_table(EncoderConfig, json.loads(settings), "[encoder]")
        found = verification.verify(bundle, option)
        verification.check(found, bundle)
    except FedclipError as error:
        print(" ".join(str(error).split()), flush=True)  # noqa: T201
        sys.exit(error.exit_code)
    result = {"images_per_s": found.images_per_s, "differs": found.differs}
    print(_RESULT + json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
