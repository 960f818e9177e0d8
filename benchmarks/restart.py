"""Time of an agent's start over pictures that have not changed, and of reading their features.

- start: from the start of the process to the log line `connected`, with a real agent, a broker on
  this machine, the tiny CLIP and small pictures whose features are cached. The agent lists the
  folder and opens no picture.
- features: one array of all cached features (`FeatureCache.read`), with the width of ViT-B/32.

The figures are medians.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import light

from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.transport import local_broker
from fedclip_edge.vision.bundle import read_bundle
from fedclip_edge.vision.cache import FeatureCache

LIMITS = {"start to connected, s": 3.0, "features as one array, s": 0.7}
_DEADLINE_S = 1800.0  # of the first start, which encodes all pictures
_WIDTH = 512
_BATCH = 1000  # features that are written at once


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print a JSON object as the last line")
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory() as made:
        figures = starts(Path(made), options.pictures, options.times)
        figures |= reads(Path(made) / "features.sqlite", options.features, options.times)
    missed = [name for name, limit in LIMITS.items() if figures[name] > limit]
    for name, value in figures.items():
        limit = f"  at most {LIMITS[name]:g}" if name in LIMITS else ""
        print(f"{name:30} {value:8.3f}{limit}{'  MISSED' if name in missed else ''}")
    if options.json:
        print(json.dumps(figures | {"missed": missed}))
    return 1 if missed else 0


def starts(folder: Path, pictures: int, times: int) -> dict[str, float]:
    """Start an agent over this many pictures: once to encode them, then to measure."""
    bundle = folder / "bundle"
    subprocess.run(own_command("export", "tiny", "--out", str(bundle)), check=True)
    draw(folder / "pictures", read_bundle(bundle).classes.names, pictures)
    with Children() as children:
        port = local_broker.start(children, folder / "broker").address.port
        config = folder / "agent.toml"
        config.write_text(
            f'id = "cam-01"\nfleet = "{light.FLEET}"\nbundle = "{bundle}"\nstate_dir = "state"\n'
            f'[data]\nfolder = "pictures"\n[broker]\nport = {port}\n'
        )
        took = [start(children, config, folder / f"{number}.log") for number in range(times + 1)]
    return {"start to connected, s": statistics.median(took[1:])}


def start(children: Children, config: Path, log: Path) -> float:
    """Start the agent, wait until it has connected, end it; return the seconds until then."""
    began = time.monotonic()
    agent = children.start(own_command("agent", str(config), "--json"), log)
    while b'"connected"' not in log.read_bytes():
        if agent.poll() is not None or time.monotonic() - began > _DEADLINE_S:
            raise RuntimeError(f"the agent ended, or takes too long: {log.read_text()}")
        time.sleep(0.01)
    took = time.monotonic() - began
    children.end(agent)
    return took


def draw(folder: Path, classes: tuple[str, ...], pictures: int) -> None:
    """Write small JPEGs that all differ: each ends with bytes that no decoder reads."""
    base = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), 120, np.uint8)).save(base, "jpeg")
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number in range(pictures):
        path = folder / classes[number % len(classes)] / f"{number:06d}.jpg"
        path.write_bytes(base.getvalue() + number.to_bytes(8, "little"))


def reads(file: Path, count: int, times: int) -> dict[str, float]:
    """Write features into a cache, and read all of them as one array."""
    hashes = [hashlib.sha256(number.to_bytes(8, "little")).hexdigest() for number in range(count)]
    random = np.random.default_rng(0)
    took = []
    with FeatureCache(file) as cache:
        for first in range(0, count, _BATCH):
            some = hashes[first : first + _BATCH]
            vectors = random.normal(size=(len(some), _WIDTH)).astype(np.float32)
            cache.put(dict(zip(some, vectors, strict=True)), "key")
    for _ in range(times):
        with FeatureCache(file) as cache:
            began = time.perf_counter()
            rows = cache.read(hashes, "key")
            took.append(time.perf_counter() - began)
        if not rows.found.all():
            raise RuntimeError("not all features were found")
    return {"features as one array, s": statistics.median(took)}


if __name__ == "__main__":
    sys.exit(main())
