"""Export of a run's classifier in a process of its own, which has the libraries that it needs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fedclip_edge.errors import ConfigError
from fedclip_edge.processes.children import Children, own_command

_LASTS_S = 600.0


def make_classifier(bundle: Path, run: str, journal: Path) -> bytes:
    """Return the content of classifier.onnx, as `fedclip-edge export-classifier` writes it.

    Raises ConfigError with the last line of that command if it fails.
    """
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        out, log = Path(folder) / "classifier.onnx", Path(folder) / "log"
        words = ("--bundle", bundle, "--model", run, "--journal", journal, "--out", out)
        command = own_command("export-classifier", *map(str, words))
        code = children.start(command, log).wait(_LASTS_S)
        if code != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            last = lines[-1] if lines else f"it ended with code {code}"
            raise ConfigError(f"the classifier of {run} cannot be made: {last}")
        return out.read_bytes()
