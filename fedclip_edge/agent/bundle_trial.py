"""The trial of a fetched bundle, in a child process with limited resources, before it is used.

    python -m fedclip_edge.agent.bundle_trial FOLDER SETTINGS     SETTINGS: [encoder] as JSON

The child checks that the encoder is one file, loads it, and compares its features for the golden
pictures with those of the machine that exported it. So an encoder that crashes, takes all memory or
never ends cannot take the agent with it.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import FedclipError
from fedclip_edge.processes.children import Children

_TRIAL_S = 900.0  # TensorRT builds an engine for minutes
_CPU_S = 3600  # of all threads
# Virtual memory, which ONNX Runtime reserves generously: a fixed part, and some copies of the file.
_FIXED_BYTES, _COPIES = 6 * 2**30, 8


@dataclass(eq=False)
class Trial:
    """A trial that runs."""

    child: subprocess.Popen[str]
    ends_at: float

    def end(self) -> None:
        """End the child."""
        self.child.kill()
        self.child.wait()

    def poll(self) -> str | None:
        """None while it runs; empty once the bundle has passed; otherwise the reason against it."""
        code = self.child.poll()
        if code is None and time.monotonic() < self.ends_at:
            return None
        if code is None:
            self.end()
            return f"its trial took longer than {_TRIAL_S:.0f} s"
        assert self.child.stdout is not None
        said = self.child.stdout.read().strip().splitlines()
        if code == 0:
            return ""
        return said[-1] if said else f"its trial ended with code {code}"


def start_trial(children: Children, folder: Path, encoder: EncoderConfig) -> Trial:
    """Start the trial of the bundle in `folder` with the box's encoder settings."""
    settings = json.dumps(dataclasses.asdict(encoder), default=str)
    words = [sys.executable, "-m", "fedclip_edge.agent.bundle_trial", str(folder), settings]
    child = children.start(words, None, pipe=True, errors_too=True)
    return Trial(child, time.monotonic() + _TRIAL_S)


def main(folder: Path, settings: str) -> None:
    """Check the bundle in `folder`; ends the process with a line that says what is wrong."""
    encoder = read_table(EncoderConfig, json.loads(settings), "[encoder]")
    _limit(folder, encoder)
    from fedclip_edge.vision import verification
    from fedclip_edge.vision.bundle import read_bundle
    from fedclip_edge.vision.onnx_external import check_self_contained

    try:
        bundle = read_bundle(folder)
        check_self_contained(bundle.encoder_path)
        verification.check(verification.verify(bundle, encoder), bundle)
    except FedclipError as error:
        sys.exit(" ".join(str(error).split()))
    except MemoryError:
        sys.exit("its encoder takes more memory than a trial may")


def _limit(folder: Path, encoder: EncoderConfig) -> None:
    """Limit this process. On a GPU, memory and files are not: its driver needs both."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    if encoder.runs_on == "cpu":
        sys.dont_write_bytecode = True
        size = sum(file.stat().st_size for file in folder.iterdir())
        memory = _FIXED_BYTES + _COPIES * size
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
