"""The costs of a fleet in continuous operation: a new class, a bundle on its way, idle memory.

All are real processes with mosquitto between them, on one machine.

- classes: a class is added while a fleet of four boxes serves. Seconds from `classes publish` to
  the run that knows it, with all boxes in it, and the pictures that were encoded again.
- delivery: the rounds of four light devices (light.py) while a bundle is delivered to ten boxes,
  and afterwards without it; and the bytes that the coordinator sends beside those of the rounds, in
  sizes of the bundle.
- memory: a coordinator that waits, after its start and after ten runs of two boxes: resident
  memory, and the part of it that it does not share with other processes (PSS).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import light
from federation import Federation
from processes import memory_mb
from system import Site, run, wait_until

from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.coordinator import control
from fedclip_edge.pki.bundle_signature import sign_bundle
from fedclip_edge.processes.children import Children, own_command
from fedclip_edge.protocol import signing
from fedclip_edge.records import ClassTexts, Plan
from fedclip_edge.transport import local_broker
from fedclip_edge.vision.bundle import Bundle, Golden, read_bundle, replace_classes, write_bundle

LIMITS = {
    "classes_s": 30.0,
    "classes_encoded_again": 0.0,
    "delivery_round_ratio": 1.5,
    "delivery_bundles_sent": 1.1,
    "memory_after_start_mb": 100.0,
    "memory_after_runs_mb": 100.0,
}
_BOXES = 4
_FETCHING = 10
_PICTURES = 20  # of each class, on each box
_RUNS = 10
_WAIT_S = 600.0


def classes(folder: Path) -> dict[str, float]:
    """Add a class to a running fleet."""
    folder.mkdir()
    with Children() as children, _site(children, folder) as site:
        exporter = signing.create_identity()
        sign_bundle(site.bundle.folder, exporter)
        names = [f"box-{number}" for number in range(_BOXES)]
        for name in names:
            extra = f'export_key = "{exporter.key}"'
            agent = site.write_agent(name, per_class=_PICTURES, extra=extra)
            site.start("agent", agent, "--json", log=name)
        fleet = site.write_fleet(_BOXES, 1, method="ridge")
        site.start("serve", fleet, "--json", log="serve")
        for name in ("serve", *names):
            _wait(site, name, "run_done", 1)
        newer = folder / "newer"
        old = site.bundle.classes
        vectors = np.concatenate([old.vectors, np.eye(1, old.vectors.shape[1], dtype=np.float32)])
        subprocess.run(["cp", "-r", str(site.bundle.folder), str(newer)], check=True)
        more = ClassTexts((*old.names, "a new class"), vectors, old.logit_scale, old.prompt)
        replace_classes(read_bundle(newer), more)
        sign_bundle(newer, exporter)
        seen = {name: len(site.events(name)) for name in names}
        began = time.monotonic()
        _checked(run("classes", "publish", newer, fleet))
        _checked(run("run", "start", fleet))
        socket = control.socket_path(fleet.with_name("journal.sqlite"))

        def is_open() -> bool:
            found = control.ask(socket, "status")
            is_new = found["run"]["phase"] != "gathering"
            return bool(is_new and found["counts"].get("online", 0) == _BOXES)

        wait_until(is_open, "the new run", _WAIT_S)
        seconds = time.monotonic() - began
        for name in ("serve", *names):
            _wait(site, name, "run_done", 2)
        ready = [
            event
            for name in names
            for event in site.events(name)[seen[name] :]
            if event["event"] == "features_ready"
        ]
        assert len(ready) >= _BOXES, "every box has the new classes"
    return {
        "classes_s": seconds,
        "classes_pictures": float(_BOXES * _PICTURES * len(old.names)),
        "classes_encoded_again": float(sum(event["encoded"] for event in ready)),
    }


def delivery(folder: Path, megabytes: int, rounds: int) -> dict[str, float]:
    """Deliver a bundle to ten boxes while a run goes on."""
    folder.mkdir()
    exporter = signing.create_identity()
    bundle = large_bundle(folder / "bundle", megabytes)
    signed = sign_bundle(bundle.folder, exporter)
    size_bytes = sum(signed.sizes.values())
    with Children() as children:
        port = local_broker.start(children, folder / "broker").address.port
        with Site(folder, bundle, BrokerAddress(port=port), light.FLEET) as site:
            boxes = [f"fetches-{number}" for number in range(_FETCHING)]
            processes = []
            for name in boxes:
                extra = f'export_key = "{exporter.key}"\nroles = ["evaluate"]'
                path = site.write_agent(name, per_class=1, extra=extra)
                path.write_text(path.read_text().replace(f'bundle = "{bundle.folder}"\n', ""))
                processes.append(site.start("agent", path, "--json", log=name))
            for name in boxes:
                _wait(site, name, "connected", 1)
            plan = Plan("fedclip", rounds=1_000_000, vote="off")
            rules = RunRules(devices=4, quorum=1.0)
            fleet = Federation(children, folder / "fleet", port, rules, plan, bundle=bundle)
            fleet.permit(10_000_000)
            for name in boxes:
                _wait(site, name, "bundle_fetching", 1)
            while not fleet.closed.empty():
                fleet.closed.get()
            with_it = _closes(fleet, lambda: not any(_is_fetched(site, name) for name in boxes))
            for name, process in zip(boxes, processes, strict=True):
                _wait_for_any(site, name, ("bundle_tried", "bundle_refused"))
                process.terminate()
                process.wait()
            socket = control.socket_path(folder / "fleet" / "journal.sqlite")
            delivered = control.ask(socket, "status")
            while not fleet.closed.empty():
                fleet.closed.get()
            without = [fleet.next_closed().at_s for _ in range(rounds + 1)]
            after = control.ask(socket, "status")
            fleet.end()
    lasts = {
        "delivery_rounds_with": [b - a for a, b in pairwise(with_it)],
        "delivery_rounds_without": [b - a for a, b in pairwise(without)],
    }
    figures = {name: float(len(its)) for name, its in lasts.items()}
    medians = {name: statistics.median(its) for name, its in lasts.items()}
    closed = delivered["run"]["rounds_closed"]
    more = after["run"]["rounds_closed"] - closed
    a_round = (after["traffic"]["up"] - delivered["traffic"]["up"]) / more
    beside = delivered["traffic"]["up"] - closed * a_round
    return {
        "delivery_bundle_mb": size_bytes / 1e6,
        **figures,
        "delivery_round_with_s": medians["delivery_rounds_with"],
        "delivery_round_without_s": medians["delivery_rounds_without"],
        "delivery_round_ratio": medians["delivery_rounds_with"]
        / medians["delivery_rounds_without"],
        "delivery_sent_a_round_mb": a_round / 1e6,
        "delivery_bundles_sent": beside / size_bytes,
    }


def large_bundle(folder: Path, megabytes: int) -> Bundle:
    """The bundle of light.py with an encoder of so many megabytes, nearly all of them unused."""
    made = light.make_bundle(folder)
    side, dim = made.manifest.preprocessing.image_size, made.manifest.dim
    random = np.random.default_rng(0)
    weight = random.normal(size=(3 * side * side, dim)).astype(np.float32)
    ballast = random.normal(size=megabytes * 250_000).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["pixel_values"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["image_features"]),
        ],
        "encoder",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["n", dim])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(ballast, "ballast")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    pixels = random.normal(size=(2, 3, side, side)).astype(np.float32)
    golden = Golden(pixels, pixels.reshape(2, -1) @ weight)
    return write_bundle(
        folder,
        replace(made.manifest, files={}, opset=17),
        model.SerializeToString(),
        made.classes,
        golden,
        replace_existing=True,
    )


def memory(folder: Path) -> dict[str, float]:
    """Measure a coordinator that waits."""
    folder.mkdir()
    figures: dict[str, float] = {}
    with Children() as children, _site(children, folder) as site:
        fleet = site.write_fleet(2, 1, method="ridge")
        serve = site.start("serve", fleet, "--json", log="serve")
        _wait(site, "serve", "waiting", 1)

        def measure(when: str) -> None:
            time.sleep(2.0)  # the last writes of a run
            figures[f"memory_{when}_mb"] = memory_mb(serve.pid)
            figures[f"memory_{when}_pss_mb"] = pss_mb(serve.pid)

        measure("after_start")
        for name in ("box-0", "box-1"):
            agent = site.write_agent(name, per_class=_PICTURES)
            site.start("agent", agent, "--json", log=name)
        for count in range(1, _RUNS + 1):
            _wait(site, "serve", "run_done", count)
            if count < _RUNS:
                _checked(run("run", "start", fleet))
        measure("after_runs")
    return figures


def pss_mb(process: int) -> float:
    """Memory of a process in megabytes, in which a shared page counts in part (proc(5))."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(process)


def _site(children: Children, folder: Path) -> Site:
    """A site with a bundle of the tiny CLIP, and a broker."""
    subprocess.run(own_command("export", "tiny", "--out", str(folder / "bundle")), check=True)
    broker = local_broker.start(children, folder / "broker")
    return Site(folder, read_bundle(folder / "bundle"), broker.address, light.FLEET)


def _wait(site: Site, log: str, event: str, count: int) -> None:
    def has_come() -> bool:
        return [one["event"] for one in site.events(log)].count(event) >= count

    wait_until(has_come, f"{event} in the log of {log}", _WAIT_S)


def _wait_for_any(site: Site, log: str, events: tuple[str, ...]) -> None:
    wait_until(
        lambda: any(one["event"] in events for one in site.events(log)),
        f"{events} in the log of {log}",
        _WAIT_S,
    )


def _is_fetched(site: Site, log: str) -> bool:
    """True once the box has all files, and tries the bundle."""
    return "bundle_tried" in {one["event"] for one in site.events(log)}


def _closes(fleet: Federation, goes_on: Callable[[], bool]) -> list[float]:
    """The times at which rounds are closed, while something goes on."""
    found: list[float] = []
    while goes_on():
        found.append(fleet.next_closed().at_s)
    return found


def _checked(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RuntimeError(done.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    every = ["classes", "delivery", "memory"]
    parser.add_argument("what", nargs="*", choices=[*every, []], default=[])
    parser.add_argument("--megabytes", type=int, default=92, help="size of the bundle")
    parser.add_argument("--rounds", type=int, default=100, help="rounds without a delivery")
    parser.add_argument(
        "--folder",
        type=Path,
        help="a folder on the disk to measure; default: the system's temporary folder",
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = options.what or every
    print(
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        if "classes" in wanted:
            figures |= classes(Path(made) / "classes")
        if "delivery" in wanted:
            figures |= delivery(Path(made) / "delivery", options.megabytes, options.rounds)
        if "memory" in wanted:
            figures |= memory(Path(made) / "memory")
    missed = [name for name, limit in LIMITS.items() if figures.get(name, 0.0) > limit]
    for name, value in figures.items():
        limit = f"  at most {LIMITS[name]:g}" if name in LIMITS else ""
        print(f"{name:36} {value:10.3f}{limit}{'  MISSED' if name in missed else ''}")
    if options.json:
        print(json.dumps(figures | {"missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
