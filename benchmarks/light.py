"""A device without pictures: the real session, loop and link, with prepared updates.

Run as a program, it is one device in a process of its own. With --gated, it reads permits from
standard input, one number per line: it takes part in that many rounds, then waits inside `fit` for
the next line. So rounds.py can measure other things in between.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from fake_learner import FakeLearner

from fedclip_edge import log
from fedclip_edge.agent import loop
from fedclip_edge.agent.publisher import will
from fedclip_edge.agent.session import Session
from fedclip_edge.agent.session_start import start_session
from fedclip_edge.agent.state_db import StateDb, open_state_db
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import RunRules
from fedclip_edge.protocol import signing
from fedclip_edge.protocol.topics import Topics
from fedclip_edge.records import Arrays, ClassTexts, Model, Plan, Role, Shapes, Update
from fedclip_edge.transport import base, mqtt
from fedclip_edge.vision.bundle import Bundle, Golden, Manifest, read_bundle, write_bundle
from fedclip_edge.vision.pictures import Preprocessing

DIM = 512  # width of ViT-B-32: an adapter of 525,312 parameters
FLEET = "bench"
# The approximate change of a parameter in one round with the reference's settings.
_STEP = 1e-4
_CONNECTS_S = 30.0
_SHAPES: Shapes = {
    "0.weight": (DIM, DIM),
    "0.bias": (DIM,),
    "2.weight": (DIM, DIM),
    "2.bias": (DIM,),
}


def make_bundle(folder: Path) -> Bundle:
    """A bundle with the width of ViT-B-32, whose encoder is never opened."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(7, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = tuple(f"class {n}" for n in range(7))
    sizes = Preprocessing(8, "shortest", 8, "bicubic", (0.5,) * 3, (0.25,) * 3)
    golden = Golden(np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, DIM), np.float32))
    made = Manifest("none", "none", "0" * 64, DIM, sizes, "none", "fp32", 18)
    texts = ClassTexts(names, vectors.astype(np.float32), 100.0, "a {}")
    return write_bundle(folder, made, b"no encoder", texts, golden)


def write_fleet(
    folder: Path,
    bundle: Bundle,
    port: int,
    rules: RunRules,
    plan: Plan,
    *,
    journal: Path,
    registry: Path | None = None,
) -> Path:
    """Write a fleet.toml for `fedclip-edge serve`."""
    path = folder / "fleet.toml"
    enrolled = "" if registry is None else f'registry = "{registry}"\n'
    path.write_text(
        f'fleet = "{FLEET}"\n{enrolled}bundle = "{bundle.folder}"\njournal = "{journal}"\n'
        f"[broker]\nport = {port}\nkeepalive_s = 60\n"
        f"[rules]\ndevices = {rules.devices}\nquorum = {rules.quorum}\n"
        f"deadline_s = {rules.deadline_s}\ngrace_s = {rules.grace_s}\n"
        f"upload_slots = {rules.upload_slots}\n"
        f'[plan]\nmethod = "{plan.method}"\nrounds = {plan.rounds}\nvote = "{plan.vote}"\n'
        f'codec_up = "{plan.codec_up}"\n'
        f'codec_down = "{plan.codec_down}"\n'
    )
    return path


@dataclass(eq=False)
class ReadyUpdates:
    """Updates generated from `seed` before the first round and returned in turn."""

    seed: int
    permits: int | None = None  # None: no limit; at 0, wait for a line with more
    count: int = 4  # number of generated updates
    _drawn: list[Arrays] = field(default_factory=list)
    _given: int = 0

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        for _ in range(self.count):
            terms = {
                name: (_STEP * random.standard_normal(shape)).astype(np.float32)
                for name, shape in _SHAPES.items()
            }
            self._drawn.append(terms)

    def next(self, model: Model) -> Update:
        if self.permits is not None:
            while not self.permits:
                self.permits = int(sys.stdin.readline() or 2**31)
            self.permits -= 1
        self._given += 1
        return Update("sum", 1, self._drawn[self._given % self.count])


def state_of(folder: Path, name: str) -> Path:
    state = folder / name
    state.mkdir(parents=True, exist_ok=True)
    return state


def connect(
    folder: Path,
    bundle: Bundle,
    broker: BrokerAddress,
    name: str,
    updates: ReadyUpdates,
    *,
    roles: tuple[Role, ...] = ("train", "evaluate"),
) -> Callable[[StateDb], Session]:
    """Connect a device; its session begins once it gets its state file."""
    state = state_of(folder, name)
    config = AgentConfig(name, FLEET, DataConfig(state), state, "", roles, bundle=bundle.folder)
    me = signing.load_or_create(state / "device.key")
    incarnation = secrets.token_hex(8)
    learner = FakeLearner(
        _SHAPES,
        name,
        updates.next,
        accuracy={"zero_shot": 0.5, "federated": 0.5},
        roles=roles,
    )
    link = mqtt.PahoTransport(
        broker,
        base.device_client(FLEET, name, incarnation),
        Topics(FLEET).for_device(name),
        will(config, me, incarnation),
    )
    link.connect(_CONNECTS_S)
    return lambda state_db: start_session(
        config=config,
        incarnation=incarnation,
        encoder_id=bundle.manifest.encoder_id,
        classes_digest=bundle.classes.digest,
        learner=learner,
        identity=me,
        transport=link,
        state_db=state_db,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument(
        "--gated", action="store_true", help="read permits from standard input before each round"
    )
    options = parser.parse_args()
    log.use_json(True)
    begin = connect(
        options.folder,
        read_bundle(options.bundle),
        BrokerAddress(port=options.port, keepalive_s=60),
        options.name,
        ReadyUpdates(options.seed, permits=0 if options.gated else None),
    )
    session = begin(open_state_db(state_of(options.folder, options.name) / "parked.sqlite"))
    try:
        loop.loop(session, once=True)
    finally:
        session.say_goodbye()
        session.transport.close()
        session.state_db.close()


if __name__ == "__main__":
    main()
