"""A process with the example agent of examples/."""

from __future__ import annotations

import json
import subprocess
import sys

from checkout import ROOT
from system import Site

from fedclip_edge.learning import methods
from fedclip_edge.records import Arrays, Plan
from fedclip_edge.vision.bundle import Bundle

EXAMPLES = ROOT / "examples"


def start(site: Site, name: str, **more: str) -> subprocess.Popen[bytes]:
    settings = {
        "host": "127.0.0.1",
        "port": site.broker.port,
        "fleet": site.fleet,
        "id": name,
        "dim": site.bundle.manifest.dim,
        "encoder_id": site.bundle.manifest.encoder_id,
        "classes_digest": site.bundle.classes.digest,
        "state": str(site.folder / f"{name}.json"),
        **more,
    }
    path = site.folder / f"{name}.agent.json"
    path.write_text(json.dumps(settings))
    words = [sys.executable, str(EXAMPLES / "minimal_agent.py"), str(path)]
    return site.start_program(words, name)


def initial(plan: Plan, bundle: Bundle) -> Arrays:
    return methods.get(plan.method).initial(bundle.classes, 16, plan.seed).parameters
